#pragma once
// FastGRNN (Kusupati et al. 2018, arXiv 1901.02358, section 3.2): a gate that shares both matrices with the candidate.
//   z = sigmoid(x + r + b)   n = tanh(x + r)   h' = (zeta*(1 - z) + nu)*n + z*h
// The candidate's bias is that of x and r; b is the difference of the gate's from it.
#include "cell.h"

namespace fastrnn {
struct FastGrnnCell : CellDefaults {
  static constexpr int kGates = 1;    // what z and n share
  static constexpr int kStates = 1;   // h
  static constexpr int kSaved = 2;    // z n
  static constexpr int kVectors = 3;  // b zeta nu
  static constexpr bool kReadsH = true;

  template <class V>
  FASTRNN_HD static void forward(const V* x, const V* r, const V* s, const V* p, V* s_new, V* saved) {
    const V a = x[0] + r[0], z = sigmoid(a + p[0]), n = tanh(a);
    s_new[0] = (p[1] * (V(1) - z) + p[2]) * n + z * s[0];
    saved[0] = z;
    saved[1] = n;
  }
  template <class V>
  FASTRNN_HD static void backward(const V* saved, const V* s, const V* p, const V*, const V* ds_new, V* dx, V* dr,
                                  V* ds) {
    const V z = saved[0], n = saved[1], dh = ds_new[0];
    const V dn = dh * (p[1] * (V(1) - z) + p[2]);
    dr[1] = dh * (s[0] - p[1] * n) * d_sigmoid(z);
    dx[0] = dr[0] = dn * d_tanh(n) + dr[1];
    dr[2] = dh * n * (V(1) - z);
    dr[3] = dh * n;
    ds[0] = dh * z;
  }
};
}  // namespace fastrnn
