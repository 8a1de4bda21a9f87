// The attention decoder in fastrnn._cuda. Everything is checked in Python before it gets here.
#include "../csrc/bind_decoder.h"

#include "bind.h"
#include "decoder.h"

namespace py = pybind11;
using namespace fastrnn;

namespace {
template <class E>
const CudaDecoderKernels<E>& kernels_of(DecoderCell cell) {
  if constexpr (sizeof(E) == 4)
    return kDecoderFloat32[cell];
  else
    return kDecoderFloat64[cell];
}

// call(p, kernels) with p of the kind and the element type of the arguments, on a device.
template <template <class> class Params, class Call>
void run(const DecoderArguments& a, int device, const char* name, const Call& call) {
  const OnDevice guard(device);
  capability_of(device);
  const auto typed = [&](auto zero) {
    using E = decltype(zero);
    Params<E> p{};
    a.fill(p);
    check(call(p, kernels_of<E>(a.cell)), name);
  };
  a.itemsize == 4 ? typed(0.0f) : typed(0.0);
}

// found: outputs, weights, reserve, scores.
void decoder_forward(const DecoderArguments& a, int device, Address stream, int64_t slots,
                     const std::array<Address, 4>& found) {
  run<CudaDecoderForward>(a, device, "decoder_forward", [&](auto& p, const auto& kernels) {
    using E = std::remove_pointer_t<decltype(p.outputs)>;
    p.slots = slots;
    E** to[] = {&p.outputs, &p.weights, &p.reserve, &p.scores};
    for (int i = 0; i < 4; ++i) *to[i] = at<E>(found[i]);
    py::gil_scoped_release release;
    return kernels.forward(p, at<CUstream_st>(stream));
  });
}

// transposed: w_hh, w_feed, w_query, w_context, w_hidden. given: weights, reserve, doutputs, dweights. found: dh, dc,
// dgates, drecurrent, dout, dcontext, dscores, dquery, dfeed0, dshares.
void decoder_backward(const DecoderArguments& a, int device, Address stream, const std::array<Address, 5>& transposed,
                      const std::array<Address, 4>& given, const std::array<Address, 10>& found) {
  run<CudaDecoderBackward>(a, device, "decoder_backward", [&](auto& p, const auto& kernels) {
    using E = std::remove_pointer_t<decltype(p.dh)>;
    const E** matrices[] = {&p.w_hh_t, &p.w_feed_t, &p.w_query_t, &p.w_context_t, &p.w_hidden_t};
    for (int i = 0; i < 5; ++i) *matrices[i] = at<const E>(transposed[i]);
    const E** from[] = {&p.weights, &p.reserve, &p.doutputs, &p.dweights};
    for (int i = 0; i < 4; ++i) *from[i] = at<const E>(given[i]);
    E** to[] = {&p.dh,       &p.dc,      &p.dgates, &p.drecurrent, &p.dout,
                &p.dcontext, &p.dscores, &p.dquery, &p.dfeed0,     &p.dshares};
    for (int i = 0; i < 10; ++i) *to[i] = at<E>(found[i]);
    py::gil_scoped_release release;
    return kernels.backward(p, at<CUstream_st>(stream));
  });
}

// scratch: records, key_scores, outputs, logits, totals, shifts, best_scores, best, done.
void decoder_generate(const DecoderArguments& a, int device, Address stream, int64_t from, int64_t to,
                      const GenerationSizes& sizes, double temperature, uint64_t seed, const GenerationInputs& inputs,
                      const GenerationFound& found, const std::array<Address, 9>& scratch) {
  run<CudaDecoderGenerate>(a, device, "decoder_generate", [&](auto& p, const auto& kernels) {
    using E = std::remove_pointer_t<decltype(p.records)>;
    fill_generation(p, sizes, temperature, seed, inputs, found);
    p.from = from;
    p.to = to;
    E** room[] = {&p.records, &p.key_scores, &p.outputs, &p.logits, &p.totals, &p.shifts, &p.best_scores};
    for (int i = 0; i < 7; ++i) *room[i] = at<E>(scratch[i]);
    p.best = at<int64_t>(scratch[7]);
    p.done = at<uint8_t>(scratch[8]);
    py::gil_scoped_release release;
    return kernels.generate(p, at<CUstream_st>(stream));
  });
}
}  // namespace

void bind_decoder(py::module_& m) {
  bind_decoder_arguments(m);
  m.def("decoder_forward", &decoder_forward);
  m.def("decoder_backward", &decoder_backward);
  m.def("decoder_generate", &decoder_generate);
}
