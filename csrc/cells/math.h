#pragma once
// The functions a cell may call, for float and double. cpu/vec.h adds the overloads for SIMD vectors.
// Cells are pure arithmetic on a value type V: float in a CUDA thread, a vector of lanes on a CPU, double in tests.
#include <cmath>

#if defined(__CUDACC__)
#define FASTRNN_HD __host__ __device__ __forceinline__
#else
#define FASTRNN_HD inline __attribute__((always_inline))
#endif

namespace fastrnn {
FASTRNN_HD float exp(float x) { return ::expf(x); }
FASTRNN_HD double exp(double x) { return ::exp(x); }
FASTRNN_HD float log(float x) { return ::logf(x); }
FASTRNN_HD double log(double x) { return ::log(x); }
FASTRNN_HD float tanh(float x) { return ::tanhf(x); }
FASTRNN_HD double tanh(double x) { return ::tanh(x); }
// max(a, b) is NaN when a is NaN, as in torch.relu.
FASTRNN_HD float max(float a, float b) { return a < b ? b : a; }
FASTRNN_HD double max(double a, double b) { return a < b ? b : a; }
// 1 where x > 0, else 0.
FASTRNN_HD float step(float x) { return x > 0.f ? 1.f : 0.f; }
FASTRNN_HD double step(double x) { return x > 0.0 ? 1.0 : 0.0; }
// yes where x > 0, else no.
FASTRNN_HD float where_positive(float x, float yes, float no) { return x > 0.f ? yes : no; }
FASTRNN_HD double where_positive(double x, double yes, double no) { return x > 0.0 ? yes : no; }
// |x| with the sign of y, also of -0. For cells on CUDA alone.
FASTRNN_HD float copysign(float x, float y) { return ::copysignf(x, y); }
FASTRNN_HD double copysign(double x, double y) { return ::copysign(x, y); }
// log(1 + x) of x in [0, 1].
FASTRNN_HD float log1p_unit(float x) { return ::log1pf(x); }
FASTRNN_HD double log1p_unit(double x) { return ::log1p(x); }

template <class V>
FASTRNN_HD V sigmoid(V x) {
  return V(1) / (V(1) + exp(-x));
}
// Derivatives in terms of the activation's output y.
template <class V>
FASTRNN_HD V d_sigmoid(V y) {
  return y * (V(1) - y);
}
template <class V>
FASTRNN_HD V d_tanh(V y) {
  return V(1) - y * y;
}
}  // namespace fastrnn
