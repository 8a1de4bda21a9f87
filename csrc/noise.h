#pragma once
// Regularisers of the recurrence, and where their random numbers come from: a counter, never a generator with a state.
// A number depends on the seed and on where it is used (direction, state, time, row, unit), so it is the same for every
// instruction set, schedule, number of threads and backend. fastrnn/_noise.py computes the same numbers.
#include <stdint.h>

#include "cells/math.h"

namespace fastrnn {
// Zoneout (Krueger et al. 2017, arXiv 1606.01305): with probability rate[s] a unit keeps state s of the step before;
// when not training, new = old + (1 - rate) * (new - old), the expectation.
struct Zoneout {
  uint64_t seed;
  double rate[2];  // of h, c
  bool training;

  bool any() const { return rate[0] > 0 || rate[1] > 0; }
};

// Dropout of the candidate (Semeniuta et al. 2016, arXiv 1603.05118): g of an LSTM, n of a GRU, is zero with
// probability `rate` and else divided by 1 - rate; new units at every step, or the same ones at all of them.
struct CandidateDropout {
  uint64_t seed;
  double rate;  // 0 = none
  bool per_step;
};
constexpr int64_t kCandidateStream = 40;  // and the direction; the other streams are in fastrnn/_noise.py

// A bijection of 64 bits that mixes well (the finaliser of splitmix64, Steele et al. 2014).
FASTRNN_HD uint64_t mix64(uint64_t x) {
  x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9ull;
  x = (x ^ (x >> 27)) * 0x94D049BB133111EBull;
  return x ^ (x >> 31);
}
// The key of the random numbers of one row at one time; `stream` tells uses apart.
FASTRNN_HD uint64_t noise_key(uint64_t seed, int64_t stream, int64_t t, int64_t b) {
  return mix64(mix64(mix64(seed + 0x9E3779B97F4A7C15ull * uint64_t(stream + 1)) + uint64_t(t)) + uint64_t(b));
}
// 32 random bits of a unit, twice through a bijection of 32 bits (a murmur finaliser). Bits is a 32-bit unsigned type,
// or a 64-bit one (or a vector of them) whose upper half is kept clear.
template <class Bits>
FASTRNN_HD Bits mix32(Bits x) {
  x ^= x >> 16;
  x = x * 0x85EBCA6Bu & 0xFFFFFFFFu;
  x ^= x >> 13;
  x = x * 0xC2B2AE35u & 0xFFFFFFFFu;
  return x ^ (x >> 16);
}
template <class Bits>
FASTRNN_HD Bits noise_bits(uint64_t key, Bits unit) {
  const Bits first = mix32(Bits((unit + uint32_t(key)) & 0xFFFFFFFFu));
  return mix32(Bits(first ^ uint32_t(key >> 32)));
}
// A unit is hit if its bits are below this.
FASTRNN_HD uint32_t noise_threshold(double rate) { return rate >= 1 ? 0xFFFFFFFFu : uint32_t(rate * 4294967296.0); }
}  // namespace fastrnn
