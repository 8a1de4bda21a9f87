#pragma once
// The two products that attention is made of.
//
//   inner:  out[m, k] = offset + factor * sum over d of term(a[m][d], b[k][d])     rows where they are, nothing packed
//   panel:  out[m, n] = sum over k of a[m][k] w[k][n]                             w packed panel by panel (matmul.h)
//
// Both sum every element in one order whatever the tile, so results do not depend on how rows are divided, provided
// that a range of rows starts at a multiple of kTile. Both ask for what comes next, a line at each step of a tile.
#include "../attention.h"
#include "ahead.h"
#include "layout.h"

namespace fastrnn {
namespace {
constexpr int kTile = 4;

// into lane i: the sum over the lanes of rows[i], for the W rows. Halves are added as soon as they have been exchanged.
template <class T>
FASTRNN_HD Vec<T> row_sums(Vec<T>* rows) {
  constexpr int W = Vec<T>::kWidth;
#if defined(FASTRNN_SHUFFLE)
  const auto halve = [&](auto size) {
    constexpr int D = decltype(size)::value;
    if constexpr (D < W) {
#pragma GCC unroll 16
      for (int i = 0; i < D; ++i) {
        swap_blocks<D>(rows[i], rows[i + D], std::make_index_sequence<W>());
        rows[i] = rows[i] + rows[i + D];
      }
    }
  };
  halve(std::integral_constant<int, 8>());
  halve(std::integral_constant<int, 4>());
  halve(std::integral_constant<int, 2>());
  halve(std::integral_constant<int, 1>());
#else
  transpose(rows);
  for (int half = W / 2; half; half /= 2)
    for (int i = 0; i < half; ++i) rows[i] = rows[i] + rows[i + half];
#endif
  return rows[0];
}

// TI rows of a by TJ rows of b, n a multiple of 2 W: sums [TI][TJ]. Each accumulator has W partial sums. A term
// that says what its sums are around (kCentred) has that taken off every kCentredSteps steps of 2 W columns, so that
// what is summed, and its rounding, stays small.
constexpr int kCentredSteps = 4;
template <int TI, int TJ, class T, class Term>
void inner_tile(int64_t n, const T* const* a, const T* const* b, const Term& term, T* sums, FetchLines fetch) {
  using V = Vec<T>;
  constexpr int W = V::kWidth, kSums = TI * TJ;
  V acc[kSums];
#pragma GCC unroll 16
  for (int i = 0; i < kSums; ++i) acc[i] = V(0);
  constexpr int64_t kBlock = Term::kCentred ? kCentredSteps * 2 * W : INT64_MAX;
  for (int64_t d = 0, block = 0; d < n; ++block) {
    const int64_t end = n - d > kBlock ? d + kBlock : n;
    for (; d < end; d += 2 * W) {
      fetch();
      const auto at = term.at(d);
#pragma GCC unroll 4
      for (int j = 0; j < TJ; ++j) {
        const V b0 = V::load(b[j] + d), b1 = V::load(b[j] + d + W);
#pragma GCC unroll 4
        for (int i = 0; i < TI; ++i) {
          V& sum = acc[i * TJ + j];
          sum = term.add(sum, at, i, V::load(a[i] + d), b0, V::load(a[i] + d + W), b1);
        }
      }
    }
    if constexpr (Term::kCentred) {
      const V centre = term.centre(block);
#pragma GCC unroll 16
      for (int i = 0; i < kSums; ++i) acc[i] = acc[i] - centre;
    }
  }
  constexpr int kGroup = W < kSums ? W : kSums;
#pragma GCC unroll 8
  for (int first = 0; first < kSums; first += kGroup) {
    V rows[W];
#pragma GCC unroll 16
    for (int i = 0; i < W; ++i) rows[i] = i < kGroup ? acc[first + (i < kGroup ? i : 0)] : V(0);
    store_lanes(row_sums(rows), sums + first, kGroup);
  }
}

// out[m, k] (row stride ld) for m in [0, M), k in [0, N). At the ends there are tiles of one and two rows, for three
// the last row stands in once more: 50 by 50 rows are 12 1/2 tiles each way.
template <class T, class Term>
void inner_products(int64_t n, int64_t M, const T* const* a, int64_t N, const T* const* b, const Term& term, T offset,
                    T factor, T* out, int64_t ld, Ahead& ahead) {
  alignas(64) T sums[kTile * kTile];
  const auto tile_of = [&](auto rows, auto columns, int64_t m, int64_t k) {
    constexpr int TI = decltype(rows)::value, TJ = decltype(columns)::value;
    const T *ai[TI], *bj[TJ];
    for (int i = 0; i < TI; ++i) ai[i] = a[m + i < M ? m + i : M - 1];
    for (int j = 0; j < TJ; ++j) bj[j] = b[k + j < N ? k + j : N - 1];
    inner_tile<TI, TJ>(n, ai, bj, term, sums, ahead.next(n / Vec<T>::kWidth / 2, ai[0]));
    for (int i = 0; i < TI && m + i < M; ++i)
      for (int j = 0; j < TJ && k + j < N; ++j) out[(m + i) * ld + k + j] = offset + factor * sums[i * TJ + j];
  };
  const std::integral_constant<int, 1> one;
  const std::integral_constant<int, 2> two;
  const std::integral_constant<int, kTile> all;
  const auto rows_of = [&](auto columns, int64_t k) {
    for (int64_t m = 0; m < M; m += kTile)
      M - m == 1 ? tile_of(one, columns, m, k) : M - m == 2 ? tile_of(two, columns, m, k) : tile_of(all, columns, m, k);
  };
  for (int64_t k = 0; k < N; k += kTile) N - k <= 2 ? rows_of(two, k) : rows_of(all, k);
}

template <class T>
struct ProductTerm {
  using V = Vec<T>;
  static constexpr bool kCentred = false;
  FASTRNN_HD int at(int64_t) const { return 0; }
  FASTRNN_HD V add(V sum, int, int, V a0, V b0, V a1, V b1) const { return sum + a0 * b0 + a1 * b1; }
};

// Rows of an array [n, width] as inner_tile() reads them: where they are, or copied and padded with zeros.
template <class T>
class PaddedRows {
 public:
  explicit PaddedRows(int64_t width) : width_(width), padded_(round_up(width, 2 * Vec<T>::kWidth)) {}
  void take(Arena& arena, int64_t n) {
    rows_ = arena.take<const T*>(n);
    copy_ = arena.take<T>(width_ == padded_ ? 0 : n * padded_);
  }
  int64_t padded() const { return padded_; }
  const T* const* of(const T* from, int64_t n) {
    for (int64_t i = 0; i < n; ++i) {
      rows_[i] = from + i * width_;
      if (width_ == padded_) continue;
      copy_or_zero(rows_[i], width_, copy_ + i * padded_, padded_);
      rows_[i] = copy_ + i * padded_;
    }
    return rows_;
  }

 private:
  int64_t width_, padded_;
  const T** rows_;
  T* copy_;
};

// One row of out, columns [0, n) of at most NV vectors, w read where it is; the order of sums is that of tile().
template <int NV, class T>
void product_row(int64_t K, const T* a, const T* w, int64_t ldw, int64_t n, T* out) {
  using V = Vec<T>;
  constexpr int W = V::kWidth;
  const int64_t block = block_k(K);
  V total[NV];
  for (int j = 0; j < NV; ++j) total[j] = V(0);
  for (int64_t k0 = 0; k0 < K; k0 += block) {
    const int64_t k1 = K - k0 < block ? K : k0 + block;
    V acc[NV];
#pragma GCC unroll 8
    for (int j = 0; j < NV; ++j) acc[j] = V(0);
    for (int64_t k = k0; k < k1; ++k) {
      const V ak(a[k]);
#pragma GCC unroll 8
      for (int j = 0; j < NV; ++j) {
        const V x = n == NV * W ? V::load(w + k * ldw + j * W) : load_lanes(w + k * ldw + j * W, n - j * W);
        acc[j] = x * ak + acc[j];
      }
    }
    for (int j = 0; j < NV; ++j) total[j] = total[j] + acc[j];
  }
  for (int j = 0; j < NV && j * W < n; ++j) store_lanes(total[j], out + j * W, n - j * W);
}

// Scratch of panel_product(): one panel of K rows.
template <class T>
inline int64_t panel_size(int64_t K) {
  return K * kMaxTileVecs * Vec<T>::kWidth;
}
template <int NV, class T>
void panel_columns(int64_t K, int64_t M, const T* const* a, const T* w, int64_t ldw, int64_t n, T* panel, T* out,
                   int64_t ld, Ahead& ahead) {
  using V = Vec<T>;
  constexpr int W = V::kWidth;
  for (int64_t k = 0; k < K; ++k)
#pragma GCC unroll 4
    for (int j = 0; j < NV; ++j) {
      const V x = n == NV * W ? V::load(w + k * ldw + j * W) : load_lanes(w + k * ldw + j * W, n - j * W);
      x.store(panel + (k * NV + j) * W);
    }
  const auto store = [&](int64_t, int64_t r0, int mr, const T* sums) {
    for (int r = 0; r < mr; ++r)
      for (int j = 0; j < NV; ++j)
        store_lanes(V::load(sums + (r * NV + j) * W), out + (r0 + r) * ld + j * W, n - j * W);
  };
  matmul_rows<T, NV>(K, M, a, panel, nullptr, 0, 1, false, store, [&](int64_t k) { return ahead.next(k, panel); });
}
// out [M, N] (row stride ld); w [K, N], K at least 1, row stride ldw.
template <class T>
void panel_product(int64_t K, int64_t M, const T* const* a, const T* w, int64_t ldw, int64_t N, T* panel, T* out,
                   int64_t ld, Ahead& ahead) {
  constexpr int W = Vec<T>::kWidth;
  if (M < kTile) {  // packing would cost more than the product
    for (int64_t m = 0; m < M; ++m)
      for (int64_t n = 0; n < N; n += 8 * W) {
        T* o = out + m * ld + n;
        if (N - n >= 8 * W)
          product_row<8>(K, a[m], w + n, ldw, 8 * W, o);
        else
          for (int64_t j = 0; n + j < N; j += W)
            product_row<1>(K, a[m], w + n + j, ldw, N - n - j < W ? N - n - j : W, o + j);
      }
    return;
  }
  for (int64_t n = 0; n < N;) {
    if (N - n > (kMaxTileVecs - 1) * W) {
      const int64_t columns = N - n < kMaxTileVecs * W ? N - n : kMaxTileVecs * W;
      panel_columns<kMaxTileVecs>(K, M, a, w + n, ldw, columns, panel, out + n, ld, ahead);
      n += columns;
    } else {
      const int64_t columns = N - n < W ? N - n : W;
      panel_columns<1>(K, M, a, w + n, ldw, columns, panel, out + n, ld, ahead);
      n += columns;
    }
  }
}

// into [columns, ld_into] = the transpose of from [rows, columns].
template <class T>
void transpose_matrix(const T* from, int64_t ld, int64_t rows, int64_t columns, T* into, int64_t ld_into) {
  using V = Vec<T>;
  constexpr int W = V::kWidth;
  for (int64_t r = 0; r < rows; r += W)
    for (int64_t c = 0; c < columns; c += W) {
      V block[W];
      for (int i = 0; i < W; ++i) block[i] = r + i < rows ? load_lanes(from + (r + i) * ld + c, columns - c) : V(0);
      transpose(block);
      for (int i = 0; i < W && c + i < columns; ++i) store_lanes(block[i], into + (c + i) * ld_into + r, rows - r);
    }
}
}  // namespace
}  // namespace fastrnn
