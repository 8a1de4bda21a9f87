#pragma once
// Element types, and the types in which they are computed with: float for float, bfloat16 and float16, double for
// double.
#include "device.cuh"

namespace fastrnn {
__device__ inline float widen(float v) { return v; }
__device__ inline double widen(double v) { return v; }
__device__ inline float widen(__nv_bfloat16 v) { return __bfloat162float(v); }
__device__ inline float widen(__half v) { return __half2float(v); }
template <class E, class A>
__device__ inline E narrow(A v) {
  return v;
}
template <>
__device__ inline __nv_bfloat16 narrow(float v) {
  return __float2bfloat16_rn(v);
}
template <>
__device__ inline __half narrow(float v) {
  return __float2half_rn(v);
}
template <class E>
using Wide = decltype(widen(E()));
}  // namespace fastrnn
