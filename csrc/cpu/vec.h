#pragma once
// Vec<T>: the widest vector of T of this translation unit's ISA, and exp/tanh on it. Kernels see only this type.
// Internal linkage throughout: the file is compiled once per ISA (see isa_rnn.cpp).
// Built on the compiler's vector extension, so one body serves SSE2/NEON, AVX2 and AVX-512; a*b+c contracts to FMA.
#include <stdint.h>

#include <utility>
#if defined(__AVX2__)
#include <immintrin.h>
#endif

#include "../cells/math.h"
#include "../noise.h"

namespace fastrnn {
namespace {
#if defined(__AVX512F__)
constexpr int kVecBytes = 64;
#elif defined(__AVX2__)
constexpr int kVecBytes = 32;
#else
constexpr int kVecBytes = 16;
#endif

// Vector types of T: native, loadable from any address, and integer lanes of the same size.
template <class T>
struct Lanes;
template <>
struct Lanes<float> {
  typedef float Native __attribute__((vector_size(kVecBytes)));
  typedef float Unaligned __attribute__((vector_size(kVecBytes), aligned(4), may_alias));
  typedef int32_t Mask __attribute__((vector_size(kVecBytes)));
  typedef uint32_t Bits __attribute__((vector_size(kVecBytes)));
};
template <>
struct Lanes<double> {
  typedef double Native __attribute__((vector_size(kVecBytes)));
  typedef double Unaligned __attribute__((vector_size(kVecBytes), aligned(8), may_alias));
  typedef int64_t Mask __attribute__((vector_size(kVecBytes)));
  typedef uint64_t Bits __attribute__((vector_size(kVecBytes)));
};

template <class T>
struct Vec {
  static constexpr int kWidth = kVecBytes / sizeof(T);
  using Native = typename Lanes<T>::Native;
  using Unaligned = typename Lanes<T>::Unaligned;
  using Mask = typename Lanes<T>::Mask;
  Native v;

  Vec() = default;
  FASTRNN_HD Vec(Native x) : v(x) {}
  FASTRNN_HD explicit Vec(T x) : v(x - Native{}) {}  // broadcast; x - 0 keeps -0 and NaN
  template <class Number>
  FASTRNN_HD explicit Vec(Number x) : Vec(T(x)) {}
  FASTRNN_HD static Vec load(const T* p) { return *reinterpret_cast<const Unaligned*>(p); }
  FASTRNN_HD void store(T* p) const { *reinterpret_cast<Unaligned*>(p) = v; }
  // The first n lanes; the others read as zero.
  FASTRNN_HD static Vec load_n(const T* p, int64_t n) {
    Vec r{Native{}};
    for (int64_t k = 0; k < n; ++k) r.v[k] = p[k];
    return r;
  }
  FASTRNN_HD void store_n(T* p, int64_t n) const {
    for (int64_t k = 0; k < n; ++k) p[k] = v[k];
  }
};
template <class T>
FASTRNN_HD Vec<T> operator+(Vec<T> a, Vec<T> b) {
  return a.v + b.v;
}
template <class T>
FASTRNN_HD Vec<T> operator-(Vec<T> a, Vec<T> b) {
  return a.v - b.v;
}
template <class T>
FASTRNN_HD Vec<T> operator*(Vec<T> a, Vec<T> b) {
  return a.v * b.v;
}
template <class T>
FASTRNN_HD Vec<T> operator/(Vec<T> a, Vec<T> b) {
  return a.v / b.v;
}
template <class T>
FASTRNN_HD Vec<T> operator-(Vec<T> a) {
  return -a.v;
}
// NaN in the first argument survives all three.
template <class T>
FASTRNN_HD Vec<T> max(Vec<T> a, Vec<T> b) {
  return a.v < b.v ? b.v : a.v;
}
template <class T>
FASTRNN_HD Vec<T> min(Vec<T> a, Vec<T> b) {
  return a.v > b.v ? b.v : a.v;
}
template <class T>
FASTRNN_HD Vec<T> step(Vec<T> a) {
  return a.v > 0 ? Vec<T>(1).v : Vec<T>(0).v;
}
template <class T>
FASTRNN_HD Vec<T> where_positive(Vec<T> x, Vec<T> yes, Vec<T> no) {
  return x.v > 0 ? yes.v : no.v;
}

// 0, 1, 2, ... as a constant: lanes set one by one, as a loop sets them, cost more than the random bits made of them.
template <class Bits, size_t... L>
FASTRNN_HD Bits lane_numbers(std::index_sequence<L...>) {
  return Bits{L...};
}
// Which of the units from `unit` on are hit, see csrc/noise.h.
template <class T>
FASTRNN_HD typename Vec<T>::Mask hit_units(uint64_t key, int64_t unit, uint32_t threshold) {
  using Bits = typename Lanes<T>::Bits;
  const Bits lanes = lane_numbers<Bits>(std::make_index_sequence<Vec<T>::kWidth>());
  return noise_bits(key, Bits(lanes + uint32_t(unit))) < threshold;
}
template <class T>
FASTRNN_HD Vec<T> select(typename Vec<T>::Mask mask, Vec<T> yes, Vec<T> no) {
  return mask ? yes.v : no.v;
}

#if defined(__AVX512F__)
template <>
FASTRNN_HD Vec<float> max(Vec<float> a, Vec<float> b) {
  return _mm512_max_ps(b.v, a.v);
}
template <>
FASTRNN_HD Vec<float> min(Vec<float> a, Vec<float> b) {
  return _mm512_min_ps(b.v, a.v);
}
#elif defined(__AVX2__)
template <>
FASTRNN_HD Vec<float> max(Vec<float> a, Vec<float> b) {
  return _mm256_max_ps(b.v, a.v);
}
template <>
FASTRNN_HD Vec<float> min(Vec<float> a, Vec<float> b) {
  return _mm256_min_ps(b.v, a.v);
}
#endif

// expm1 split as e^x = 2^n (1 + q): n = round(x / ln 2), q = e^r - 1 with |r| <= ln(2)/2 (1 + 2^-11).
// q = r + r^2 P(r), P a minimax polynomial of (e^r - 1 - r)/r^2: relative error of q below 1.4e-8 before rounding.
// ln 2 is one float: its error, 1.9e-9 n, matters only where e^x is beyond 2^30 or below 2^-30.
// x must lie in [-87.34, 88.37]; NaN passes through q.
struct ExpParts {
  Vec<float> scale, q;
};
FASTRNN_HD ExpParts exp_parts(Vec<float> x) {
  using V = Vec<float>;
  constexpr float kRound = 12582912.f;  // 1.5 * 2^23: adding it rounds to an integer held in the low mantissa bits
  const V t = x * V(1.44269504f) + V(kRound);
  const V n = t - V(kRound);
  // The product has to be exact, so this one multiply-add is spelled out instead of left to the compiler to contract.
#if defined(__AVX512F__)
  const V r = _mm512_fnmadd_ps(n.v, V(0.693147182f).v, x.v);
#elif defined(__FMA__)
  const V r = _mm256_fnmadd_ps(n.v, V(0.693147182f).v, x.v);
#else  // ln 2 in two parts, the first of few enough bits
  const V r = n * V(2.12194440e-4f) + (n * V(-0.693359375f) + x);
#endif
  V p = r * V(1.38825167e-3f) + V(8.36654752e-3f);
  p = p * r + V(4.16672006e-2f);
  p = p * r + V(1.66665435e-1f);
  p = p * r + V(0.49999997f);
  // The low bits of t hold n + 0x4B400000; adding the exponent bias and shifting builds 2^n.
  const V::Mask bits = (V::Mask(t.v) + (127 - 0x4B400000)) << 23;
  return {V(V::Native(bits)), r * r * p + r};
}
// exp and sigmoid: below 6 ulp (3 where the result is above 2^-24); exp saturates at 1.2e-38 and 2.2e38, so that 1/(1 +
// exp(-x)) is 0 or 1 once flushed.
FASTRNN_HD Vec<float> exp(Vec<float> x) {
  const ExpParts e = exp_parts(max(min(x, Vec<float>(88.3f)), Vec<float>(-87.3f)));
  return e.scale * e.q + e.scale;
}
// tanh |x| = t/(t + 2) with t = e^(2|x|) - 1, sign restored: odd, |y| <= 1, tanh(-0) = -0, below 3 ulp.
FASTRNN_HD Vec<float> tanh(Vec<float> x) {
  using V = Vec<float>;
  const V::Mask bits = V::Mask(x.v);
  const V::Mask sign = bits & V::Mask(bits - bits + INT32_MIN);
  const V::Mask magnitude = bits ^ sign;
  const V a = min(V(V::Native(magnitude)), V(10.f));
  const ExpParts e = exp_parts(a + a);
  const V t = e.scale * e.q + (e.scale - V(1));
  const V y = t / (t + V(2));
  const V::Mask out = V::Mask(y.v) ^ sign;
  return V(V::Native(out));
}
// log(1 + x) = 2 atanh(s), s = x/(2 + x), for x in [0, 1]: s <= 1/3, and 2 atanh(s) - 2s = s^3 P(s^2), P a minimax
// polynomial. Below 3 ulp.
FASTRNN_HD Vec<float> log1p_unit(Vec<float> x) {
  using V = Vec<float>;
  const V s = x / (x + V(2)), w = s * s;
  V p = w * V(0.280244597f) + V(0.279991409f);
  p = p * w + V(0.400216991f);
  p = p * w + V(0.666664131f);
  return s * w * p + (s + s);
}
// In place: row[i] lane j <-> row[j] lane i. log2(W) rounds, each swapping blocks of D lanes between rows D apart.
#if defined(__has_builtin)
#if __has_builtin(__builtin_shufflevector)
#define FASTRNN_SHUFFLE 1
#endif
#endif
#if defined(FASTRNN_SHUFFLE)
template <int D, class T, size_t... L>
FASTRNN_HD void swap_blocks(Vec<T>& a, Vec<T>& b, std::index_sequence<L...>) {
  constexpr int W = Vec<T>::kWidth;
  const Vec<T> low = __builtin_shufflevector(a.v, b.v, ((L & D) ? W + L - D : L)...);
  b = __builtin_shufflevector(a.v, b.v, ((L & D) ? W + L : L + D)...);
  a = low;
}
template <int D, class T>
FASTRNN_HD void transpose_rounds(Vec<T>* row) {
  constexpr int W = Vec<T>::kWidth;
#pragma GCC unroll 16
  for (int i = 0; i < W; ++i)
    if (!(i & D)) swap_blocks<D>(row[i], row[i + D], std::make_index_sequence<W>());
  if constexpr (D > 1) transpose_rounds<D / 2>(row);
}
template <class T>
FASTRNN_HD void transpose(Vec<T>* row) {
  transpose_rounds<Vec<T>::kWidth / 2>(row);
}
#else
template <class T>
FASTRNN_HD void transpose(Vec<T>* row) {
  for (int i = 0; i < Vec<T>::kWidth; ++i)
    for (int j = 0; j < i; ++j) {
      const T t = row[i].v[j];
      row[i].v[j] = row[j].v[i];
      row[j].v[i] = t;
    }
}
#endif

// float64 exists to check the rest: libm lane by lane.
FASTRNN_HD Vec<double> exp(Vec<double> x) {
  for (int k = 0; k < Vec<double>::kWidth; ++k) x.v[k] = ::exp(x.v[k]);
  return x;
}
FASTRNN_HD Vec<double> tanh(Vec<double> x) {
  for (int k = 0; k < Vec<double>::kWidth; ++k) x.v[k] = ::tanh(x.v[k]);
  return x;
}
FASTRNN_HD Vec<double> log1p_unit(Vec<double> x) {
  for (int k = 0; k < Vec<double>::kWidth; ++k) x.v[k] = ::log1p(x.v[k]);
  return x;
}

#if defined(__AVX512F__)
template <>
FASTRNN_HD Vec<float> Vec<float>::load_n(const float* p, int64_t n) {
  return _mm512_maskz_loadu_ps(__mmask16((1u << n) - 1), p);
}
template <>
FASTRNN_HD void Vec<float>::store_n(float* p, int64_t n) const {
  _mm512_mask_storeu_ps(p, __mmask16((1u << n) - 1), v);
}
#endif

// The first min(lanes, W) lanes at p.
template <class T>
inline Vec<T> load_lanes(const T* p, int64_t lanes) {
  return lanes >= Vec<T>::kWidth ? Vec<T>::load(p) : Vec<T>::load_n(p, lanes);
}
template <class T>
inline void store_lanes(Vec<T> v, T* p, int64_t lanes) {
  if (lanes >= Vec<T>::kWidth)
    v.store(p);
  else
    v.store_n(p, lanes);
}
// By halves: a chain of W additions would take longer than the pass over a row.
template <class T>
T sum_lanes(Vec<T> v) {
  alignas(64) T a[Vec<T>::kWidth];
  v.store(a);
  for (int half = Vec<T>::kWidth / 2; half; half /= 2)
    for (int k = 0; k < half; ++k) a[k] += a[k + half];
  return a[0];
}
}  // namespace
}  // namespace fastrnn
