#pragma once
// Launches of the kernels of one element type; each kernels_*.cu names its type and kind and includes this.
#include "backward.cuh"
#include "forward.cuh"
#include "kernels.h"

namespace fastrnn {
// The time loops of a cell; those of a normalised one are in instances_norm.cuh.
template <class Cell, class E, bool kSpecial, bool normalised>
struct Runs {
  using Forward = ForwardRun<Cell, E, kSpecial>;
  using Backward = BackwardRun<Cell, E, kSpecial>;
};

template <class Cell, class E, bool kSpecial>
struct Instance : Runs<Cell, E, kSpecial, Cell::kNormalised> {
  using typename Runs<Cell, E, kSpecial, Cell::kNormalised>::Forward;
  using typename Runs<Cell, E, kSpecial, Cell::kNormalised>::Backward;

  static Needs needs(const Geometry& geo, int64_t D, bool backward) {
    const SharedLayout<Cell, E> shared(geo, backward);
    Needs n{};
    n.shared_bytes = shared.bytes;
    for (int stage = 0; stage < Stages<Cell>::kCount; ++stage) {
      n.tiles_per_warp[stage] = shared.product[stage].tiles_per_warp();
      n.row_tiles[stage] = shared.product[stage].row_tiles;
      n.depth_tiles[stage] = shared.product[stage].k_tiles * geo.ksplit[stage];
    }
    n.register_tiles = register_tiles<Cell, E>();
    n.tile_bytes = 32 * sizeof(typename Core<E>::Tile);
    n.column_tiles = Core<E>::kColumnTiles;
    n.workspace_bytes = Workspace<Cell, E>(geo, D, backward).bytes();
    return n;
  }
  static device::Launch shape(const Geometry& geo, int64_t D, bool backward) {
    const bool cluster = geo.schedule == kCluster;
    return {unsigned(geo.ctas),
            unsigned(geo.groups),
            unsigned(D),
            kThreads,
            unsigned(SharedLayout<Cell, E>(geo, backward).bytes),
            cluster ? unsigned(geo.ctas) : 1u,
            geo.schedule == kGrid};
  }
  static int active_clusters(const Geometry& geo, int64_t D, bool backward) {
    const device::Launch l = shape(geo, D, backward);
    return backward ? device::active_clusters(backward_kernel<Backward>, l)
                    : device::active_clusters(forward_kernel<Forward>, l);
  }
  // One launch, or one for each exchange.
  template <class Params>
  static cudaError_t launch_all(void (*kernel)(Params), Params p, int64_t exchanges, bool backward,
                                cudaStream_t stream) {
    const device::Launch l = shape(p.geometry, p.D, backward);
    p.first = 0;
    p.last = exchanges;
    if (p.geometry.schedule != kStepwise) return device::launch<Params>(kernel, l, stream, p);
    for (int64_t e = 0; e < exchanges; ++e) {
      p.first = e;
      p.last = e + 1;
      if (const cudaError_t error = device::launch<Params>(kernel, l, stream, p)) return error;
    }
    return cudaSuccess;
  }

  static cudaError_t forward(const CudaForward& p, cudaStream_t stream) {
    // Padding of the operands has to be zero; flags too.
    const int64_t bytes = Workspace<Cell, E>(p.geometry, p.D, false).bytes();
    if (bytes)
      if (const cudaError_t error = cudaMemsetAsync(p.workspace, 0, size_t(bytes), stream)) return error;
    if (p.geometry.schedule == kStepwise)
      if (const cudaError_t error = device::launch<CudaForward>(forward_first_operand_kernel<Forward>,
                                                                shape(p.geometry, p.D, false), stream, p))
        return error;
    return launch_all<CudaForward>(forward_kernel<Forward>, p, p.T * Stages<Cell>::kExchanges, false, stream);
  }
  static cudaError_t backward(const CudaBackward& p, cudaStream_t stream) {
    const int64_t flags = Workspace<Cell, E>(p.geometry, p.D, true).flag_bytes;
    if (flags)
      if (const cudaError_t error = cudaMemsetAsync(p.workspace, 0, size_t(flags), stream)) return error;
    // One more: the gradient of the initial states.
    return launch_all<CudaBackward>(backward_kernel<Backward>, p, p.T * Stages<Cell>::kExchanges + 1, true, stream);
  }
  static constexpr CudaKernels entry() {
    return {Stages<Cell>::kCount,
            Stages<Cell>::kExchanges,
            Cell::kGates,
            Cell::kStates,
            Cell::kSaved,
            sizeof(E) == 2,
            Cell::kSharedGateGrad,
            &needs,
            &active_clusters,
            &forward,
            &backward};
  }
};
}  // namespace fastrnn

#define FASTRNN_PLAIN(name, Cell) fastrnn::Instance<fastrnn::Cell, FASTRNN_ELEMENT, false>::entry(),
#define FASTRNN_SPECIAL(name, Cell) fastrnn::Instance<fastrnn::Cell, FASTRNN_ELEMENT, true>::entry(),
#define FASTRNN_PLAIN_KERNELS(table) \
  const fastrnn::CudaKernels fastrnn::table[] = {FASTRNN_FOR_EACH_POINTWISE_CELL(FASTRNN_PLAIN)};
#define FASTRNN_SPECIAL_KERNELS(table) \
  const fastrnn::CudaKernels fastrnn::table[] = {FASTRNN_FOR_EACH_REGULARISED_CELL(FASTRNN_SPECIAL)};
