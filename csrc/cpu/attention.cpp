// Runs attention: threads and scratch.
#include "attention_table.h"
#include "engine.h"

namespace fastrnn {
namespace {
template <class T>
const AttentionKernels<T>& kernels() {
  if constexpr (std::is_same<T, float>::value)
    return cpu_table().attention->f32;
  else
    return cpu_table().attention->f64;
}

// One thread where the work is not worth waking others for (some 20 us), or where they are busy.
template <class Params, class Kernel>
void run(const Params& p, bool backward, int threads, int64_t (*scratch_bytes)(const Params&, bool, int),
         Kernel kernel) {
  const AttentionShape& s = p.shape;
  if (s.B * s.Tq * s.Tk * s.D < 200'000) threads = 1;
  struct Context {
    const Params& p;
    char* scratch;
    Kernel kernel;
  };
  for (int n : {threads > 0 ? threads : num_threads(), 1}) {
    Context context{p, thread_scratch(scratch_bytes(p, backward, n)), kernel};
    const auto work = [](void* c, const Team& team) {
      const Context& own = *static_cast<Context*>(c);
      FlushDenormals flush;
      own.kernel(own.p, own.scratch, team);
    };
    if (run_team(n, work, &context, Team())) return;
  }
}
template <class Params, class T>
int64_t scratch_of(const Params& p, bool backward, int threads) {
  return kernels<T>().additive_scratch(p, backward, threads);
}
}  // namespace

template <class T>
void run_additive_forward(const AdditiveForward<T>& p, int threads) {
  run(p, false, threads, &scratch_of<AdditiveForward<T>, T>, kernels<T>().additive_forward);
}
template <class T>
void run_additive_backward(const AdditiveBackward<T>& p, int threads) {
  run(p, true, threads, &scratch_of<AdditiveBackward<T>, T>, kernels<T>().additive_backward);
}
template void run_additive_forward<float>(const AdditiveForward<float>&, int);
template void run_additive_forward<double>(const AdditiveForward<double>&, int);
template void run_additive_backward<float>(const AdditiveBackward<float>&, int);
template void run_additive_backward<double>(const AdditiveBackward<double>&, int);
}  // namespace fastrnn
