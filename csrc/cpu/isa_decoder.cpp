// The attention decoder of one ISA. Compiled once per ISA, FASTRNN_ISA its name.
#include "decoder_backward.h"
#include "decoder_generate.h"
#include "decoder_table.h"
#include "isa.h"

namespace fastrnn {
namespace {
template <class Cell, class T>
constexpr DecoderKernels<T> kernels() {
  using Forward = DecoderForwardRun<Cell, T>;
  using Backward = DecoderBackwardRun<Cell, T>;
  using Generate = DecoderGenerateRun<Cell, T>;
  return {decoder_scratch<Forward>, decoder_call<Forward>,     decoder_scratch<Backward>,
          decoder_call<Backward>,   decoder_scratch<Generate>, decoder_call<Generate>};
}
}  // namespace
extern const DecoderTable FASTRNN_OF_ISA(decoder_table);
const DecoderTable FASTRNN_OF_ISA(decoder_table) = {{kernels<LstmCell, float>(), kernels<GruCell, float>()},
                                                    {kernels<LstmCell, double>(), kernels<GruCell, double>()}};
}  // namespace fastrnn
