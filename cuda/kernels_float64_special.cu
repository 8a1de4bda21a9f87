#include "instances.cuh"
#define FASTRNN_ELEMENT double
FASTRNN_KERNELS(kSpecialFloat64, FASTRNN_SPECIAL)
