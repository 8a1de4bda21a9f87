#pragma once
// GRU (Cho et al. 2014, arXiv 1406.1078), reset after the matrix product: the form of torch.nn.GRU and cuDNN.
//   r,z = sigmoid(x + r_)   n = tanh(x_n + r * r_n)   h' = n + z*(h - n)
#include "activations.h"
#include "cell.h"

namespace fastrnn {
template <class Gate>
struct GatedGruCell : CellDefaults {
  static constexpr int kGates = 3;   // r z n
  static constexpr int kStates = 1;  // h
  static constexpr int kSaved = 4;   // r z n and the recurrent part of n
  static constexpr bool kReadsH = true;
  static constexpr bool kSharedGateGrad = false;  // dr[2] = dx[2] * r
  static constexpr bool kDropsCandidate = true;

  // keep: factor of the candidate n.
  template <class V>
  FASTRNN_HD static void forward(const V* x, const V* r, const V* s, V* s_new, V* saved, V keep = V(1)) {
    const V reset = Gate::apply(x[0] + r[0]), z = Gate::apply(x[1] + r[1]);
    const V n = tanh(x[2] + reset * r[2]);
    const V kept = n * keep;
    s_new[0] = kept + z * (s[0] - kept);
    saved[0] = reset;
    saved[1] = z;
    saved[2] = n;
    saved[3] = r[2];
  }
  template <class V>
  FASTRNN_HD static void backward(const V* saved, const V* s, const V*, const V* ds_new, V* dx, V* dr, V* ds,
                                  V keep = V(1)) {
    const V reset = saved[0], z = saved[1], n = saved[2], rn = saved[3], dh = ds_new[0];
    dx[2] = dh * (V(1) - z) * keep * d_tanh(n);
    dr[2] = dx[2] * reset;
    dx[0] = dr[0] = dx[2] * rn * Gate::derivative(reset);
    dx[1] = dr[1] = dh * (s[0] - n * keep) * Gate::derivative(z);
    ds[0] = dh * z;
  }
};
using GruCell = GatedGruCell<Sigmoid>;
using GruHardCell = GatedGruCell<HardSigmoid>;
}  // namespace fastrnn
