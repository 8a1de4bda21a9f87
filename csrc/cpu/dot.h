#pragma once
// The multiplicative score of Luong et al. (2015, arXiv 1508.04025), score[q, k] = sum over d of query[q, d] key[k, d].
#include "attention_products.h"

namespace fastrnn {
namespace {
template <class T>
class DotScore {
 public:
  static constexpr bool kHasV = false, kFetches = true;
  static constexpr int64_t kWorthWaking = 400'000;  // products q*k*d from which a second thread pays

  explicit DotScore(const AttentionInput<T>& p) : p_(p), s_(p.shape), queries_(s_.D), keys_(s_.D) {}

  void take(Arena& arena, bool backward) {
    if (backward) {
      panel_ = arena.take<T>(panel_size<T>(s_.Tq > s_.Tk ? s_.Tq : s_.Tk));
      dscore_t_ = arena.take<T>(s_.Tk * s_.Tq);
      rows_ = arena.take<const T*>(s_.Tq > s_.Tk ? s_.Tq : s_.Tk);
      return;
    }
    queries_.take(arena, s_.Tq);
    keys_.take(arena, s_.Tk);
  }

  // Scores of queries [q0, q1) of batch b into rows of into (row stride Tk), for all real keys.
  void scores(int64_t b, int64_t q0, int64_t q1, int64_t keys, T* into, Ahead& ahead) {
    const T* const* a = queries_.of(p_.query + (b * s_.Tq + q0) * s_.D, q1 - q0);
    const T* const* k = keys_.of(p_.key + b * s_.Tk * s_.D, keys);
    inner_products(queries_.padded(), q1 - q0, a, keys, k, ProductTerm<T>(), T(0), T(1), into, s_.Tk, ahead);
  }

  // Gradients of batch b from those of the scores, rows of dscore (row stride ld).
  void gradients(int64_t b, int64_t keys, const T* dscore, int64_t ld, T* dquery, T* dkey, T*, Ahead& ahead) {
    for (int64_t q = 0; q < s_.Tq; ++q) rows_[q] = dscore + q * ld;
    panel_product(keys, s_.Tq, rows_, p_.key + b * s_.Tk * s_.D, s_.D, s_.D, panel_, dquery, s_.D, ahead);
    transpose_matrix(dscore, ld, s_.Tq, keys, dscore_t_, s_.Tq);
    for (int64_t k = 0; k < keys; ++k) rows_[k] = dscore_t_ + k * s_.Tq;
    panel_product(s_.Tq, keys, rows_, p_.query + b * s_.Tq * s_.D, s_.D, s_.D, panel_, dkey, s_.D, ahead);
  }

 private:
  const AttentionInput<T>& p_;
  const AttentionShape& s_;
  PaddedRows<T> queries_, keys_;
  T *panel_, *dscore_t_;
  const T** rows_;
};
}  // namespace
}  // namespace fastrnn
