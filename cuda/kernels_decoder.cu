// The attention decoder's kernels of every cell and element type.
#include "decoder.cuh"

namespace fastrnn {
template <class Cell, class E>
constexpr CudaDecoderKernels<E> decoder_kernels() {
  return {&launch_decoder_forward<Cell, E>, &launch_decoder_backward<Cell, E>, &launch_decoder_generate<Cell, E>};
}
const CudaDecoderKernels<float> kDecoderFloat32[] = {decoder_kernels<LstmCell, float>(),
                                                     decoder_kernels<GruCell, float>()};
const CudaDecoderKernels<double> kDecoderFloat64[] = {decoder_kernels<LstmCell, double>(),
                                                      decoder_kernels<GruCell, double>()};
}  // namespace fastrnn
