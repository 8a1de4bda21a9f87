#pragma once
// Attention of one query a row, forward and backward, by two kernels that each spread a row over several blocks:
//   key_scores     s[k] = query . key[k]  or  v . tanh(query + key[k]);  backward: dcontext . memory[k] + dweights[k]
//   weighted_sum   out = sum over k of share[k] value[k]: the context, from the softmax of s; backward, from its
//                  gradient g, the query's gradient  sum g key  or  4 v sum g (r - r^2),  tanh = 1 - 2 r
// Rows of a batch share keys and memory. A query is alone with each key, so the exponentials of additive.cuh would
// serve once: r comes from query + key itself, which has no range to leave.
#include "additive.cuh"
#include "decoder_product.cuh"

namespace fastrnn {
template <class E>
struct AttendedKeys {
  int64_t rows, group, Tk, width;  // `group` rows of each batch
  const E* table;                  // [rows / group, Tk, width]
  const int64_t* lengths;          // by batch, clamped to [0, Tk]; null = all
  const uint8_t* done;             // by batch: nothing to do; null = none

  __device__ int64_t count(int64_t row) const { return key_count(lengths, row / group, Tk); }
  __device__ bool is_done(int64_t row) const { return done && done[row / group]; }
  __device__ const E* key(int64_t row, int64_t k) const { return table + (row / group * Tk + k) * width; }
};

template <class E>
struct KeyScores {
  AttendedKeys<E> keys;
  RowsOf<E> query;
  const E* v;      // [width], null = dot
  const E* added;  // by row and key, null = zero
  int64_t added_stride;
  E* scores;  // [rows, Tk]
};

constexpr int kKeysOfWarp = 4, kKeysOfBlock = kKeysOfWarp * kDecoderWarps;

template <class E, bool additive>
__global__ void __launch_bounds__(kDecoderThreads) key_scores_kernel(KeyScores<E> p) {
  const int lane = threadIdx.x % 32;
  const int64_t tiles = (p.keys.Tk + kKeysOfBlock - 1) / kKeysOfBlock, row = blockIdx.x / tiles;
  const int64_t k0 = blockIdx.x % tiles * kKeysOfBlock + threadIdx.x / 32 * kKeysOfWarp, keys = p.keys.count(row);
  if (k0 >= keys || p.keys.is_done(row)) return;
  const E *query = p.query(row), *key[kKeysOfWarp];
  E sums[kKeysOfWarp];
#pragma unroll
  for (int j = 0; j < kKeysOfWarp; ++j) {
    key[j] = p.keys.key(row, k0 + j < keys ? k0 + j : keys - 1);
    sums[j] = 0;
  }
#pragma unroll 2
  for (int64_t d = lane; d < p.keys.width; d += 32) {
    const E q = query[d], v = additive ? p.v[d] : E(1);
#pragma unroll
    for (int j = 0; j < kKeysOfWarp; ++j) sums[j] += additive ? v * (1 - 2 * exact_ratio(q, key[j][d])) : q * key[j][d];
  }
  const E score = collect(sums, lane);
  const int64_t k = k0 + lane;
  if (lane < kKeysOfWarp && k < keys)
    p.scores[row * p.keys.Tk + k] = score + (p.added ? p.added[row * p.added_stride + k] : E(0));
}
template <class E>
cudaError_t launch_key_scores(const KeyScores<E>& p, cudaStream_t stream) {
  const int64_t tiles = (p.keys.Tk + kKeysOfBlock - 1) / kKeysOfBlock;
  return launch_blocks<KeyScores<E>>(p.v ? key_scores_kernel<E, true> : key_scores_kernel<E, false>,
                                     p.keys.rows * tiles, kDecoderThreads, 0, p, stream);
}

// Sums and maxima of a block, in one order.
constexpr int kSumWarps = 8, kSumThreads = 32 * kSumWarps;
template <class E, class Join>
__device__ inline E join_warps(E of_warp, E (&room)[kSumWarps], const Join& join) {
  if (threadIdx.x % 32 == 0) room[threadIdx.x / 32] = of_warp;
  device::sync_block(device::kSiteWarps);
  E all = room[0];
  for (int w = 1; w < kSumWarps; ++w) all = join(all, room[w]);
  return all;
}
template <class E>
__device__ inline E block_sum(E v, E (&room)[kSumWarps]) {
  return join_warps(warp_sum(v), room, [](E a, E b) { return a + b; });
}
template <class E>
__device__ inline E block_max(E v, E (&room)[kSumWarps]) {
  return join_warps(warp_max(v), room, [](E a, E b) { return max(a, b); });
}

// Shares of the keys: softmax of their scores, which the first block of a row also stores.
template <class E>
struct SoftmaxShares {
  const E* scores;  // [rows, Tk]
  E* weights;       // by row and key
  int64_t weights_stride;

  struct Of {
    const E* scores;
    E highest, total;
    __device__ E operator()(int64_t k) const { return exp(scores[k] - highest) / total; }
  };
  __device__ Of of(int64_t row, int64_t Tk, int64_t keys, E (&room)[3][kSumWarps]) const {
    Of found{scores + row * Tk, E(-INFINITY), 0};
    E anything = 0;  // a NaN as well, which is in no maximum
    for (int64_t k = threadIdx.x; k < keys; k += kSumThreads) {
      found.highest = max(found.highest, found.scores[k]);
      if (found.scores[k] != E(-INFINITY)) anything = 1;
    }
    found.highest = block_max(found.highest, room[0]);
    anything = block_max(anything, room[1]);
    if (found.highest == E(-INFINITY) && anything != 0) found.highest = E(NAN);
    E total = 0;
    for (int64_t k = threadIdx.x; k < keys; k += kSumThreads) total += exp(found.scores[k] - found.highest);
    found.total = block_sum(total, room[2]);
    return found;
  }
  __device__ E* stored(int64_t row) const { return weights + row * weights_stride; }
};

// The gradient of the scores, from that of the weights.
template <class E>
struct GradientShares {
  const E* dweights;  // [rows, Tk]
  const E* weights;   // by row and key
  E* dscores;         // as weights
  int64_t weights_stride;

  struct Of {
    const E *dweights, *weights;
    E mean;
    __device__ E operator()(int64_t k) const { return weights[k] != 0 ? weights[k] * (dweights[k] - mean) : E(0); }
  };
  __device__ Of of(int64_t row, int64_t Tk, int64_t keys, E (&room)[3][kSumWarps]) const {
    Of found{dweights + row * Tk, weights + row * weights_stride, 0};
    E mean = 0;
    for (int64_t k = threadIdx.x; k < keys; k += kSumThreads)
      if (found.weights[k] != 0) mean += found.weights[k] * found.dweights[k];
    found.mean = block_sum(mean, room[0]);
    return found;
  }
  __device__ E* stored(int64_t row) const { return dscores + row * weights_stride; }
};

template <class E, class Shares>
struct WeightedSum {
  AttendedKeys<E> keys;
  Shares shares;
  RowsOf<E> query;  // of the additive score's gradient
  const E* v;       // its v; null = the plain sum
  E* out;           // [width] by row
  int64_t out_stride;
};

template <class E>
struct WeightedSumShared {
  E room[3][kSumWarps], shares[kSumThreads], sums[kSumWarps][32];
};

__host__ __device__ inline int64_t column_tiles(int64_t width) { return width > 32 ? (width + 31) / 32 : 1; }

// A block has 32 columns; its warps divide the keys.
template <class E, class Shares, bool additive>
__global__ void __launch_bounds__(kSumThreads) weighted_sum_kernel(WeightedSum<E, Shares> p) {
  FASTRNN_SHARED(weighted_sum_shared);
  auto& shared = *reinterpret_cast<WeightedSumShared<E>*>(weighted_sum_shared);
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int64_t tiles = column_tiles(p.keys.width), row = blockIdx.x / tiles, tile = blockIdx.x % tiles;
  const int64_t Tk = p.keys.Tk, width = p.keys.width, d = tile * 32 + lane, keys = p.keys.count(row);
  if (p.keys.is_done(row)) return;
  const auto share_of = p.shares.of(row, Tk, keys, shared.room);
  const bool inside = d < width;
  const E q = additive && inside ? p.query(row)[d] : E(0);
  E sum = 0, *stored = tile == 0 ? p.shares.stored(row) : nullptr;
  for (int64_t k0 = 0; k0 < Tk; k0 += kSumThreads) {
    const int64_t own = k0 + threadIdx.x;
    const E share = own < keys ? share_of(own) : E(0);
    shared.shares[threadIdx.x] = share;
    if (stored && own < Tk) stored[own] = share;
    if (k0 >= keys) continue;
    device::sync_block(device::kSiteTile);
    const int n = keys - k0 < kSumThreads ? int(keys - k0) : kSumThreads;
    if (inside) {
#pragma unroll 4
      for (int i = warp; i < n; i += kSumWarps) {
        const E value = p.keys.key(row, k0 + i)[d];
        if (additive) {
          const E r = exact_ratio(q, value);
          sum += shared.shares[i] * (r - r * r);
        } else {
          sum += shared.shares[i] * value;
        }
      }
    }
    device::sync_block(device::kSiteSums);
  }
  shared.sums[warp][lane] = sum;
  device::sync_block(device::kSiteSums);
  if (warp != 0 || !inside) return;
  for (int w = 1; w < kSumWarps; ++w) sum += shared.sums[w][lane];
  p.out[row * p.out_stride + d] = additive ? 4 * p.v[d] * sum : sum;
}
template <class E, class Shares>
cudaError_t launch_weighted_sum(const WeightedSum<E, Shares>& p, cudaStream_t stream) {
  return launch_blocks<WeightedSum<E, Shares>>(
      p.v ? weighted_sum_kernel<E, Shares, true> : weighted_sum_kernel<E, Shares, false>,
      p.keys.rows * column_tiles(p.keys.width), kSumThreads, sizeof(WeightedSumShared<E>), p, stream);
}
}  // namespace fastrnn
