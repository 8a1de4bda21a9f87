#pragma once
// FastRNN (Kusupati et al. 2018, arXiv 1901.02358, section 3.1): a residual connection with two learned weights.
//   n = tanh(x + r)   h' = alpha*n + beta*h
#include "cell.h"

namespace fastrnn {
struct FastRnnCell : CellDefaults {
  static constexpr int kGates = 1;    // n
  static constexpr int kStates = 1;   // h
  static constexpr int kSaved = 1;    // n
  static constexpr int kVectors = 2;  // alpha beta
  static constexpr bool kReadsH = true;

  template <class V>
  FASTRNN_HD static void forward(const V* x, const V* r, const V* s, const V* p, V* s_new, V* saved) {
    saved[0] = tanh(x[0] + r[0]);
    s_new[0] = p[0] * saved[0] + p[1] * s[0];
  }
  template <class V>
  FASTRNN_HD static void backward(const V* saved, const V* s, const V* p, const V*, const V* ds_new, V* dx, V* dr,
                                  V* ds) {
    const V n = saved[0], dh = ds_new[0];
    dx[0] = dr[0] = dh * p[0] * d_tanh(n);
    dr[1] = dh * n;
    dr[2] = dh * s[0];
    ds[0] = dh * p[1];
  }
};
}  // namespace fastrnn
