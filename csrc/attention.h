#pragma once
// Attention as asked for by the caller. Shapes are checked in Python; arrays are contiguous unless strides are given; a
// null pointer means "absent" where the field says so.
#include <stdint.h>

namespace fastrnn {
struct AttentionShape {  // B batches, Tq queries, Tk keys, D their width, Dv the width of the values
  int64_t B, Tq, Tk, D, Dv;
};

// Additive attention (Bahdanau et al. 2015, arXiv 1409.0473) on projected queries and keys:
//   score[q, k] = sum over d of v[d] tanh(query[q, d] + key[k, d])
//   weights = softmax over k     context[q] = sum over k of weights[q, k] value[k]
template <class T>
struct AdditiveInput {
  AttentionShape shape;
  const T *query, *key, *value, *v;  // [B, Tq, D], [B, Tk, D], [B, Tk, Dv], [D]
  const int64_t* lengths;            // [B] keys that are real, in [0, Tk]; null = all
  const uint8_t* mask;               // [B, Tq, Tk], 0 = not to be attended; null = none
  int64_t mask_stride_b, mask_stride_q, mask_stride_k;
};
template <class T>
struct AdditiveForward : AdditiveInput<T> {
  T *context, *weights;  // [B, Tq, Dv], [B, Tq, Tk]
};
template <class T>
struct AdditiveBackward : AdditiveInput<T> {
  const T *weights, *dcontext, *dweights;  // the last is null where nobody asked
  T *dquery, *dkey, *dvalue, *dv;
};
}  // namespace fastrnn
