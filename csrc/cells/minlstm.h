#pragma once
// minLSTM (Feng et al. 2024, arXiv 2410.01201, section 3.2): gates that do not look at the past, in proportion.
//   f = sigmoid(x_f)   i = sigmoid(x_i)   n = x_n   h' = (f*h + i*n)/(f + i);  r is the bias alone.
#include "cell.h"

namespace fastrnn {
struct MinLstmCell : CellDefaults {
  static constexpr int kGates = 3;   // f i n
  static constexpr int kStates = 1;  // h
  static constexpr int kSaved = 4;   // f i n, and f/(f + i)
  static constexpr bool kReadsH = true;
  static constexpr bool kProduct = false;

  template <class V>
  FASTRNN_HD static void forward(const V* x, const V* r, const V* s, V* s_new, V* saved) {
    const V f = sigmoid(x[0] + r[0]), i = sigmoid(x[1] + r[1]), n = x[2] + r[2], share = f / (f + i);
    s_new[0] = share * s[0] + (V(1) - share) * n;
    saved[0] = f;
    saved[1] = i;
    saved[2] = n;
    saved[3] = share;
  }
  // d share = share (1 - share) (df/f - di/i)
  template <class V>
  FASTRNN_HD static void backward(const V* saved, const V* s, const V*, const V* ds_new, V* dx, V* dr, V* ds) {
    const V f = saved[0], i = saved[1], n = saved[2], share = saved[3], dh = ds_new[0];
    const V d = dh * (s[0] - n) * share * (V(1) - share);
    dx[0] = dr[0] = d * (V(1) - f);
    dx[1] = dr[1] = d * (i - V(1));
    ds[0] = dh * share;
    dx[2] = dr[2] = dh - ds[0];
  }
};
}  // namespace fastrnn
