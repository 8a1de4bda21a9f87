#pragma once
// Layer normalisation of rows of hidden units (Ba et al. 2016, arXiv 1607.06450): n = (v - mean) / sqrt(var + eps).
#include "layout.h"

namespace fastrnn {
namespace {
// Where a normalised cell keeps r (0), W x (1) and c (2): G values of each unit (c: one), then 1/deviation of the row,
// a single number (whole vectors of it would be a sixth of what is written), after its own.
template <class Cell>
constexpr int norm_slot(int which) {
  const int all = 2 * (Cell::kGates + 1) + 2 * (Cell::kStates - 1);
  return Cell::kNormalised ? Cell::kSaved - all + which * (Cell::kGates + 1) : 0;
}

template <class T>
T inverse_deviation(T variance) {
  return T(1) / T(__builtin_sqrt(double(variance) + kNormEps));
}

template <class T>
struct Moments {
  T mean, rstd;
};

template <class T, int N>
T sum_all(const Vec<T> (&v)[N]) {
  Vec<T> sum = v[0];
  for (int k = 1; k < N; ++k) sum = sum + v[k];
  return sum_lanes(sum);
}
// The first `lanes` lanes, zero beyond.
template <class T>
Vec<T> keep_lanes(Vec<T> v, int64_t lanes) {
  if (lanes >= Vec<T>::kWidth) return v;
  for (int64_t k = lanes; k < Vec<T>::kWidth; ++k) v.v[k] = T(0);
  return v;
}

// Mean and 1/deviation of G x H values, gate g at row + g * Hp; whole vectors are read, zeros beyond H. One chain of
// sums for each gate, so that the additions overlap.
template <int G, class T>
Moments<T> moments(const T* row, int64_t H, int64_t Hp) {
  using V = Vec<T>;
  const T count = T(G * H);
  V sums[G], squares[G];
  for (int g = 0; g < G; ++g) sums[g] = squares[g] = V(0);
  for (int64_t u = 0; u < H; u += V::kWidth)
    for (int g = 0; g < G; ++g) sums[g] = sums[g] + V::load(row + g * Hp + u);
  const T mean = sum_all(sums) / count;
  for (int64_t u = 0; u < H; u += V::kWidth)
    for (int g = 0; g < G; ++g) {
      const V d = keep_lanes(V::load(row + g * Hp + u) - V(mean), H - u);
      squares[g] = squares[g] + d * d;
    }
  return {mean, inverse_deviation(sum_all(squares) / count)};
}

// then(row, first(row)) for n rows. What a row as a whole has to give first is a chain of sums, a root and a division:
// those of several rows overlap.
template <class First, class Then>
void after_first(int64_t n, First first, Then then) {
  constexpr int64_t kRows = 8;
  decltype(first(n)) found[kRows];
  for (int64_t from = 0; from < n; from += kRows) {
    const int64_t rows = n - from < kRows ? n - from : kRows;
    for (int64_t i = 0; i < rows; ++i) found[i] = first(from + i);
    for (int64_t i = 0; i < rows; ++i) then(from + i, found[i]);
  }
}

// What the gradient of n needs of a whole row: the means of d and of d * n over G x H values.
template <class T>
struct NormSums {
  T d, dn;
};
template <int G, class T, class Product>
NormSums<T> norm_sums(int64_t H, Product d_and_n) {
  using V = Vec<T>;
  V sums[G], weighted[G];
  for (int g = 0; g < G; ++g) sums[g] = weighted[g] = V(0);
  for (int64_t u = 0; u < H; u += V::kWidth)
    for (int g = 0; g < G; ++g) {
      const std::pair<V, V> at = d_and_n(g, u);
      const V d = keep_lanes(at.first, H - u);
      sums[g] = sums[g] + d;
      weighted[g] = weighted[g] + d * keep_lanes(at.second, H - u);
    }
  const T count = T(G * H);
  return {sum_all(sums) / count, sum_all(weighted) / count};
}
// The gradient of v from that of n.
template <class T>
Vec<T> norm_backward(Vec<T> d, Vec<T> n, Vec<T> rstd, NormSums<T> means, int64_t lanes) {
  return keep_lanes(rstd * (d - Vec<T>(means.d) - n * Vec<T>(means.dn)), lanes);
}
}  // namespace
}  // namespace fastrnn
