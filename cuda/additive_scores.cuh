#pragma once
// Scores of additive attention (additive.cuh). A block has a tile of queries and keys and walks over D; each warp's
// lanes are 8 keys by 4 queries, and each lane has 2 queries by 4 keys of these.
//
// Of tanh, with v folded in, v r = m / (u + u P R), u = m / v and m = max |v|, and two terms share one reciprocal, of
// which there are an eighth as many units as multipliers: 1/x + 1/y = (x + y) / (x y). Where that could leave the range
// of the type, each term has a reciprocal of its own, and beyond it r comes from a + b. This is decided for each tile
// and step of D. relu always comes from a + b, and is multiplied by v.
#include "additive.cuh"

namespace fastrnn {
constexpr int kScoreWarps = 4, kScoreThreads = 32 * kScoreWarps, kScoreTile = 32;

template <class Activation, class E>
class AdditiveScores {
  using A = Wide<E>;
  using V = Vector<A>;
  using Range = AdditiveRange<A>;
  static constexpr int kDepth = 128 / sizeof(A);           // columns of a step
  static constexpr int kStride = kDepth + V::kWidth;       // the rows of neighbouring lanes start in other banks
  static constexpr int kRowStep = kScoreThreads / kDepth;  // rows that all threads load at once
  static constexpr int kHalf = kScoreTile / kRowStep;      // values of queries, and of keys, that each thread loads
  static constexpr int kQueries = 2, kKeys = 4;            // of a lane
  static_assert(kScoreTile == kScoreWarps * 4 * kQueries && kScoreTile == 8 * kKeys, "");
  enum Way { kPair, kSingle, kExact };

 public:
  struct Shared {
    A query[kScoreTile * kStride], key[kScoreTile * kStride], u[kDepth];
    A highest_v[kScoreWarps], total_v[kScoreWarps], of_query[kScoreWarps], of_key[kScoreWarps];
  };
  static int64_t blocks(const AttentionShape& s) { return s.B * tiles(s.Tq) * tiles(s.Tk); }

  __device__ AdditiveScores(const CudaAdditiveScores& p, Shared& shared) : p_(p), shared_(shared) {
    const int64_t Tq = p.shape.Tq, Tk = p.shape.Tk, D = p.shape.D, at = blockIdx.x;
    const int64_t b = at / (tiles(Tq) * tiles(Tk));
    k0_ = at % tiles(Tk) * kScoreTile;
    q0_ = at / tiles(Tk) % tiles(Tq) * kScoreTile;
    into_ = static_cast<A*>(p.scores) + b * Tq * Tk;
    query_ = static_cast<const E*>(p.query) + (b * Tq + q0_) * D;
    key_ = static_cast<const E*>(p.key) + (b * Tk + k0_) * D;
    v_ = static_cast<const E*>(p.v);
    keys_ = part(key_count(p.lengths, b, Tk) - k0_);
    queries_ = part(Tq - q0_);
    warp_ = threadIdx.x / 32;
    row_ = warp_ * 4 * kQueries + threadIdx.x % 32 / 8;
    column_ = threadIdx.x % 8;
  }

  __device__ void run() {
#pragma unroll
    for (int i = 0; i < kQueries; ++i)
#pragma unroll
      for (int j = 0; j < kKeys; ++j) sums_[i][j] = 0;
    if (keys_ > 0) {
      if (Activation::kExponentials) weigh();
      load(0);
      for (int64_t d0 = 0; d0 < p_.shape.D; d0 += kDepth) {
        const Way way = place();
        if (d0 + kDepth < p_.shape.D) load(d0 + kDepth);  // under way while this step is computed
        if (warp_ * 4 * kQueries >= queries_) continue;
        if (way == kPair)
          add_step<kPair>();
        else if (way == kSingle)
          add_step<kSingle>();
        else
          add_step<kExact>();
      }
    }
    store();
  }

 private:
  __host__ __device__ static int64_t tiles(int64_t n) { return (n + kScoreTile - 1) / kScoreTile; }
  __device__ static int part(int64_t n) { return n < kScoreTile ? int(n) : kScoreTile; }

  // The largest |v| and the sum of v.
  __device__ void weigh() {
    A highest = 0, total = 0;
    for (int64_t d = threadIdx.x; d < p_.shape.D; d += kScoreThreads) {
      const A v = widen(v_[d]);
      highest = max(highest, magnitude(v));
      total += v;
    }
    highest = warp_max(highest);
    total = warp_sum(total);
    if (threadIdx.x % 32 == 0) {
      shared_.highest_v[warp_] = highest;
      shared_.total_v[warp_] = total;
    }
    device::sync_block(device::kSiteWarps);
    highest_v_ = total_v_ = 0;
    for (int w = 0; w < kScoreWarps; ++w) {
      highest_v_ = max(highest_v_, shared_.highest_v[w]);
      total_v_ += shared_.total_v[w];
    }
  }

  // This thread's part of the step from column d0 on, all of one column; zeros beyond the tile and beyond D.
  __device__ void load(int64_t d0) {
    const int64_t d = d0 + threadIdx.x % kDepth, D = p_.shape.D;
    const int first = threadIdx.x / kDepth;
    vd_ = d < D ? widen(v_[d]) : A(0);
#pragma unroll
    for (int i = 0; i < kHalf; ++i) {
      const int row = first + i * kRowStep;
      loaded_[i] = row < queries_ && d < D ? widen(query_[row * D + d]) : A(0);
      loaded_[kHalf + i] = row < keys_ && d < D ? widen(key_[row * D + d]) : A(0);
    }
  }

  // Puts what was loaded into shared memory as the step needs it.
  __device__ Way place() {
    const A size = magnitude(vd_);
    const bool counts = size > highest_v_ * Range::kSmall;
    const A u = counts ? highest_v_ / vd_ : Range::kNothing, factor = counts ? u : A(0);
    const Way way = choose(counts ? log(highest_v_ / size) : A(0));
    const int column = threadIdx.x % kDepth, first = threadIdx.x / kDepth * kStride + column;
#pragma unroll
    for (int i = 0; i < kHalf; ++i) {
      const A a = loaded_[i], b = loaded_[kHalf + i];
      shared_.query[first + i * kRowStep * kStride] = way == kExact ? a : exp(a + a) * factor;
      shared_.key[first + i * kRowStep * kStride] = way == kExact ? b : exp(b + b);
    }
    if (threadIdx.x < kDepth)
      shared_.u[column] = way != kExact ? u : folds() && highest_v_ > 0 ? vd_ / highest_v_ : vd_;
    device::sync_block(device::kSiteTile);
    return way;
  }
  __device__ Way choose(A log_u) {
    if (!Activation::kExponentials) {
      device::sync_block(device::kSiteWarps);
      return kExact;
    }
    A of_query = 0, of_key = 0;
#pragma unroll
    for (int i = 0; i < kHalf; ++i) {
      of_query = max(of_query, A(2) * magnitude(loaded_[i]) + log_u);
      of_key = max(of_key, A(2) * magnitude(loaded_[kHalf + i]));
    }
    of_query = warp_max(of_query);
    of_key = warp_max(of_key);
    if (threadIdx.x % 32 == 0) {
      shared_.of_query[warp_] = of_query;
      shared_.of_key[warp_] = of_key;
    }
    device::sync_block(device::kSiteWarps);
    of_query = of_key = 0;
    for (int w = 0; w < kScoreWarps; ++w) {
      of_query = max(of_query, shared_.of_query[w]);
      of_key = max(of_key, shared_.of_key[w]);
    }
    const A exponent = of_query + of_key;
    return !folds() || !(exponent < Range::kExponent) ? kExact : exponent < Range::kPair ? kPair : kSingle;
  }
  // Whether v can be divided by: beside an infinity or a NaN it is multiplied with the activation itself.
  __device__ bool folds() const { return Activation::kExponentials && highest_v_ < A(INFINITY); }

  // Adds to sums_ the terms v r / m of a step, or v f where v does not fold.
  template <Way way>
  __device__ void add_step() {
    const int rows = (queries_ - warp_ * 4 * kQueries + 3) / 4, columns = (keys_ + 7) / 8;  // of any lane
#pragma unroll 2
    for (int d = 0; d < kDepth; d += V::kWidth) {
      const V u = V::load(shared_.u + d);
      V a[kQueries];
#pragma unroll
      for (int i = 0; i < kQueries; ++i) a[i] = V::load(shared_.query + (row_ + 4 * i) * kStride + d);
#pragma unroll
      for (int j = 0; j < kKeys; ++j) {
        if (j >= columns) break;
        const V b = V::load(shared_.key + (column_ + 8 * j) * kStride + d);
#pragma unroll
        for (int i = 0; i < kQueries; ++i)
          if (i < rows) add_terms<way>(sums_[i][j], u, a[i], b);
      }
    }
  }
  template <Way way>
  __device__ void add_terms(A& sum, const V& u, const V& a, const V& b) const {
#pragma unroll
    for (int n = 0; n < V::kWidth; n += 2) {
      if (way == kExact) {
        const A x = ratio_of<Activation>(a.x[n], b.x[n]), y = ratio_of<Activation>(a.x[n + 1], b.x[n + 1]);
        sum += folds() ? u.x[n] * x + u.x[n + 1] * y : u.x[n] * whole(x) + u.x[n + 1] * whole(y);
      } else {
        const A x = u.x[n] + a.x[n] * b.x[n], y = u.x[n + 1] + a.x[n + 1] * b.x[n + 1];
        sum += way == kPair ? (x + y) * device::reciprocal(x * y) : device::reciprocal(x) + device::reciprocal(y);
      }
    }
  }

  // f of its r.
  __device__ static A whole(A r) { return A(Activation::kOffset) + A(Activation::kFactor) * r; }

  __device__ void store() const {
#pragma unroll
    for (int i = 0; i < kQueries; ++i) {
#pragma unroll
      for (int j = 0; j < kKeys; ++j) {
        const int row = row_ + 4 * i, column = column_ + 8 * j;
        if (row >= queries_ || k0_ + column >= p_.shape.Tk) continue;
        const A score = folds() ? total_v_ - A(2) * highest_v_ * sums_[i][j] : sums_[i][j];
        into_[(q0_ + row) * p_.shape.Tk + k0_ + column] = column < keys_ ? score : A(0);
      }
    }
  }

  const CudaAdditiveScores& p_;
  Shared& shared_;
  const E *query_, *key_, *v_;
  A* into_;
  int64_t q0_, k0_;
  int queries_, keys_, warp_, row_, column_;
  A highest_v_ = 0, total_v_ = 0, vd_, loaded_[2 * kHalf], sums_[kQueries][kKeys];
};

template <class Activation, class E>
__global__ void __launch_bounds__(kScoreThreads) additive_scores_kernel(CudaAdditiveScores p) {
  FASTRNN_SHARED(additive_scores_shared);
  using Scores = AdditiveScores<Activation, E>;
  Scores(p, *reinterpret_cast<typename Scores::Shared*>(additive_scores_shared)).run();
}
template <class Activation, class E>
cudaError_t launch_additive_scores(const CudaAdditiveScores& p, cudaStream_t stream) {
  using Scores = AdditiveScores<Activation, E>;
  return launch_blocks<CudaAdditiveScores>(additive_scores_kernel<Activation, E>, Scores::blocks(p.shape),
                                           kScoreThreads, sizeof(typename Scores::Shared), p, stream);
}
}  // namespace fastrnn
