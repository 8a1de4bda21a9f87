#if !defined(__AVX2__) || !defined(__FMA__)
#error isa_avx2.cpp needs -mavx2 -mfma
#endif
#define FASTRNN_ISA avx2
#include "isa_body.h"
