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

// One thread where the work is not worth waking others for (some 20 us), or where they are busy.
template <class T, class Params>
void run(const AttentionKernels<T>& kernels, const Params& p, bool backward, int threads,
         void (*kernel)(const Params&, char*, const Team&)) {
  const AttentionShape& s = p.shape;
  if (s.B * s.Tq * s.Tk * s.D < kernels.worth_waking) threads = 1;
  struct Context {
    const Params& p;
    char* scratch;
    void (*kernel)(const Params&, char*, const Team&);
  };
  for (int n : {threads > 0 ? threads : num_threads(), 1}) {
    Context context{p, thread_scratch(kernels.scratch(p, backward, n)), kernel};
    const auto work = [](void* c, const Team& team) {
      const Context& own = *static_cast<Context*>(c);
      FlushDenormals flush;
      own.kernel(own.p, own.scratch, team);
    };
    if (run_team(n, work, &context, Team())) return;
  }
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
