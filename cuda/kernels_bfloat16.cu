#include "instances.cuh"
#define FASTRNN_ELEMENT __nv_bfloat16
FASTRNN_KERNELS(kKernelsBfloat16, FASTRNN_PLAIN)
