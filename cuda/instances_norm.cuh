#pragma once
// As instances.cuh, of the normalised cells: one kind of kernels, which knows everything.
#include "backward_norm.cuh"
#include "forward_norm.cuh"
#include "instances.cuh"

namespace fastrnn {
template <class Cell, class E>
struct Runs<Cell, E, true, true> {
  using Forward = NormForwardRun<Cell, E>;
  using Backward = NormBackwardRun<Cell, E>;
};
}  // namespace fastrnn

#define FASTRNN_NORM_KERNELS(table) \
  const fastrnn::CudaKernels fastrnn::table[] = {FASTRNN_FOR_EACH_NORMALISED_CELL(FASTRNN_SPECIAL)};
