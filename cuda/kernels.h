#pragma once
// The kernels of one cell and one element type, for code that knows neither.
#include <cuda_runtime_api.h>

#include "params.h"

namespace fastrnn {
// What a geometry takes on the chip.
struct Needs {
  int shared_bytes;
  int tiles_per_warp[2], row_tiles[2], depth_tiles[2];  // of each stage's product
  int register_tiles, tile_bytes, column_tiles;  // per product; of a warp; how many tiles of 8 rows one walk takes
  int64_t workspace_bytes;
};

struct CudaKernels {
  int stages, exchanges, gates, states, saved;  // of a step: products, and what is exchanged
  bool tensor_cores, shared_gate_grad;
  Needs (*needs)(const Geometry&, int64_t D, bool backward);
  int (*active_clusters)(const Geometry&, int64_t D, bool backward);  // on the current device
  cudaError_t (*forward)(const CudaForward&, cudaStream_t);
  cudaError_t (*backward)(const CudaBackward&, cudaStream_t);
};

enum CudaType { kFloat32, kFloat64, kBfloat16, kFloat16, kNumCudaTypes };

// In the order of FASTRNN_FOR_EACH_POINTWISE_CELL; one translation unit each. The special kernels, of the first of
// these alone, also know regularisers, gradients of c of every step and gates that are recomputed.
extern const CudaKernels kKernelsFloat32[], kKernelsFloat64[], kKernelsBfloat16[], kKernelsFloat16[];
extern const CudaKernels kSpecialFloat32[], kSpecialFloat64[], kSpecialBfloat16[], kSpecialFloat16[];
// In the order of FASTRNN_FOR_EACH_NORMALISED_CELL; they know all of that.
extern const CudaKernels kNormFloat32[], kNormFloat64[], kNormBfloat16[], kNormFloat16[];
}  // namespace fastrnn
