#pragma once
// The decoder's kernels of one ISA as function pointers, see table.h.
#include "../decoder.h"
#include "team.h"

namespace fastrnn {
template <class T>
struct DecoderKernels {  // scratch: as many bytes as the function of that name says, 64-byte aligned
  int64_t (*forward_scratch)(const DecoderForward<T>&, int threads);
  void (*forward)(const DecoderForward<T>&, char* scratch, const Team&);
  int64_t (*backward_scratch)(const DecoderBackward<T>&, int threads);
  void (*backward)(const DecoderBackward<T>&, char* scratch, const Team&);
  int64_t (*generate_scratch)(const DecoderGenerate<T>&, int threads);
  void (*generate)(const DecoderGenerate<T>&, char* scratch, const Team&);
};

struct DecoderTable {
  DecoderKernels<float> f32[kNumDecoderCells];
  DecoderKernels<double> f64[kNumDecoderCells];
};
}  // namespace fastrnn
