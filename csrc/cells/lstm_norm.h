#pragma once
// LSTM with layer normalisation (Ba et al. 2016, arXiv 1607.06450, equations 20-22). The loop normalises x = W x and
// r = R h, each over all gates, and c where the output gate reads it; the biases are the shifts:
//   i,f,o = sigmoid(x + r)   g = tanh(x + r)   c' = f*c + i*g   h' = o*tanh(LN(c'))
#include "lstm.h"

namespace fastrnn {
struct LstmNormCell : LstmCell {
  static constexpr int kSaved = 4 + 5 + 5 + 2;  // i f g o; r, x and c normalised, with 1/deviation (see norm_slot())
  static constexpr int kVectors = 4 + 2 + 4;    // gains of r; gain and shift of c; gains of x
  static constexpr int kOutputGate = 3;
  static constexpr bool kNormalised = true;
  static constexpr bool kDropsCandidate = false;
  static constexpr bool kSharedGateGrad = false;

  // h' from the output gate o and n = LN(c').
  template <class V>
  FASTRNN_HD static V output(V o, V n) {
    return o * tanh(n);
  }
  // Gradients of n (written) and of the output gate's pre-activation (returned).
  template <class V>
  FASTRNN_HD static V backward_output(V o, V n, V dh, V* dn) {
    const V th = tanh(n);
    *dn = dh * o * d_tanh(th);
    return dh * th * d_sigmoid(o);
  }
};
}  // namespace fastrnn
