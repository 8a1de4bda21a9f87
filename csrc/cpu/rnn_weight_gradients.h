#pragma once
// What BackwardRun leaves until a chunk is done: dx and the weight gradients, long products over its rows, the latter
// added up over the chunks.
#include "rnn_backward.h"

namespace fastrnn {
namespace {
// The rows of the chunk, for the long products: all rows that run at k0_, then at k0_ + 1, ...
template <class Cell, class T>
void BackwardRun<Cell, T>::list_chunk() {
  n_ = 0;
  for (int64_t k = k0_; k < k1_; ++k)
    for (int64_t i = 0; i < all_.count && all_.length[i] > k; ++i, ++n_) {
      const int64_t b = all_.batch[i], t = time(all_, i, k), at = chunk_row(all_.order[i], k);
      const T* saved = reserve_at(all_, i, k);
      x_list_[n_] = p_.x + t * p_.x_stride_t + b * p_.x_stride_b;
      h_list_[n_] = p_.h_mask ? masked_ + at * s_.out() : h_before(all_, i, k);
      dx_list_[n_] = dx_ + at * ld_x_;
      dr_list_[n_] = dr_ + at * ld_;
      kept_list_[n_] = saved;
      u_list_[n_] = saved + (K - 1) * Hp_;
      m_list_[n_] = saved + (K + kExtra) * Hp_;
      dp_list_[n_] = dh_projected_ + at * ld_projected_;
      dx_out_[n_] = p_.dx + t * p_.dx_stride_t + b * p_.dx_stride_b;
    }
}

template <class Cell, class T>
void BackwardRun<Cell, T>::input_gradient() {
  if (!p_.dx) return;
  const Range own = share(n_, team_.rank, team_.size);
  matmul_rows<T, kMaxTileVecs>(G * Hp_, own.size(), dx_list_ + own.begin, w_.wx_t, nullptr, 0, ceil_div(s_.I, kPanel),
                               false, [&](int64_t panel, int64_t r0, int mr, const T* sums) {
                                 for (int r = 0; r < mr; ++r)
                                   for (int j = 0; j < kMaxTileVecs; ++j) {
                                     const int64_t c = panel * kPanel + j * W;
                                     if (c >= s_.I) break;
                                     T* out = dx_out_[own.begin + r0 + r] + c;
                                     V v = V::load(sums + (r * kMaxTileVecs + j) * W);
                                     if (d_ == 1)
                                       v = v + load_lanes(out, s_.I - c);  // the forward direction wrote first
                                     store_lanes(v, out, s_.I - c);
                                   }
                               });
}

// Vectors [first, last) of G*Hp columns, shared by whole panels; odd products share in the opposite order for
// balance.
template <class Cell, class T>
Range BackwardRun<Cell, T>::own_vectors(int64_t first, int64_t last, bool mirrored) const {
  const int64_t panels = ceil_div(last - first, kMaxTileVecs);
  const Range own = share(panels, mirrored ? team_.size - 1 - team_.rank : team_.rank, team_.size);
  const int64_t end = first + own.end * kMaxTileVecs;
  return {first + own.begin * kMaxTileVecs, end < last ? end : last};
}

template <class Cell, class T>
void BackwardRun<Cell, T>::weight_gradients(bool add) {
  const RnnGrads<T>& g = p_.grads[d_];
  // Rows per inner sum: about the square root of their number keeps rounding error lowest.
  const int64_t block = s_.T * s_.B > 4096 ? 128 : 64;
  const auto outer = [&](const T* const* a, const T* const* b, bool mirrored, const OuterSums<T>& out) {
    const Range own = own_vectors(out.first, out.last, mirrored);
    matmul_outer<T>(n_, block, a, b, own.begin, own.end, add, out);
  };
  if (g.w_ih) outer(x_list_, dx_list_, false, wx_sums());
  if (g.w_hh && Cell::kProduct) {
    outer(h_list_, dr_list_, true, wh_sums(0));
    if (Cell::kLateGates) outer(u_list_, dr_list_, false, wh_sums(1));
  }
  if (g.w_hr) outer(dp_list_, m_list_, false, wr_sums());
  bias_gradients();
}

// bx_: of b_ih, then of the gains of x. bh_: of the recurrent biases or, of a normalised cell, nothing; of the vectors;
// of a normalised cell's shifts.
template <class Cell, class T>
void BackwardRun<Cell, T>::bias_gradients() {
  const RnnGrads<T>& g = p_.grads[d_];
  if constexpr (Cell::kNormalised) {
    if (!g.b_hh) return;
    sum_rows(dr_list_, kRaw, kept_list_, kNorm, G, bh_ + (G + Cell::kVectors) * Hp_, bh_ + G * Hp_);
    sum_rows(dr_list_, G, kept_list_, kNormC, kExtra, bh_ + (2 * G + 1) * Hp_, bh_ + 2 * G * Hp_);
  } else {
    if (g.b_ih || (g.b_hh && Cell::kSharedGateGrad)) sum_rows(dx_list_, 0, G, bx_);
    if (g.b_hh && !Cell::kSharedGateGrad) sum_rows(dr_list_, 0, G, bh_);
    if (g.b_hh) sum_rows(dr_list_, G, Cell::kVectors, bh_ + G * Hp_);
  }
}
// Sums over the chunk of columns of Hp from column `from` on. Inner sums of 16 rows in T, the rest in double: a bias
// gradient is one long sum over time.
template <class Cell, class T>
void BackwardRun<Cell, T>::sum_rows(const T* const* rows, int64_t from, int64_t columns, double* out) {
  sum_blocks(columns, [&](int64_t k0, int64_t k1, int64_t at) {
    V sum(0);
    for (int64_t k = k0; k < k1; ++k) sum = sum + V::load(rows[k] + from * Hp_ + at);
    add_lanes(sum, out + at);
  });
}
// And of those times the same number of columns of `factors`, from column `factor` on. visit(row, column, both).
template <class Cell, class T>
template <class Visit>
void BackwardRun<Cell, T>::sum_rows(const T* const* rows, int64_t from, const T* const* factors, int64_t factor,
                                    int64_t columns, double* out, double* times, Visit visit) {
  sum_blocks(columns, [&](int64_t k0, int64_t k1, int64_t at) {
    V sum(0), product(0);
    for (int64_t k = k0; k < k1; ++k) {
      const V v = V::load(rows[k] + from * Hp_ + at), f = V::load(factors[k] + factor * Hp_ + at);
      sum = sum + v;
      product = v * f + product;
      visit(k, at, v, f);
    }
    add_lanes(sum, out + at);
    add_lanes(product, times + at);
  });
}
// block(first, last, column) for 16 rows and this thread's columns, vector by vector; the rows outside: these stay in
// the cache, a column of all would not.
template <class Cell, class T>
template <class Block>
void BackwardRun<Cell, T>::sum_blocks(int64_t columns, Block block) {
  const Range own = share(columns * Hp_ / W, team_.rank, team_.size);
  for (int64_t k0 = 0; k0 < n_; k0 += 16)
    for (int64_t v = own.begin; v < own.end; ++v) block(k0, k0 + 16 < n_ ? k0 + 16 : n_, v * W);
}

// Sums are kept transposed and padded, [in][G*Hp]; the caller's layout is [G*H][in].
template <class Cell, class T>
void BackwardRun<Cell, T>::store_weight_gradients() {
  const RnnGrads<T>& g = p_.grads[d_];
  if (g.w_ih) store_transposed(wx_sums(), g.w_ih);
  for (int stage = 0; g.w_hh && Cell::kProduct && stage < S::kCount; ++stage) store_transposed(wh_sums(stage), g.w_hh);
  const Range own = share(s_.P, team_.rank, team_.size);
  for (int64_t r = own.begin; g.w_hr && r < own.end; ++r)
    for (int64_t u = 0; u < s_.H; u += W) store_lanes(V::load(wr_sums().at(r, u / W)), g.w_hr + r * s_.H + u, s_.H - u);
  if (team_.rank != 0) return;
  for (int gate = 0; gate < G; ++gate) {
    const double* bh = Cell::kNormalised ? bh_ + (G + Cell::kVectors) * Hp_ : Cell::kSharedGateGrad ? bx_ : bh_;
    for (int64_t u = 0; u < s_.H; ++u) {
      if (g.b_ih) g.b_ih[gate * s_.H + u] = T(bx_[gate * Hp_ + u]);
      if (g.b_hh) g.b_hh[gate * s_.H + u] = T(bh[gate * Hp_ + u]);
    }
  }
  for (int column = G; g.b_hh && column < G + Cell::kVectors; ++column)
    for (int64_t u = 0; u < s_.H; ++u) {
      const bool of_x = Cell::kNormalised && column >= G + kGainX;
      g.b_hh[column * s_.H + u] = T(of_x ? bx_[(column - kGainX) * Hp_ + u] : bh_[column * Hp_ + u]);
    }
}
template <class Cell, class T>
void BackwardRun<Cell, T>::store_transposed(const OuterSums<T>& sums, T* out) {
  const Range own = share(sums.last - sums.first, team_.rank, team_.size);
  for (int64_t v = sums.first + own.begin; v < sums.first + own.end; ++v) {
    const int64_t gate = v * W / Hp_, u0 = v * W % Hp_;
    for (int64_t i = 0; i < sums.M && u0 < s_.H; i += W) {
      V row[W];
#pragma GCC unroll 16
      for (int64_t l = 0; l < W; ++l) row[l] = i + l < sums.M ? V::load(sums.at(i + l, v)) : V(0);
      transpose(row);
      for (int64_t l = 0; l < W && u0 + l < s_.H; ++l)
        store_lanes(row[l], out + (gate * s_.H + u0 + l) * sums.M + i, sums.M - i);
    }
  }
}
}  // namespace
}  // namespace fastrnn
