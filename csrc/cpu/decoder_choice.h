#pragma once
// The choice of tokens from the logits of a step: the most probable one, a sample, or the best continuations of beams.
#include "../decoder.h"
#include "softmax.h"

namespace fastrnn {
namespace {
template <class T>
struct TokenChoice {
  int64_t token;
  T log_prob;
};

// log sum exp of a row; the row is readable in whole vectors.
template <class T>
T log_sum_exp(const T* logits, int64_t n, T highest) {
  using V = Vec<T>;
  constexpr int W = V::kWidth;
  V total(0);
  int64_t v = 0;
  for (; v + W <= n; v += W) total = total + exp(V::load(logits + v) - V(highest));
  T sum = 0;
  for (int i = 0; i < W; ++i) sum += total.v[i];
  if (v < n) {
    const V e = exp(V::load_n(logits + v, n - v) - V(highest));
    for (int i = 0; i < n - v; ++i) sum += e.v[i];
  }
  return highest + T(::log(double(sum)));
}

// The smallest of the k largest of x, by a heap [k] whose root is the smallest kept.
template <class T>
T kth_largest(const T* x, int64_t n, int64_t k, T* heap) {
  const auto sink = [&](int64_t at, int64_t size) {
    for (int64_t child; (child = 2 * at + 1) < size; at = child) {
      if (child + 1 < size && heap[child + 1] < heap[child]) ++child;
      if (!(heap[child] < heap[at])) return;
      const T t = heap[at];
      heap[at] = heap[child];
      heap[child] = t;
    }
  };
  for (int64_t i = 0; i < k; ++i) heap[i] = x[i];
  for (int64_t i = k / 2; i-- > 0;) sink(i, k);
  for (int64_t i = k; i < n; ++i)
    if (x[i] > heap[0]) {
      heap[0] = x[i];
      sink(0, k);
    }
  return heap[0];
}

// One token of a row. The log probability is that of softmax(logits), whatever temperature and top_k say. room: [n],
// and a heap of [top_k].
template <class T>
TokenChoice<T> choose_token(const DecoderGenerate<T>& p, const T* logits, int64_t t, int64_t b, T* room, T* heap) {
  using V = Vec<T>;
  constexpr int W = V::kWidth;
  const int64_t n = p.V;
  const T highest = highest_of(logits, n), norm = log_sum_exp(logits, n, highest);
  int64_t token = 0;
  if (p.temperature == 0) {
    while (token + 1 < n && !(logits[token] == highest)) ++token;
    return {token, logits[token] - norm};
  }
  const int64_t k = p.top_k > 0 && p.top_k < n ? p.top_k : n;
  const T least = k < n ? kth_largest(logits, n, k, heap) : -INFINITY;
  int64_t ties = k;  // of those equal to the least, the first ones count
  for (int64_t v = 0; k < n && v < n; ++v) ties -= logits[v] > least;
  for (int64_t v = 0; v < n; v += W)
    store_lanes(exp((load_lanes(logits + v, n - v) - V(highest)) / V(p.temperature)), room + v, n - v);
  double total = 0;
  for (int64_t v = 0; v < n; ++v) {
    if (k < n && !(logits[v] > least || (logits[v] == least && ties-- > 0))) room[v] = 0;
    total += room[v];
  }
  const double wanted = total * (noise_bits(noise_key(p.seed, 0, t, b), uint32_t(0)) / 4294967296.0);
  double sum = 0;
  int64_t last = 0;  // rounding must not lead beyond the last token that may be chosen
  for (token = 0; token < n; ++token) {
    if (room[token] > 0) last = token;
    sum += room[token];
    if (sum > wanted) break;
  }
  token = last;
  return {token, logits[token] - norm};
}

// The best continuations of one batch, best first.
template <class T>
struct Continuation {
  T score;
  int64_t row, token;
};
// Keeps the best `room` of what is offered; of equal ones the first.
template <class T>
struct BestList {
  Continuation<T>* items;
  int64_t room, count = 0;

  T bar() const { return count < room ? T(-INFINITY) : items[count - 1].score; }
  void offer(T score, int64_t row, int64_t token) {
    if (count == room && !(score > items[count - 1].score)) return;
    int64_t at = count < room ? count++ : room - 1;
    for (; at > 0 && items[at - 1].score < score; --at) items[at] = items[at - 1];
    items[at] = {score, row, token};
  }
};
}  // namespace
}  // namespace fastrnn
