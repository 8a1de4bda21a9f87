#pragma once
// The activations f of the additive score, sum over d of v[d] f(query[d] + key[d]), as its kernels compute them, from
// one number r of each sum x:
//   f = kOffset + kFactor r     f' = kSlope w
//   tanh  r = 1 / (1 + e^(2x))  w = r - r^2     r from exponentials of query and key alone: kExponentials
//   relu  r = max(x, 0)         w = 1 where r > 0, else 0
#include "cells/activations.h"

namespace fastrnn {
struct AdditiveTanh : Tanh {
  static constexpr bool kExponentials = true;
  static constexpr int kOffset = 1, kFactor = -2, kSlope = 4;
  // g w, gr = g r
  template <class V>
  FASTRNN_HD static V slope(V, V gr, V r) {
    return gr - gr * r;
  }
};
struct AdditiveRelu : Relu {
  static constexpr bool kExponentials = false;
  static constexpr int kOffset = 0, kFactor = 1, kSlope = 1;
  template <class V>
  FASTRNN_HD static V slope(V g, V, V r) {
    return g * derivative(r);
  }
};
}  // namespace fastrnn
