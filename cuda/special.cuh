#pragma once
// What a step may do to one unit of one row besides the cell: zoneout (Krueger et al. 2017), dropout of the candidate
// (Semeniuta et al. 2016) and the factors of recurrent dropout (Gal & Ghahramani 2016), with the random numbers of
// csrc/noise.h. A step without them is compiled apart (kSpecial = false) and is what it would be if they did not exist:
// these kernels are short of registers.
#include <stdint.h>

#include "../csrc/cells/cell.h"
#include "../csrc/noise.h"

namespace fastrnn {
// How much of state q from before the step stays: 0 or 1; the rate itself when not training.
template <class A>
__device__ inline A zoneout_share(const Zoneout& z, int q, int d, int64_t t, int64_t row, int64_t unit) {
  if (q > 1 || !(z.rate[q] > 0)) return A(0);
  if (!z.training) return A(z.rate[q]);
  const uint64_t key = noise_key(z.seed, 2 * d + q, t, row);
  return noise_bits(key, uint32_t(unit)) < noise_threshold(z.rate[q]) ? A(1) : A(0);
}

// The factor of the candidate of one unit of one row.
template <class A>
__device__ inline A candidate_factor(const CandidateDropout& c, int d, int64_t t, int64_t row, int64_t unit) {
  if (!(c.rate > 0)) return A(1);
  const uint64_t key = noise_key(c.seed, kCandidateStream + d, c.per_step ? t : 0, row);
  const bool hit = noise_bits(key, uint32_t(unit)) < noise_threshold(c.rate);
  return hit || c.rate >= 1 ? A(0) : A(1) / (A(1) - A(c.rate));
}

// Known before the step, so that it is read and computed while the one before is under way.
template <class Cell, class A, bool kSpecial>
struct UnitNoise {
  A share[Cell::kStates];  // see zoneout_share()
  A factor;                // of h (and of what a late gate reads) in the recurrent product
  A candidate;             // see candidate_factor()

  __device__ A in_product(A v) const { return factor * v; }
  // The cell's functions, with the factor of the candidate if it takes one.
  template <class... Args>
  __device__ void forward(Args... args) const {
    if constexpr (Cell::kDropsCandidate)
      cell_forward<Cell, A>(args..., candidate);
    else
      cell_forward<Cell, A>(args...);
  }
  template <class... Args>
  __device__ void backward(Args... args) const {
    if constexpr (Cell::kDropsCandidate)
      cell_backward<Cell, A>(args..., candidate);
    else
      cell_backward<Cell, A>(args...);
  }
  // s_new, as the cell found it, becomes what the step leaves.
  __device__ void zone_out(const A* s, A* s_new) const {
    for (int q = 0; q < Cell::kStates; ++q) s_new[q] = blend(share[q], s[q], s_new[q]);
  }
  // Takes from the gradient of what the step leaves the part that goes past the cell, which join() adds behind it.
  __device__ void split(A* ds_new, A* past) const {
    for (int q = 0; q < Cell::kStates; ++q) {
      past[q] = blend(share[q], ds_new[q], A(0));
      ds_new[q] = ds_new[q] - past[q];
    }
  }
  __device__ void join(const A* past, A* ds) const {
    for (int q = 0; q < Cell::kStates; ++q) ds[q] = ds[q] + past[q];
  }

 private:
  // Exact at 0 and 1, also where the other of the two is not finite.
  static __device__ A blend(A share, A keep, A change) {
    return share == A(0) ? change : share == A(1) ? keep : change + share * (keep - change);
  }
};

template <class Cell, class A>
struct UnitNoise<Cell, A, false> {
  __device__ A in_product(A v) const { return v; }
  template <class... Args>
  __device__ void forward(Args... args) const {
    cell_forward<Cell, A>(args...);
  }
  template <class... Args>
  __device__ void backward(Args... args) const {
    cell_backward<Cell, A>(args...);
  }
  __device__ void zone_out(const A*, A*) const {}
  __device__ void split(A*, A*) const {}
  __device__ void join(const A*, A*) const {}
};
}  // namespace fastrnn
