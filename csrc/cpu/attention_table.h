#pragma once
// The attention kernels of one ISA as function pointers, see table.h.
#include "../attention.h"
#include "team.h"

namespace fastrnn {
template <class T>
struct AttentionKernels {  // scratch: additive_scratch() bytes for the whole team, 64-byte aligned
  int64_t (*additive_scratch)(const AdditiveInput<T>&, bool backward, int threads);
  void (*additive_forward)(const AdditiveForward<T>&, char* scratch, const Team&);
  void (*additive_backward)(const AdditiveBackward<T>&, char* scratch, const Team&);
};

struct AttentionTable {
  AttentionKernels<float> f32;
  AttentionKernels<double> f64;
};
}  // namespace fastrnn
