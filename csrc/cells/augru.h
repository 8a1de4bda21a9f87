#pragma once
// AUGRU (Zhou et al. 2018, "Deep Interest Evolution Network", arXiv 1809.03672, eq. 9-10): a GRU whose update is scaled
// by the attention a that step gets.
//   r,z = sigmoid(x + r_)   n = tanh(x_n + r * r_n)   h' = h + a*(1 - z)*(n - h)
// The paper's update gate is u = 1 - z; with a = 1 this is the GRU of torch. a is one number for each step and row. It
// comes as the input part of a fourth gate, which W makes of a column of x, so that the schedules need no other input
// and its gradient is that column of dx; the recurrent part of this gate is not read.
#include "cell.h"

namespace fastrnn {
struct AugruCell : CellDefaults {
  static constexpr int kGates = 4;   // r z n a
  static constexpr int kStates = 1;  // h
  static constexpr int kSaved = 5;   // r z n a and the recurrent part of n
  static constexpr bool kReadsH = true;
  static constexpr bool kSharedGateGrad = false;  // dr[2] = dx[2] * r, dr[3] = 0

  template <class V>
  FASTRNN_HD static void forward(const V* x, const V* r, const V* s, V* s_new, V* saved) {
    const V reset = sigmoid(x[0] + r[0]), z = sigmoid(x[1] + r[1]);
    const V n = tanh(x[2] + reset * r[2]);
    s_new[0] = s[0] + x[3] * (V(1) - z) * (n - s[0]);
    saved[0] = reset;
    saved[1] = z;
    saved[2] = n;
    saved[3] = x[3];
    saved[4] = r[2];
  }
  template <class V>
  FASTRNN_HD static void backward(const V* saved, const V* s, const V*, const V* ds_new, V* dx, V* dr, V* ds) {
    const V reset = saved[0], z = saved[1], n = saved[2], a = saved[3], rn = saved[4], dh = ds_new[0];
    const V update = a * (V(1) - z), d = dh * (n - s[0]);
    dx[2] = dh * update * d_tanh(n);
    dr[2] = dx[2] * reset;
    dx[0] = dr[0] = dx[2] * rn * d_sigmoid(reset);
    dx[1] = dr[1] = -(d * a) * d_sigmoid(z);
    dx[3] = d * (V(1) - z);
    dr[3] = V(0);
    ds[0] = dh - dh * update;
  }
};
}  // namespace fastrnn
