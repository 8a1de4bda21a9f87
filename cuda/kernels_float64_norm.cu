#include "instances_norm.cuh"
#define FASTRNN_ELEMENT double
FASTRNN_NORM_KERNELS(kNormFloat64)
