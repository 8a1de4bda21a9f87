#pragma once
// GRU with the reset gate before the matrix product (Cho et al. 2014, eq. 5-8; Keras reset_after=False):
//   r,z = sigmoid(x + r_)   u = r*h   n = tanh(x_n + R_n u + b)   h' = n + z*(h - n)
// The candidate's recurrent product needs u of every unit, so the last kLateGates gates run in a second stage:
// early() yields u, which takes the place of h in their product, and forward() then sees r[2] = R_n u + b.
#include "activations.h"
#include "cell.h"

namespace fastrnn {
template <class Gate>
struct GatedGruResetBeforeCell : CellDefaults {
  static constexpr int kGates = 3;      // r z n
  static constexpr int kStates = 1;     // h
  static constexpr int kSaved = 4;      // r z n, and u, which the loop stores in the last slot
  static constexpr int kLateGates = 1;  // n
  static constexpr bool kReadsH = true;
  static constexpr bool kDropsCandidate = true;

  // First stage: gates r and z. saved[0..1] are kept for forward().
  template <class V>
  FASTRNN_HD static void early(const V* x, const V* r, const V* s, V* u, V* saved) {
    saved[0] = Gate::apply(x[0] + r[0]);
    saved[1] = Gate::apply(x[1] + r[1]);
    *u = saved[0] * s[0];
  }
  // keep: factor of the candidate n.
  template <class V>
  FASTRNN_HD static void forward(const V* x, const V* r, const V* s, V* s_new, V* saved, V keep = V(1)) {
    const V n = tanh(x[2] + r[2]);
    const V kept = n * keep;
    s_new[0] = kept + saved[1] * (s[0] - kept);
    saved[2] = n;
  }
  // Gradients of n and z; ds[0] still lacks the path through u, which backward_early() adds from du = R_n^T dr[2].
  template <class V>
  FASTRNN_HD static void backward(const V* saved, const V* s, const V*, const V* ds_new, V* dx, V* dr, V* ds,
                                  V keep = V(1)) {
    const V z = saved[1], n = saved[2], dh = ds_new[0];
    dx[2] = dr[2] = dh * (V(1) - z) * keep * d_tanh(n);
    dx[1] = dr[1] = dh * (s[0] - n * keep) * Gate::derivative(z);
    ds[0] = dh * z;
  }
  template <class V>
  FASTRNN_HD static void backward_early(const V* saved, const V* s, V du, V* dx, V* dr, V* ds) {
    dx[0] = dr[0] = du * s[0] * Gate::derivative(saved[0]);
    ds[0] = ds[0] + du * saved[0];
  }
};
using GruResetBeforeCell = GatedGruResetBeforeCell<Sigmoid>;
using GruResetBeforeHardCell = GatedGruResetBeforeCell<HardSigmoid>;
}  // namespace fastrnn
