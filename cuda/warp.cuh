#pragma once
// Sums and maxima over the lanes of a warp, each in one order and the same in every lane.
#include "../csrc/cells/math.h"
#include "device.cuh"

namespace fastrnn {
template <class A>
__device__ inline A warp_sum(A v) {
#pragma unroll
  for (int lane = 16; lane > 0; lane /= 2) v += device::shuffle_xor(v, lane);
  return v;
}
template <class A>
__device__ inline A warp_max(A v) {
#pragma unroll
  for (int lane = 16; lane > 0; lane /= 2) v = max(v, device::shuffle_xor(v, lane));
  return v;
}

// The sums over all lanes of N values, a power of two of at most 32: lane i gets that of v[i % N]. A lane keeps one
// half of what it has, completed by the lane that keeps the other, until one is left.
template <int n, class A, int N>
__device__ inline void halve(A (&v)[N], int lane) {
  if constexpr (n > 0) {
    const bool upper = lane & n;
#pragma unroll
    for (int j = 0; j < n; ++j) {
      const A keep = upper ? v[j + n] : v[j], give = upper ? v[j] : v[j + n];
      v[j] = keep + device::shuffle_xor(give, n);
    }
    halve<n / 2>(v, lane);
  }
}
template <class A, int N>
__device__ inline A collect(A (&v)[N], int lane) {
  halve<N / 2>(v, lane);
#pragma unroll
  for (int n = N; n < 32; n *= 2) v[0] += device::shuffle_xor(v[0], n);
  return v[0];
}
}  // namespace fastrnn
