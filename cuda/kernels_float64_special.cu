#include "instances.cuh"
#define FASTRNN_ELEMENT double
FASTRNN_SPECIAL_KERNELS(kSpecialFloat64)
