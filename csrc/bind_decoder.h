#pragma once
// The attention decoder's arguments as Python hands them over, for both engines.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <string>

#include "address.h"
#include "decoder.h"

namespace fastrnn {
struct DecoderArguments {
  int itemsize;
  DecoderCell cell;
  bool bahdanau;
  DecoderShape shape;
  // gates, memory, keys, lengths, h0, c0, feed0, w_hh, b_hh, w_feed, w_query, v, w_context, w_hidden
  std::array<Address, 14> in;
  std::array<int64_t, 3> ld;  // distances of the rows of w_feed, w_context, w_hidden

  template <class T>
  void fill(DecoderInput<T>& p) const {
    p.shape = shape;
    p.bahdanau = bahdanau;
    p.lengths = at<const int64_t>(in[3]);
    const T** to[] = {&p.gates, &p.memory, &p.keys,   nullptr,    &p.h0, &p.c0,        &p.feed0,
                      &p.w_hh,  &p.b_hh,   &p.w_feed, &p.w_query, &p.v,  &p.w_context, &p.w_hidden};
    for (int i = 0; i < 14; ++i)
      if (to[i]) *to[i] = at<const T>(in[i]);
    p.ld_feed = ld[0];
    p.ld_context = ld[1];
    p.ld_hidden = ld[2];
  }
};

// sizes: E, V, beams, end, top_k, distance of the rows of w_input. inputs: embedding, w_input, b_ih, w_vocabulary,
// b_vocabulary, first. found: tokens, parents, scores, weights, steps, ends, end_steps, end_rows, end_scores.
using GenerationSizes = std::array<int64_t, 6>;
using GenerationInputs = std::array<Address, 6>;
using GenerationFound = std::array<Address, 9>;
template <class E>
void fill_generation(DecoderGenerate<E>& p, const GenerationSizes& sizes, double temperature, uint64_t seed,
                     const GenerationInputs& inputs, const GenerationFound& found) {
  p.E = sizes[0];
  p.V = sizes[1];
  p.beams = sizes[2];
  p.end = sizes[3];
  p.top_k = sizes[4];
  p.ld_input = sizes[5];
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
}

// Where the parts of a record begin, in the order of DecoderRecord, and its size.
using RecordOffsets = std::array<int64_t, 6>;
inline RecordOffsets decoder_record(const std::string& cell, const std::array<int64_t, 7>& n, bool additive,
                                    bool bahdanau) {
  const DecoderRecord at({n[0], n[1], n[2], n[3], n[4], n[5], n[6]}, 4, cell == "lstm" ? 2 : 1, additive, bahdanau);
  return {at.c, at.h, at.query, at.context, at.out, at.size};
}

inline void bind_decoder_arguments(pybind11::module_& m) {
  namespace py = pybind11;
  py::class_<DecoderArguments>(m, "Decoder", py::module_local())
      .def(py::init([](int itemsize, const std::string& cell, bool bahdanau, const std::array<int64_t, 7>& n,
                       const std::array<Address, 14>& in, const std::array<int64_t, 3>& ld) {
        const DecoderShape shape{n[0], n[1], n[2], n[3], n[4], n[5], n[6]};
        return DecoderArguments{itemsize, cell == "lstm" ? kDecoderLstm : kDecoderGru, bahdanau, shape, in, ld};
      }));
  m.def("decoder_record", &decoder_record);
}
}  // namespace fastrnn
