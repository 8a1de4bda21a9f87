#pragma once
// LSTM (Hochreiter & Schmidhuber 1997, forget gate of Gers et al. 2000), gate order of torch.nn.LSTM.
//   i,f,o = sigmoid(x + r)   g = tanh(x + r)   c' = f*c + i*g   h' = o*tanh(c')
#include "activations.h"
#include "cell.h"

namespace fastrnn {
template <class Gate>
struct GatedLstmCell : CellDefaults {
  static constexpr int kGates = 4;   // i f g o
  static constexpr int kStates = 2;  // h c
  static constexpr int kSaved = 4;   // i f g o after activation
  static constexpr bool kDropsCandidate = true;

  // x, r: [kGates] pre-activations W x + b_ih and R h + b_hh; s -> s_new: [kStates]; keep: factor of the candidate g.
  template <class V>
  FASTRNN_HD static void forward(const V* x, const V* r, const V* s, V* s_new, V* saved, V keep = V(1)) {
    const V i = Gate::apply(x[0] + r[0]), f = Gate::apply(x[1] + r[1]);
    const V g = tanh(x[2] + r[2]), o = Gate::apply(x[3] + r[3]);
    const V c = f * s[1] + i * (g * keep);
    s_new[0] = o * tanh(c);
    s_new[1] = c;
    saved[0] = i;
    saved[1] = f;
    saved[2] = g;
    saved[3] = o;
  }
  // ds_new: gradient of s_new. Writes dx, dr: [kGates] and ds: [kStates]; ds[0] excludes R^T dr, which the loop adds.
  template <class V>
  FASTRNN_HD static void backward(const V* saved, const V* s, const V* s_new, const V* ds_new, V* dx, V* dr, V* ds,
                                  V keep = V(1)) {
    const V i = saved[0], f = saved[1], g = saved[2], o = saved[3];
    const V tc = tanh(s_new[1]);
    const V dc = ds_new[1] + ds_new[0] * o * d_tanh(tc);
    dx[0] = dc * (g * keep) * Gate::derivative(i);
    dx[1] = dc * s[1] * Gate::derivative(f);
    dx[2] = dc * (i * keep) * d_tanh(g);
    dx[3] = ds_new[0] * tc * Gate::derivative(o);
    for (int k = 0; k < kGates; ++k) dr[k] = dx[k];
    ds[0] = V(0);
    ds[1] = dc * f;
  }
};
using LstmCell = GatedLstmCell<Sigmoid>;
using LstmHardCell = GatedLstmCell<HardSigmoid>;
}  // namespace fastrnn
