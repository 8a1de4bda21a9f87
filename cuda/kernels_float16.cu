#include "instances.cuh"
#define FASTRNN_ELEMENT __half
FASTRNN_PLAIN_KERNELS(kKernelsFloat16)
