#include "instances.cuh"
#define FASTRNN_ELEMENT __nv_bfloat16
FASTRNN_PLAIN_KERNELS(kKernelsBfloat16)
