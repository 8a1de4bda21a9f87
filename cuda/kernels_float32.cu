#include "instances.cuh"
#define FASTRNN_ELEMENT float
FASTRNN_PLAIN_KERNELS(kKernelsFloat32)
