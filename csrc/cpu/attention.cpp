// Runs attention: threads and scratch.
#include "attention_table.h"
#include "engine.h"

namespace fastrnn {
namespace {
template <class T>
const AttentionKernels<T>& kernels(ScoreId score) {
  if constexpr (std::is_same<T, float>::value)
    return cpu_table().attention->f32[score];
  else
    return cpu_table().attention->f64[score];
}

// One thread where the work is not worth waking others for (some 20 us).
template <class T, class Params>
void run(const AttentionKernels<T>& kernels, const Params& p, bool backward, int threads,
         void (*kernel)(const Params&, char*, const Team&)) {
  const AttentionShape& s = p.shape;
  if (s.B * s.Tq * s.Tk * s.D < kernels.worth_waking) threads = 1;
  run_kernel(p, threads, [&](int n) { return kernels.scratch(p, backward, n); }, kernel);
}
}  // namespace

template <class T>
void run_attention_forward(ScoreId score, const AttentionForward<T>& p, int threads) {
  run(kernels<T>(score), p, false, threads, kernels<T>(score).forward);
}
template <class T>
void run_attention_backward(ScoreId score, const AttentionBackward<T>& p, int threads) {
  run(kernels<T>(score), p, true, threads, kernels<T>(score).backward);
}
template void run_attention_forward<float>(ScoreId, const AttentionForward<float>&, int);
template void run_attention_forward<double>(ScoreId, const AttentionForward<double>&, int);
template void run_attention_backward<float>(ScoreId, const AttentionBackward<float>&, int);
template void run_attention_backward<double>(ScoreId, const AttentionBackward<double>&, int);
}  // namespace fastrnn
