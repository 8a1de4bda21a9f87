#pragma once
// IndRNN (Li et al. 2018, arXiv 1803.04831): units see no other unit's past, only their own through one weight each.
//   h' = f(x + r + u*h),  f = relu or tanh; r is the bias alone, there is no recurrent matrix.
#include "activations.h"
#include "cell.h"

namespace fastrnn {
template <class Activation>
struct IndRnnCell : CellDefaults {
  static constexpr int kGates = 1;
  static constexpr int kStates = 1;   // h
  static constexpr int kSaved = 1;    // h'
  static constexpr int kVectors = 1;  // u
  static constexpr bool kReadsH = true;
  static constexpr bool kProduct = false;

  template <class V>
  FASTRNN_HD static void forward(const V* x, const V* r, const V* s, const V* p, V* s_new, V* saved) {
    saved[0] = s_new[0] = Activation::apply(x[0] + r[0] + p[0] * s[0]);
  }
  template <class V>
  FASTRNN_HD static void backward(const V* saved, const V* s, const V* p, const V*, const V* ds_new, V* dx, V* dr,
                                  V* ds) {
    dx[0] = dr[0] = ds_new[0] * Activation::derivative(saved[0]);
    dr[1] = dx[0] * s[0];
    ds[0] = dx[0] * p[0];
  }
};
using IndRnnTanhCell = IndRnnCell<Tanh>;
using IndRnnReluCell = IndRnnCell<Relu>;
}  // namespace fastrnn
