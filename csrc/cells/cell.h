#pragma once
// What a cell may leave unsaid, and how the schedules call it.
#include "math.h"

namespace fastrnn {
struct CellDefaults {
  static constexpr int kLateGates = 0;           // gates whose product waits for the others, see gru_reset_before.h
  static constexpr int kVectors = 0;             // parameters of each unit besides the matrices, see lstm_peephole.h
  static constexpr bool kReadsH = false;         // forward() and backward() read s[0]
  static constexpr bool kSharedGateGrad = true;  // dx == dr
  static constexpr bool kProduct = true;         // there is a recurrent matrix; else r is the bias, see indrnn.h
  static constexpr bool kNormalised = false;     // x and r are layer-normalised, see lstm_norm.h
  static constexpr int kExponent = 0;            // the state in whose place exponentials() is kept, see slstm.h
  // forward() and backward() take, last, a factor of the candidate (g of an LSTM, n of a GRU), see CandidateDropout.
  static constexpr bool kDropsCandidate = false;
};

// Of layer normalisation, added to the variance: torch.nn.LayerNorm's default.
constexpr double kNormEps = 1e-5;

// Whether a cell's functions take its vectors; those of a normalised cell belong to the loop.
template <class Cell>
constexpr bool kTakesVectors = Cell::kVectors > 0 && !Cell::kNormalised;

// p: the cell's vectors; more: the factor of the candidate, or nothing.
template <class Cell, class V, class... More>
FASTRNN_HD void cell_forward(const V* x, const V* r, const V* s, const V* p, V* s_new, V* saved, More... more) {
  if constexpr (kTakesVectors<Cell>)
    Cell::forward(x, r, s, p, s_new, saved, more...);
  else
    Cell::forward(x, r, s, s_new, saved, more...);
}
template <class Cell, class V, class... More>
FASTRNN_HD void cell_backward(const V* saved, const V* s, const V* p, const V* s_new, const V* ds_new, V* dx, V* dr,
                              V* ds, More... more) {
  if constexpr (kTakesVectors<Cell>)
    Cell::backward(saved, s, p, s_new, ds_new, dx, dr, ds, more...);
  else
    Cell::backward(saved, s, s_new, ds_new, dx, dr, ds, more...);
}
// Room for the vectors of a cell: at least one, as C++ has no empty arrays.
template <class Cell>
constexpr int kVectorRoom = Cell::kVectors > 0 ? Cell::kVectors : 1;
}  // namespace fastrnn
