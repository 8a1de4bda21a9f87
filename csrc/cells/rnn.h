#pragma once
// Elman RNN (Elman 1990):  h' = f(x + r),  f = tanh, relu or sigmoid.
#include "activations.h"
#include "cell.h"

namespace fastrnn {
template <class Activation>
struct RnnCell : CellDefaults {
  static constexpr int kGates = 1;
  static constexpr int kStates = 1;  // h
  static constexpr int kSaved = 1;   // h'

  template <class V>
  FASTRNN_HD static void forward(const V* x, const V* r, const V*, V* s_new, V* saved) {
    s_new[0] = Activation::apply(x[0] + r[0]);
    saved[0] = s_new[0];
  }
  template <class V>
  FASTRNN_HD static void backward(const V* saved, const V*, const V*, const V* ds_new, V* dx, V* dr, V* ds) {
    dx[0] = dr[0] = ds_new[0] * Activation::derivative(saved[0]);
    ds[0] = V(0);
  }
};
using RnnTanhCell = RnnCell<Tanh>;
using RnnReluCell = RnnCell<Relu>;
using RnnSigmoidCell = RnnCell<Sigmoid>;
}  // namespace fastrnn
