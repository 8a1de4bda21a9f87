#include "instances.cuh"
#define FASTRNN_ELEMENT float
FASTRNN_SPECIAL_KERNELS(kSpecialFloat32)
