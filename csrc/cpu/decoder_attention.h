#pragma once
// Attention of one query at a time to memories that stay: keys and memory of a batch are laid out once, as the inner
// loops read them, and serve every step. The additive score is that of additive.h: r = 1 / (1 + P R), P = e^(2 query),
// R = e^(2 key), two terms sharing a reciprocal, and tanh itself where |query| or |key| exceeds kNear.
#include "additive.h"
#include "softmax.h"

namespace fastrnn {
namespace {
constexpr double kNear = 10.75;  // e^(2 * 2 * kNear) squared is below the largest float

template <class T>
class StepAttention {
  using V = Vec<T>;
  static constexpr int W = V::kWidth;

 public:
  // rows of memory; widths A of the keys, M of the memory. v null: dot score.
  StepAttention(int64_t rows, int64_t Tk, int64_t A, int64_t M, const T* keys, const T* memory, const T* v,
                const int64_t* lengths)
      : rows_(rows),
        Tk_(Tk),
        A_(A),
        M_(M),
        Ap_(round_up(A, 2 * W)),
        Mp_(round_up(M, W)),
        Kp_(round_up(Tk, W)),
        raw_keys_(keys),
        raw_memory_(memory),
        raw_v_(v),
        lengths_(lengths) {}

  int64_t key_width() const { return Ap_; }
  int64_t memory_width() const { return Mp_; }
  int64_t keys_of(int64_t b) const { return length_of(lengths_, Tk_, b); }

  // With a null base they only measure. What the team shares needs prepare() of every row before it is used.
  void take_shared(Arena& arena) {
    keys_ = arena.take<T>(rows_ * Tk_ * Ap_);
    memory_ = arena.take<T>(rows_ * Tk_ * Mp_);
    near_ = arena.take<uint8_t>(rows_);
  }
  void take_own(Arena& arena) {
    v_ = arena.take<T>(Ap_);
    P_ = arena.take<T>(Ap_);
    row_ = arena.take<T>(Kp_);
  }
  void begin() { copy_or_zero(raw_v_, raw_v_ ? A_ : 0, v_, Ap_); }
  void prepare(int64_t b) {
    const int64_t keys = keys_of(b);
    const T *key = raw_keys_ + b * Tk_ * A_, *memory = raw_memory_ + b * Tk_ * M_;
    near_[b] = magnitude(key, keys * A_) <= T(kNear);
    for (int64_t k = 0; k < keys; ++k) {
      T* into = keys_ + (b * Tk_ + k) * Ap_;
      for (int64_t d = 0; d < Ap_; d += W) {
        const V x = d < A_ ? load_lanes(key + k * A_ + d, A_ - d) : V(0);
        (raw_v_ && near_[b] ? exp(x + x) : x).store(into + d);
      }
      copy_or_zero(memory + k * M_, M_, memory_ + (b * Tk_ + k) * Mp_, Mp_);
    }
  }

  // query [A] readable in whole vectors; weights [Tk]; context [memory_width()].
  void forward(int64_t b, const T* query, T* weights, T* context) {
    const int64_t keys = keys_of(b);
    fill_zero(weights + keys, Tk_ - keys);
    if (!keys) return fill_zero(context, Mp_);
    scores(b, query, keys);
    softmax(keys, row_);
    for (int64_t k = 0; k < keys; ++k) weights[k] = row_[k];
    weighted_sum(memory_ + b * Tk_ * Mp_, Mp_, keys, row_, context);
  }

  // From dcontext [memory_width()] and dweights [Tk] (null = zero): dquery [key_width()]; added to: dkeys
  // [Tk, key_width()] and dv [key_width()], both without their factors (see finish_keys()), dmemory
  // [Tk, memory_width()].
  void backward(int64_t b, const T* query, const T* weights, const T* dcontext, const T* dweights, T* dquery, T* dkeys,
                T* dmemory, T* dv) {
    const int64_t keys = keys_of(b);
    if (!keys) return fill_zero(dquery, Ap_);
    const T* memory = memory_ + b * Tk_ * Mp_;
    over_keys<1>(
        keys, Mp_, [&](int64_t k) { return memory + k * Mp_; },
        [&](int64_t d, V& sum, V m) { sum = sum + V::load(dcontext + d) * m; });
    softmax_gradient(keys, weights, dweights, T(1), row_, static_cast<T*>(nullptr));
    for (int64_t k = 0; k < keys; ++k) add_scaled(weights[k], dcontext, Mp_, dmemory + k * Mp_);
    if (!raw_v_) {
      weighted_sum(keys_ + b * Tk_ * Ap_, Ap_, keys, row_, dquery);
      for (int64_t k = 0; k < keys; ++k) add_scaled(row_[k], query, round_up(A_, W), dkeys + k * Ap_);
    } else if (load_query(b, query)) {
      spread<false>(b, keys, dquery, dkeys, dv);
    } else {
      spread<true>(b, keys, dquery, dkeys, dv);
    }
  }
  // The gradient of key k in the caller's layout.
  void finish_keys(int64_t b, const T* dkeys, T* out) const {
    for (int64_t k = 0; k < Tk_; ++k)
      for (int64_t d = 0; d < A_; ++d)
        out[k * A_ + d] = k >= keys_of(b) ? T(0) : raw_v_ ? T(4) * v_[d] * dkeys[k * Ap_ + d] : dkeys[k * Ap_ + d];
  }

 private:
  // P_ = e^(2 query), or the query where r has to come from tanh; true if the first.
  bool load_query(int64_t b, const T* query) {
    const bool fast = near_[b] && magnitude(query, A_) <= T(kNear);
    for (int64_t d = 0; d < Ap_; d += W) {
      const V x = d < A_ ? load_lanes(query + d, A_ - d) : V(0);
      (fast ? exp(x + x) : x).store(P_ + d);
    }
    return fast;
  }

  // row_[k] = sum over the width of term(d, key vector), W keys at a time; kVecs vectors of a key per term.
  template <int kVecs, class Key, class Term>
  void over_keys(int64_t keys, int64_t width, Key key, Term term) {
    for (int64_t k = 0; k < keys; k += W) {
      const T* R[W];
      V sums[W];
#pragma GCC unroll 16
      for (int j = 0; j < W; ++j) {
        R[j] = key(k + j < keys ? k + j : keys - 1);  // beyond the end the last key stands in
        sums[j] = V(0);
      }
      for (int64_t d = 0; d < width; d += kVecs * W)
#pragma GCC unroll 16
        for (int j = 0; j < W; ++j) {
          if constexpr (kVecs == 1)
            term(d, sums[j], V::load(R[j] + d));
          else
            term(d, sums[j], V::load(R[j] + d), V::load(R[j] + d + W));
        }
      transpose(sums);
      for (int half = W / 2; half; half /= 2)
        for (int i = 0; i < half; ++i) sums[i] = sums[i] + sums[i + half];
      sums[0].store(row_ + k);
    }
  }
  void scores(int64_t b, const T* query, int64_t keys) {
    const T* table = keys_ + b * Tk_ * Ap_;
    const auto key = [&](int64_t k) { return table + k * Ap_; };
    if (!raw_v_)
      return over_keys<1>(keys, round_up(A_, W), key,
                          [&](int64_t d, V& sum, V R) { sum = sum + V::load(query + d) * R; });
    if (load_query(b, query))  // v0/x + v1/y = (v0 y + v1 x) / (x y)
      return over_keys<2>(keys, Ap_, key, [&](int64_t d, V& sum, V R0, V R1) {
        const V x = V(1) + V::load(P_ + d) * R0, y = V(1) + V::load(P_ + d + W) * R1;
        sum = sum - V(2) * (V::load(v_ + d) * y + V::load(v_ + d + W) * x) * quotient<false>(V(1), x * y);
      });
    for (int64_t k = 0; k < keys; ++k) {
      V sum(0);
      for (int64_t d = 0; d < A_; d += W)
        sum = sum - V(2) * V::load(v_ + d) * ratio<true>(V::load(P_ + d), raw_key(b, k, d));
      row_[k] = sum_lanes(sum);
    }
  }
  V raw_key(int64_t b, int64_t k, int64_t d) const { return load_lanes(raw_keys_ + (b * Tk_ + k) * A_ + d, A_ - d); }
  template <bool exact>
  static FASTRNN_HD V ratio(V P, V R) {
    if constexpr (exact) return V(T(0.5)) - V(T(0.5)) * tanh(P + R);
    return quotient<false>(V(1), V(1) + P * R);
  }
  static void weighted_sum(const T* table, int64_t width, int64_t keys, const T* factors, T* out) {
    int64_t d = 0;
    for (; d + 4 * W <= width; d += 4 * W) add_up<4>(table + d, width, keys, factors, out + d);
    for (; d < width; d += W) add_up<1>(table + d, width, keys, factors, out + d);
  }
  template <int N>
  static void add_up(const T* table, int64_t width, int64_t keys, const T* factors, T* out) {
    V sums[N];
    for (int j = 0; j < N; ++j) sums[j] = V(0);
    for (int64_t k = 0; k < keys; ++k) {
      const V a(factors[k]);
      for (int j = 0; j < N; ++j) sums[j] = sums[j] + a * V::load(table + k * width + j * W);
    }
    for (int j = 0; j < N; ++j) sums[j].store(out + j * W);
  }
  static void add_scaled(T factor, const T* from, int64_t n, T* to) {
    const V a(factor);
    for (int64_t d = 0; d < n; d += W) (V::load(to + d) + a * V::load(from + d)).store(to + d);
  }

  // dquery = 4 v sum g w, dkey += g w, dv += g r with w = r - r^2 and g = row_, for every vector of columns.
  template <bool exact>
  void spread(int64_t b, int64_t keys, T* dquery, T* dkeys, T* dv) {
    int64_t d = 0;
    if (!exact)
      for (; d + 4 * W <= Ap_; d += 4 * W) spread_columns<exact, 4>(b, keys, d, dquery, dkeys, dv);
    for (; d < Ap_; d += W) spread_columns<exact, 1>(b, keys, d, dquery, dkeys, dv);
  }
  template <bool exact, int N>
  void spread_columns(int64_t b, int64_t keys, int64_t d, T* dquery, T* dkeys, T* dv) {
    const T* table = keys_ + b * Tk_ * Ap_ + d;
    V P[N], dq[N], sums[N];
    for (int j = 0; j < N; ++j) {
      P[j] = V::load(P_ + d + j * W);
      dq[j] = V(0);
      sums[j] = V::load(dv + d + j * W);
    }
    for (int64_t k = 0; k < keys; ++k) {
      const V g(row_[k]);
      T* dk = dkeys + k * Ap_ + d;
#pragma GCC unroll 4
      for (int j = 0; j < N; ++j) {
        const V R = exact ? (d < A_ ? raw_key(b, k, d) : V(0)) : V::load(table + k * Ap_ + j * W);
        const V r = ratio<exact>(P[j], R), gr = g * r, w = gr - gr * r;
        dq[j] = dq[j] + w;
        sums[j] = sums[j] + gr;
        (V::load(dk + j * W) + w).store(dk + j * W);
      }
    }
    for (int j = 0; j < N; ++j) {
      (V(4) * V::load(v_ + d + j * W) * dq[j]).store(dquery + d + j * W);
      sums[j].store(dv + d + j * W);
    }
  }

  const int64_t rows_, Tk_, A_, M_, Ap_, Mp_, Kp_;
  const T *raw_keys_, *raw_memory_, *raw_v_;
  const int64_t* lengths_;
  T *keys_ = nullptr, *memory_ = nullptr, *v_ = nullptr, *P_ = nullptr, *row_ = nullptr;
  uint8_t* near_ = nullptr;
};
}  // namespace
}  // namespace fastrnn
