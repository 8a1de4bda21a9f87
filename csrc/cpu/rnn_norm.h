#pragma once
// What a normalised cell does differently, forward and backward: its gates need whole rows of W x, R h and c first.
#include "rnn_backward.h"
#include "rnn_forward.h"

namespace fastrnn {
namespace {
// LayerNorm over all gates of each projected row, in place. A panel leaves two vectors for each row: the sum of its
// gates and the squares about their mean, lane by lane, so that any division of the panels gives the same bits.
template <class Cell, class T>
void ForwardRun<Cell, T>::normalise_inputs(int64_t n) {
  static_assert(S::nb(0) == 1 || !Cell::kNormalised, "a panel is one block of units");
  const Range own = panels_[0];
  const T count = T(G * s_.H), gates = T(G);
  const auto gx = [&](int64_t p, int64_t r) { return gx_[0] + ((p - own.begin) * n + r) * G * W; };
  for (int64_t p = own.begin; p < own.end; ++p)
    for (int64_t r = 0; r < n; ++r) {
      V sum(0), squares(0);
      for (int g = 0; g < G; ++g) sum = sum + V::load(gx(p, r) + g * W);
      for (int g = 0; g < G; ++g) {
        const V d = V::load(gx(p, r) + g * W) - sum / V(gates);
        squares = squares + d * d;
      }
      sum.store(sums_ + r * 2 * Hp_ + p * W);
      squares.store(sums_ + (r * 2 + 1) * Hp_ + p * W);
    }
  step_barrier();
  const auto of_row = [&](int64_t r) -> Moments<T> {
    const T *sums = sums_ + r * 2 * Hp_, *squares = sums + Hp_;
    V all(0), spread(0);
    for (int64_t u = 0; u < s_.H; u += W) all = all + V::load(sums + u);
    const T mean = sum_lanes(all) / count;
    for (int64_t u = 0; u < s_.H; u += W) {
      const V d = V::load(sums + u) / V(gates) - V(mean);
      spread = spread + keep_lanes(V::load(squares + u) + V(gates) * d * d, s_.H - u);
    }
    return {mean, inverse_deviation(sum_lanes(spread) / count)};
  };
  after_first(n, of_row, [&](int64_t r, const Moments<T>& of_x) {
    for (int64_t p = own.begin; p < own.end; ++p)
      for (int g = 0; g < G; ++g) {
        T* v = const_cast<T*>(gx(p, r)) + g * W;
        ((V::load(v) - V(of_x.mean)) * V(of_x.rstd)).store(v);
      }
    if (p_.reserve && own.begin == 0 && own.size()) kept_[r][(kNormX + G) * Hp_] = of_x.rstd;
  });
}

// R h of all units, then the gates with r normalised, then, for a cell with c, h from c normalised.
template <class Cell, class T>
template <bool kSpecial>
void ForwardRun<Cell, T>::recur_normalised(int64_t k, int64_t gx_base, int64_t gx_rows, int64_t running) {
  const Range panels = panels_[0];
  // What the units will write of the reserve comes into the cache meanwhile, where a thread's part lies in one piece:
  // norms make it three times as wide, and writing it took a fifth of forward's time (LSTM, H=128, B=8 and 32, Zen 4).
  Ahead ahead;
  if (p_.reserve && !p_.lengths && panels.size() * W >= s_.H)
    ahead.add(row_[0].saved, running * p_.slots(K, Cell::kStates) * Hp_ * int64_t(sizeof(T)));
  matmul_rows<T, G>(
      recurrent_width<Cell>(s_), running, a_, w_.wh[0], nullptr, panels.begin, panels.end, k & 1,
      [&](int64_t panel, int64_t r0, int mr, const T* sums) {
        for (int r = 0; r < mr; ++r)
          for (int g = 0; g < G; ++g) V::load(sums + (r * G + g) * W).store(raw_of(r0 + r) + g * Hp_ + panel * W);
      },
      [&](int64_t steps) { return ahead.next(steps, w_.wh[0]); });
  step_barrier();
  const auto of_r = [&](int64_t i) { return moments<G>(raw_of(i), s_.H, Hp_); };
  after_first(running, of_r, [&](int64_t i, const Moments<T>& of_r) {
    if (p_.reserve && panels.begin == 0 && panels.size()) row_[i].saved[(kNorm + G) * Hp_] = of_r.rstd;
    for (int64_t panel = panels.begin; panel < panels.end; ++panel)
      units_normalised<kSpecial>(row_[i], panel, of_r, raw_of(i),
                                 gx_[0] + ((panel - panels.begin) * gx_rows + gx_base + i) * G * W);
  });
  if constexpr (kExtra == 1) {
    step_barrier();
    const auto of_c = [&](int64_t i) { return moments<1>(row_[i].c_new, s_.H, Hp_); };
    after_first(running, of_c, [&](int64_t i, const Moments<T>& of_c) {
      const Row& row = row_[i];
      if (p_.reserve && panels.begin == 0 && panels.size()) row.saved[(kNormC + 1) * Hp_] = of_c.rstd;
      for (int64_t unit = panels.begin * W; unit < panels.end * W; unit += W) {
        const V n = (V::load(row.c_new + unit) - V(of_c.mean)) * V(of_c.rstd);
        const V gain = V::load(w_.vectors + G * Hp_ + unit), shift = V::load(w_.vectors + (G + 1) * Hp_ + unit);
        const V h = Cell::output(V::load(row.saved + Cell::kOutputGate * Hp_ + unit), n * gain + shift);
        if (p_.reserve) n.store(row.saved + kNormC * Hp_ + unit);
        if (s_.P)
          h.store(row.h_full + unit);
        else
          put_h<kSpecial>(row, unit, s_.H - unit, h);
      }
    });
  }
}
template <class Cell, class T>
template <bool kSpecial>
void ForwardRun<Cell, T>::units_normalised(const Row& row, int64_t panel, const Moments<T>& of_r, const T* raw,
                                           const T* gx) {
  const int64_t unit = panel * W, lanes = s_.H - unit;
  V x[G], r[G], s[Cell::kStates], s_new[Cell::kStates], saved[K];
  for (int g = 0; g < G; ++g) {
    const V n = (V::load(raw + g * Hp_ + unit) - V(of_r.mean)) * V(of_r.rstd), n_x = V::load(gx + g * W);
    r[g] = n * V::load(w_.vectors + g * Hp_ + unit) + V::load(w_.bh[0] + (panel * G + g) * W);
    x[g] = n_x * V::load(w_.vectors + (kGainX + g) * Hp_ + unit) + V::load(w_.bx[0] + (panel * G + g) * W);
    if (!p_.reserve) continue;
    n.store(row.saved + (kNorm + g) * Hp_ + unit);
    n_x.store(row.saved + (kNormX + g) * Hp_ + unit);
  }
  s[0] = Cell::kReadsH ? load_lanes(row.h_prev + unit, lanes) : V(0);
  for (int e = 0; e < kExtra; ++e) s[1 + e] = V::load(row.c_prev + e * Hp_ + unit);
  cell_forward<Cell>(x, r, s, static_cast<const V*>(nullptr), s_new, saved);
  for (int q = 0; q < kNorm; ++q) saved[q].store(row.saved + q * Hp_ + unit);
  for (int e = 0; e < kExtra; ++e) s_new[1 + e].store(row.c_new + e * Hp_ + unit);
  if (!kExtra) put_h<kSpecial>(row, unit, lanes, s_new[0]);
}

// Gradients of a normalised step, after units() of all units: of c where there is one, then of R h.
template <class Cell, class T>
template <bool kSpecial>
void BackwardRun<Cell, T>::undo_norms(int64_t running) {
  const Range own{hidden_.begin * kPanel, hidden_.end * kPanel < s_.H ? hidden_.end * kPanel : s_.H};
  const T* gains = w_.vectors;
  if constexpr (kExtra == 1) {
    step_barrier();
    const auto sums_of_c = [&](int64_t i) {
      const T *dn = dn_of(i), *n = row_[i].saved + kNormC * Hp_;
      return norm_sums<1, T>(s_.H, [&](int, int64_t u) { return std::make_pair(V::load(dn + u), V::load(n + u)); });
    };
    after_first(running, sums_of_c, [&](int64_t i, const NormSums<T>& means) {
      const Row& row = row_[i];
      const T *dn = dn_of(i), *n = row.saved + kNormC * Hp_;
      const V rstd(row.saved[(kNormC + 1) * Hp_]);
      for (int64_t u = own.begin; u < own.end; u += W)
        gates_from_c<kSpecial>(row, u, norm_backward(V::load(dn + u), V::load(n + u), rstd, means, s_.H - u));
    });
  }
  step_barrier();
  const auto sums_of = [&](int64_t i, const T* d, int gain, int norm) {
    const T* n = row_[i].saved + norm * Hp_;
    return norm_sums<G, T>(s_.H, [&](int g, int64_t u) {
      return std::make_pair(V::load(d + g * Hp_ + u) * V::load(gains + (gain + g) * Hp_ + u), V::load(n + g * Hp_ + u));
    });
  };
  const auto sums_of_r = [&](int64_t i) {
    const Row& row = row_[i];
    if (mine(i)) means_x_[(row.dx - dx_) / ld_x_] = sums_of(i, row.dx, kGainX, kNormX);
    return sums_of(i, row.dr + kRaw * Hp_, 0, kNorm);
  };
  after_first(running, sums_of_r, [&](int64_t i, const NormSums<T>& means) {
    const Row& row = row_[i];
    const T *da = row.dr + kRaw * Hp_, *n = row.saved + kNorm * Hp_;
    const V rstd(row.saved[(kNorm + G) * Hp_]);
    for (int64_t u = own.begin; u < own.end; u += W)
      for (int g = 0; g < G; ++g) {
        const V d = V::load(da + g * Hp_ + u), at = V::load(n + g * Hp_ + u);
        norm_backward(d * V::load(gains + g * Hp_ + u), at, rstd, means, s_.H - u).store(row.dr + g * Hp_ + u);
      }
  });
}
// Gate gradients of the chunk, of x normalised -> of W x; their sums, for bias and gains, on the way.
template <class Cell, class T>
void BackwardRun<Cell, T>::undo_input_norm() {
  const T* gains = w_.vectors + kGainX * Hp_;
  sum_rows(dx_list_, 0, kept_list_, kNormX, G, bx_, bx_ + G * Hp_, [&](int64_t k, int64_t column, V d, V n) {
    const int64_t lanes = s_.H - column % Hp_;
    if (lanes <= 0) return;
    T* dx = const_cast<T*>(dx_list_[k]);
    const V rstd(kept_list_[k][(kNormX + G) * Hp_]);
    norm_backward(d * V::load(gains + column), n, rstd, means_x_[(dx - dx_) / ld_x_], lanes).store(dx + column);
  });
}

// The gradients of the output gate and of LN(c).
template <class Cell, class T>
void BackwardRun<Cell, T>::output_gradient(const Row& row, int64_t i, int64_t u, V dh) {
  const V o = V::load(row.saved + Cell::kOutputGate * Hp_ + u), n = V::load(row.saved + kNormC * Hp_ + u);
  const V gain = V::load(w_.vectors + G * Hp_ + u), shift = V::load(w_.vectors + (G + 1) * Hp_ + u);
  V d;
  Cell::backward_output(o, n * gain + shift, dh, &d).store(row.dx + Cell::kOutputGate * Hp_ + u);
  d.store(row.dr + G * Hp_ + u);
  (d * gain).store(dn_of(i) + u);
}
// The other gates, from the gradient of c.
template <class Cell, class T>
template <bool kSpecial>
void BackwardRun<Cell, T>::gates_from_c(const Row& row, int64_t u, V dc) {
  V saved[K], s[2] = {V(0), V::load(row.c_prev + u)}, s_new[2] = {V(0), V::load(row.c_new + u)}, ds[2], dx[G], dr[G];
  for (int q = 0; q < kNorm; ++q) saved[q] = V::load(row.saved + q * Hp_ + u);
  V ds_new[2] = {V(0), dc + V::load(row.dc_in + u)};
  if (kSpecial && row.dc) ds_new[1] = ds_new[1] + load_lanes(row.dc + u, s_.H - u);
  cell_backward<Cell>(saved, s, static_cast<const V*>(nullptr), s_new, ds_new, dx, dr, ds);
  for (int g = 0; g < G; ++g) {
    if (g != Cell::kOutputGate) dx[g].store(row.dx + g * Hp_ + u);
    V::load(row.dx + g * Hp_ + u).store(row.dr + (kRaw + g) * Hp_ + u);
  }
  if (!s_.P) V(0).store(row.dh_out + u);
  ds[1].store(row.dc_out + u);
}
}  // namespace
}  // namespace fastrnn
