#include "instances.cuh"
#define FASTRNN_ELEMENT float
FASTRNN_KERNELS(kSpecialFloat32, FASTRNN_SPECIAL)
