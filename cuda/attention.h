#pragma once
// What crosses from the host into the attention kernels, and these kernels for code that knows no element type. Arrays
// are contiguous unless strides are given, in elements; a null pointer means "absent". `wide` is float for float,
// bfloat16 and float16, double for double; everything else is of the element type.
#include <cuda_runtime_api.h>

#include "../csrc/attention.h"

namespace fastrnn {
// Scores become weights: softmax over k of scale * scores + bias, where lengths and mask allow it.
struct CudaSoftmax {
  AttentionShape shape;
  const int64_t* lengths;  // [B] keys that are real, clamped to [0, Tk]; null = all
  const uint8_t* mask;     // [B, Tq, Tk], 0 = not to be attended; null = none
  PairStrides mask_strides;
  const void* bias;  // [B, Tq, Tk]; null = none
  PairStrides bias_strides;
  double scale;
  void* scores;   // wide [B, Tq, Tk], used up; may be the weights
  void* weights;  // [B, Tq, Tk]
};

// The gradient of the weights becomes that of the scores.
struct CudaSoftmaxGradient {
  AttentionShape shape;
  double scale;
  const void* weights;   // [B, Tq, Tk]
  const void* dweights;  // [B, Tq, Tk], added to gradient; null = zero
  void* gradient;        // wide [B, Tq, Tk]: of the weights on entry, of the scores on return
  void* dbias;           // [B, Tq, Tk], null = not wanted
};

// scores[q, k] = sum over d of v[d] f(query[q, d] + key[k, d])
struct CudaAdditive {
  AttentionShape shape;
  const void *query, *key, *v;  // [B, Tq, D], [B, Tk, D], [D]
  const int64_t* lengths;       // as above; scores and gradients of other keys are zero
};
struct CudaAdditiveScores : CudaAdditive {
  void* scores;  // wide [B, Tq, Tk]
};
struct CudaAdditiveGradients : CudaAdditive {
  const void* dscores;  // wide [B, Tq, Tk]
  void *dquery, *dkey;  // as query and key
  void* dquery_sums;    // wide [B, Tq, D], scratch; dquery itself where that is wide
  void* dv_parts;       // wide [B, D]; their sum over B is the gradient of v
};

enum CudaActivation { kTanh, kRelu, kNumCudaActivations };  // f

struct CudaAttentionKernels {
  cudaError_t (*softmax)(const CudaSoftmax&, cudaStream_t);
  cudaError_t (*softmax_gradient)(const CudaSoftmaxGradient&, cudaStream_t);
  cudaError_t (*additive_scores[kNumCudaActivations])(const CudaAdditiveScores&, cudaStream_t);
  cudaError_t (*additive_gradients[kNumCudaActivations])(const CudaAdditiveGradients&, cudaStream_t);
};

extern const CudaAttentionKernels kAttentionKernels[];  // in the order of CudaType
}  // namespace fastrnn
