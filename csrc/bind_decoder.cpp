// The attention decoder in fastrnn._core. Everything is checked in Python before it gets here.
#include <array>

#include "bind.h"
#include "cpu/decoder_run.h"

using namespace fastrnn;

namespace {
struct DecoderArguments {
  int itemsize;
  DecoderCell cell;
  bool bahdanau;
  DecoderShape shape;
  // gates, memory, keys, lengths, h0, c0, feed0, w_hh, b_hh, w_feed, w_query, v, w_context, w_hidden
  std::array<Address, 14> in;

  template <class T>
  void fill(DecoderInput<T>& p) const {
    p.shape = shape;
    p.bahdanau = bahdanau;
    p.lengths = at<const int64_t>(in[3]);
    const T** to[] = {&p.gates, &p.memory, &p.keys,   nullptr,    &p.h0, &p.c0,        &p.feed0,
                      &p.w_hh,  &p.b_hh,   &p.w_feed, &p.w_query, &p.v,  &p.w_context, &p.w_hidden};
    for (int i = 0; i < 14; ++i)
      if (to[i]) *to[i] = at<const T>(in[i]);
  }
};

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

// sizes: E, V, beams, end, top_k. inputs: embedding, w_input, b_ih, w_vocabulary, b_vocabulary, first. found: tokens,
// parents, scores, weights, steps, ends, end_steps, end_rows, end_scores.
void decoder_generate(const DecoderArguments& a, const std::array<int64_t, 5>& sizes, double temperature, uint64_t seed,
                      const std::array<Address, 6>& inputs, const std::array<Address, 9>& found, int threads) {
  const auto call = [&](auto zero) {
    using E = decltype(zero);
    DecoderGenerate<E> p{};
    a.fill(p);
    p.E = sizes[0];
    p.V = sizes[1];
    p.beams = sizes[2];
    p.end = sizes[3];
    p.top_k = sizes[4];
    p.temperature = temperature;
    p.seed = seed;
    const E** from[] = {&p.embedding, &p.w_input, &p.b_ih, &p.w_vocabulary, &p.b_vocabulary};
    for (int i = 0; i < 5; ++i) *from[i] = at<const E>(inputs[i]);
    p.first = at<const int64_t>(inputs[5]);
    p.tokens = at<int64_t>(found[0]);
    p.parents = at<int64_t>(found[1]);
    p.scores = at<E>(found[2]);
    p.weights = at<E>(found[3]);
    p.steps = at<int64_t>(found[4]);
    p.ends = at<int64_t>(found[5]);
    p.end_steps = at<int64_t>(found[6]);
    p.end_rows = at<int64_t>(found[7]);
    p.end_scores = at<E>(found[8]);
    run_interruptible("", threads, [&](const RunOptions& options) { run_decoder_generate(a.cell, p, options); });
  };
  a.itemsize == 4 ? call(0.0f) : call(0.0);
}

int64_t record(const std::string& cell, const DecoderShape& shape, bool additive, bool bahdanau) {
  return cell == "lstm" ? DecoderRecord(shape, 4, 2, additive, bahdanau).size
                        : DecoderRecord(shape, 4, 1, additive, bahdanau).size;
}
DecoderShape shape_of(const std::array<int64_t, 7>& n) { return {n[0], n[1], n[2], n[3], n[4], n[5], n[6]}; }
}  // namespace

void bind_decoder(py::module_& m) {
  py::class_<DecoderArguments>(m, "Decoder")
      .def(py::init([](int itemsize, const std::string& cell, bool bahdanau, const std::array<int64_t, 7>& shape,
                       const std::array<Address, 14>& in) {
        return DecoderArguments{itemsize, cell == "lstm" ? kDecoderLstm : kDecoderGru, bahdanau, shape_of(shape), in};
      }));
  m.def("decoder_forward", &decoder_forward);
  m.def("decoder_backward", &decoder_backward);
  m.def("decoder_generate", &decoder_generate);
  m.def("decoder_record", [](const std::string& cell, const std::array<int64_t, 7>& shape, bool additive,
                             bool bahdanau) { return record(cell, shape_of(shape), additive, bahdanau); });
}
