#include "instances.cuh"
#define FASTRNN_ELEMENT __nv_bfloat16
FASTRNN_SPECIAL_KERNELS(kSpecialBfloat16)
