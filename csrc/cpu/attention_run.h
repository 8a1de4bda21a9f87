#pragma once
// Attention with any score function: scores, softmax and context of a range of queries; all gradients of a batch.
//
// A score is a class of one T: kHasV (whether it has a parameter v [D]), kFetches (whether gradients() asks for what
// comes next, as scores() does), kWorthWaking, take() its scratch, scores() and gradients(); see dot.h for the
// smallest.
#include "attention_products.h"
#include "attention_table.h"
#include "softmax.h"

namespace fastrnn {
namespace {
template <class Score, class T>
class Attention {
  static constexpr int W = Vec<T>::kWidth;

 public:
  explicit Attention(const AttentionInput<T>& p)
      : p_(p), s_(p.shape), Kp_(round_up(s_.Tk, W)), score_(p), dcontext_(s_.Dv), values_(s_.Dv) {}

  // Scratch of a member; with a null base it only measures.
  void take(Arena& arena, bool backward) {
    score_.take(arena, backward);
    rows_ = arena.take<const T*>(s_.Tq > s_.Tk ? s_.Tq : s_.Tk);
    panel_ = arena.take<T>(panel_size<T>(backward ? s_.Tq : s_.Tk));
    if (!backward) return;
    dscore_ = arena.take<T>(round_up(s_.Tq, kTile) * Kp_);
    weights_t_ = arena.take<T>(s_.Tk * s_.Tq);
    dcontext_.take(arena, s_.Tq);
    values_.take(arena, s_.Tk);
  }

  // The queries after those of forward(), and the batch after that of backward(), whose memory is fetched meanwhile.
  void expect(int64_t b, int64_t q0, int64_t q1) { next_ = {b, q0, q1}; }

  // Queries [q0, q1) of batch b.
  void forward(const AttentionForward<T>& p, int64_t b, int64_t q0, int64_t q1) {
    const int64_t keys = length_of(p.lengths, s_.Tk, b);
    T* weights = p.weights + (b * s_.Tq + q0) * s_.Tk;
    T* context = p.value ? p.context + (b * s_.Tq + q0) * s_.Dv : nullptr;
    ahead_.clear();
    if (p.value) {  // while scores are computed, what follows them, then the next scores' arguments
      ahead_.add(p.value + b * s_.Tk * s_.Dv, keys * s_.Dv * sizeof(T));
      ahead_.add(context, (q1 - q0) * s_.Dv * sizeof(T));
    }
    if (keys) score_.scores(b, q0, q1, keys, weights, ahead_);
    if (!p.value) return;
    ahead_.clear();
    if (next_.q0 < next_.q1) {
      ahead_.add(p.query + (next_.b * s_.Tq + next_.q0) * s_.D, (next_.q1 - next_.q0) * s_.D * sizeof(T));
      ahead_.add(p.key + next_.b * s_.Tk * s_.D, length_of(p.lengths, s_.Tk, next_.b) * s_.D * sizeof(T));
    }
    for (int64_t q = q0; q < q1; ++q) {
      rows_[q - q0] = weights + (q - q0) * s_.Tk;
      masked_softmax(p, b, q, keys, weights + (q - q0) * s_.Tk);
    }
    if (!keys) return fill_zero(context, (q1 - q0) * s_.Dv);
    panel_product(keys, q1 - q0, rows_, p.value + b * s_.Tk * s_.Dv, s_.Dv, s_.Dv, panel_, context, s_.Dv, ahead_);
  }

  // All gradients of batch b; that of v goes to dv [D].
  void backward(const AttentionBackward<T>& p, int64_t b, T* dv) {
    const int64_t keys = s_.Tq ? length_of(p.lengths, s_.Tk, b) : 0;
    T *dquery = p.dquery + b * s_.Tq * s_.D, *dkey = p.dkey + b * s_.Tk * s_.D;
    fill_zero(dkey + keys * s_.D, (s_.Tk - keys) * s_.D);
    if (p.value) fill_zero(p.dvalue + (b * s_.Tk + keys) * s_.Dv, (s_.Tk - keys) * s_.Dv);
    if (p.dbias && !keys) fill_zero(p.dbias + b * s_.Tq * s_.Tk, s_.Tq * s_.Tk);
    if (!keys) {
      fill_zero(dquery, s_.Tq * s_.D);
      return fill_zero(dv, Score::kHasV ? s_.D : 0);
    }
    fill_zero(dscore_ + s_.Tq * Kp_, (round_up(s_.Tq, kTile) - s_.Tq) * Kp_);
    ahead_.clear();  // while the values' gradients are computed, what follows them, then their next arguments
    if (Score::kFetches) {
      ahead_.add(p.key + b * s_.Tk * s_.D, keys * s_.D * sizeof(T));
      ahead_.add(p.query + b * s_.Tq * s_.D, s_.Tq * s_.D * sizeof(T));
      ahead_.add(dquery, s_.Tq * s_.D * sizeof(T));
      ahead_.add(dkey, keys * s_.D * sizeof(T));
    } else {
      expect_values(p);
    }
    if (p.value)
      value_gradients(p, b, keys);
    else
      for (int64_t q = 0; q < s_.Tq; ++q)
        copy_or_zero(p.dweights + (b * s_.Tq + q) * s_.Tk, s_.Tk, dscore_ + q * Kp_, Kp_);
    ahead_.clear();
    if (Score::kFetches) expect_values(p);
    score_.gradients(b, keys, dscore_, Kp_, dquery, dkey, dv, ahead_);
  }

 private:
  // What the values' gradients of the next batch need.
  void expect_values(const AttentionBackward<T>& p) {
    if (!p.value || next_.q0 == next_.q1) return;
    const int64_t keys = length_of(p.lengths, s_.Tk, next_.b);
    ahead_.add(p.dcontext + next_.b * s_.Tq * s_.Dv, s_.Tq * s_.Dv * sizeof(T));
    ahead_.add(p.value + next_.b * s_.Tk * s_.Dv, keys * s_.Dv * sizeof(T));
    ahead_.add(p.dvalue + next_.b * s_.Tk * s_.Dv, keys * s_.Dv * sizeof(T));
  }

  // dscore_, dvalue and dbias.
  void value_gradients(const AttentionBackward<T>& p, int64_t b, int64_t keys) {
    const T *weights = p.weights + b * s_.Tq * s_.Tk, *value = p.value + b * s_.Tk * s_.Dv;
    const T* dcontext = p.dcontext + b * s_.Tq * s_.Dv;
    inner_products(values_.padded(), s_.Tq, dcontext_.of(dcontext, s_.Tq), keys, values_.of(value, keys),
                   ProductTerm<T>(), T(0), T(1), dscore_, Kp_, ahead_);
    for (int64_t q = 0; q < s_.Tq; ++q) {
      const int64_t row = b * s_.Tq + q;
      T* dbias = p.dbias ? p.dbias + row * s_.Tk : nullptr;
      softmax_gradient(keys, weights + q * s_.Tk, p.dweights ? p.dweights + row * s_.Tk : nullptr, p.scale,
                       dscore_ + q * Kp_, dbias);
      if (dbias) fill_zero(dbias + keys, s_.Tk - keys);
    }
    transpose_matrix(weights, s_.Tk, s_.Tq, keys, weights_t_, s_.Tq);
    for (int64_t k = 0; k < keys; ++k) rows_[k] = weights_t_ + k * s_.Tq;
    panel_product(s_.Tq, keys, rows_, dcontext, s_.Dv, s_.Dv, panel_, p.dvalue + b * s_.Tk * s_.Dv, s_.Dv, ahead_);
  }

  const AttentionInput<T>& p_;
  const AttentionShape& s_;
  const int64_t Kp_;
  Score score_;
  PaddedRows<T> dcontext_, values_;
  Ahead ahead_;
  struct {
    int64_t b, q0, q1;
  } next_ = {0, 0, 0};
  T *panel_, *dscore_, *weights_t_;
  const T** rows_;
};

// Work is divided by batches, and forward by queries as well where batches are few.
inline int64_t query_parts(const AttentionShape& s, int threads) {
  if (s.B >= 2 * threads) return 1;
  const int64_t wanted = ceil_div(2 * threads, s.B < 1 ? 1 : s.B), most = ceil_div(s.Tq, kTile);
  return wanted < most ? wanted : most < 1 ? 1 : most;
}

template <class Score, class T>
int64_t attention_scratch(const AttentionInput<T>& p, bool backward, int threads) {
  Arena own{nullptr}, shared{nullptr};
  Attention<Score, T>(p).take(own, backward);
  shared.take<T>(backward && Score::kHasV ? p.shape.B * p.shape.D : 0);
  return threads * own.used + shared.used;
}

template <class Score, class T>
void attention_forward(const AttentionForward<T>& p, char* scratch, const Team& team) {
  Attention<Score, T> run(p);
  Arena own{nullptr};
  run.take(own, false);
  own = {scratch + team.rank * own.used};
  run.take(own, false);
  const int64_t Tq = p.shape.Tq, parts = query_parts(p.shape, team.size), items = p.shape.B * parts;
  const int64_t step = round_up(ceil_div(Tq, parts), kTile);
  const auto of = [&](int64_t i, const auto& use) {  // use(batch, first query, last)
    const int64_t q0 = i % parts * step, q1 = q0 + step < Tq ? q0 + step : Tq;
    if (i < items && q0 < q1) use(i / parts, q0, q1);
  };
  for (int64_t i = team.rank; i < items && !team.poll_stop(); i += team.size) {
    run.expect(0, 0, 0);
    of(i + team.size, [&](int64_t b, int64_t q0, int64_t q1) { run.expect(b, q0, q1); });
    of(i, [&](int64_t b, int64_t q0, int64_t q1) { run.forward(p, b, q0, q1); });
  }
}

template <class Score, class T>
void attention_backward(const AttentionBackward<T>& p, char* scratch, const Team& team) {
  Attention<Score, T> run(p);
  Arena own{nullptr};
  run.take(own, true);
  const int64_t own_bytes = own.used, D = Score::kHasV ? p.shape.D : 0;
  own = {scratch + team.rank * own_bytes};
  run.take(own, true);
  T* dv = reinterpret_cast<T*>(scratch + team.size * own_bytes);  // [B, D], then their sum
  for (int64_t b = team.rank; b < p.shape.B && !team.poll_stop(); b += team.size) {
    run.expect(b + team.size, 0, b + team.size < p.shape.B ? p.shape.Tq : 0);
    run.backward(p, b, dv + b * D);
  }
  team.sync();
  if (team.stopped()) return;
  for (int64_t d = team.rank; d < D; d += team.size) {
    T sum = 0;
    for (int64_t b = 0; b < p.shape.B; ++b) sum += dv[b * D + d];
    p.dv[d] = sum;
  }
}
}  // namespace
}  // namespace fastrnn
