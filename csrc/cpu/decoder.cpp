// Runs the attention decoder: instruction set, threads and scratch.
#include "decoder_run.h"

#include <type_traits>

#include "engine.h"

namespace fastrnn {
namespace {
template <class T>
const DecoderKernels<T>& kernels(DecoderCell cell) {
  if constexpr (std::is_same<T, float>::value)
    return cpu_table().decoder->f32[cell];
  else
    return cpu_table().decoder->f64[cell];
}

template <class Params>
void run(const Params& p, RunOptions options, int threads, int64_t (*scratch_bytes)(const Params&, int),
         void (*kernel)(const Params&, char*, const Team&)) {
  options.threads = threads;
  run_kernel(p, options, [&](int n) { return scratch_bytes(p, n); }, kernel);
}
// More threads than rows would have nothing to do in the loop.
int useful(int threads, int64_t rows) {
  const int n = threads > 0 ? threads : num_threads();
  return rows < n ? int(rows < 1 ? 1 : rows) : n;
}
}  // namespace

template <class T>
void run_decoder_forward(DecoderCell cell, const DecoderForward<T>& p, const RunOptions& options) {
  const DecoderKernels<T>& k = kernels<T>(cell);
  run(p, options, useful(options.threads, p.shape.B), k.forward_scratch, k.forward);
}
template <class T>
void run_decoder_backward(DecoderCell cell, const DecoderBackward<T>& p, const RunOptions& options) {
  const DecoderKernels<T>& k = kernels<T>(cell);
  run(p, options, useful(options.threads, p.shape.B), k.backward_scratch, k.backward);
}
// The columns of the products are divided: one thread where a barrier (some 1 us) would cost more than that saves.
template <class T>
void run_decoder_generate(DecoderCell cell, const DecoderGenerate<T>& p, const RunOptions& options) {
  const DecoderKernels<T>& k = kernels<T>(cell);
  const DecoderShape& s = p.shape;
  const int64_t products = s.B * p.beams * s.H * (3 * (p.E + s.F + s.H) + s.A + s.M + p.V);
  run(p, options, products < 100'000 ? 1 : options.threads, k.generate_scratch, k.generate);
}
template void run_decoder_forward<float>(DecoderCell, const DecoderForward<float>&, const RunOptions&);
template void run_decoder_forward<double>(DecoderCell, const DecoderForward<double>&, const RunOptions&);
template void run_decoder_backward<float>(DecoderCell, const DecoderBackward<float>&, const RunOptions&);
template void run_decoder_backward<double>(DecoderCell, const DecoderBackward<double>&, const RunOptions&);
template void run_decoder_generate<float>(DecoderCell, const DecoderGenerate<float>&, const RunOptions&);
template void run_decoder_generate<double>(DecoderCell, const DecoderGenerate<double>&, const RunOptions&);
}  // namespace fastrnn
