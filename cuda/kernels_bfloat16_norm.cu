#include "instances_norm.cuh"
#define FASTRNN_ELEMENT __nv_bfloat16
FASTRNN_NORM_KERNELS(kNormBfloat16)
