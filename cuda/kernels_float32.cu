#include "instances.cuh"
#define FASTRNN_ELEMENT float
FASTRNN_KERNELS(kKernelsFloat32, FASTRNN_PLAIN)
