#if !defined(__AVX512F__) || !defined(__AVX512DQ__)
#error isa_avx512.cpp needs -mavx512f -mavx512dq
#endif
#define FASTRNN_ISA avx512
#include "isa_body.h"
