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

// What a few queries cost is reading the keys and values, as much as this many more queries would.
constexpr int64_t kReading = 4;

// One thread where the work is not worth waking others for (2 us where they still spin, 20 us where they sleep).
template <class T, class Params>
void run(const AttentionKernels<T>& kernels, const Params& p, bool backward, RunOptions options,
         void (*kernel)(const Params&, char*, const Team&)) {
  const AttentionShape& s = p.shape;
  if (s.B * (s.Tq + kReading) * s.Tk * s.D < kernels.worth_waking) options.threads = 1;
  run_kernel(p, options, [&](int n) { return kernels.scratch(p, backward, n); }, kernel);
}
}  // namespace

template <class T>
void run_attention_forward(ScoreId score, const AttentionForward<T>& p, const RunOptions& options) {
  run(kernels<T>(score), p, false, options, kernels<T>(score).forward);
}
template <class T>
void run_attention_backward(ScoreId score, const AttentionBackward<T>& p, const RunOptions& options) {
  run(kernels<T>(score), p, true, options, kernels<T>(score).backward);
}
template void run_attention_forward<float>(ScoreId, const AttentionForward<float>&, const RunOptions&);
template void run_attention_forward<double>(ScoreId, const AttentionForward<double>&, const RunOptions&);
template void run_attention_backward<float>(ScoreId, const AttentionBackward<float>&, const RunOptions&);
template void run_attention_backward<double>(ScoreId, const AttentionBackward<double>&, const RunOptions&);
}  // namespace fastrnn
