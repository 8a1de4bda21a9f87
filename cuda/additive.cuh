#pragma once
// What the two kernels of the additive score of Bahdanau et al. (2015, arXiv 1409.0473) share: r of a query and a key
// (csrc/additive_activations.h), and the range in which tanh needs no exponential for every pair of them;
// csrc/cpu/additive.h has the formulas:
//   tanh(a + b) = 1 - 2 r,   r = 1 / (1 + P R),   P = e^(2a), R = e^(2b)
#include "../csrc/additive_activations.h"
#include "softmax.cuh"

namespace fastrnn {
// Bounds of log(u P R) below which two terms may share a reciprocal, and below which r comes from the exponentials. A v
// below kSmall of the largest counts as zero: its u is kNothing, and its term next to nothing, whatever the query.
template <class A>
struct AdditiveRange;
template <>
struct AdditiveRange<float> {
  static constexpr float kPair = 42.5f, kExponent = 85.f;
  static constexpr float kNothing = 1152921504606846976.f, kSmall = 1 / 17179869184.f;  // 2^60, 2^-34
};
template <>
struct AdditiveRange<double> {
  static constexpr double kPair = 340, kExponent = 680;
  static constexpr double kNothing = 1606938044258990275541962092341162602522202993782792835301376.,  // 2^200
      kSmall = 1 / 1267650600228229401496703205376.;                                                  // 2^-100
};

// |x|; infinite for NaN.
template <class A>
__device__ inline A magnitude(A x) {
  const A size = x < 0 ? -x : x;
  return size < A(INFINITY) ? size : A(INFINITY);
}

// r of tanh from a and b themselves, of any size.
template <class A>
__device__ inline A exact_ratio(A a, A b) {
  const A sum = a + b;
  return device::reciprocal(1 + exp(sum + sum));  // infinity gives zero
}
// r of any activation.
template <class Activation, class A>
__device__ inline A ratio_of(A a, A b) {
  if constexpr (Activation::kExponentials)
    return exact_ratio(a, b);
  else
    return Activation::apply(a + b);
}

// 16 bytes of shared memory.
template <class A>
struct alignas(16) Vector {
  static constexpr int kWidth = 16 / sizeof(A);
  A x[kWidth];
  __device__ static Vector load(const A* from) { return *reinterpret_cast<const Vector*>(from); }
};
}  // namespace fastrnn
