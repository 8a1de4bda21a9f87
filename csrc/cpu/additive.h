#pragma once
// The additive score of Bahdanau et al. (2015, arXiv 1409.0473), on queries and keys that have been projected,
//   score[q, k] = sum over d of v[d] f(query[q, d] + key[k, d]),
// f an activation of additive_activations.h. For tanh without a tanh for every (query, key, d):
//   tanh(a + b) = 1 - 2 r,   r = 1 / (1 + P R),   P = e^(2a), R = e^(2b)
// so that the exponentials are per row. With v folded in, v r = m / (u + u P R), u = m / v and m = max |v|, two terms
// share one division, 1/x + 1/y = (x + y) / (x y). Where these products could leave the range of float, each term has
// its own division, and beyond that r comes from tanh itself, as relu always comes from the sum.
// Backward uses 1 - tanh^2 = 4 (r - r^2) and recomputes r; nothing of size Tq*Tk*D is ever stored.
#include "../additive_activations.h"
#include "attention_products.h"

namespace fastrnn {
namespace {
// x / y, where `divide` says how. Division has a unit of its own beside the multipliers: on Zen 4 it takes 6 cycles of
// that unit but only 2 of theirs, an approximation with one Newton step 3 more, so that every second term by division
// is the fastest (3.1 cycles per vector of terms, all by approximation 3.6). Both are within 2 ulp for |y| in [2^-126,
// 2^125].
template <bool divide, class T>
FASTRNN_HD Vec<T> quotient(Vec<T> x, Vec<T> y) {
  return x / y;
}
#if defined(__AVX512F__)
template <>
FASTRNN_HD Vec<float> quotient<false>(Vec<float> x, Vec<float> y) {
  const Vec<float> r = _mm512_rcp14_ps(y.v);
  return x * (r + r * (Vec<float>(1) - y * r));
}
#endif
// Which of the four rows of a tile divide.
constexpr bool divides(int i) { return i % 2 != 0; }

// Terms of inner_tile(); a is P u and b is R, or the rows themselves for AdditiveExactTerm.
template <class T, bool pair>
struct AdditiveTerm {
  using V = Vec<T>;
  static constexpr bool kCentred = true;  // r is 1/2 where tanh is 0
  const T *u, *centres;
  struct Column {
    V u0, u1;
  };
  FASTRNN_HD Column at(int64_t d) const { return {V::load(u + d), V::load(u + d + V::kWidth)}; }
  FASTRNN_HD V centre(int64_t block) const { return V::load(centres + block * V::kWidth); }
  FASTRNN_HD V add(V sum, const Column& c, int i, V a0, V b0, V a1, V b1) const {
    const V x = c.u0 + a0 * b0, y = c.u1 + a1 * b1;
    if constexpr (pair) return sum + (divides(i) ? quotient<true>(x + y, x * y) : quotient<false>(x + y, x * y));
    return sum + quotient<true>(V(1), x) + quotient<false>(V(1), y);
  }
};
template <class Activation, class T>
struct AdditiveExactTerm {
  using V = Vec<T>;
  static constexpr bool kCentred = false;
  const T* v;
  FASTRNN_HD int64_t at(int64_t d) const { return d; }
  FASTRNN_HD V add(V sum, int64_t d, int, V a0, V b0, V a1, V b1) const {
    return sum + V::load(v + d) * Activation::apply(a0 + b0) + V::load(v + d + V::kWidth) * Activation::apply(a1 + b1);
  }
};

template <class T>
T sum_of(const T* x, int64_t n) {
  using V = Vec<T>;
  V lanes(0);
  for (int64_t i = 0; i < n; i += V::kWidth) lanes = lanes + load_lanes(x + i, n - i);
  return sum_lanes(lanes);
}
// The largest |x|; infinite if there is a NaN or an infinity.
template <class T>
T magnitude(const T* x, int64_t n) {
  using V = Vec<T>;
  V highest(0), none(0);
  for (int64_t i = 0; i < n; i += V::kWidth) {
    const V lanes = load_lanes(x + i, n - i);
    highest = max(highest, max(lanes, -lanes));
    none = none + lanes * V(0);  // NaN unless finite
  }
  T m = 0, zero = 0;
  for (int i = 0; i < V::kWidth; ++i) {
    m = m < highest.v[i] ? highest.v[i] : m;
    zero += none.v[i];
  }
  return zero == 0 ? m : T(INFINITY);
}

template <class Activation, class T>
class Additive {
  using V = Vec<T>;
  static constexpr int W = V::kWidth;

 public:
  static constexpr bool kHasV = true, kFetches = false;
  // Terms q*k*d from which a second thread pays.
  static constexpr int64_t kWorthWaking = Activation::kExponentials ? 200'000 : 400'000;

  explicit Additive(const AttentionInput<T>& p) : p_(p), s_(p.shape), Dp_(round_up(s_.D, 2 * W)) {}

  void take(Arena& arena, bool backward) {
    if (backward) {
      P_ = arena.take<T>(round_up(s_.Tq, kTile) * W);
      R_ = arena.take<T>(s_.Tk * W);
      dkey_ = arena.take<T>(s_.Tk * W);
      totals_ = arena.take<T>(round_up(s_.Tq, kTile));
      return;
    }
    P_ = arena.take<T>(s_.Tq * Dp_);
    R_ = arena.take<T>(s_.Tk * Dp_);
    u_ = arena.take<T>(Dp_);
    Pu_ = arena.take<T>(Dp_);
    centres_ = arena.take<T>(round_up(Dp_, kCentredSteps * 2 * W) / (kCentredSteps * 2));
    queries_ = arena.take<const T*>(s_.Tq);
    keys_ = arena.take<const T*>(s_.Tk);
  }

  // Scores of queries [q0, q1) of batch b into rows of into (row stride Tk), for all real keys.
  void scores(int64_t b, int64_t q0, int64_t q1, int64_t keys, T* into, Ahead& ahead) {
    const T *query = p_.query + b * s_.Tq * s_.D, *key = p_.key + b * s_.Tk * s_.D;
    T highest_v = 0, offset = 0, exponent = T(INFINITY);
    if constexpr (Activation::kExponentials) {
      highest_v = magnitude(p_.v, s_.D);
      offset = fold_v(highest_v);
      // Decided for the batch as a whole, so that results do not depend on how queries are divided. log of u P R:
      exponent = highest_exponent(query, key, keys) + log_u_;
    }
    const bool pair = exponent < T(kPairExponent), exact = !(exponent < T(kExponent));
    if (exact) copy_or_zero(p_.v, s_.D, u_, Dp_);
    for (int64_t q = q0; q < q1; ++q) queries_[q - q0] = row(query + q * s_.D, exact, Pu_, P_ + (q - q0) * Dp_);
    for (int64_t k = 0; k < keys; ++k) keys_[k] = row(key + k * s_.D, exact, nullptr, R_ + k * Dp_);
    const auto run = [&](const auto& term, T plus, T factor) {
      inner_products(Dp_, q1 - q0, queries_, keys, keys_, term, plus, factor, into, s_.Tk, ahead);
    };
    if constexpr (Activation::kExponentials) {
      if (pair) return run(AdditiveTerm<T, true>{u_, centres_}, offset, T(-2) * highest_v);
      if (!exact) return run(AdditiveTerm<T, false>{u_, centres_}, offset, T(-2) * highest_v);
    }
    run(AdditiveExactTerm<Activation, T>{u_}, T(0), T(1));
  }

  // Gradients of batch b from those of the scores, rows of dscore (row stride ld; kTile - 1 rows of zeros follow).
  void gradients(int64_t b, int64_t keys, const T* dscore, int64_t ld, T* dquery, T* dkey, T* dv, Ahead&) {
    const T *query = p_.query + b * s_.Tq * s_.D, *key = p_.key + b * s_.Tk * s_.D;
    bool exact = true;
    if constexpr (Activation::kExponentials) exact = !(highest_exponent(query, key, keys) < T(kExponent));
    for (int64_t q = 0; q < round_up(s_.Tq, kTile); ++q)
      totals_[q] = Activation::kOffset ? sum_of(dscore + q * ld, keys) : T(0);
    for (int64_t d = 0; d < s_.D; d += W) {
      const Panel panel{query + d, key + d, dquery + d, dkey + d, dv + d, load_lanes(p_.v + d, s_.D - d), s_.D - d};
      if constexpr (Activation::kExponentials)
        if (!exact) {
          spread<false>(panel, keys, dscore, ld);
          continue;
        }
      spread<true>(panel, keys, dscore, ld);
    }
  }

 private:
  // Bounds of log(u P R): a sum of two such terms, multiplied by another, has to stay below 2^125; one term below it.
  static constexpr double kPairExponent = 42.5, kExponent = 85;

  // The largest log(P R) of a batch.
  T highest_exponent(const T* query, const T* key, int64_t keys) const {
    return T(2) * (magnitude(query, s_.Tq * s_.D) + magnitude(key, keys * s_.D));
  }
  // u and what queries are multiplied by, both m / v. A v below m 2^-34 counts as zero: its term is 2^-60 m, whatever
  // the query, as in the columns beyond D. A centre is the sum of 1/(2 u) of a block's columns, lane by lane. Returns
  // what is left of the sum of v, next to nothing: what centres and v that count as zero have lost.
  T fold_v(T highest_v) {
    constexpr T kNothing = T(1152921504606846976), kSmall = T(1) / (T(1 << 17) * T(1 << 17));
    T highest_u = 1;
    double total = 0;
    for (int64_t d = 0; d < Dp_; ++d) {
      const T v = d < s_.D ? p_.v[d] : T(0), size = v < 0 ? -v : v;
      const bool counts = size > highest_v * kSmall;
      u_[d] = counts ? highest_v / v : kNothing;
      Pu_[d] = counts ? u_[d] : T(0);
      if (counts && highest_v / size > highest_u) highest_u = highest_v / size;
      total += v;
    }
    log_u_ = highest_v < T(INFINITY) ? T(::log(double(highest_u))) : T(INFINITY);
    constexpr int64_t kBlock = kCentredSteps * 2 * W;
    for (int64_t d0 = 0; d0 < Dp_; d0 += kBlock)
      for (int64_t lane = 0; lane < W; ++lane) {
        double sum = 0;
        for (int64_t d = d0 + lane; d < d0 + kBlock && d < Dp_; d += W) sum += Pu_[d] == 0 ? 0 : 0.5 / u_[d];
        T& centre = centres_[d0 / kBlock * W + lane];
        centre = T(sum);
        total -= 2 * double(highest_v) * centre;
      }
    return T(total);
  }
  // e^(2 row), times `factors` where given, or the row itself, which needs no copy where D is whole; zeros beyond D.
  const T* row(const T* from, bool exact, const T* factors, T* into) const {
    if (exact && s_.D == Dp_) return from;
    for (int64_t d = 0; d < Dp_; d += W) {
      const V x = d < s_.D ? load_lanes(from + d, s_.D - d) : V(0);
      const V y = exact ? x : exp(x + x);
      (exact || !factors ? y : y * V::load(factors + d)).store(into + d);
    }
    return into;
  }

  struct Panel {  // the W columns from d on, of n that are left
    const T *query, *key;
    T *dquery, *dkey, *dv;
    V v;
    int64_t n;
  };
  template <bool exact, bool divide>
  static FASTRNN_HD V ratio(V P, V R) {
    if constexpr (!Activation::kExponentials)
      return Activation::apply(P + R);
    else if constexpr (exact)
      return V(T(0.5)) - V(T(0.5)) * tanh(P + R);
    else
      return quotient<divide>(V(1), V(1) + P * R);
  }
  template <bool exact>
  void spread(const Panel& c, int64_t keys, const T* dscore, int64_t ld) const {
    const auto fill = [&](const T* from, int64_t rows, T* into) {
      for (int64_t i = 0; i < rows; ++i) {
        const V x = load_lanes(from + i * s_.D, c.n);
        (exact ? x : exp(x + x)).store(into + i * W);
      }
    };
    fill(c.query, s_.Tq, P_);
    fill_zero(P_ + s_.Tq * W, (round_up(s_.Tq, kTile) - s_.Tq) * W);
    fill(c.key, keys, R_);
    fill_zero(dkey_, keys * W);
    const V factor = V(Activation::kSlope) * c.v;
    V dv(0);
    for (int64_t q = 0; q < s_.Tq; q += kTile) {
      V sums[kTile] = {V(0), V(0), V(0), V(0)};
      const V gr = s_.Tq - q == 1 ? spread_tile<exact, 1>(P_ + q * W, keys, dscore + q * ld, ld, sums)
                                  : spread_tile<exact, kTile>(P_ + q * W, keys, dscore + q * ld, ld, sums);
      // The sum of g f; the difference of tanh is taken here, where both are still small.
      const V g((totals_[q] + totals_[q + 1]) + (totals_[q + 2] + totals_[q + 3]));
      dv = dv + (g + V(Activation::kFactor) * gr);
      for (int i = 0; i < kTile && q + i < s_.Tq; ++i) store_lanes(factor * sums[i], c.dquery + (q + i) * s_.D, c.n);
    }
    for (int64_t k = 0; k < keys; ++k) store_lanes(factor * V::load(dkey_ + k * W), c.dkey + k * s_.D, c.n);
    store_lanes(dv, c.dv, c.n);
  }
  // TI queries by every key: sums of g w for each query, and into dkey_ for each key. Returns the sum of g r.
  template <bool exact, int TI>
  V spread_tile(const T* queries, int64_t keys, const T* dscore, int64_t ld, V* into) const {
    V P[TI], sums[TI], total(0);
#pragma GCC unroll 4
    for (int i = 0; i < TI; ++i) {
      P[i] = V::load(queries + i * W);
      sums[i] = V(0);
    }
    for (int64_t k = 0; k < keys; ++k) {
      const V R = V::load(R_ + k * W);
      V gr[TI], w[TI];
#pragma GCC unroll 4
      for (int i = 0; i < TI; ++i) {
        const V r = divides(i) ? ratio<exact, true>(P[i], R) : ratio<exact, false>(P[i], R);
        const V g(dscore[i * ld + k]);
        gr[i] = g * r;
        w[i] = Activation::slope(g, gr[i], r);
        sums[i] = sums[i] + w[i];
      }
      total = total + sum_of_tile<TI>(gr);
      (V::load(dkey_ + k * W) + sum_of_tile<TI>(w)).store(dkey_ + k * W);
    }
#pragma GCC unroll 4
    for (int i = 0; i < TI; ++i) into[i] = sums[i];
    return total;
  }
  template <int TI>
  static FASTRNN_HD V sum_of_tile(const V* x) {
    static_assert(TI == 1 || TI == 4, "");
    if constexpr (TI == 1)
      return x[0];
    else
      return (x[0] + x[1]) + (x[2] + x[3]);
  }

  const AttentionInput<T>& p_;
  const AttentionShape& s_;
  const int64_t Dp_;
  T *P_, *R_, *dkey_, *totals_, *u_, *Pu_, *centres_;
  T log_u_;
  const T **queries_, **keys_;
};
template <class T>
using AdditiveScore = Additive<AdditiveTanh, T>;
template <class T>
using AdditiveReluScore = Additive<AdditiveRelu, T>;
}  // namespace
}  // namespace fastrnn
