#include "instances_norm.cuh"
#define FASTRNN_ELEMENT float
FASTRNN_NORM_KERNELS(kNormFloat32)
