#pragma once
// Softmax over the keys of one query, with scale, bias and mask, and its gradient:
//   weights[k] = e^(x[k] - max x) / sum     x[k] = scale * score[k] + bias[k], -inf where k may not be attended
//   dx[k] = weights[k] (dweights[k] - sum over k of weights dweights)     dscore = scale * dx, dbias = dx
#include "../attention.h"
#include "layout.h"

namespace fastrnn {
namespace {
// Below it e^x is no longer above zero (see exp in vec.h).
template <class T>
constexpr T kLowestExponent = sizeof(T) == 4 ? T(-87.3) : T(-745);

template <class T>
inline T highest_of(const T* x, int64_t n) {
  using V = Vec<T>;
  V highest(T(-INFINITY));
  int64_t k = 0;
  for (; k + V::kWidth <= n; k += V::kWidth) highest = max(highest, V::load(x + k));
  T h = -INFINITY;
  for (int i = 0; i < V::kWidth; ++i) h = h < highest.v[i] ? highest.v[i] : h;
  for (; k < n; ++k) h = h < x[k] ? x[k] : h;
  return h;
}

// Scores become logits, in place.
template <class T>
void logits(const AttentionInput<T>& p, int64_t b, int64_t q, int64_t keys, T* row) {
  if (p.scale != 1)
    for (int64_t k = 0; k < keys; ++k) row[k] *= p.scale;
  if (p.bias) {
    const T* bias = p.bias + p.bias_strides.at(b, q);
    const int64_t step = p.bias_strides.k;
    if (step == 1)
      for (int64_t k = 0; k < keys; ++k) row[k] += bias[k];
    else
      for (int64_t k = 0; k < keys; ++k) row[k] += bias[k * step];
  }
  if (p.mask) {
    const uint8_t* mask = p.mask + p.mask_strides.at(b, q);
    const int64_t step = p.mask_strides.k;
    if (step == 1)
      for (int64_t k = 0; k < keys; ++k) row[k] = mask[k] ? row[k] : T(-INFINITY);
    else
      for (int64_t k = 0; k < keys; ++k) row[k] = mask[k * step] ? row[k] : T(-INFINITY);
  }
}

// Logits become weights, in place; a row of -inf alone becomes zero.
template <class T>
void softmax(int64_t keys, T* row) {
  using V = Vec<T>;
  constexpr int W = V::kWidth;
  T highest = highest_of(row, keys);
  if (highest == T(-INFINITY)) {
    bool nothing = true;  // or NaN, which is in no maximum
    for (int64_t k = 0; k < keys; ++k) nothing &= row[k] == T(-INFINITY);
    if (nothing) return fill_zero(row, keys);
    highest = NAN;
  }
  V total(0);
  for (int64_t k = 0; k < keys; k += W) {
    const int64_t lanes = keys - k;
    const V x = load_lanes(row + k, lanes) - V(highest);
    const V e = select(x.v < V(kLowestExponent<T>).v, V(0), exp(x));  // exp alone does not reach zero
    store_lanes(e, row + k, lanes);
    total = total + (lanes < W ? load_lanes(row + k, lanes) : e);
  }
  const V sum(sum_lanes(total));
  for (int64_t k = 0; k < keys; k += W) store_lanes(load_lanes(row + k, keys - k) / sum, row + k, keys - k);
}

// Scores become weights, in place; a row in which nothing may be attended becomes zero.
template <class T>
void masked_softmax(const AttentionInput<T>& p, int64_t b, int64_t q, int64_t keys, T* row) {
  fill_zero(row + keys, p.shape.Tk - keys);
  logits(p, b, q, keys, row);
  softmax(keys, row);
}

// g: dweights of one query becomes dscore, in place, once `asked` (or null) has been added; dbias [keys] or null.
template <class T>
void softmax_gradient(int64_t keys, const T* weights, const T* asked, T scale, T* g, T* dbias) {
  using V = Vec<T>;
  constexpr int W = V::kWidth;
  V total(0);
  for (int64_t k = 0; k < keys; k += W) {
    const int64_t lanes = keys - k;
    const V a = load_lanes(weights + k, lanes);
    V x = load_lanes(g + k, lanes);
    if (asked) x = x + load_lanes(asked + k, lanes);
    x = select(a.v != V(0).v, x, V(0));  // what is not attended may hold anything
    store_lanes(x, g + k, lanes);
    total = total + a * x;
  }
  const V mean(sum_lanes(total));
  for (int64_t k = 0; k < keys; k += W) {
    const int64_t lanes = keys - k;
    const V a = load_lanes(weights + k, lanes);
    const V dx = select(a.v != V(0).v, a * (load_lanes(g + k, lanes) - mean), V(0));
    if (dbias) store_lanes(dx, dbias + k, lanes);
    store_lanes(dx * V(scale), g + k, lanes);
  }
}
}  // namespace
}  // namespace fastrnn
