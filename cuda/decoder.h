#pragma once
// The attention decoder on CUDA, for code that knows neither cell nor element type: what csrc/decoder.h says, and the
// memory that the loop over time needs. Everything is launched to a stream; nothing waits.
#include <cuda_runtime_api.h>

#include "../csrc/decoder.h"

namespace fastrnn {
template <class E>
struct CudaDecoderForward : DecoderForward<E> {  // the last state stays in the records: h and c are not written
  int64_t slots;  // records of each row in `reserve` [B, slots, decoder_record()]: T of them, or 2
  E* scores;      // [B, Tk]
};

// What is left for long products after the loop: gradients of weights, keys and memory, from those that it stores.
template <class E>
struct CudaDecoderBackward : DecoderInput<E> {
  const E *w_hh_t, *w_feed_t, *w_query_t, *w_context_t, *w_hidden_t;  // transposed: [H, G*H], [F, G*H], [H, A], ...
  const E *weights, *reserve;                                         // [B, T, Tk], [B, T, decoder_record()]
  const E *doutputs, *dweights;                                       // null = zero
  E *dh, *dc;              // [B, H] of the last state on entry, of the initial one on return
  E *dgates, *drecurrent;  // [B, T, G*H] of the input part and of the recurrent part of the gates; may be the same
  E* dout;                 // [B, T, H] of W_c context + W_o h, Luong's order
  E *dcontext, *dscores;   // [B, T, M], [B, T, Tk]
  E* dquery;               // [B, T, A]
  E* dfeed0;               // [B, F]
  E* dshares;              // [B, Tk] scratch
};

template <class E>
struct CudaDecoderGenerate : DecoderGenerate<E> {
  int64_t from, to;         // the steps of this call
  E *records, *key_scores;  // [rows, 2, decoder_record()], [rows, Tk], rows = B * beams
  E *outputs, *logits;      // [rows, H], [rows, V]
  E* totals;                // [2, rows] log probability of each beam; on entry that before step 0
  E *shifts, *best_scores;  // [rows], [B, 2 * beams]
  int64_t* best;            // [B, 2 * beams]
  uint8_t* done;            // [B]
};

template <class E>
struct CudaDecoderKernels {
  cudaError_t (*forward)(const CudaDecoderForward<E>&, cudaStream_t);
  cudaError_t (*backward)(const CudaDecoderBackward<E>&, cudaStream_t);
  cudaError_t (*generate)(const CudaDecoderGenerate<E>&, cudaStream_t);
};
extern const CudaDecoderKernels<float> kDecoderFloat32[kNumDecoderCells];
extern const CudaDecoderKernels<double> kDecoderFloat64[kNumDecoderCells];
}  // namespace fastrnn
