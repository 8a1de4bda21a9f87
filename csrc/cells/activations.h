#pragma once
// Activations that cells take as a template argument: the function, and its derivative in terms of its output.
#include "math.h"

namespace fastrnn {
struct Tanh {
  template <class V>
  FASTRNN_HD static V apply(V x) {
    return tanh(x);
  }
  template <class V>
  FASTRNN_HD static V derivative(V y) {
    return d_tanh(y);
  }
};
struct Relu {
  template <class V>
  FASTRNN_HD static V apply(V x) {
    return max(x, V(0));
  }
  template <class V>
  FASTRNN_HD static V derivative(V y) {
    return step(y);
  }
};
struct Sigmoid {
  template <class V>
  FASTRNN_HD static V apply(V x) {
    return sigmoid(x);
  }
  template <class V>
  FASTRNN_HD static V derivative(V y) {
    return d_sigmoid(y);
  }
};
// clip(x/6 + 1/2, 0, 1), as Keras 3 and torch define it.
struct HardSigmoid {
  template <class V>
  FASTRNN_HD static V apply(V x) {
    const V y = max(x * V(1.0 / 6) + V(0.5), V(0));
    return -max(-y, V(-1));
  }
  template <class V>
  FASTRNN_HD static V derivative(V y) {
    return V(1.0 / 6) * step(y) * step(V(1) - y);
  }
};
}  // namespace fastrnn
