#pragma once
// The attention kernels of one ISA as function pointers, see table.h.
#include "../attention.h"
#include "team.h"

namespace fastrnn {
template <class T>
struct AttentionKernels {
  int64_t worth_waking;  // products, see attention.cpp, from which more than one thread pays
  int64_t (*scratch)(const AttentionInput<T>&, bool backward, int threads);  // bytes for the whole team
  void (*forward)(const AttentionForward<T>&, char* scratch, const Team&);   // scratch 64-byte aligned
  void (*backward)(const AttentionBackward<T>&, char* scratch, const Team&);
};

struct AttentionTable {
  AttentionKernels<float> f32[kNumScores];
  AttentionKernels<double> f64[kNumScores];
};
struct ScoreInfo {
  const char* name;
};
constexpr ScoreInfo kScores[kNumScores] = {
#define FASTRNN_INFO(name, Score) {#name},
    FASTRNN_FOR_EACH_SCORE(FASTRNN_INFO)
#undef FASTRNN_INFO
};
}  // namespace fastrnn
