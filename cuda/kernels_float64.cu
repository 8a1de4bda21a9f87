#include "instances.cuh"
#define FASTRNN_ELEMENT double
FASTRNN_KERNELS(kKernelsFloat64, FASTRNN_PLAIN)
