// The attention decoder in fastrnn._core. Everything is checked in Python before it gets here.
#include "bind_decoder.h"

#include "bind.h"
#include "cpu/decoder_run.h"

using namespace fastrnn;

namespace {
void decoder_forward(const DecoderArguments& a, Address outputs, Address weights, Address h, Address c, Address reserve,
                     int threads) {
  const auto call = [&](auto zero) {
    using E = decltype(zero);
    DecoderForward<E> p{};
    a.fill(p);
    p.outputs = at<E>(outputs);
    p.weights = at<E>(weights);
    p.h = at<E>(h);
    p.c = at<E>(c);
    p.reserve = at<E>(reserve);
    run_interruptible("", threads, [&](const RunOptions& options) { run_decoder_forward(a.cell, p, options); });
  };
  a.itemsize == 4 ? call(0.0f) : call(0.0);
}

// given: weights, reserve, doutputs, dweights, dh, dc. found: gradients of gates, memory, keys, h0, c0, feed0, w_hh,
// b_hh, w_feed, w_query, v, w_context, w_hidden.
void decoder_backward(const DecoderArguments& a, const std::array<Address, 6>& given,
                      const std::array<Address, 13>& found, int threads) {
  const auto call = [&](auto zero) {
    using E = decltype(zero);
    DecoderBackward<E> p{};
    a.fill(p);
    const E** from[] = {&p.weights, &p.reserve, &p.doutputs, &p.dweights, &p.dh, &p.dc};
    for (int i = 0; i < 6; ++i) *from[i] = at<const E>(given[i]);
    E** to[] = {&p.dgates, &p.dmemory, &p.dkeys,    &p.dh0, &p.dc0,        &p.dfeed0,   &p.dw_hh,
                &p.db_hh,  &p.dw_feed, &p.dw_query, &p.dv,  &p.dw_context, &p.dw_hidden};
    for (int i = 0; i < 13; ++i) *to[i] = at<E>(found[i]);
    run_interruptible("", threads, [&](const RunOptions& options) { run_decoder_backward(a.cell, p, options); });
  };
  a.itemsize == 4 ? call(0.0f) : call(0.0);
}

void decoder_generate(const DecoderArguments& a, const GenerationSizes& sizes, double temperature, uint64_t seed,
                      const GenerationInputs& inputs, const GenerationFound& found, int threads) {
  const auto call = [&](auto zero) {
    using E = decltype(zero);
    DecoderGenerate<E> p{};
    a.fill(p);
    fill_generation(p, sizes, temperature, seed, inputs, found);
    run_interruptible("", threads, [&](const RunOptions& options) { run_decoder_generate(a.cell, p, options); });
  };
  a.itemsize == 4 ? call(0.0f) : call(0.0);
}
}  // namespace

void bind_decoder(py::module_& m) {
  bind_decoder_arguments(m);
  m.def("decoder_forward", &decoder_forward);
  m.def("decoder_backward", &decoder_backward);
  m.def("decoder_generate", &decoder_generate);
}
