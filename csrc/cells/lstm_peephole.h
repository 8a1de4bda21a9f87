#pragma once
// LSTM with peepholes (Gers & Schmidhuber 2000, equations as in Greff et al. 2017): the gates see the cell state.
//   i,f = sigmoid(x + r + p*c)   g = tanh(x + r)   c' = f*c + i*g   o = sigmoid(x + r + p*c')   h' = o*tanh(c')
#include "cell.h"

namespace fastrnn {
struct LstmPeepholeCell : CellDefaults {
  static constexpr int kGates = 4;    // i f g o
  static constexpr int kStates = 2;   // h c
  static constexpr int kSaved = 4;    // i f g o after activation
  static constexpr int kVectors = 3;  // p of i, f, o
  static constexpr bool kDropsCandidate = true;

  // p: [kVectors] parameters of this unit; keep: factor of the candidate g.
  template <class V>
  FASTRNN_HD static void forward(const V* x, const V* r, const V* s, const V* p, V* s_new, V* saved, V keep = V(1)) {
    const V i = sigmoid(x[0] + r[0] + p[0] * s[1]), f = sigmoid(x[1] + r[1] + p[1] * s[1]);
    const V g = tanh(x[2] + r[2]);
    const V c = f * s[1] + i * (g * keep);
    const V o = sigmoid(x[3] + r[3] + p[2] * c);
    s_new[0] = o * tanh(c);
    s_new[1] = c;
    saved[0] = i;
    saved[1] = f;
    saved[2] = g;
    saved[3] = o;
  }
  // dr: [kGates], then the gradient of p.
  template <class V>
  FASTRNN_HD static void backward(const V* saved, const V* s, const V* p, const V* s_new, const V* ds_new, V* dx, V* dr,
                                  V* ds, V keep = V(1)) {
    const V i = saved[0], f = saved[1], g = saved[2], o = saved[3];
    const V tc = tanh(s_new[1]);
    dx[3] = ds_new[0] * tc * d_sigmoid(o);
    const V dc = ds_new[1] + ds_new[0] * o * d_tanh(tc) + dx[3] * p[2];
    dx[0] = dc * (g * keep) * d_sigmoid(i);
    dx[1] = dc * s[1] * d_sigmoid(f);
    dx[2] = dc * (i * keep) * d_tanh(g);
    for (int k = 0; k < kGates; ++k) dr[k] = dx[k];
    dr[4] = dx[0] * s[1];
    dr[5] = dx[1] * s[1];
    dr[6] = dx[3] * s_new[1];
    ds[0] = V(0);
    ds[1] = dc * f + dx[0] * p[0] + dx[1] * p[1];
  }
};
}  // namespace fastrnn
