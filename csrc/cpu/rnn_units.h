#pragma once
// The gate math of W units of one row, forward and backward: what is loaded, the cell, the regularisers, what is
// stored.
#include "rnn_backward.h"
#include "rnn_forward.h"

namespace fastrnn {
namespace {
// The gate math of W units of one row.
template <class Cell, class T>
template <int stage, bool kSpecial>
void ForwardRun<Cell, T>::units(const Row& row, int64_t i, int64_t unit, const V* x, const V* rec) {
  const int64_t lanes = s_.H - unit;
  V s[Cell::kStates], s_new[Cell::kStates], saved[K];
  s[0] = Cell::kReadsH ? load_lanes(row.h_prev + unit, lanes) : V(0);
  for (int e = 0; e < kExtra; ++e) s[1 + e] = V::load(row.c_prev + e * Hp_ + unit);
  if constexpr (Cell::kLateGates != 0 && stage == 0) {
    V u;
    Cell::early(x, rec, s, &u, saved);
    if (kSpecial && p_.h_mask) u = u * load_lanes(row.mask + unit, lanes);
    for (int g = 0; g < S::gates(0); ++g) saved[g].store(row.saved + g * Hp_ + unit);
    u.store(row.saved + (K - 1) * Hp_ + unit);
    u.store(u_ + rows_.order[i] * Hp_ + unit);
  } else {
    if constexpr (Cell::kLateGates != 0)
      for (int g = 0; g < S::gates(0); ++g) saved[g] = V::load(row.saved + g * Hp_ + unit);
    V vectors[kVectorRoom<Cell>];
    for (int q = 0; q < Cell::kVectors; ++q) vectors[q] = V::load(w_.vectors + q * Hp_ + unit);
    if constexpr (kSpecial && Cell::kDropsCandidate)
      cell_forward<Cell>(x, rec, s, vectors, s_new, saved,
                         drops_ ? row.candidate.factor(p_.candidate_dropout, unit) : V(1));
    else
      cell_forward<Cell>(x, rec, s, vectors, s_new, saved);
    if (kSpecial && zoned_) zone_out(row, unit, lanes, s, s_new);
    for (int e = 0; e < kExtra; ++e) s_new[1 + e].store(row.c_new + e * Hp_ + unit);
    if (s_.P)
      s_new[0].store(row.h_full + unit);
    else
      put_h<kSpecial>(row, unit, lanes, s_new[0]);
    if (row.saved) {
      constexpr int kFirst = Cell::kLateGates ? S::gates(0) : 0, kLast = Cell::kLateGates ? K - 1 : K;
      for (int q = kFirst; q < kLast; ++q) saved[q].store(row.saved + q * Hp_ + unit);
    }
  }
}

template <class Cell, class T>
template <bool kSpecial>
void ForwardRun<Cell, T>::put_h(const Row& row, int64_t unit, int64_t lanes, V h) {
  store_lanes(h, row.y + unit, lanes);
  if (kSpecial && p_.h_mask) store_lanes(h * load_lanes(row.mask + unit, lanes), row.masked + unit, lanes);
}

template <class Cell, class T>
void ForwardRun<Cell, T>::zone_out(const Row& row, int64_t unit, int64_t lanes, const V* s, V* s_new) {
  if (p_.zoneout.rate[0] > 0)  // never with a projection, where h is not of this width
    s_new[0] = row.zoneout.blend(p_.zoneout, 0, unit, load_lanes(row.h_prev + unit, lanes), s_new[0]);
  for (int e = 0; p_.zoneout.rate[1] > 0 && e < kZoned<Cell> - 1; ++e) {
    if (row.c_raw) s_new[1 + e].store(row.c_raw + e * Hp_ + unit);
    s_new[1 + e] = row.zoneout.blend(p_.zoneout, 1 + e, unit, s[1 + e], s_new[1 + e]);
  }
}

// Splits the gradient of the new states between the states before and what the cell computed; c_raw is what it
// computed.
template <class Cell, class T>
void BackwardRun<Cell, T>::undo_zoneout(const Row& row, int64_t u, V* ds_new, V* s_new, V* kept) {
  for (int q = 0; q < kZoned<Cell>; ++q) {
    kept[q] = V(0);
    if (p_.zoneout.rate[q] == 0) continue;
    kept[q] = row.zoneout.blend(p_.zoneout, q, u, ds_new[q], V(0));
    ds_new[q] = ds_new[q] - kept[q];
    if (q) s_new[q] = V::load(row.c_raw + (q - 1) * Hp_ + u);
  }
}

template <class Cell, class T>
template <bool kSpecial>
void BackwardRun<Cell, T>::units(const Row& row, int64_t u, int64_t lanes, V dh) {
  fetch_next(row, u);
  if constexpr (Cell::kNormalised && kExtra == 1) return output_gradient(row, &row - row_, u, dh);
  V saved[K], s[Cell::kStates], s_new[Cell::kStates], ds_new[Cell::kStates], ds[Cell::kStates], dx[G], dr[kColumns];
  V vectors[kVectorRoom<Cell>];
  for (int q = 0; q < Cell::kVectors; ++q) vectors[q] = V::load(w_.vectors + q * Hp_ + u);
  for (int q = 0; q < K; ++q) saved[q] = V::load(row.saved + q * Hp_ + u);
  s[0] = Cell::kReadsH ? load_lanes(row.h_prev + u, lanes) : V(0);
  s_new[0] = V(0);
  ds_new[0] = dh;
  for (int g = 0; g < G; ++g) dx[g] = dr[g] = V(0);  // gates left to backward_early()
  for (int e = 0; e < kExtra; ++e) {
    s[1 + e] = V::load(row.c_prev + e * Hp_ + u);
    s_new[1 + e] = V::load(row.c_new + e * Hp_ + u);
    ds_new[1 + e] = V::load(row.dc_in + e * Hp_ + u);
  }
  for (int e = 0; kSpecial && row.dc && e < kExtra; ++e)
    ds_new[1 + e] = ds_new[1 + e] + load_lanes(row.dc + e * s_.H + u, lanes);
  V kept[kZoned<Cell>] = {};  // by zoneout: what goes straight to the state before
  if (kSpecial && zoned_) undo_zoneout(row, u, ds_new, s_new, kept);
  if constexpr (kSpecial && Cell::kDropsCandidate)
    cell_backward<Cell>(saved, s, vectors, s_new, ds_new, dx, dr, ds,
                        drops_ ? row.candidate.factor(p_.candidate_dropout, u) : V(1));
  else
    cell_backward<Cell>(saved, s, vectors, s_new, ds_new, dx, dr, ds);
  for (int q = 0; kSpecial && zoned_ && q < kZoned<Cell>; ++q) ds[q] = ds[q] + kept[q];
  if (kSpecial && p_.grad_clip > 0)
    for (int g = 0; g < G; ++g) dx[g] = clip(dx[g]), dr[g] = clip(dr[g]);
  for (int g = 0; g < G; ++g) {
    dx[g].store(row.dx + g * Hp_ + u);
    if (Cell::kNormalised)
      dr[g].store(row.dr + (kRaw + g) * Hp_ + u);
    else if (!Cell::kSharedGateGrad)
      dr[g].store(row.dr + g * Hp_ + u);
  }
  for (int g = G; kTakesVectors<Cell> && g < kColumns; ++g) dr[g].store(row.dr + g * Hp_ + u);
  if (!s_.P) ds[0].store(row.dh_out + u);
  for (int e = 0; e < kExtra; ++e) ds[1 + e].store(row.dc_out + e * Hp_ + u);
}

template <class Cell, class T>
template <bool kSpecial>
void BackwardRun<Cell, T>::units_early(const Row& row, int64_t u, int64_t lanes, V du) {
  if constexpr (Cell::kLateGates != 0) {
    static_assert(Cell::kSharedGateGrad, "two-stage cells keep one row of gate gradients");
    V saved[K], s[Cell::kStates], ds[Cell::kStates], dx[G], dr[G];
    for (int q = 0; q < K; ++q) saved[q] = V::load(row.saved + q * Hp_ + u);
    for (int g = 0; g < G; ++g) dx[g] = V::load(row.dx + g * Hp_ + u);
    s[0] = load_lanes(row.h_prev + u, lanes);
    ds[0] = V::load(row.dh_out + u);
    Cell::backward_early(saved, s, du, dx, dr, ds);
    for (int g = 0; g < S::gates(0); ++g)
      (kSpecial && p_.grad_clip > 0 ? clip(dx[g]) : dx[g]).store(row.dx + g * Hp_ + u);
    ds[0].store(row.dh_out + u);
  }
}
}  // namespace
}  // namespace fastrnn
