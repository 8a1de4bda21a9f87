#pragma once
// Plain structs that cross the layers: what the caller asked (RnnShape, RnnForward, RnnBackward). Shapes are checked in
// Python; every offset is 64-bit; strides are in elements; a null pointer means "absent" where the field says so.
#include <stdint.h>

#include "noise.h"

namespace fastrnn {

// One layer. T steps, B rows, I inputs, H hidden units, P projected units (0 = none), D directions.
struct RnnShape {
  int64_t T, B, I, H, P, D;
  int64_t out() const { return P ? P : H; }  // width of h
  int64_t hidden_padded() const { return (H + 15) / 16 * 16; }
};

// The layout of `reserve` is the same for every ISA: [D, T, B, slots, hidden_padded], slots = kSaved gates,
// then the states beyond h (c of an LSTM), then, with a projection, h before it, then, with zoneout of c, c before it.
inline int64_t reserve_slots(int saved, int states, int64_t P, bool zoned = false) {
  return saved + states - 1 + (P ? 1 : 0) + (zoned ? states - 1 : 0);
}

constexpr int kStateArrays = 2;  // h, and all states beyond it
constexpr int kMaxGates = 4;

template <class T>
struct RnnWeights {  // one direction, torch's layout, contiguous
  const T* w_ih;     // [G*H, I]
  const T* w_hh;     // [G*H, P or H]
  const T* b_ih;     // [G*H], null = zero
  const T* b_hh;     // [G*H], then a cell's vectors [V*H]; null = zero (cells without vectors)
  const T* w_hr;     // [P, H], null without projection
};

template <class T>
struct RnnGrads {  // like RnnWeights, to be overwritten; null = not wanted
  T *w_ih, *w_hh, *b_ih, *b_hh, *w_hr;
};

// Input of forward and backward alike.
template <class T>
struct RnnInput {
  RnnShape shape;
  const T* x;  // [T, B, I], last dimension contiguous
  int64_t x_stride_t, x_stride_b;
  RnnWeights<T> weights[2];  // per direction
  // h [D, B, out()], states beyond h [D, B, states - 1, H] (c of an LSTM), contiguous; null = zero
  const T* states_in[kStateArrays];
  const int64_t* lengths;     // [B] in [0, T]; null = all T
  const uint8_t* reset_mask;  // [T, B]; null = none
  int64_t reset_stride_t, reset_stride_b;
  bool reset_to_initial;  // where reset_mask is true, states_in enters instead of zeros
  Zoneout zoneout;
  CandidateDropout candidate_dropout;
  const T* h_mask;  // [D, B, out()] factors of h where the recurrent product reads it; null = none
  // Checkpointing: forward keeps c (and, as y, h) at every segment_steps-th step only, and backward runs the segments
  // forwards again. A multiple of backward's chunk_steps; 0 = the reserve holds every step.
  int64_t segment_steps;
  T* checkpoints;  // [D, ceil(T / segment_steps) - 1, B, states - 1, hidden_padded], written by forward

  // The checkpoint of step k > 0, a multiple of segment_steps, of one row.
  T* checkpoint(int states, int d, int64_t k, int64_t b) const {
    const int64_t before = (shape.T - 1) / segment_steps;
    return checkpoints + ((d * before + k / segment_steps - 1) * shape.B + b) * (states - 1) * shape.hidden_padded();
  }
  int64_t slots(int saved, int states) const { return reserve_slots(saved, states, shape.P, zoneout.rate[1] > 0); }
};

template <class T>
struct RnnForward : RnnInput<T> {
  T* y;  // [T, B, D*out()], last dimension contiguous
  int64_t y_stride_t, y_stride_b;
  T* states_out[kStateArrays];  // like states_in; null = not wanted
  T* reserve;                   // null = inference
};

template <class T>
struct RnnBackward : RnnInput<T> {
  const T* y;
  int64_t y_stride_t, y_stride_b;
  const T* reserve;
  const T* dy;  // [T, B, D*out()], null = zero
  int64_t dy_stride_t, dy_stride_b;
  const T* dstates_out[kStateArrays];  // null = zero
  const T* dc;  // [T, B, D, states - 1, H], gradient of the states beyond h of every step, null = zero
  int64_t dc_stride_t, dc_stride_b;
  const uint8_t* detach_mask;  // [T, B], where no gradient of a state crosses, as reset_mask for states; null = none
  int64_t detach_stride_t, detach_stride_b;
  T grad_clip;  // bound of the gradients of W x + b_ih and of R h + b_hh; 0 = none
  T* dx;        // [T, B, I], null = not wanted
  int64_t dx_stride_t, dx_stride_b;
  T* dstates_in[kStateArrays];  // null = not wanted
  RnnGrads<T> grads[2];
};
}  // namespace fastrnn
