#include "instances.cuh"
#define FASTRNN_ELEMENT double
FASTRNN_PLAIN_KERNELS(kKernelsFloat64)
