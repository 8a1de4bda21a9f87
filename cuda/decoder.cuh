#pragma once
// The loop over time of an attention decoder: a few launches a step, each over all rows and as much of the chip as its
// sums fill. What leaves the loop on CPUs leaves it here; the products after it are the caller's.
#include <array>

#include "../csrc/cells/gru.h"
#include "../csrc/cells/lstm.h"
#include "decoder.h"
#include "decoder_choice.cuh"
#include "decoder_uses.cuh"

namespace fastrnn {
// Where one step reads and writes; arrays by row.
template <class E>
struct DecoderAt {
  RowsOf<E> h, c, feed;  // before the step; feed: Luong's order
  const E* gates;        // null in generation
  E *record, *output, *weights;
  int64_t gates_stride, record_stride, output_stride, weights_stride;
};

template <class Cell, class E>
class CudaDecoder {
 public:
  CudaDecoder(const DecoderInput<E>& p, int64_t group, const uint8_t* done, cudaStream_t stream)
      : p_(p),
        s_(p.shape),
        rows_(p.shape.B * group),
        group_(group),
        done_(done),
        stream_(stream),
        at_(p.shape, Cell::kSaved, Cell::kStates, p.v != nullptr, p.bahdanau) {}

  const DecoderRecord& record() const { return at_; }
  cudaError_t status() const { return status_; }

  // scores: [rows, Tk] scratch. token and bias: the input part of the gates in generation.
  void step(const DecoderAt<E>& a, E* scores, const Factor<E>& token, const E* bias) {
    if (p_.bahdanau) {
      attend(a, scores);
      cell(a, token, bias);
    } else {
      cell(a, token, bias);
      attend(a, scores);
      product<StepOutput<E>>(s_.H,
                             {{{rows_of(a.record + at_.context, a.record_stride), p_.w_context, p_.ld_context, s_.M},
                               {rows_of(a.record + at_.h, a.record_stride), p_.w_hidden, p_.ld_hidden, s_.H}}},
                             {a.record + at_.out, a.record_stride, a.output, a.output_stride});
    }
  }

  // launch(): one kernel, unless one before it failed.
  template <class Use>
  void product(int64_t N, const std::array<Factor<E>, kFactors>& factors, const Use& use) {
    RowProducts<E, Use> p{rows_, N, {factors[0], factors[1], factors[2]}, use};
    run([&] { return launch_row_product(p, stream_); });
  }
  template <class Launch>
  void run(const Launch& launch) {
    if (status_ == cudaSuccess) status_ = launch();
  }
  static RowsOf<E> rows_of(const E* base, int64_t stride, int64_t group = 1) { return {base, stride, group}; }
  AttendedKeys<E> table(const E* from, int64_t width) const {
    return {rows_, group_, s_.Tk, width, from, p_.lengths, done_};
  }

 private:
  void cell(const DecoderAt<E>& a, const Factor<E>& token, const E* bias) {
    const RowsOf<E> feed = p_.bahdanau ? rows_of(a.record + at_.context, a.record_stride) : a.feed;
    product<StepCell<Cell, E>>(Cell::kGates * s_.H,
                               {{token, {feed, p_.w_feed, p_.ld_feed, s_.F}, {a.h, p_.w_hh, s_.H, s_.H}}},
                               {s_.H, at_.Hp, a.gates, a.gates_stride, bias, p_.b_hh, a.h, a.c, a.record,
                                a.record_stride, at_.c, at_.h, p_.bahdanau ? a.output : nullptr, a.output_stride});
  }
  void attend(const DecoderAt<E>& a, E* scores) {
    RowsOf<E> query = p_.bahdanau ? a.h : rows_of(a.record + at_.h, a.record_stride);
    if (p_.v) {
      product<StoreSum<E>>(s_.A, {{{query, p_.w_query, s_.H, s_.H}}}, {a.record + at_.query, a.record_stride});
      query = rows_of(a.record + at_.query, a.record_stride);
    }
    run([&] { return launch_key_scores<E>({table(p_.keys, s_.A), query, p_.v, nullptr, 0, scores}, stream_); });
    run([&] {
      return launch_weighted_sum<E, SoftmaxShares<E>>({table(p_.memory, s_.M),
                                                       {scores, a.weights, a.weights_stride},
                                                       query,
                                                       nullptr,
                                                       a.record + at_.context,
                                                       a.record_stride},
                                                      stream_);
    });
  }

  const DecoderInput<E>& p_;
  const DecoderShape& s_;
  const int64_t rows_, group_;
  const uint8_t* done_;
  const cudaStream_t stream_;
  const DecoderRecord at_;
  cudaError_t status_ = cudaSuccess;
};

template <class Cell, class E>
cudaError_t launch_decoder_forward(const CudaDecoderForward<E>& p, cudaStream_t stream) {
  CudaDecoder<Cell, E> decoder(p, 1, nullptr, stream);
  const DecoderShape& s = p.shape;
  const DecoderRecord& at = decoder.record();
  const int64_t stride = p.slots * at.size, T = s.T, GH = Cell::kGates * s.H;
  for (int64_t t = 0; t < T; ++t) {
    const E* before = p.reserve + (t + p.slots - 1) % p.slots * at.size;
    DecoderAt<E> a{};
    a.h = t ? decoder.rows_of(before + at.h, stride) : decoder.rows_of(p.h0, s.H);
    a.c = t ? decoder.rows_of(before + at.c, stride) : decoder.rows_of(p.c0, s.H);
    a.feed = t ? decoder.rows_of(before + at.out, stride) : decoder.rows_of(p.feed0, s.F);
    a.gates = p.gates + t * GH;
    a.gates_stride = T * GH;
    a.record = p.reserve + t % p.slots * at.size;
    a.record_stride = stride;
    a.output = p.outputs + t * s.H;
    a.output_stride = T * s.H;
    a.weights = p.weights + t * s.Tk;
    a.weights_stride = T * s.Tk;
    decoder.step(a, p.scores, {}, nullptr);
  }
  return decoder.status();
}

template <class Cell, class E>
class CudaDecoderBackwardRun {
  static constexpr int G = Cell::kGates;

 public:
  CudaDecoderBackwardRun(const CudaDecoderBackward<E>& p, cudaStream_t stream)
      : p_(p), s_(p.shape), T_(p.shape.T), GH_(G * p.shape.H), stream_(stream), decoder_(p, 1, nullptr, stream) {}

  cudaError_t run() {
    for (int64_t t = T_ - 1; t >= 0; --t) {
      if (p_.bahdanau) {
        hidden_gradient(t);
        context_gradient(t);
        attend(t);
      } else {
        output_gradient(t);
        context_gradient(t);
        attend(t);
        hidden_gradient(t);
      }
    }
    if (T_ > 0) initial_gradients();
    return decoder_.status();
  }

 private:
  using Rows = RowsOf<E>;
  using Factors = std::array<Factor<E>, kFactors>;

  const DecoderRecord& at() const { return decoder_.record(); }
  int64_t record_stride() const { return T_ * at().size; }
  const E* record(int64_t t) const { return p_.reserve + t * at().size; }
  Rows before(int64_t t, const E* initial, int64_t offset) const {
    return t ? Rows{record(t - 1) + offset, record_stride()} : Rows{initial, s_.H};
  }
  // Rows of what is kept of every step, [B, T, width]; of no width beyond the last step.
  Factor<E> kept(const E* of, int64_t t, int64_t width, const E* w) const {
    return {{of + t * width, T_ * width}, w, width, t < T_ && w ? width : 0};
  }
  // The gradients of a step's query, where they are asked of h itself.
  const E* asked_of_h(int64_t t) const { return !p_.v && t < T_ ? p_.dquery + t * s_.A : nullptr; }
  const E* given(const E* doutputs, int64_t t) const { return doutputs ? doutputs + t * s_.H : nullptr; }

  void output_gradient(int64_t t) {
    decoder_.template product<OutputGradient<E>>(
        s_.H, Factors{kept(p_.dgates, t + 1, GH_, p_.w_feed_t)},
        {record(t) + at().out, record_stride(), given(p_.doutputs, t), T_ * s_.H, p_.dout + t * s_.H});
  }
  void context_gradient(int64_t t) {
    const Factor<E> from = p_.bahdanau ? kept(p_.dgates, t, GH_, p_.w_feed_t) : kept(p_.dout, t, s_.H, p_.w_context_t);
    decoder_.template product<StoreSum<E>>(s_.M, Factors{from}, {p_.dcontext + t * s_.M, T_ * s_.M});
  }
  void attend(int64_t t) {
    const int64_t row = T_ * s_.Tk;
    decoder_.run([&] {
      return launch_key_scores<E>({decoder_.table(p_.memory, s_.M), Rows{p_.dcontext + t * s_.M, T_ * s_.M}, nullptr,
                                   p_.dweights ? p_.dweights + t * s_.Tk : nullptr, row, p_.dshares},
                                  stream_);
    });
    decoder_.run([&] {
      return launch_weighted_sum<E, GradientShares<E>>(
          {decoder_.table(p_.keys, s_.A),
           {p_.dshares, p_.weights + t * s_.Tk, p_.dscores + t * s_.Tk, row},
           Rows{record(t) + at().query, record_stride()},
           p_.v,
           p_.dquery + t * s_.A,
           T_ * s_.A},
          stream_);
    });
  }
  void hidden_gradient(int64_t t) {
    const int64_t asked = p_.bahdanau ? t + 1 : t;  // the step whose query this h is
    const Factors factors{kept(p_.drecurrent, t + 1, GH_, p_.w_hh_t), kept(p_.dquery, asked, s_.A, p_.w_query_t),
                          kept(p_.dout, t, s_.H, p_.w_hidden_t)};
    CellGradient<Cell, E> use{};
    use.H = s_.H;
    use.Hp = at().Hp;
    use.record = record(t);
    use.record_stride = record_stride();
    use.c_at = at().c;
    use.h = before(t, p_.h0, at().h);
    use.c = before(t, p_.c0, at().c);
    use.asked[0] = asked_of_h(asked);
    use.asked_stride[0] = T_ * s_.A;
    use.asked[1] = p_.bahdanau ? given(p_.doutputs, t) : nullptr;
    use.asked_stride[1] = T_ * s_.H;
    use.dh = p_.dh;
    use.dc = p_.dc;
    use.dgates = p_.dgates + t * GH_;
    use.drecurrent = p_.drecurrent + t * GH_;
    use.gates_stride = T_ * GH_;
    decoder_.product(s_.H, factors, use);
  }
  void initial_gradients() {
    StoreSum<E> of_h{p_.dh, s_.H};
    of_h.added[0] = p_.dh;
    of_h.added_stride[0] = s_.H;
    of_h.added[1] = p_.bahdanau ? asked_of_h(0) : nullptr;
    of_h.added_stride[1] = T_ * s_.A;
    decoder_.product(
        s_.H,
        Factors{kept(p_.drecurrent, 0, GH_, p_.w_hh_t), kept(p_.dquery, 0, s_.A, p_.bahdanau ? p_.w_query_t : nullptr)},
        of_h);
    if (p_.dfeed0)
      decoder_.template product<StoreSum<E>>(s_.F, Factors{kept(p_.dgates, 0, GH_, p_.w_feed_t)}, {p_.dfeed0, s_.F});
  }

  const CudaDecoderBackward<E>& p_;
  const DecoderShape& s_;
  const int64_t T_, GH_;
  const cudaStream_t stream_;
  CudaDecoder<Cell, E> decoder_;
};
template <class Cell, class E>
cudaError_t launch_decoder_backward(const CudaDecoderBackward<E>& p, cudaStream_t stream) {
  return CudaDecoderBackwardRun<Cell, E>(p, stream).run();
}

template <class Cell, class E>
cudaError_t launch_decoder_generate(const CudaDecoderGenerate<E>& p, cudaStream_t stream) {
  CudaDecoder<Cell, E> decoder(p, p.beams, p.done, stream);
  const DecoderShape& s = p.shape;
  const DecoderRecord& at = decoder.record();
  const int64_t stride = 2 * at.size;
  for (int64_t t = p.from; t < p.to; ++t) {
    const E* before = p.records + (t + 1) % 2 * at.size;
    const int64_t* parents = p.parents && t ? p.parents + t - 1 : nullptr;
    // The state of a row is that of the row which it continues; at first, that of its batch.
    const auto state = [&](int64_t offset, const E* initial, int64_t width) {
      return t ? RowsOf<E>{before + offset, stride, 1, parents, s.T} : RowsOf<E>{initial, width, p.beams};
    };
    DecoderAt<E> a{};
    a.h = state(at.h, p.h0, s.H);
    a.c = state(at.c, p.c0, s.H);
    a.feed = state(at.out, p.feed0, s.F);
    const RowsOf<E> embedded =
        t ? RowsOf<E>{p.embedding, p.E, 1, p.tokens + t - 1, s.T} : RowsOf<E>{p.embedding, p.E, p.beams, p.first, 1};
    a.record = p.records + t % 2 * at.size;
    a.record_stride = stride;
    a.output = p.outputs;
    a.output_stride = s.H;
    a.weights = p.weights + t * s.Tk;
    a.weights_stride = s.T * s.Tk;
    decoder.step(a, p.key_scores, {embedded, p.w_input, p.ld_input, p.E}, p.b_ih);
    decoder.template product<StoreSum<E>>(p.V, {{{decoder.rows_of(p.outputs, s.H), p.w_vocabulary, s.H, s.H}}},
                                          {p.logits, p.V, p.b_vocabulary});
    decoder.run([&] { return launch_choice(p, t, stream); });
  }
  return decoder.status();
}
}  // namespace fastrnn
