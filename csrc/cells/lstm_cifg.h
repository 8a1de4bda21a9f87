#pragma once
// LSTM with coupled input and forget gates (CIFG; Greff et al. 2017, "LSTM: A Search Space Odyssey"): f = 1 - i.
//   i,o = sigmoid(x + r)   g = tanh(x + r)   c' = c + i*(g - c)   h' = o*tanh(c')
#include "cell.h"

namespace fastrnn {
struct LstmCifgCell : CellDefaults {
  static constexpr int kGates = 3;   // i g o
  static constexpr int kStates = 2;  // h c
  static constexpr int kSaved = 3;   // i g o after activation
  static constexpr bool kDropsCandidate = true;

  template <class V>
  FASTRNN_HD static void forward(const V* x, const V* r, const V* s, V* s_new, V* saved, V keep = V(1)) {
    const V i = sigmoid(x[0] + r[0]), g = tanh(x[1] + r[1]), o = sigmoid(x[2] + r[2]);
    const V c = s[1] + i * (g * keep - s[1]);
    s_new[0] = o * tanh(c);
    s_new[1] = c;
    saved[0] = i;
    saved[1] = g;
    saved[2] = o;
  }
  template <class V>
  FASTRNN_HD static void backward(const V* saved, const V* s, const V* s_new, const V* ds_new, V* dx, V* dr, V* ds,
                                  V keep = V(1)) {
    const V i = saved[0], g = saved[1], o = saved[2];
    const V tc = tanh(s_new[1]);
    const V dc = ds_new[1] + ds_new[0] * o * d_tanh(tc);
    dx[0] = dc * (g * keep - s[1]) * d_sigmoid(i);
    dx[1] = dc * (i * keep) * d_tanh(g);
    dx[2] = ds_new[0] * tc * d_sigmoid(o);
    for (int k = 0; k < kGates; ++k) dr[k] = dx[k];
    ds[0] = V(0);
    ds[1] = dc * (V(1) - i);
  }
};
}  // namespace fastrnn
