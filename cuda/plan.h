#pragma once
// Which schedule runs a layer, and how it is cut: a pure function of the layer's shape and of what the chip has, so
// that it can be asked about any chip on a machine without one.
#include <string>

#include "kernels.h"

namespace fastrnn {
struct Chip {
  int multiprocessors;
  int shared_bytes;     // that one CTA can have
  int largest_cluster;  // CTAs that are sure to run together; 1 where there are no clusters
  bool cooperative;     // whether all CTAs of a launch can be made to run together
};

struct CudaQuery {
  const CudaKernels* kernels;
  int64_t B, H, D;
  bool backward;
  std::string schedule;  // "" lets the model choose
};

struct CudaPlan {
  Geometry geometry;
  Needs needs;
  double us_per_step;  // of the model: an estimate, for ranking only
};

const char* cuda_schedule_name(int schedule);
// Throws std::invalid_argument if the forced schedule cannot run this layer on this chip.
CudaPlan make_cuda_plan(const CudaQuery& query, const Chip& chip);
}  // namespace fastrnn
