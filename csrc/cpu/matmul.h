#pragma once
// The two products that recurrent layers are made of, on packed panels.
//
//   rows:   out[r, n] = bias[n] + sum_k a[r][k] w[k, n]     a given as row pointers, w packed     (tile)
//   outer:  out[m, n]  = sum_k a[k][m] b[k][n]              rows of a and b given as pointers     (outer_tile)
//
// A panel holds NV vectors of output columns for every k, contiguous: [k][NV*W]. A tile keeps MR x NV sums in
// registers. Every output is summed in the same order whatever the tile, so results do not depend on how rows are
// split: blocks of block_k(K) products, each from zero, added in order, which keeps rounding error below that of one
// long chain.
#include "vec.h"

namespace fastrnn {
namespace {
// At 32 the float32 error of every cell is below torch's at H = 64; from K = 128 on, 64 suffices and costs less.
inline int64_t block_k(int64_t K) { return K <= 64 ? 32 : 64; }

template <class T>
struct TileShape {  // registers: MR*NV sums + NV weights + 1 broadcast
  static constexpr int kRegisters = kVecBytes == 64 ? 32 : 16;
  static constexpr int max_rows(int nv) {
    return kRegisters == 32 ? (nv == 4 ? 6 : nv == 3 ? 8 : 8) : (nv == 4 ? 3 : nv == 3 ? 4 : 4);
  }
};
constexpr int kMaxTileRows = 8;
constexpr int kMaxTileVecs = 4;

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
inline int64_t round_up(int64_t a, int64_t b) { return ceil_div(a, b) * b; }

// What a tile may ask of memory at each of its steps, see FetchLines in ahead.h.
struct FetchNothing {
  FASTRNN_HD void operator()() const {}
};

template <class T, int MR, int NV, class Fetch>
void tile(int64_t K, const T* const* a, const T* w, const T* bias, T* out, Fetch fetch) {
  using V = Vec<T>;
  constexpr int W = V::kWidth;
  const T* row[MR];
  for (int r = 0; r < MR; ++r) row[r] = a[r];
  const int64_t block = block_k(K);
  for (int64_t k0 = 0; k0 == 0 || k0 < K; k0 += block) {
    const int64_t k1 = K - k0 < block ? K : k0 + block;
    V acc[MR][NV];
#pragma GCC unroll 8
    for (int r = 0; r < MR; ++r)
#pragma GCC unroll 4
      for (int j = 0; j < NV; ++j) acc[r][j] = V(0);
    for (int64_t k = k0; k < k1; ++k, w += NV * W) {
      fetch();
      V wk[NV];
#pragma GCC unroll 4
      for (int j = 0; j < NV; ++j) wk[j] = V::load(w + j * W);
#pragma GCC unroll 8
      for (int r = 0; r < MR; ++r) {
        const V b(row[r][k]);
#pragma GCC unroll 4
        for (int j = 0; j < NV; ++j) acc[r][j] = wk[j] * b + acc[r][j];
      }
    }
#pragma GCC unroll 8
    for (int r = 0; r < MR; ++r)
#pragma GCC unroll 4
      for (int j = 0; j < NV; ++j) {
        T* o = out + (r * NV + j) * W;
        const V base = k0 ? V::load(o) : bias ? V::load(bias + j * W) : V(0);
        (base + acc[r][j]).store(o);
      }
  }
}

template <class T, int NV, class Fetch = FetchNothing>
inline void tile_rows(int mr, int64_t K, const T* const* a, const T* w, const T* bias, T* out, Fetch fetch = {}) {
  constexpr int kMax = TileShape<T>::max_rows(NV);
  switch (mr) {
    case 1:
      return tile<T, 1, NV>(K, a, w, bias, out, fetch);
    case 2:
      return tile<T, 2, NV>(K, a, w, bias, out, fetch);
    case 3:
      return tile<T, 3, NV>(K, a, w, bias, out, fetch);
    case 4:
      if constexpr (kMax >= 4) return tile<T, 4, NV>(K, a, w, bias, out, fetch);
      break;
    case 5:
      if constexpr (kMax >= 5) return tile<T, 5, NV>(K, a, w, bias, out, fetch);
      break;
    case 6:
      if constexpr (kMax >= 6) return tile<T, 6, NV>(K, a, w, bias, out, fetch);
      break;
    case 7:
      if constexpr (kMax >= 7) return tile<T, 7, NV>(K, a, w, bias, out, fetch);
      break;
    case 8:
      if constexpr (kMax >= 8) return tile<T, 8, NV>(K, a, w, bias, out, fetch);
      break;
  }
}

// Calls visit(first_row, rows) for tiles of nearly equal height: 8 rows are 4 + 4, not 6 + 2.
template <int MR, class Visit>
inline void for_each_row_tile(int64_t rows, Visit visit) {
  const int64_t tiles = ceil_div(rows, MR);
  for (int64_t t = 0, r = 0; t < tiles; ++t) {
    const int64_t mr = (rows - r + (tiles - t) - 1) / (tiles - t);
    visit(r, int(mr));
    r += mr;
  }
}

// Panels [p0, p1) for all rows; walked backwards when `backwards`, so that the panels used last are still in cache.
// visit(panel, first_row, rows, sums) with sums [rows][NV*W]. fetch_next(steps): what a tile asks for at its steps.
template <class T, int NV, class Visit, class FetchNext>
inline void matmul_rows(int64_t K, int64_t rows, const T* const* a, const T* w, const T* bias, int64_t p0, int64_t p1,
                        bool backwards, Visit visit, FetchNext fetch_next) {
  constexpr int W = Vec<T>::kWidth;
  alignas(64) T sums[kMaxTileRows * kMaxTileVecs * W];
  for (int64_t i = p0; i < p1; ++i) {
    const int64_t p = backwards ? p0 + p1 - 1 - i : i;
    for_each_row_tile<TileShape<T>::max_rows(NV)>(rows, [&](int64_t r, int mr) {
      tile_rows<T, NV>(mr, K, a + r, w + p * K * NV * W, bias ? bias + p * NV * W : nullptr, sums, fetch_next(K));
      visit(p, r, mr, sums);
    });
  }
}
template <class T, int NV, class Visit>
inline void matmul_rows(int64_t K, int64_t rows, const T* const* a, const T* w, const T* bias, int64_t p0, int64_t p1,
                        bool backwards, Visit visit) {
  matmul_rows<T, NV>(K, rows, a, w, bias, p0, p1, backwards, visit, [](int64_t) { return FetchNothing(); });
}

// out[m, j] (row stride ld_out) = sum over K of a[k][m0 + m] * b[k, j] (row stride ld_b), NV vectors of columns; or
// that added to it.
template <class T, int MR, int NV>
void outer_tile(int64_t K, const T* const* a, int64_t m0, const T* b, int64_t ld_b, bool add, T* out, int64_t ld_out) {
  using V = Vec<T>;
  constexpr int W = V::kWidth;
  V acc[MR][NV];
#pragma GCC unroll 8
  for (int r = 0; r < MR; ++r)
#pragma GCC unroll 4
    for (int j = 0; j < NV; ++j) acc[r][j] = V(0);
  for (int64_t k = 0; k < K; ++k, b += ld_b) {
    const T* pa = a[k] + m0;
    V bk[NV];
#pragma GCC unroll 4
    for (int j = 0; j < NV; ++j) bk[j] = V::load(b + j * W);
#pragma GCC unroll 8
    for (int r = 0; r < MR; ++r) {
      const V ar(pa[r]);
#pragma GCC unroll 4
      for (int j = 0; j < NV; ++j) acc[r][j] = bk[j] * ar + acc[r][j];
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < MR; ++r)
#pragma GCC unroll 4
    for (int j = 0; j < NV; ++j) {
      T* o = out + r * ld_out + j * W;
      (add ? V::load(o) + acc[r][j] : acc[r][j]).store(o);
    }
}

template <class T, int NV>
inline void outer_tile_rows(int mr, int64_t K, const T* const* a, int64_t m0, const T* b, int64_t ld_b, bool add,
                            T* out, int64_t ld_out) {
  constexpr int kMax = TileShape<T>::max_rows(4);
  switch (mr) {
    case 1:
      return outer_tile<T, 1, NV>(K, a, m0, b, ld_b, add, out, ld_out);
    case 2:
      return outer_tile<T, 2, NV>(K, a, m0, b, ld_b, add, out, ld_out);
    case 3:
      return outer_tile<T, 3, NV>(K, a, m0, b, ld_b, add, out, ld_out);
    case 4:
      if constexpr (kMax >= 4) return outer_tile<T, 4, NV>(K, a, m0, b, ld_b, add, out, ld_out);
      break;
    case 5:
      if constexpr (kMax >= 5) return outer_tile<T, 5, NV>(K, a, m0, b, ld_b, add, out, ld_out);
      break;
    case 6:
      if constexpr (kMax >= 6) return outer_tile<T, 6, NV>(K, a, m0, b, ld_b, add, out, ld_out);
      break;
  }
}

// Sums of an outer product, M rows of the column vectors [first, last): one panel of up to kMaxTileVecs vectors after
// the other, each [M][its vectors]. In rows as wide as all columns, every row of a tile would lie in another page.
template <class T>
struct OuterSums {
  T* data;
  int64_t M, first, last;

  int64_t panel_of(int64_t v) const { return first + (v - first) / kMaxTileVecs * kMaxTileVecs; }
  int64_t vectors(int64_t panel) const { return last - panel < kMaxTileVecs ? last - panel : kMaxTileVecs; }
  T* at(int64_t m, int64_t v) const {
    const int64_t panel = panel_of(v);
    return data + ((panel - first) * M + m * vectors(panel) + v - panel) * Vec<T>::kWidth;
  }
};

constexpr int64_t kMaxOuterBlock = 192;

// Whole panels [v0, v1) of `out`, or that added to them. K is summed in equal blocks of `block` rows or some more, of
// which b is copied side by side first: its rows too are pages apart.
template <class T>
inline void matmul_outer(int64_t K, int64_t block, const T* const* a, const T* const* b, int64_t v0, int64_t v1,
                         bool add, const OuterSums<T>& out) {
  constexpr int W = Vec<T>::kWidth;
  alignas(64) T packed[kMaxOuterBlock * kMaxTileVecs * W];
  const int64_t fewest = ceil_div(K, kMaxOuterBlock), blocks = K / block > fewest ? K / block : fewest;
  for (int64_t v = v0; v < v1; v += kMaxTileVecs) {
    const int64_t nv = out.vectors(v), ld = nv * W;
    for (int64_t i = 0; i == 0 || i < blocks; ++i) {  // once for K = 0, too
      const int64_t k0 = i ? K * i / blocks : 0, kn = blocks ? K * (i + 1) / blocks - k0 : 0;
      for (int64_t k = 0; k < kn; ++k)
        for (int64_t j = 0; j < nv; ++j) Vec<T>::load(b[k0 + k] + (v + j) * W).store(packed + k * ld + j * W);
      for_each_row_tile<TileShape<T>::max_rows(4)>(out.M, [&](int64_t m, int mr) {
        const bool sum = add || i;
        T* o = out.at(m, v);
        if (nv == 4) return outer_tile_rows<T, 4>(mr, kn, a + k0, m, packed, ld, sum, o, ld);
        for (int64_t j = 0; j < nv; ++j)
          outer_tile_rows<T, 1>(mr, kn, a + k0, m, packed + j * W, ld, sum, o + j * W, ld);
      });
    }
  }
}

// Packs w [gates*H, K], rows ld apart (gates first_gate .. +gates), into panels of NB unit blocks:
// [panel][k][NB][gates][W], zero beyond H.
template <class T>
void pack_gates(const T* w, int64_t ld, int64_t H, int64_t K, int first_gate, int gates, int nb, T* into) {
  constexpr int64_t W = Vec<T>::kWidth;
  const int64_t panels = ceil_div(H, nb * W), nv = int64_t(nb) * gates;
  for (int64_t p = 0; p < panels; ++p)
    for (int64_t b = 0; b < nb; ++b)
      for (int64_t g = 0; g < gates; ++g) {
        T* dst = into + p * K * nv * W + (b * gates + g) * W;
        const int64_t u0 = (p * nb + b) * W;
        const T* src = w + ((first_gate + g) * H + u0) * ld;
        for (int64_t k = 0; k < K; k += W) {
          Vec<T> row[W];
#pragma GCC unroll 16
          for (int64_t l = 0; l < W; ++l) row[l] = u0 + l < H ? load_lanes(src + l * ld + k, K - k) : Vec<T>(0);
          transpose(row);
          for (int64_t l = 0; l < W && k + l < K; ++l) row[l].store(dst + (k + l) * nv * W);
        }
      }
}

// Packs rows w_row(k) [N] for k in [0, K) into plain panels of kMaxTileVecs vectors of columns; null rows are zero.
template <class T, class Row>
void pack_columns(int64_t K, int64_t N, Row w_row, T* into) {
  constexpr int64_t kColumns = kMaxTileVecs * Vec<T>::kWidth;
  for (int64_t p = 0; p * kColumns < N; ++p)
    for (int64_t k = 0; k < K; ++k) {
      const T* src = w_row(k);
      T* d = into + (p * K + k) * kColumns;
      const int64_t n = !src ? 0 : N - p * kColumns < kColumns ? N - p * kColumns : kColumns;
      for (int64_t l = 0; l < n; ++l) d[l] = src[p * kColumns + l];
      for (int64_t l = n; l < kColumns; ++l) d[l] = T(0);
    }
}
template <class T>
inline int64_t packed_columns_size(int64_t K, int64_t N) {
  constexpr int64_t kColumns = kMaxTileVecs * Vec<T>::kWidth;
  return round_up(N, kColumns) * K;
}
}  // namespace
}  // namespace fastrnn
