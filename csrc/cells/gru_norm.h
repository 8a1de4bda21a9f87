#pragma once
// GRU with layer normalisation (Ba et al. 2016, arXiv 1607.06450, with the reset gate after the product, as in Haste).
// The loop normalises x = W x and r = R h, each over all gates; the biases are the shifts:
//   r,z = sigmoid(x + r_)   n = tanh(x_n + r * r_n)   h' = n + z*(h - n)
#include "gru.h"

namespace fastrnn {
struct GruNormCell : GruCell {
  static constexpr int kSaved = 4 + 4 + 4;  // r z n and the recurrent part of n; r and x normalised, with 1/deviation
  static constexpr int kVectors = 3 + 3;    // gains of r; gains of x
  static constexpr bool kNormalised = true;
  static constexpr bool kDropsCandidate = false;
};
}  // namespace fastrnn
