#include "instances.cuh"
#define FASTRNN_ELEMENT __half
FASTRNN_KERNELS(kSpecialFloat16, FASTRNN_SPECIAL)
