#pragma once
// Gradients of query, key and v of additive attention (additive.cuh), with g the gradient of the scores, f' = kSlope w:
//   dquery[q, d] = kSlope v[d] sum over k of g w     dkey[k, d] = kSlope v[d] sum over q of g w
//   dv[d] = sum over q, k of g f, f = kOffset + kFactor r; of tanh g - 2 g r
// A block has all queries and keys of one row of the batch and 32 columns, one for each lane, so that the sums need
// neither atomics nor other blocks. Each warp keeps 8 keys in registers and walks over the queries; the warps' parts of
// dquery meet in shared memory. r is computed once for each query, key and column, and nothing of that size is stored.
#include "additive.cuh"

namespace fastrnn {
constexpr int kGradientWarps = 8, kGradientThreads = 32 * kGradientWarps;

template <class Activation, class E>
class AdditiveGradients {
  using A = Wide<E>;
  using V = Vector<A>;
  static constexpr int kColumns = 32, kQueries = 16, kKeys = 8, kAllKeys = kKeys * kGradientWarps;

 public:
  struct Shared {
    A query[kQueries * kColumns];  // P, or the queries themselves
    A g[kQueries * kAllKeys];
    A sums[kGradientWarps][kQueries * kColumns];
    A of_query[kGradientWarps], of_key[kGradientWarps];
  };
  static int64_t blocks(const AttentionShape& s) { return s.B * parts(s.D); }

  __device__ AdditiveGradients(const CudaAdditiveGradients& p, Shared& shared) : p_(p), shared_(shared) {
    const int64_t Tk = p.shape.Tk, D = p.shape.D;
    b_ = blockIdx.x / parts(D);
    warp_ = threadIdx.x / 32;
    lane_ = threadIdx.x % 32;
    d_ = blockIdx.x % parts(D) * kColumns + lane_;
    inside_ = d_ < D;
    keys_ = key_count(p.lengths, b_, Tk);
    factor_ = inside_ ? A(Activation::kSlope) * widen(static_cast<const E*>(p.v)[d_]) : A(0);
  }

  __device__ void run() {
    if constexpr (Activation::kExponentials)
      in_range() ? spread<false>() : spread<true>();
    else
      spread<true>();
  }

 private:
  __host__ __device__ static int64_t parts(int64_t D) { return (D + kColumns - 1) / kColumns; }
  // Where column d_ of row q of the queries, of row k of the keys is.
  __device__ int64_t query_at(int64_t q) const { return (b_ * p_.shape.Tq + q) * p_.shape.D + d_; }
  __device__ int64_t key_at(int64_t k) const { return (b_ * p_.shape.Tk + k) * p_.shape.D + d_; }
  // Element of row q of the queries, of row k of the keys; zero outside.
  __device__ A query(int64_t q) const {
    return inside_ && q < p_.shape.Tq ? widen(static_cast<const E*>(p_.query)[query_at(q)]) : A(0);
  }
  __device__ A key(int64_t k) const {
    return inside_ && k < keys_ ? widen(static_cast<const E*>(p_.key)[key_at(k)]) : A(0);
  }
  __device__ void set_dkey(int64_t k, A value) const {
    if (inside_) static_cast<E*>(p_.dkey)[key_at(k)] = narrow<E>(value);
  }

  // Whether the exponentials stay in range for all queries and keys of these columns.
  __device__ bool in_range() {
    A of_query = 0, of_key = 0;
    for (int64_t q = warp_; q < p_.shape.Tq; q += kGradientWarps) of_query = max(of_query, magnitude(query(q)));
    for (int64_t k = warp_; k < keys_; k += kGradientWarps) of_key = max(of_key, magnitude(key(k)));
    of_query = warp_max(of_query);
    of_key = warp_max(of_key);
    if (lane_ == 0) {
      shared_.of_query[warp_] = of_query;
      shared_.of_key[warp_] = of_key;
    }
    device::sync_block(device::kSiteWarps);
    for (int w = 0; w < kGradientWarps; ++w) {
      of_query = max(of_query, shared_.of_query[w]);
      of_key = max(of_key, shared_.of_key[w]);
    }
    return A(2) * (of_query + of_key) < AdditiveRange<A>::kExponent;
  }

  template <bool exact>
  __device__ static A prepared(A x) {
    return exact ? x : exp(x + x);
  }
  template <bool exact>
  __device__ static A ratio(A p, A r) {
    return exact ? ratio_of<Activation>(p, r) : device::reciprocal(A(1) + p * r);
  }

  template <bool exact>
  __device__ void spread() {
    const int64_t Tq = p_.shape.Tq;
    A dv = 0;
    for (int64_t k0 = 0; k0 == 0 || k0 < keys_; k0 += kAllKeys) {
      const int64_t own = k0 + warp_ * kKeys;
      A keys[kKeys], dkeys[kKeys];
#pragma unroll
      for (int j = 0; j < kKeys; ++j) {
        keys[j] = prepared<exact>(key(own + j));
        dkeys[j] = 0;
      }
      for (int64_t q0 = 0; q0 < Tq; q0 += kQueries) {
        load<exact>(q0, k0);
        device::sync_block(device::kSiteTile);
        const int queries = Tq - q0 < kQueries ? int(Tq - q0) : kQueries;
        if (own < keys_) dv += add_queries<exact>(queries, keys, dkeys);
        device::sync_block(device::kSiteSums);
        add_to_dquery(q0, k0, queries);
      }
#pragma unroll
      for (int j = 0; j < kKeys; ++j)
        if (own + j < keys_) set_dkey(own + j, factor_ * dkeys[j]);
    }
    for (int64_t k = keys_ + warp_; k < p_.shape.Tk; k += kGradientWarps) set_dkey(k, A(0));
    store_dv(dv);
  }

  // Queries from q0 on, and g of these and of the keys from k0 on; zeros where there are none.
  template <bool exact>
  __device__ void load(int64_t q0, int64_t k0) {
    const A* g = static_cast<const A*>(p_.dscores) + b_ * p_.shape.Tq * p_.shape.Tk;
#pragma unroll 1
    for (int i = warp_; i < kQueries; i += kGradientWarps)
      shared_.query[i * kColumns + lane_] = prepared<exact>(query(q0 + i));
#pragma unroll 2  // or registers are spilled
    for (int i = threadIdx.x; i < kQueries * kAllKeys; i += kGradientThreads) {
      const int64_t q = q0 + i / kAllKeys, k = k0 + i % kAllKeys;
      shared_.g[i] = q < p_.shape.Tq && k < keys_ ? g[q * p_.shape.Tk + k] : A(0);
    }
  }

  // This warp's keys by some queries: adds g w to dkey, and leaves its sums over these keys in shared memory. Returns
  // the sum of g f.
  template <bool exact>
  __device__ A add_queries(int queries, const A (&keys)[kKeys], A (&dkeys)[kKeys]) {
    const A* g = shared_.g + warp_ * kKeys;
    A gr_total = 0, g_total = 0;
#pragma unroll 1
    for (int q = 0; q < queries; ++q) {
      const A p = shared_.query[q * kColumns + lane_];
      A dquery = 0;
#pragma unroll
      for (int j = 0; j < kKeys; j += V::kWidth) {
        const V gs = V::load(g + q * kAllKeys + j);
#pragma unroll
        for (int n = 0; n < V::kWidth; ++n) {
          const A r = ratio<exact>(p, keys[j + n]), gr = gs.x[n] * r, w = Activation::slope(gs.x[n], gr, r);
          gr_total += gr;
          dkeys[j + n] += w;
          dquery += w;
        }
      }
      shared_.sums[warp_][q * kColumns + lane_] = dquery;
    }
    if constexpr (Activation::kOffset) {
      for (int i = lane_; i < queries * kKeys; i += 32) g_total += g[i / kKeys * kAllKeys + i % kKeys];
      gr_total = warp_sum(g_total) + A(Activation::kFactor) * gr_total;  // here, where both are still small
    }
    return gr_total;
  }

  // Adds the warps' sums of some queries, in the order of the keys.
  __device__ void add_to_dquery(int64_t q0, int64_t k0, int queries) {
    const int64_t left = keys_ - k0;
    const int warps = left >= kAllKeys ? kGradientWarps : int((left + kKeys - 1) / kKeys);
    for (int q = warp_; inside_ && q < queries; q += kGradientWarps) {
      const int64_t at = query_at(q0 + q);
      A* sums = static_cast<A*>(p_.dquery_sums);
      A sum = k0 == 0 ? A(0) : sums[at];
      for (int w = 0; w < warps; ++w) sum += shared_.sums[w][q * kColumns + lane_];
      if (left > kAllKeys)
        sums[at] = sum;
      else
        static_cast<E*>(p_.dquery)[at] = narrow<E>(factor_ * sum);
    }
  }

  __device__ void store_dv(A dv) {
    shared_.query[warp_ * kColumns + lane_] = dv;  // read by nobody since the last barrier
    device::sync_block(device::kSiteSums);
    if (warp_ != 0 || !inside_) return;
    dv = 0;
    for (int w = 0; w < kGradientWarps; ++w) dv += shared_.query[w * kColumns + lane_];
    static_cast<A*>(p_.dv_parts)[b_ * p_.shape.D + d_] = dv;
  }

  const CudaAdditiveGradients& p_;
  Shared& shared_;
  int64_t b_, d_, keys_;
  int warp_, lane_;
  bool inside_;
  A factor_;
};

// Four blocks to a multiprocessor, where registers allow it: a block has a few rows of 32 columns between two barriers.
template <class Activation, class E>
__global__ void __launch_bounds__(kGradientThreads, sizeof(Wide<E>) == 4 ? 4 : 2)
    additive_gradients_kernel(CudaAdditiveGradients p) {
  FASTRNN_SHARED(additive_gradients_shared);
  using Gradients = AdditiveGradients<Activation, E>;
  Gradients(p, *reinterpret_cast<typename Gradients::Shared*>(additive_gradients_shared)).run();
}
template <class Activation, class E>
cudaError_t launch_additive_gradients(const CudaAdditiveGradients& p, cudaStream_t stream) {
  using Gradients = AdditiveGradients<Activation, E>;
  return launch_blocks<CudaAdditiveGradients>(additive_gradients_kernel<Activation, E>, Gradients::blocks(p.shape),
                                              kGradientThreads, sizeof(typename Gradients::Shared), p, stream);
}
}  // namespace fastrnn
