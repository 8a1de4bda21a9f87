#pragma once
// out[m, n] = sum over k of a[m, k] b[n][k], the product of one time step: a is a slice of the recurrent weights, the
// same in every step, b the few rows of the batch in shared memory. The weights are cut into tiles; each warp keeps its
// own, the first in registers, more in shared memory, and reads what is left from global memory again in each step.
// Every sum is taken in one order, whatever is kept where.
#include <initializer_list>

#include "element.cuh"
#include "params.h"
#include "warp.cuh"

namespace fastrnn {
// The tiles of one product out[M, rows] = a[M, K] b[K, rows] and how they fall to the warps: item i of
// (row tile, part of K) is for warp i % kWarps.
struct ProductShape {
  int row_tiles, ksplit, k_tiles;  // k_tiles: of one item
  __host__ __device__ int items() const { return row_tiles * ksplit; }
  __host__ __device__ int slots() const { return (items() + kWarps - 1) / kWarps; }
  __host__ __device__ int tiles_per_warp() const { return slots() * k_tiles; }
};

// float and double: each lane takes every 32nd k of 4 x 8 outputs; a butterfly then leaves one output in each lane.
template <class E>
struct Core {
  using Acc = E;
  static constexpr int kRows = 4, kDepth = 32, kColumnTiles = 1, kChains = 1, kRegisterTiles = sizeof(E) == 4 ? 8 : 0;
  struct Tile {
    E a[4];
  };
  struct Sums {
    E s[32];
  };
  template <class Weights>
  static __device__ Tile load(const Weights& weights, int m, int k, int lane) {
    Tile tile;
    for (int r = 0; r < 4; ++r) tile.a[r] = weights(m + r, k + lane);
    return tile;
  }
  static __device__ void clear(Sums& sums) {
#pragma unroll
    for (int i = 0; i < 32; ++i) sums.s[i] = 0;
  }
  static __device__ void multiply(int, Sums& sums, const Tile& tile, const E* b, int ldb, int k, int, int lane) {
#pragma unroll
    for (int n = 0; n < 8; ++n) {
      const E v = b[n * ldb + k + lane];
#pragma unroll
      for (int r = 0; r < 4; ++r) sums.s[r * 8 + n] += tile.a[r] * v;
    }
  }
  template <class Emit>
  static __device__ void emit(Sums& sums, int m, int, int lane, const Emit& out) {
    out(m + lane / 8, lane % 8, collect(sums.s, lane));
  }
};

// bfloat16 and float16 on tensor cores, m16n8k16 with float32 sums.
template <class E>
struct TensorCore {
  using Acc = float;
  static constexpr int kRows = 16, kDepth = 16, kColumnTiles = 4, kChains = 2, kRegisterTiles = 32;
  struct Tile {
    uint32_t a[4];
  };
  struct Sums {
    float s[kColumnTiles][4];
  };
  static __device__ uint32_t pair(E low, E high) {
    return uint32_t(reinterpret_cast<const uint16_t&>(low)) | uint32_t(reinterpret_cast<const uint16_t&>(high)) << 16;
  }
  template <class Weights>
  static __device__ Tile load(const Weights& weights, int m, int k, int lane) {
    Tile tile;
    for (int i = 0; i < 4; ++i) {
      const int row = m + lane / 4 + (i & 1) * 8, column = k + lane % 4 * 2 + (i >> 1) * 8;
      tile.a[i] = pair(weights(row, column), weights(row, column + 1));
    }
    return tile;
  }
  static __device__ void clear(Sums& sums) {
#pragma unroll
    for (int j = 0; j < kColumnTiles; ++j)
#pragma unroll
      for (int i = 0; i < 4; ++i) sums.s[j][i] = 0;
  }
  // With one column tile the sums are taken in two chains, because a product that adds to the one before waits for it.
  static __device__ void multiply(int chain, Sums& sums, const Tile& tile, const E* b, int ldb, int k, int column_tiles,
                                  int lane) {
    const E* row = b + lane / 4 * ldb + k + lane % 4 * 2;
    if (column_tiles == 1) return chain == 0 ? add(sums.s[0], tile, row) : add(sums.s[1], tile, row);
#pragma unroll
    for (int j = 0; j < kColumnTiles; ++j)
      if (j < column_tiles) add(sums.s[j], tile, row + j * 8 * ldb);
  }
  template <class Emit>
  static __device__ void emit(Sums& sums, int m, int column_tiles, int lane, const Emit& out) {
    if (column_tiles == 1)
#pragma unroll
      for (int i = 0; i < 4; ++i) sums.s[0][i] += sums.s[1][i];
#pragma unroll
    for (int j = 0; j < kColumnTiles; ++j) {
      if (j >= column_tiles) break;
#pragma unroll
      for (int i = 0; i < 4; ++i) out(m + lane / 4 + (i >> 1) * 8, j * 8 + lane % 4 * 2 + (i & 1), sums.s[j][i]);
    }
  }

 private:
  static __device__ void add(float (&sum)[4], const Tile& tile, const E* row) {
    device::mma_16816(sum, tile.a, *reinterpret_cast<const uint32_t*>(row), *reinterpret_cast<const uint32_t*>(row + 8),
                      E());
  }
};
template <>
struct Core<__nv_bfloat16> : TensorCore<__nv_bfloat16> {};
template <>
struct Core<__half> : TensorCore<__half> {};

template <class E>
__host__ __device__ inline ProductShape product_shape(int M, int K, int ksplit) {
  const int tiles = (K + Core<E>::kDepth - 1) / Core<E>::kDepth;
  constexpr int kChains = Core<E>::kChains;
  return {(M + Core<E>::kRows - 1) / Core<E>::kRows, ksplit,
          ((tiles + ksplit - 1) / ksplit + kChains - 1) / kChains * kChains};
}
// Row stride of b: whole tiles, and 16 bytes so that neighbouring rows start in other banks.
template <class E>
__host__ __device__ inline int padded_depth(int K, int ksplit) {
  return product_shape<E>(1, K, ksplit).k_tiles * ksplit * Core<E>::kDepth + 16 / int(sizeof(E));
}

template <class E, int kRegisters>
class Product {
  using C = Core<E>;

 public:
  // weights(m, k) yields an element, zero outside of the matrix. `shared` holds the warps' tiles, one warp after
  // another.
  template <class Weights>
  __device__ void load(const Weights& weights, const ProductShape& shape, int in_registers, int shared_tiles,
                       typename C::Tile* shared) {
    shape_ = shape;
    warp_ = threadIdx.x / 32;
    lane_ = threadIdx.x % 32;
    tiles_ = ((shape.items() - warp_ + kWarps - 1) / kWarps) * shape.k_tiles;
    registers_ = !in_registers ? 0 : tiles_ < kRegisters ? tiles_ : kRegisters;
    shared_tiles_ = shared_tiles;
    shared_ = shared + warp_ * shared_tiles * 32 + lane_;
#pragma unroll
    for (int i = 0; i < kRegisters; ++i)
      if (i < registers_) tile_[i] = fetch(weights, i);
    for (int i = 0; i < shared_tiles_ && registers_ + i < tiles_; ++i) shared_[i * 32] = fetch(weights, registers_ + i);
  }

  // emit(m, n, part, sum): part counts the ksplit sums of an output.
  template <class Weights, class Emit>
  __device__ void run(const Weights& weights, const E* b, int ldb, int columns, const Emit& emit) {
    for (int n = 0; n < columns; n += 8 * C::kColumnTiles) {
      const int column_tiles = (columns - n + 7) / 8;
      Walk at{warp_ / shape_.row_tiles, warp_ % shape_.row_tiles, 0, warp_};
      typename C::Sums sums;
      C::clear(sums);
      // Tiles come in groups of as many as there are chains, so that an item ends with a group.
      const auto feed = [&](const auto&... tile) {
        int chain = 0;
        (void)std::initializer_list<int>{(multiply(chain++, sums, tile, b + n * ldb, ldb, at, column_tiles), 0)...};
        if (at.k < shape_.k_tiles) return;
        C::emit(sums, at.row * C::kRows, column_tiles, lane_,
                [&](int m, int column, typename C::Acc v) { emit(m, n + column, at.part, v); });
        C::clear(sums);
        at.k = 0;
        at.item += kWarps;
        at.part = at.item / shape_.row_tiles;
        at.row = at.item % shape_.row_tiles;
      };
      const auto feed_group = [&](const auto& tile, int i) {
        if constexpr (C::kChains == 2)
          feed(tile(i), tile(i + 1));
        else
          feed(tile(i));
      };
#pragma unroll
      for (int i = 0; i < kRegisters; i += C::kChains)
        if (i < registers_) feed_group([&](int j) -> const typename C::Tile& { return tile_[j]; }, i);
      int i = registers_;
      for (; i < tiles_ && i < registers_ + shared_tiles_; i += C::kChains)
        feed_group([&](int j) -> const typename C::Tile& { return shared_[(j - registers_) * 32]; }, i);
      for (; i < tiles_; i += C::kChains) feed_group([&](int j) { return fetch(weights, j); }, i);
    }
  }

 private:
  struct Walk {
    int part, row, k, item;
  };
  __device__ void multiply(int chain, typename C::Sums& sums, const typename C::Tile& tile, const E* b, int ldb,
                           Walk& at, int column_tiles) const {
    C::multiply(chain, sums, tile, b, ldb, (at.part * shape_.k_tiles + at.k++) * C::kDepth, column_tiles, lane_);
  }
  template <class Weights>
  __device__ typename C::Tile fetch(const Weights& weights, int i) const {
    const int item = warp_ + i / shape_.k_tiles * kWarps;
    const int k = item / shape_.row_tiles * shape_.k_tiles + i % shape_.k_tiles;
    return C::load(weights, item % shape_.row_tiles * C::kRows, k * C::kDepth, lane_);
  }

  ProductShape shape_;
  int warp_, lane_, tiles_, registers_, shared_tiles_;
  typename C::Tile* shared_;
  typename C::Tile tile_[kRegisters > 0 ? kRegisters : 1];
};
}  // namespace fastrnn
