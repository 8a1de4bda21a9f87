#pragma once
// Weights as the time loops read them: panels of gates for forward, their transposes for backward (see matmul.h).
#include "layout.h"

namespace fastrnn {
namespace {
template <class Cell, class T>
int64_t packed_forward_layout(const RnnShape& s, Arena& arena, PackedForward<T>* into) {
  constexpr int W = Vec<T>::kWidth;
  using S = Stages<Cell>;
  PackedForward<T> packed{};
  for (int stage = 0; stage < S::kCount; ++stage) {
    const int64_t columns = round_up(s.H, S::nb(stage) * W) * S::gates(stage);
    packed.wx[stage] = arena.take<T>(columns * s.I);
    packed.wh[stage] = arena.take<T>(columns * (stage == 0 ? recurrent_width<Cell>(s) : s.H));
    packed.bx[stage] = arena.take<T>(columns);
    packed.bh[stage] = arena.take<T>(columns);
  }
  packed.wr = s.P ? arena.take<T>(packed_columns_size<T>(s.H, s.P)) : nullptr;
  packed.vectors = arena.take<T>(Cell::kVectors * s.hidden_padded());
  if (into) *into = packed;
  return arena.used;
}
template <class Cell, class T>
int64_t packed_forward_bytes(const RnnShape& s) {
  Arena arena{nullptr};
  return packed_forward_layout<Cell, T>(s, arena, nullptr);
}

template <class Cell, class T>
PackedForward<T> pack_forward(const RnnShape& s, const RnnWeights<T>& w, char* into) {
  using S = Stages<Cell>;
  Arena arena{into};
  PackedForward<T> packed;
  packed_forward_layout<Cell, T>(s, arena, &packed);
  for (int stage = 0; stage < S::kCount; ++stage) {
    const int first = S::first_gate(stage), gates = S::gates(stage), nb = S::nb(stage);
    const auto put = [&](const T* src, int64_t K, const T* dst) {
      if (src)
        pack_gates(src, K, s.H, K, first, gates, nb, const_cast<T*>(dst));
      else
        fill_zero(const_cast<T*>(dst), round_up(s.H, nb * Vec<T>::kWidth) * gates * K);
    };
    put(w.w_ih, s.I, packed.wx[stage]);
    put(w.w_hh, stage == 0 ? recurrent_width<Cell>(s) : s.H, packed.wh[stage]);
    put(w.b_ih, 1, packed.bx[stage]);
    put(w.b_hh, 1, packed.bh[stage]);
  }
  pack_vectors<Cell>(s, w.b_hh, packed.vectors);
  if (s.P) {  // W_hr^T [H, P]: gather its rows through a strided pack
    T* dst = const_cast<T*>(packed.wr);
    constexpr int64_t kColumns = kMaxTileVecs * Vec<T>::kWidth;
    for (int64_t c = 0; c < round_up(s.P, kColumns); ++c)
      for (int64_t k = 0; k < s.H; ++k)
        dst[(c / kColumns * s.H + k) * kColumns + c % kColumns] = c < s.P ? w.w_hr[c * s.H + k] : T(0);
  }
  return packed;
}

// Rows of the product that carries a step's gate gradients to the step before: the gates of the first stage.
template <class Cell>
int64_t serial_depth(const RnnShape& s) {
  return Cell::kProduct ? Stages<Cell>::gates(0) * s.hidden_padded() : 0;
}

template <class Cell, class T>
int64_t packed_backward_layout(const RnnShape& s, Arena& arena, PackedBackward<T>* into) {
  const int64_t Hp = s.hidden_padded();
  PackedBackward<T> packed{};
  packed.wx_t = arena.take<T>(packed_columns_size<T>(Cell::kGates * Hp, s.I));
  packed.wh_t[0] = arena.take<T>(packed_columns_size<T>(serial_depth<Cell>(s), s.out()));
  packed.wh_t[1] = Cell::kLateGates ? arena.take<T>(packed_columns_size<T>(Cell::kLateGates * Hp, s.H)) : nullptr;
  packed.wr_t = s.P ? arena.take<T>(packed_columns_size<T>(s.P, s.H)) : nullptr;
  packed.vectors = arena.take<T>(Cell::kVectors * Hp);
  if (into) *into = packed;
  return arena.used;
}
template <class Cell, class T>
int64_t packed_backward_bytes(const RnnShape& s) {
  Arena arena{nullptr};
  return packed_backward_layout<Cell, T>(s, arena, nullptr);
}
template <class Cell, class T>
PackedBackward<T> pack_backward(const RnnShape& s, const RnnWeights<T>& w, char* into) {
  const int64_t Hp = s.hidden_padded();
  Arena arena{into};
  PackedBackward<T> packed;
  packed_backward_layout<Cell, T>(s, arena, &packed);
  // Row k of the transposed product is gate k / Hp, unit k % Hp: a row of W, or zero beyond H.
  const auto row = [&](const T* weight, int first_gate, int64_t width) {
    return [=](int64_t k) {
      const int64_t g = first_gate + k / Hp, u = k % Hp;
      return u < s.H ? weight + (g * s.H + u) * width : nullptr;
    };
  };
  const auto put = [](int64_t K, int64_t N, auto rows, const T* dst) {
    pack_columns<T>(K, N, rows, const_cast<T*>(dst));
  };
  pack_vectors<Cell>(s, w.b_hh, packed.vectors);
  put(Cell::kGates * Hp, s.I, row(w.w_ih, 0, s.I), packed.wx_t);
  put(serial_depth<Cell>(s), s.out(), row(w.w_hh, 0, s.out()), packed.wh_t[0]);
  if (Cell::kLateGates) put(Cell::kLateGates * Hp, s.H, row(w.w_hh, Stages<Cell>::gates(0), s.H), packed.wh_t[1]);
  if (s.P) put(s.P, s.H, [&](int64_t k) { return w.w_hr + k * s.H; }, packed.wr_t);
  return packed;
}
}  // namespace
}  // namespace fastrnn
