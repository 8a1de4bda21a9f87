#include "instances_norm.cuh"
#define FASTRNN_ELEMENT __half
FASTRNN_NORM_KERNELS(kNormFloat16)
