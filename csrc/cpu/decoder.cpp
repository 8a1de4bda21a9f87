// Runs the attention decoder: instruction set, threads and scratch.
#include "decoder_run.h"

#include <cstring>
#include <stdexcept>
#include <type_traits>

#include "engine.h"

namespace fastrnn {
extern const DecoderTable decoder_table_scalar;
#if defined(__x86_64__)
extern const DecoderTable decoder_table_avx2, decoder_table_avx512;
#endif

namespace {
template <class T>
const DecoderKernels<T>& kernels(DecoderCell cell) {
  const DecoderTable* tables[] = {
#if defined(__x86_64__)
      &decoder_table_avx512, &decoder_table_avx2,
#endif
      &decoder_table_scalar};
  for (const DecoderTable* table : tables)
    if (std::strcmp(table->isa, cpu_table().isa) == 0) {
      if constexpr (std::is_same<T, float>::value)
        return table->f32[cell];
      else
        return table->f64[cell];
    }
  throw std::logic_error("fastrnn: no decoder kernels for this instruction set");
}

// One thread where they are busy.
template <class Params>
void run(const Params& p, int threads, int64_t (*scratch_bytes)(const Params&, int),
         void (*kernel)(const Params&, char*, const Team&)) {
  struct Context {
    const Params& p;
    char* scratch;
    void (*kernel)(const Params&, char*, const Team&);
  };
  for (int n : {threads > 0 ? threads : num_threads(), 1}) {
    Context context{p, thread_scratch(scratch_bytes(p, n)), kernel};
    const auto work = [](void* c, const Team& team) {
      const Context& own = *static_cast<Context*>(c);
      FlushDenormals flush;
      own.kernel(own.p, own.scratch, team);
    };
    if (run_team(n, work, &context, Team())) return;
  }
}
// More threads than rows would have nothing to do in the loop.
int useful(int threads, int64_t rows) {
  const int n = threads > 0 ? threads : num_threads();
  return rows < n ? int(rows < 1 ? 1 : rows) : n;
}
}  // namespace

template <class T>
void run_decoder_forward(DecoderCell cell, const DecoderForward<T>& p, int threads) {
  const DecoderKernels<T>& k = kernels<T>(cell);
  run(p, useful(threads, p.shape.B), k.forward_scratch, k.forward);
}
template <class T>
void run_decoder_backward(DecoderCell cell, const DecoderBackward<T>& p, int threads) {
  const DecoderKernels<T>& k = kernels<T>(cell);
  run(p, useful(threads, p.shape.B), k.backward_scratch, k.backward);
}
// The columns of the products are divided: one thread where a barrier (some 1 us) would cost more than that saves.
template <class T>
void run_decoder_generate(DecoderCell cell, const DecoderGenerate<T>& p, int threads) {
  const DecoderKernels<T>& k = kernels<T>(cell);
  const DecoderShape& s = p.shape;
  const int64_t products = s.B * p.beams * s.H * (3 * (p.E + s.F + s.H) + s.A + s.M + p.V);
  run(p, products < 100'000 ? 1 : threads, k.generate_scratch, k.generate);
}
template void run_decoder_forward<float>(DecoderCell, const DecoderForward<float>&, int);
template void run_decoder_forward<double>(DecoderCell, const DecoderForward<double>&, int);
template void run_decoder_backward<float>(DecoderCell, const DecoderBackward<float>&, int);
template void run_decoder_backward<double>(DecoderCell, const DecoderBackward<double>&, int);
template void run_decoder_generate<float>(DecoderCell, const DecoderGenerate<float>&, int);
template void run_decoder_generate<double>(DecoderCell, const DecoderGenerate<double>&, int);
}  // namespace fastrnn
