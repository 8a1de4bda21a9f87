#pragma once
// Softmax over the keys of each query, with scale, bias, lengths and mask, and its gradient; a warp for each row:
//   weights[k] = e^(x[k] - max x) / sum     x[k] = scale * scores[k] + bias[k], -inf where k may not be attended
//   dx[k] = weights[k] (dweights[k] - sum over k of weights dweights)     dscores = scale * dx, dbias = dx
// A row that may attend to nothing is zero, and so are its gradients; one that has a NaN is NaN. The meaning is that of
// csrc/cpu/softmax.h. Each lane reads and writes keys of its own, so no barrier is needed and results may replace
// scores.
#include "attention.h"
#include "element.cuh"
#include "warp.cuh"

namespace fastrnn {
constexpr int kRowWarps = 8;  // rows of a block

// How many keys of row b are real.
__device__ inline int64_t key_count(const int64_t* lengths, int64_t b, int64_t Tk) {
  if (!lengths) return Tk;
  const int64_t n = lengths[b];
  return n < 0 ? 0 : n > Tk ? Tk : n;
}
// One kernel over `blocks` blocks, none of which has anything to do where there are none.
template <class Params>
cudaError_t launch_blocks(void (*kernel)(Params), int64_t blocks, int threads, size_t shared_bytes, const Params& p,
                          cudaStream_t stream) {
  if (blocks > INT32_MAX) return cudaErrorInvalidConfiguration;
  if (blocks == 0) return cudaSuccess;
  return device::launch<Params>(kernel, {unsigned(blocks), 1, 1, unsigned(threads), unsigned(shared_bytes), 1, false},
                                stream, p);
}

template <class E>
__device__ inline Wide<E> logit(const CudaSoftmax& p, int64_t b, int64_t q, int64_t k, Wide<E> score) {
  using A = Wide<E>;
  A x = score * A(p.scale);
  const PairStrides &of_bias = p.bias_strides, &of_mask = p.mask_strides;
  if (p.bias) x += widen(static_cast<const E*>(p.bias)[b * of_bias.b + q * of_bias.q + k * of_bias.k]);
  if (p.mask && !p.mask[b * of_mask.b + q * of_mask.q + k * of_mask.k]) x = A(-INFINITY);
  return x;
}

template <class E>
__global__ void __launch_bounds__(32 * kRowWarps) softmax_kernel(CudaSoftmax p) {
  using A = Wide<E>;
  const int lane = threadIdx.x % 32;
  const int64_t row = int64_t(blockIdx.x) * kRowWarps + threadIdx.x / 32, Tk = p.shape.Tk;
  if (row >= p.shape.B * p.shape.Tq) return;
  const int64_t b = row / p.shape.Tq, q = row % p.shape.Tq, keys = key_count(p.lengths, b, Tk);
  A* x = static_cast<A*>(p.scores) + row * Tk;
  E* weights = static_cast<E*>(p.weights) + row * Tk;
  A highest = A(-INFINITY), anything = 0, total = 0;
  for (int64_t k = lane; k < keys; k += 32) {
    const A v = x[k] = logit<E>(p, b, q, k, x[k]);
    highest = max(highest, v);
    if (v != A(-INFINITY)) anything = 1;  // a NaN as well, which is in no maximum
  }
  highest = warp_max(highest);
  anything = warp_max(anything);
  if (highest == A(-INFINITY) && anything != 0) highest = A(NAN);
  for (int64_t k = lane; anything != 0 && k < keys; k += 32) total += x[k] = exp(x[k] - highest);
  total = warp_sum(total);
  for (int64_t k = lane; k < Tk; k += 32) weights[k] = narrow<E>(anything != 0 && k < keys ? x[k] / total : A(0));
}

template <class E>
__global__ void __launch_bounds__(32 * kRowWarps) softmax_gradient_kernel(CudaSoftmaxGradient p) {
  using A = Wide<E>;
  const int lane = threadIdx.x % 32;
  const int64_t row = int64_t(blockIdx.x) * kRowWarps + threadIdx.x / 32, Tk = p.shape.Tk;
  if (row >= p.shape.B * p.shape.Tq) return;
  const E *weights = static_cast<const E*>(p.weights) + row * Tk, *asked = static_cast<const E*>(p.dweights);
  A *g = static_cast<A*>(p.gradient) + row * Tk, mean = 0;
  E* dbias = p.dbias ? static_cast<E*>(p.dbias) + row * Tk : nullptr;
  for (int64_t k = lane; k < Tk; k += 32) {
    const A a = widen(weights[k]);
    A x = g[k];
    if (asked) x += widen(asked[row * Tk + k]);
    g[k] = x = a != 0 ? x : A(0);  // what is not attended may hold anything
    mean += a * x;
  }
  mean = warp_sum(mean);
  for (int64_t k = lane; k < Tk; k += 32) {
    const A a = widen(weights[k]), dx = a != 0 ? a * (g[k] - mean) : A(0);
    g[k] = dx * A(p.scale);
    if (dbias) dbias[k] = narrow<E>(dx);
  }
}

template <class E>
cudaError_t launch_softmax(const CudaSoftmax& p, cudaStream_t stream) {
  const int64_t rows = p.shape.B * p.shape.Tq;
  return launch_blocks<CudaSoftmax>(softmax_kernel<E>, (rows + kRowWarps - 1) / kRowWarps, 32 * kRowWarps, 0, p,
                                    stream);
}
template <class E>
cudaError_t launch_softmax_gradient(const CudaSoftmaxGradient& p, cudaStream_t stream) {
  const int64_t rows = p.shape.B * p.shape.Tq;
  return launch_blocks<CudaSoftmaxGradient>(softmax_gradient_kernel<E>, (rows + kRowWarps - 1) / kRowWarps,
                                            32 * kRowWarps, 0, p, stream);
}
}  // namespace fastrnn
