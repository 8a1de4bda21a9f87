#pragma once
// Attention as asked for by the caller. Shapes are checked in Python; arrays are contiguous unless strides are given; a
// null pointer means "absent" where the field says so.
//
//   weights[q, k] = softmax over k of scale * score(query[q], key[k]) + bias[q, k]
//   context[q] = sum over k of weights[q, k] value[k]
#include <stdint.h>

namespace fastrnn {
// The list of score functions: one word here instantiates a score in every ISA and binding.
#define FASTRNN_FOR_EACH_SCORE(X)     \
  X(additive, AdditiveScore)          \
  X(additive_relu, AdditiveReluScore) \
  X(dot, DotScore)

enum ScoreId {
#define FASTRNN_ID(name, Score) kScore_##name,
  FASTRNN_FOR_EACH_SCORE(FASTRNN_ID)
#undef FASTRNN_ID
      kNumScores
};

struct AttentionShape {  // B batches, Tq queries, Tk keys, D their width, Dv the width of the values
  int64_t B, Tq, Tk, D, Dv;
};
struct PairStrides {  // of an array [B, Tq, Tk]
  int64_t b, q, k;
  int64_t at(int64_t ib, int64_t iq) const { return ib * b + iq * q; }
};

template <class T>
struct AttentionInput {
  AttentionShape shape;
  const T *query, *key;    // [B, Tq, D], [B, Tk, D]
  const T* value;          // [B, Tk, Dv]; null = raw scores are wanted: no softmax, no context
  const T* v;              // [D], additive scores alone
  const int64_t* lengths;  // [B] keys that are real, in [0, Tk]; null = all
  const uint8_t* mask;     // [B, Tq, Tk], 0 = not to be attended; null = none
  PairStrides mask_strides;
  const T* bias;  // [B, Tq, Tk]; null = none
  PairStrides bias_strides;
  T scale;
};
template <class T>
struct AttentionForward : AttentionInput<T> {
  T *context, *weights;  // [B, Tq, Dv], [B, Tq, Tk]; raw scores go to weights
};
template <class T>
struct AttentionBackward : AttentionInput<T> {
  const T *weights, *dcontext;             // absent for raw scores
  const T* dweights;                       // null where nobody asked; of raw scores, their gradient
  T *dquery, *dkey, *dvalue, *dv, *dbias;  // dv of a score with v alone; dbias [B, Tq, Tk] or null
};
}  // namespace fastrnn
