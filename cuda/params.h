#pragma once
// What crosses from the host into a kernel: one layer, and how it is laid over the chip. Every offset is 64-bit;
// strides are in elements; a null pointer means "absent".
#include <stdint.h>

#include "../csrc/noise.h"

namespace fastrnn {
constexpr int kThreads = 256, kWarps = kThreads / 32;
constexpr int kMaxCtas = 256;  // that share one slice of the batch

// How the recurrence lies on the chip. A group of CTAs shares the recurrent weights, each owning `units` hidden units;
// groups own `rows` rows of the batch and do not wait for each other.
//   cta       one CTA holds all the weights; h stays in its shared memory
//   cluster   2 to 16 CTAs of a cluster; h is pushed into every peer's shared memory
//   grid      CTAs anywhere on the chip, all resident; h goes through L2, with a flag per CTA and step
//   stepwise  one launch per step; nothing need be resident
enum CudaSchedule { kCta, kCluster, kGrid, kStepwise, kNumCudaSchedules };

struct Geometry {
  int schedule, ctas, units, rows, groups;
  int ksplit[2];        // into how many sums each stage's product is divided among the warps
  int shared_tiles[2];  // weight tiles of each warp kept in shared memory; more of them are in registers or streamed
  int in_registers;     // whether weight tiles are kept in registers
};

// One layer. T steps, B rows, H hidden units, D directions; x has been projected, and b_ih added, before.
struct CudaLayer {
  int64_t T, B, H, D;
  const void* w_hh[2];        // [G*H, H]
  const void* b_hh[2];        // [G*H], then the cell's vectors [V*H]; null = zero (cells without vectors)
  const void* states_in[2];   // h [D, B, H], those beyond it [D, B, states - 1, H]; null = zero
  const int64_t* lengths;     // [B], clamped to [0, T]; null = all T
  const uint8_t* reset_mask;  // [T, B]; null = none
  int64_t reset_stride_t, reset_stride_b;
  bool reset_to_initial;  // where reset_mask is true, states_in enters instead of zeros
  Zoneout zoneout;
  CandidateDropout candidate_dropout;
  const void* h_mask;  // [D, B, H] factors of h where the recurrent product reads it; null = none
  void* y;             // [T, B, D*H]
  int64_t y_stride_t, y_stride_b;
  void* reserve;    // [D, T, B, slots, H], see LayerRun::slots(); null = inference
  bool recompute;   // the reserve has no gates: on entry of backward dgx has W x + b_ih and dgr R h + b_hh (without
                    // dgr: dgx has their sum); of a normalised cell dgx has LN(W x), and dgr R h and h_prev c, both
                    // normalised without gain and shift
  void* workspace;  // see workspace_bytes()
  uint32_t* error;  // set to 1 when a wait ran out of time
  uint64_t wait_limit_ns;  // of one wait; 0 makes every wait fail
  int64_t first, last;     // exchanges [first, last) of this launch: all of them, or one (stepwise)
  Geometry geometry;

  // Whether the kernels that know regularisers, resets to the initial state and recomputed gates have to run.
  bool special() const {
    return zoneout.any() || candidate_dropout.rate > 0 || h_mask || recompute || reset_to_initial;
  }
};

struct CudaForward : CudaLayer {
  const void* gx;  // [T, B, D*G*H]
  int64_t gx_stride_t, gx_stride_b;
  void* states_out[2];  // as states_in; null = not wanted
  // [D, B, G*H] what the steps that start from the initial state have for R h, of a normalised cell whose states_in[0]
  // is not what R multiplies; null = R states_in[0].
  const void* first_product;
};

struct CudaBackward : CudaLayer {
  const void* dy;  // [T, B, D*H], null = zero
  int64_t dy_stride_t, dy_stride_b;
  const void* dstates_out[2];  // null = zero
  const void* dc;              // [T, B, D, states - 1, H] gradient of the states beyond h of every step, null = zero
  int64_t dc_stride_t, dc_stride_b;
  const uint8_t* detach_mask;  // [T, B] as reset_mask, where states cross and their gradients do not; null = none
  int64_t detach_stride_t, detach_stride_b;
  double grad_clip;  // bound of dgx and dgr; 0 = none
  void* dgx;         // [T, B, D*G*H] gradient of gx; zero beyond the lengths
  void* dgr;         // the same of the recurrent part; null where a cell's are equal
  // [T, B, D*V*H] parts of the gradient of the cell's vectors; null without. Of a normalised cell [B, D*V*H] sums over
  // the steps, of their type, zero on entry: of the shifts of R h, its gains, gain and shift of c.
  void* dvectors;
  void* h_prev;            // [T, B, D*H] the h that entered each step; zero beyond the lengths
  void* dstates_in[2];     // null = not wanted
  const void* deviations;  // [T, B, D, S] 1/deviation of R h and, behind it, of c: of a normalised cell to recompute
  // [D, B, S, H] of the type of sums, zero on entry: what the steps that were reset to the initial state owe it. Null
  // unless reset_to_initial.
  void* dinitial;

  bool special() const { return CudaLayer::special() || dc || detach_mask || grad_clip > 0; }
};
}  // namespace fastrnn
