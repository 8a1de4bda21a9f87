#pragma once
// One table of function pointers per ISA. Plain data, so that the per-ISA files may include it.
#include "../cells/all.h"
#include "../params.h"
#include "team.h"

namespace fastrnn {
enum CellId {
#define FASTRNN_ID(name, Cell) k_##name,
  FASTRNN_FOR_EACH_CELL(FASTRNN_ID)
#undef FASTRNN_ID
      kNumCells
};

// How the team divides the recurrence: by rows of the batch (no barrier), or by hidden units (a barrier per step).
enum Schedule { kBatchSplit, kHiddenSplit };

// Packed weights of one direction (see matmul.h): panels for forward, and the transposes for backward. Index = stage.
template <class T>
struct PackedForward {
  const T *wx[2] = {}, *wh[2] = {}, *bx[2] = {}, *bh[2] = {}, *wr = nullptr, *vectors = nullptr;
};
template <class T>
struct PackedBackward {
  const T *wx_t = nullptr, *wh_t[2] = {}, *wr_t = nullptr, *vectors = nullptr;
};

struct Plan {
  Schedule schedule;
  int threads;
  int64_t chunk_steps;  // time steps whose input projection (or gate gradients) are computed at once
};

template <class T>
struct ForwardJob {
  const RnnForward<T>* p;
  PackedForward<T> packed[2];
  Plan plan;
  char* scratch;  // forward_scratch() bytes for the whole team, 64-byte aligned
  Team team;
};
template <class T>
struct Recompute {  // how backward runs forward again, where only checkpoints were kept
  PackedForward<T> packed[2];
  Plan plan;
};
template <class T>
struct BackwardJob {
  const RnnBackward<T>* p;
  PackedBackward<T> packed[2];
  Recompute<T> recompute;
  Plan plan;
  char* scratch;
  Team team;
};

template <class T>
struct CellKernels {
  int64_t (*packed_forward_bytes)(const RnnShape&);
  PackedForward<T> (*pack_forward)(const RnnShape&, const RnnWeights<T>&, char* into);
  int64_t (*forward_scratch)(const RnnForward<T>&, const Plan&);
  void (*forward)(const ForwardJob<T>&);
  int64_t (*packed_backward_bytes)(const RnnShape&);
  PackedBackward<T> (*pack_backward)(const RnnShape&, const RnnWeights<T>&, char* into);
  int64_t (*backward_scratch)(const RnnBackward<T>&, const Plan&, const Plan& forward);
  void (*backward)(const BackwardJob<T>&);
};

struct AttentionTable;
struct DecoderTable;
struct CpuTable {
  const char* isa;
  int vec_bytes;
  CellKernels<float> f32[kNumCells];
  CellKernels<double> f64[kNumCells];
  const AttentionTable* attention;
  const DecoderTable* decoder;
  uint64_t (*hash)(const void* data, int64_t bytes);  // of the content, for the pack cache
  double (*fma_loop)(int64_t iterations);             // returns FLOPs done
  void (*read_loop)(const float* data, int64_t n, int64_t repeats);
  void (*activation)(const char* name, int64_t n, const float* x,
                     float* y);  // exp | tanh | sigmoid | log1p (of 0 to 1), for the accuracy tests
  void (*dropout_row_f32)(uint64_t key, int64_t n, uint32_t threshold, float scale, float* out);
  void (*dropout_row_f64)(uint64_t key, int64_t n, uint32_t threshold, double scale, double* out);
};

struct CellInfo {
  const char* name;
  int gates, states, saved, vectors;
  bool product, drops_candidate;
};
constexpr CellInfo kCells[kNumCells] = {
#define FASTRNN_INFO(name, Cell) \
  {#name, Cell::kGates, Cell::kStates, Cell::kSaved, Cell::kVectors, Cell::kProduct, Cell::kDropsCandidate},
    FASTRNN_FOR_EACH_CELL(FASTRNN_INFO)
#undef FASTRNN_INFO
};
}  // namespace fastrnn
