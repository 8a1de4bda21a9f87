#include "instances.cuh"
#define FASTRNN_ELEMENT __half
FASTRNN_KERNELS(kKernelsFloat16, FASTRNN_PLAIN)
