#pragma once
// Additive attention without a tanh for every (query, key, d):
//   tanh(a + b) = 1 - 2 r,   r = 1 / (1 + P R),   P = e^(2a), R = e^(2b)
// so that the exponentials are per row, and a pair of terms shares one reciprocal. The constant sum of v drops out of
// the softmax. Where |a| or |b| exceeds kRange, products could leave the range of float: there r comes from tanh
// itself. Backward uses 1 - tanh^2 = 4 (r - r^2) and recomputes r; nothing of size Tq*Tk*D is ever stored.
#include "../attention.h"
#include "layout.h"
#include "team.h"

namespace fastrnn {
namespace {
constexpr double kRange = 10.75;  // e^(2 * 2 * kRange) squared is below the largest float

// 1/x to within 1 ulp, for x in [1, 2^125].
template <class T>
FASTRNN_HD Vec<T> reciprocal(Vec<T> x) {
  return Vec<T>(1) / x;
}
#if defined(__AVX512F__)
template <>
FASTRNN_HD Vec<float> reciprocal(Vec<float> x) {
  const Vec<float> r = _mm512_rcp14_ps(x.v);
  return r + r * (Vec<float>(1) - x * r);
}
#endif

// The rows of one batch as the inner loops read them: e^(2 row) or the row itself, padded with zeros to Dp columns.
template <class T>
class Additive {
  using V = Vec<T>;
  static constexpr int W = V::kWidth, kTile = 4;

 public:
  explicit Additive(const AdditiveInput<T>& p)
      : p_(p),
        s_(p.shape),
        Dp_(round_up(s_.D, 2 * W)),
        Kp_(round_up(s_.Tk, kMaxTileVecs * W)),
        Vp_(round_up(s_.Dv, kMaxTileVecs * W)) {}

  // Scratch of a member, and of the whole team. With a null base they only measure.
  void take(Arena& arena, bool backward) {
    P_ = arena.take<T>(s_.Tq * Dp_);
    R_ = arena.take<T>(s_.Tk * Dp_);
    v_ = arena.take<T>(Dp_);
    rows_ = arena.take<const T*>(s_.Tq);
    others_ = arena.take<const T*>(s_.Tq);
    packed_ = arena.take<T>(backward ? Kp_ * s_.Dv : Vp_ * s_.Tk);
    if (!backward) return;
    dscore_ = arena.take<T>(s_.Tq * Kp_);
    wide_ = arena.take<T>(s_.Tq * Vp_);
    dvalue_ = arena.take<T>(s_.Tk * Vp_);
    dkey_ = arena.take<T>(s_.Tk * Dp_);
  }
  int64_t width() const { return Dp_; }

  // Queries [q0, q1) of batch b.
  void forward(const AdditiveForward<T>& p, int64_t b, int64_t q0, int64_t q1) {
    const int64_t keys = length_of(p.lengths, s_.Tk, b);
    const bool exact = prepare(b, q0, q1, keys);
    T* weights = p.weights + b * s_.Tq * s_.Tk;
    T* context = p.context + b * s_.Tq * s_.Dv;
    exact ? scores<true>(q0, q1, keys, weights) : scores<false>(q0, q1, keys, weights);
    for (int64_t q = q0; q < q1; ++q) {
      softmax(b, q, keys, weights + q * s_.Tk);
      rows_[q] = weights + q * s_.Tk;
      if (!keys) fill_zero(context + q * s_.Dv, s_.Dv);
    }
    if (!keys) return;
    pack_columns(keys, s_.Dv, [&](int64_t k) { return p.value + (b * s_.Tk + k) * s_.Dv; }, packed_);
    const auto store = [&](int64_t panel, int64_t r0, int mr, const T* sums) {
      store_tile(panel, mr, sums, context + (q0 + r0) * s_.Dv, s_.Dv, s_.Dv);
    };
    matmul_rows<T, kMaxTileVecs>(keys, q1 - q0, rows_ + q0, packed_, nullptr, 0, Vp_ / (kMaxTileVecs * W), false,
                                 store);
  }

  // All gradients of batch b; that of v goes to dv [Dp], still without its factor.
  void backward(const AdditiveBackward<T>& p, int64_t b, T* dv) {
    const int64_t keys = length_of(p.lengths, s_.Tk, b);
    const bool exact = prepare(b, 0, s_.Tq, keys);
    const T* weights = p.weights + b * s_.Tq * s_.Tk;
    const T* dcontext = p.dcontext + b * s_.Tq * s_.Dv;
    T* dkey = p.dkey + b * s_.Tk * s_.D;
    T* dvalue = p.dvalue + b * s_.Tk * s_.Dv;
    fill_zero(dv, Dp_);
    fill_zero(dkey_, keys * Dp_);
    fill_zero(dvalue_, keys * Vp_);
    for (int64_t q = 0; q < s_.Tq; ++q) {
      rows_[q] = dcontext + q * s_.Dv;
      others_[q] = weights + q * s_.Tk;
    }
    if (keys) {
      score_gradients(p, b, keys, weights);
      for (int64_t q = 0; q < s_.Tq; ++q) {
        copy_or_zero(rows_[q], s_.Dv, wide_ + q * Vp_, Vp_);
        rows_[q] = wide_ + q * Vp_;
      }
      matmul_outer(s_.Tq, 64, keys, others_, rows_, 0, Vp_ / W, dvalue_, Vp_);
    }
    T* dquery = p.dquery + b * s_.Tq * s_.D;
    exact ? spread<true>(keys, dquery, dv) : spread<false>(keys, dquery, dv);
    for (int64_t k = 0; k < s_.Tk; ++k)
      for (int64_t d = 0; d < s_.D; ++d) dkey[k * s_.D + d] = k < keys ? T(4) * v_[d] * dkey_[k * Dp_ + d] : T(0);
    for (int64_t k = 0; k < s_.Tk; ++k)
      copy_or_zero(k < keys ? dvalue_ + k * Vp_ : nullptr, s_.Dv, dvalue + k * s_.Dv, s_.Dv);
  }

 private:
  // Fills P, R and v; true if r has to come from tanh. That is decided for the batch as a whole, so that results do not
  // depend on how queries are divided.
  bool prepare(int64_t b, int64_t q0, int64_t q1, int64_t keys) {
    const T *query = p_.query + b * s_.Tq * s_.D, *key = p_.key + b * s_.Tk * s_.D;
    const bool exact = !(within(query, s_.Tq * s_.D) && within(key, keys * s_.D));
    for (int64_t q = q0; q < q1; ++q) fill_row(query + q * s_.D, exact, P_ + q * Dp_);
    for (int64_t k = 0; k < keys; ++k) fill_row(key + k * s_.D, exact, R_ + k * Dp_);
    copy_or_zero(p_.v, s_.D, v_, Dp_);
    return exact;
  }
  static bool within(const T* x, int64_t n) {
    bool all = true;
    for (int64_t i = 0; i < n; ++i) all &= x[i] >= T(-kRange) && x[i] <= T(kRange);  // false for NaN
    return all;
  }
  void fill_row(const T* from, bool exact, T* into) const {
    for (int64_t d = 0; d < Dp_; d += W) {
      const V x = d < s_.D ? load_lanes(from + d, s_.D - d) : V(0);
      (exact ? x : exp(x + x)).store(into + d);
    }
  }
  template <bool exact>
  static FASTRNN_HD V ratio(V P, V R) {
    if constexpr (exact) return V(T(0.5)) - V(T(0.5)) * tanh(P + R);
    return reciprocal(V(1) + P * R);
  }

  // weights[q, k] = -2 sum of v r, four queries by four keys at a time.
  template <bool exact>
  void scores(int64_t q0, int64_t q1, int64_t keys, T* weights) const {
    for (int64_t k = 0; k < keys; k += kTile)
      for (int64_t q = q0; q < q1; q += kTile) {
        const T *P[kTile], *R[kTile];
        for (int i = 0; i < kTile; ++i) {  // beyond the end the last row stands in
          P[i] = P_ + (q + i < q1 ? q + i : q1 - 1) * Dp_;
          R[i] = R_ + (k + i < keys ? k + i : keys - 1) * Dp_;
        }
        alignas(64) T sums[kTile * kTile];
        tile<exact>(P, R, sums);
        for (int i = 0; i < kTile && q + i < q1; ++i)
          for (int j = 0; j < kTile && k + j < keys; ++j)
            weights[(q + i) * s_.Tk + k + j] = T(-2) * sums[i * kTile + j];
      }
  }
  template <bool exact>
  void tile(const T* const* P, const T* const* R, T* sums) const {
    V acc[kTile * kTile];
#pragma GCC unroll 16
    for (int i = 0; i < kTile * kTile; ++i) acc[i] = V(0);
    for (int64_t d = 0; d < Dp_; d += 2 * W) {
      const V v0 = V::load(v_ + d), v1 = V::load(v_ + d + W);
#pragma GCC unroll 4
      for (int j = 0; j < kTile; ++j) {
        const V R0 = V::load(R[j] + d), R1 = V::load(R[j] + d + W);
#pragma GCC unroll 4
        for (int i = 0; i < kTile; ++i) {
          const V P0 = V::load(P[i] + d), P1 = V::load(P[i] + d + W);
          V& sum = acc[i * kTile + j];
          if constexpr (exact) {
            sum = sum + v0 * ratio<true>(P0, R0) + v1 * ratio<true>(P1, R1);
          } else {  // v0/x + v1/y = (v0 y + v1 x) / (x y)
            const V x = V(1) + P0 * R0, y = V(1) + P1 * R1;
            sum = sum + (v0 * y + v1 * x) * reciprocal(x * y);
          }
        }
      }
    }
    // Sums over the lanes: transposed W at a time, so that they become sums of vectors.
    constexpr int kGroup = W < kTile * kTile ? W : kTile * kTile;
    for (int first = 0; first < kTile * kTile; first += kGroup) {
      V rows[W];
      for (int i = 0; i < W; ++i) rows[i] = i < kGroup ? acc[first + i] : V(0);
      transpose(rows);
      for (int half = W / 2; half; half /= 2)
        for (int i = 0; i < half; ++i) rows[i] = rows[i] + rows[i + half];
      store_lanes(rows[0], sums + first, kGroup);
    }
  }

  bool attended(int64_t b, int64_t q, int64_t k) const {
    return !p_.mask || p_.mask[b * p_.mask_stride_b + q * p_.mask_stride_q + k * p_.mask_stride_k];
  }
  // In place; a row in which nothing may be attended becomes zero.
  void softmax(int64_t b, int64_t q, int64_t keys, T* row) const {
    T highest = -INFINITY, total = 0;
    for (int64_t k = 0; k < keys; ++k) {
      if (!attended(b, q, k)) row[k] = -INFINITY;
      if (!(row[k] <= highest)) highest = row[k];  // keeps NaN
    }
    fill_zero(row + keys, s_.Tk - keys);
    if (highest == -INFINITY) return fill_zero(row, keys);
    for (int64_t k = 0; k < keys; k += W) {
      const V e = exp(load_lanes(row + k, keys - k) - V(highest));
      store_lanes(e, row + k, keys - k);
    }
    for (int64_t k = 0; k < keys; ++k) {
      if (p_.mask && !attended(b, q, k)) row[k] = 0;  // exp does not reach zero
      total += row[k];
    }
    for (int64_t k = 0; k < keys; ++k) row[k] /= total;
  }

  // dscore[q, k] = weights (dweights - sum over k of weights dweights), where dweights includes what comes through
  // context.
  void score_gradients(const AdditiveBackward<T>& p, int64_t b, int64_t keys, const T* weights) {
    pack_gates(p.value + b * s_.Tk * s_.Dv, keys, s_.Dv, 0, 1, kMaxTileVecs, packed_);
    const auto store = [&](int64_t panel, int64_t r0, int mr, const T* sums) {
      store_tile(panel, mr, sums, dscore_ + r0 * Kp_, Kp_, Kp_);
    };
    matmul_rows<T, kMaxTileVecs>(s_.Dv, s_.Tq, rows_, packed_, nullptr, 0, ceil_div(keys, kMaxTileVecs * W), false,
                                 store);
    for (int64_t q = 0; q < s_.Tq; ++q) {
      const T* a = weights + q * s_.Tk;
      const T* asked = p.dweights ? p.dweights + (b * s_.Tq + q) * s_.Tk : nullptr;
      T* g = dscore_ + q * Kp_;
      T mean = 0;
      for (int64_t k = 0; k < keys; ++k) {
        if (asked) g[k] += asked[k];
        if (a[k] != 0) mean += a[k] * g[k];  // what is not attended may hold anything
      }
      for (int64_t k = 0; k < keys; ++k) g[k] = a[k] != 0 ? a[k] * (g[k] - mean) : T(0);
    }
  }
  static void store_tile(int64_t panel, int mr, const T* sums, T* into, int64_t ld, int64_t columns) {
    for (int r = 0; r < mr; ++r)
      for (int j = 0; j < kMaxTileVecs; ++j) {
        const int64_t c = (panel * kMaxTileVecs + j) * W;
        if (c < columns) store_lanes(V::load(sums + (r * kMaxTileVecs + j) * W), into + r * ld + c, columns - c);
      }
  }

  // Gradients of queries, keys and v from those of the scores: for each vector of columns, four queries by every key.
  template <bool exact>
  void spread(int64_t keys, T* dquery, T* dv) const {
    for (int64_t d = 0; d < Dp_; d += W) {
      V dv_sum(0);
      for (int64_t q = 0; q < s_.Tq; q += kTile) {
        V P[kTile], sums[kTile];
        const T* g[kTile];
        for (int i = 0; i < kTile; ++i) {
          const int64_t row = q + i < s_.Tq ? q + i : s_.Tq - 1;
          P[i] = V::load(P_ + row * Dp_ + d);
          g[i] = dscore_ + row * Kp_;
          sums[i] = V(0);
        }
        const int rows = s_.Tq - q < kTile ? int(s_.Tq - q) : kTile;
        for (int64_t k = 0; k < keys; ++k) {
          const V R = V::load(R_ + k * Dp_ + d);
          V dk = V::load(dkey_ + k * Dp_ + d);
#pragma GCC unroll 4
          for (int i = 0; i < kTile; ++i) {
            const V r = ratio<exact>(P[i], R), gk(i < rows ? g[i][k] : T(0)), gr = gk * r;
            const V w = gr - gr * r;
            sums[i] = sums[i] + w;
            dk = dk + w;
            dv_sum = dv_sum + gr;
          }
          dk.store(dkey_ + k * Dp_ + d);
        }
        for (int i = 0; i < rows && d < s_.D; ++i)
          store_lanes(V(4) * V::load(v_ + d) * sums[i], dquery + (q + i) * s_.D + d, s_.D - d);
      }
      dv_sum.store(dv + d);
    }
  }

  const AdditiveInput<T>& p_;
  const AttentionShape& s_;
  const int64_t Dp_, Kp_, Vp_;
  T *P_, *R_, *v_, *packed_, *dscore_, *wide_, *dvalue_, *dkey_;
  const T **rows_, **others_;
};

// Work is divided by batches, and forward by queries as well where batches are few.
inline int64_t query_parts(const AttentionShape& s, int threads) {
  if (s.B >= 2 * threads) return 1;
  const int64_t wanted = ceil_div(2 * threads, s.B < 1 ? 1 : s.B), most = ceil_div(s.Tq, 4);
  return wanted < most ? wanted : most < 1 ? 1 : most;
}

template <class T>
int64_t additive_scratch(const AdditiveInput<T>& p, bool backward, int threads) {
  Additive<T> run(p);
  Arena own{nullptr}, shared{nullptr};
  run.take(own, backward);
  shared.take<T>(backward ? p.shape.B * run.width() : 0);
  return threads * own.used + shared.used;
}

template <class T>
void additive_forward(const AdditiveForward<T>& p, char* scratch, const Team& team) {
  Additive<T> run(p);
  Arena own{nullptr};
  run.take(own, false);
  own = {scratch + team.rank * own.used};
  run.take(own, false);
  const int64_t parts = query_parts(p.shape, team.size);
  for (int64_t i = team.rank; i < p.shape.B * parts; i += team.size) {
    const int64_t b = i / parts, part = i % parts;
    const int64_t step = round_up(ceil_div(p.shape.Tq, parts), 4), q0 = part * step;
    const int64_t q1 = q0 + step < p.shape.Tq ? q0 + step : p.shape.Tq;
    if (q0 < q1) run.forward(p, b, q0, q1);
  }
}

template <class T>
void additive_backward(const AdditiveBackward<T>& p, char* scratch, const Team& team) {
  Additive<T> run(p);
  Arena own{nullptr};
  run.take(own, true);
  const int64_t own_bytes = own.used;
  own = {scratch + team.rank * own_bytes};
  run.take(own, true);
  T* dv = reinterpret_cast<T*>(scratch + team.size * own_bytes);  // [B, width], then their sum
  for (int64_t b = team.rank; b < p.shape.B; b += team.size) run.backward(p, b, dv + b * run.width());
  team.sync();
  for (int64_t d = team.rank; d < p.shape.D; d += team.size) {
    T sum = 0;
    for (int64_t b = 0; b < p.shape.B; ++b) sum += dv[b * run.width() + d];
    p.dv[d] = T(-2) * sum;
  }
}
}  // namespace
}  // namespace fastrnn
