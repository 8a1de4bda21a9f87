#include "instances.cuh"
#define FASTRNN_ELEMENT __half
FASTRNN_SPECIAL_KERNELS(kSpecialFloat16)
