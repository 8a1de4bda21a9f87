#pragma once
// sLSTM (Beck et al. 2024, "xLSTM", arXiv 2405.04517, section 2.2): an LSTM whose input gate, and on wish its forget
// gate, is an exponential; n counts what the gates let in, m keeps their logarithms in range.
//   a = x + r of i    b = m + log f, f = sigmoid(x + r) or exp(x + r)    z = tanh(x + r)    o = sigmoid(x + r)
//   m' = max(a, b)    i = exp(a - m')    f = exp(b - m')    c' = f*c + i*z    n' = f*n + i    h' = o*c'/n'
// No division by zero: one of i and f is 1, so that n' >= min(n, 1) if n > 0. n = 0 (the zero state, a reset) holds
// nothing that m could be the scale of: there m' = a, so that i = n' = 1, whatever a is.
// h' does not depend on m', which cancels from c'/n', and neither does its gradient, in exact arithmetic; c', n' and m'
// do. All of them are differentiated as they stand, m' as the larger of a and b, so that a loss may read any state.
#include "cell.h"

namespace fastrnn {
struct SigmoidForget {  // log f and its derivative
  template <class V>
  FASTRNN_HD static void apply(V x, V* log_f, V* derivative) {
    const V e = exp(-max(x, -x));
    *log_f = -max(-x, V(0)) - log1p_unit(e);
    *derivative = where_positive(x, e, V(1)) / (V(1) + e);
  }
};
struct ExponentialForget {
  template <class V>
  FASTRNN_HD static void apply(V x, V* log_f, V* derivative) {
    *log_f = x;
    *derivative = V(1);
  }
};

template <class Forget>
struct GatedSlstmCell : CellDefaults {
  static constexpr int kGates = 4;   // i f z o
  static constexpr int kStates = 4;  // h c n m
  static constexpr int kSaved = 5;   // i f z o after activation; derivative of log f, negative where m' = a
  static constexpr int kExponent = 3;
  // Bound of b - a where n = 0: f, which then multiplies zeros but also the gradients of c and n, stays finite in half.
  static constexpr double kLargest = 11;

  template <class V>
  FASTRNN_HD static void forward(const V* x, const V* r, const V* s, V* s_new, V* saved) {
    V log_f, slope;
    Forget::apply(x[1] + r[1], &log_f, &slope);
    const V a = x[0] + r[0], b = s[3] + log_f, z = tanh(x[2] + r[2]), o = sigmoid(x[3] + r[3]);
    const V by = where_positive(s[2], b - a, V(-1));  // positive where b is m'
    const V smaller = exp(where_positive(by, a - b, -max(a - b, V(-kLargest))));
    const V i = where_positive(by, smaller, V(1)), f = where_positive(by, V(1), smaller);
    s_new[1] = f * s[1] + i * z;
    s_new[2] = f * s[2] + i;
    s_new[3] = where_positive(by, b, a);
    s_new[0] = o * s_new[1] / s_new[2];
    saved[0] = i;
    saved[1] = f;
    saved[2] = z;
    saved[3] = o;
    saved[4] = where_positive(by, slope, -slope);
  }
  // Gates computed again from a rounded m would be wrong by a factor, and backward reads m nowhere else: in its place
  // is kept that of i and f which is not 1; f with a minus sign, also of zero.
  template <class V>
  FASTRNN_HD static V exponentials(const V* saved) {
    return where_positive(copysign(V(1), saved[4]), saved[0], -saved[1]);
  }
  // What forward() saves, from that.
  template <class V>
  FASTRNN_HD static void recompute(const V* x, const V* r, V kept, V* saved) {
    V log_f, slope;
    Forget::apply(x[1] + r[1], &log_f, &slope);
    const V sign = copysign(V(1), kept);
    saved[0] = where_positive(sign, kept, V(1));
    saved[1] = where_positive(sign, V(1), -kept);
    saved[2] = tanh(x[2] + r[2]);
    saved[3] = sigmoid(x[3] + r[3]);
    saved[4] = copysign(slope, kept);
  }
  template <class V>
  FASTRNN_HD static void backward(const V* saved, const V* s, const V* s_new, const V* ds_new, V* dx, V* dr, V* ds) {
    const V i = saved[0], f = saved[1], z = saved[2], o = saved[3], scale = V(1) / s_new[2], y = s_new[1] * scale;
    const V dy = ds_new[0] * o * scale, dc = ds_new[1] + dy, dn = ds_new[2] - dy * y;
    const V from_i = (dc * z + dn) * i, from_f = (dc * s[1] + dn * s[2]) * f;
    const V dm = ds_new[3] - (from_i + from_f);  // zero but for rounding, unless a loss reads c, n or m
    const V da = from_i + where_positive(saved[4], V(0), dm), db = from_f + where_positive(saved[4], dm, V(0));
    dx[0] = da;
    dx[1] = db * max(saved[4], -saved[4]);
    dx[2] = dc * i * d_tanh(z);
    dx[3] = ds_new[0] * y * d_sigmoid(o);
    for (int k = 0; k < kGates; ++k) dr[k] = dx[k];
    ds[0] = V(0);
    ds[1] = dc * f;
    ds[2] = dn * f;
    ds[3] = db;
  }
};
using SlstmCell = GatedSlstmCell<SigmoidForget>;
using SlstmExponentialCell = GatedSlstmCell<ExponentialForget>;
}  // namespace fastrnn
