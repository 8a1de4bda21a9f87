#pragma once
// LSTM with layer normalisation (Ba et al. 2016, arXiv 1607.06450, equations 20-22). The loop normalises x = W x and
// r = R h, each over all gates, and c where the output gate reads it; the biases are the shifts:
//   i,f,o = sigmoid(x + r)   g = tanh(x + r)   c' = f*c + i*g   h' = o*tanh(LN(c'))
#include "lstm.h"

namespace fastrnn {
struct LstmNormCell : LstmCell {
  static constexpr int kSaved = 4 + 5 + 5 + 2;  // i f g o; r, x and c normalised, with 1/deviation (see norm_slot())
  static constexpr int kVectors = 4 + 2 + 4;    // gains of r; gain and shift of c; gains of x
  static constexpr int kOutputGate = 3;         // h' = saved[3] * tanh(LN(c'))
  static constexpr bool kNormalised = true;
  static constexpr bool kSharedGateGrad = false;
};
}  // namespace fastrnn
