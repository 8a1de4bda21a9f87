#pragma once
// What the steps of a decoder do with the sums of their products, see decoder_product.cuh. Records are those of
// csrc/decoder.h; `record` is that of row 0 at this step.
#include "../csrc/cells/cell.h"
#include "decoder_attention.cuh"

namespace fastrnn {
// out = sum + bias + added
template <class E>
struct StoreSum {
  static constexpr int kGates = 0;
  E* out;
  int64_t stride;
  const E* bias = nullptr;  // by column, null = zero
  const E* added[2] = {};   // [row, column] with strides, null = zero; may be `out`
  int64_t added_stride[2] = {};

  __device__ void operator()(int64_t row, int64_t n, E sum) const {
    if (bias) sum += bias[n];
    for (int i = 0; i < 2; ++i)
      if (added[i]) sum += added[i][row * added_stride[i] + n];
    out[row * stride + n] = sum;
  }
};

// h, c = cell(gates + sums, h, c)
template <class Cell, class E>
struct StepCell {
  static constexpr int kGates = Cell::kGates;
  int64_t H, Hp;
  const E* gates;  // input part by row, null = zero
  int64_t gates_stride;
  const E *bias_x, *bias_h;  // [G*H], null = zero
  RowsOf<E> h, c;            // before the step
  E* record;
  int64_t record_stride, c_at, h_at;
  E* output;  // by row, null = h is not the output
  int64_t output_stride;

  __device__ void operator()(int64_t row, int64_t u, E (&x)[kGates], E (&r)[kGates]) const {
    for (int g = 0; g < kGates; ++g) {
      const int64_t n = g * H + u;
      if (gates) x[g] += gates[row * gates_stride + n];
      if (bias_x) x[g] += bias_x[n];
      if (bias_h) r[g] += bias_h[n];
    }
    E s[2] = {h(row)[u], Cell::kStates > 1 ? c(row)[u] : E(0)}, s_new[2], saved[Cell::kSaved];
    Cell::forward(x, r, s, s_new, saved);
    E* kept = record + row * record_stride;
    for (int q = 0; q < Cell::kSaved; ++q) kept[q * Hp + u] = saved[q];
    if (Cell::kStates > 1) kept[c_at + u] = s_new[1];
    kept[h_at + u] = s_new[0];
    if (output) output[row * output_stride + u] = s_new[0];
  }
};

// h~ = tanh(sum)
template <class E>
struct StepOutput {
  static constexpr int kGates = 0;
  E* record;  // at h~
  int64_t record_stride;
  E* output;
  int64_t output_stride;

  __device__ void operator()(int64_t row, int64_t n, E sum) const {
    record[row * record_stride + n] = output[row * output_stride + n] = tanh(sum);
  }
};

// Of the sum that h~ is the tanh of, from what the next step asks of h~, and the caller.
template <class E>
struct OutputGradient {
  static constexpr int kGates = 0;
  const E* record;  // at h~
  int64_t record_stride;
  const E* doutputs;  // null = zero
  int64_t stride;     // of doutputs and dout
  E* dout;

  __device__ void operator()(int64_t row, int64_t n, E sum) const {
    if (doutputs) sum += doutputs[row * stride + n];
    dout[row * stride + n] = sum * d_tanh(record[row * record_stride + n]);
  }
};

// The cell backward. dh and dc: what the step after asks of the states past all products; then what this step does.
template <class Cell, class E>
struct CellGradient {
  static constexpr int kGates = 0, G = Cell::kGates;
  int64_t H, Hp;
  const E* record;
  int64_t record_stride, c_at;
  RowsOf<E> h, c;     // before the step
  const E* asked[2];  // more that is asked of h, by row; null = zero
  int64_t asked_stride[2];
  E *dh, *dc;  // [rows, H]
  E *dgates, *drecurrent;
  int64_t gates_stride;

  __device__ void operator()(int64_t row, int64_t u, E sum) const {
    const E* kept = record + row * record_stride;
    E saved[Cell::kSaved], dx[G], dr[G], ds[2];
    for (int q = 0; q < Cell::kSaved; ++q) saved[q] = kept[q * Hp + u];
    const bool two = Cell::kStates > 1;
    E s[2] = {h(row)[u], two ? c(row)[u] : E(0)}, s_new[2] = {E(0), two ? kept[c_at + u] : E(0)};
    E ds_new[2] = {sum + dh[row * H + u], two ? dc[row * H + u] : E(0)};
    for (int i = 0; i < 2; ++i)
      if (asked[i]) ds_new[0] += asked[i][row * asked_stride[i] + u];
    Cell::backward(saved, s, s_new, ds_new, dx, dr, ds);
    for (int g = 0; g < G; ++g) {
      const int64_t at = row * gates_stride + g * H + u;
      drecurrent[at] = dr[g];
      dgates[at] = dx[g];
    }
    dh[row * H + u] = ds[0];
    if (two) dc[row * H + u] = ds[1];
  }
};
}  // namespace fastrnn
