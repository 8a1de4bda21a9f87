#pragma once
// Products of a few rows with a matrix, of which each result is put to use at once:
//   sum[r, n] = sum over the factors and over k of a[r, k] w[n, k]
// A warp has four rows of w, or the gates of one hidden unit, and up to kRows rows of a; its lanes divide k, so that
// both are read in whole lines, and the matrix once for all these rows. Every sum has one order.
#include "element.cuh"
#include "softmax.cuh"

namespace fastrnn {
constexpr int kDecoderWarps = 4, kDecoderThreads = 32 * kDecoderWarps;
constexpr int kFactors = 3;

// Rows of an array. `group` neighbouring rows share one, and `index` may say which.
template <class E>
struct RowsOf {
  const E* base;
  int64_t stride;
  int64_t group = 1;
  const int64_t* index = nullptr;  // by row / group; null = row / group itself
  int64_t index_stride = 0;

  __device__ const E* operator()(int64_t row) const {
    const int64_t i = row / group;
    return base + (index ? index[i * index_stride] : i) * stride;
  }
};

template <class E>
struct Factor {
  RowsOf<E> a;
  const E* w;  // [N, K], rows ld apart
  int64_t ld;
  int64_t K;  // 0 = no factor
};

// Use::kGates = 0: use(row, n, sum). Otherwise n is gate * units + unit, N = kGates * units, and it is
// use(row, unit, x, r): the sums of all gates, r being those of the last factor and x those of the others.
template <class E, class Use>
struct RowProducts {
  int64_t rows, N;
  Factor<E> factors[kFactors];
  Use use;
};

template <class E, class Use>
class RowProduct {
  static constexpr int G = Use::kGates, kOutputs = G ? G : 4, kSums = G ? 2 : 1, kRows = 32 / sizeof(E);
  static constexpr int kValues = 4 * kRows;  // row by row, four outputs each

 public:
  using Params = RowProducts<E, Use>;
  struct Shared {
    E sums[kDecoderWarps][kSums][kValues];
  };
  static int64_t blocks(const Params& p) { return row_tiles(p) * item_blocks(p); }
  static constexpr int kSharedBytes = G ? sizeof(Shared) : 0;

  __device__ static void run(const Params& p, Shared& shared) {
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const int64_t item = blockIdx.x % item_blocks(p) * kDecoderWarps + warp;
    const int64_t row0 = blockIdx.x / item_blocks(p) * kRows;
    E sums[kSums][kValues];
#pragma unroll
    for (int i = 0; i < kSums * kValues; ++i) sums[i / kValues][i % kValues] = 0;
#pragma unroll
    for (int f = 0; f < kFactors; ++f) add(p, p.factors[f], item, row0, lane, sums[f == kFactors - 1 ? kSums - 1 : 0]);
    E found[kSums];
#pragma unroll
    for (int s = 0; s < kSums; ++s) found[s] = collect(sums[s], lane);
    if constexpr (G == 0) {
      const int64_t row = row0 + lane / 4, n = item * 4 + lane % 4;
      if (lane < kValues && row < p.rows && n < p.N) p.use(row, n, found[0]);
    } else {
      for (int s = 0; s < kSums; ++s)
        if (lane < kValues) shared.sums[warp][s][lane] = found[s];
      device::sync_block(device::kSiteSums);
      if (lane >= kRows || row0 + lane >= p.rows || item >= p.N / G) return;
      E x[G], r[G];
#pragma unroll
      for (int g = 0; g < G; ++g) {
        x[g] = shared.sums[warp][0][lane * 4 + g];
        r[g] = shared.sums[warp][1][lane * 4 + g];
      }
      p.use(row0 + lane, item, x, r);
    }
  }

 private:
  __host__ __device__ static int64_t row_tiles(const Params& p) { return (p.rows + kRows - 1) / kRows; }
  __host__ __device__ static int64_t item_blocks(const Params& p) {
    const int64_t items = G ? p.N / kOutputs : (p.N + 3) / 4;
    return (items + kDecoderWarps - 1) / kDecoderWarps;
  }

  // What lies outside is computed from the last row, and not used.
  __device__ static void add(const Params& p, const Factor<E>& f, int64_t item, int64_t row0, int lane,
                             E (&sums)[kValues]) {
    if (f.K == 0) return;
    const E *a[kRows], *w[kOutputs];
#pragma unroll
    for (int i = 0; i < kRows; ++i) a[i] = f.a(row0 + i < p.rows ? row0 + i : p.rows - 1);
#pragma unroll
    for (int o = 0; o < kOutputs; ++o) {
      const int64_t n = G ? o * (p.N / kOutputs) + item : item * 4 + o;
      w[o] = f.w + (n < p.N ? n : p.N - 1) * f.ld;
    }
#pragma unroll 2
    for (int64_t k = lane; k < f.K; k += 32) {
      E of_w[kOutputs];
#pragma unroll
      for (int o = 0; o < kOutputs; ++o) of_w[o] = w[o][k];
#pragma unroll
      for (int i = 0; i < kRows; ++i) {
        const E of_a = a[i][k];
#pragma unroll
        for (int o = 0; o < kOutputs; ++o) sums[i * 4 + o] += of_a * of_w[o];
      }
    }
  }
};

template <class E, class Use>
__global__ void __launch_bounds__(kDecoderThreads) row_product_kernel(RowProducts<E, Use> p) {
  FASTRNN_SHARED(row_product_shared);
  using Product = RowProduct<E, Use>;
  Product::run(p, *reinterpret_cast<typename Product::Shared*>(row_product_shared));
}
template <class E, class Use>
cudaError_t launch_row_product(const RowProducts<E, Use>& p, cudaStream_t stream) {
  using Product = RowProduct<E, Use>;
  return launch_blocks<RowProducts<E, Use>>(row_product_kernel<E, Use>, Product::blocks(p), kDecoderThreads,
                                            Product::kSharedBytes, p, stream);
}
}  // namespace fastrnn
