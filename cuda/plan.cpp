#include "plan.h"

#include <algorithm>
#include <stdexcept>

namespace fastrnn {
namespace {
constexpr const char* kNames[kNumCudaSchedules] = {"cta", "cluster", "grid", "stepwise"};

// Estimates from published latencies of an H100 (shared memory 29 cycles, distributed shared memory 180, L2 260 to 410,
// a launch 2 us; mma.sync m16n8k16 at two thirds of 512 multiply-adds a cycle and tensor core); not measured by this
// project.
constexpr double kCyclesPerUs = 1700;
constexpr double kExchangeUs[kNumCudaSchedules] = {0.05, 0.35, 1.1, 2.5};
constexpr double kUsPerSender = 0.005;                                    // a flag to poll, a peer to push to
constexpr double kTensorTileCycles = 2 * 6.5, kPlainTileCycles = 2 * 70;  // two warps share one scheduler
constexpr double kSharedTileCycles = 8, kStreamedTileCycles = 120;  // in addition, where it does not lie in registers
constexpr double kPairCycles = 40;                                  // one unit of one row, per warp of 32
constexpr double kFixedUs = 0.12;                                   // barriers and the latency of the cell

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
int64_t round_up(int64_t a, int64_t b) { return ceil_div(a, b) * b; }

class Search {
 public:
  Search(const CudaQuery& query, const Chip& chip) : q_(query), chip_(chip) {}

  CudaPlan best() {
    for (int schedule = 0; schedule < kNumCudaSchedules; ++schedule)
      if (q_.schedule.empty() || q_.schedule == kNames[schedule])
        for (int rows = 8; rows <= 32 && (rows == 8 || rows / 2 < q_.B); rows *= 2) consider(schedule, rows);
    if (!found_) {
      const std::string what =
          q_.schedule.empty() ? "no schedule runs" : "schedule is '" + q_.schedule + "', which cannot run";
      throw std::invalid_argument("plan: " + what + " H=" + std::to_string(q_.H) + " with B=" + std::to_string(q_.B) +
                                  " on this device, expected a smaller layer" +
                                  (q_.schedule.empty() ? "" : " or another schedule"));
    }
    return best_;
  }

 private:
  void consider(int schedule, int rows) {
    if (ceil_div(q_.B, rows) > 65535) return;
    switch (schedule) {
      case kCta:
        return consider(schedule, rows, 1);
      case kCluster:
        for (int ctas = 2; ctas <= chip_.largest_cluster; ctas *= 2) consider(schedule, rows, ctas);
        return;
      case kGrid:
        for (int ctas = 2; chip_.cooperative && ctas <= std::min(chip_.multiprocessors, kMaxCtas);
             ctas += ctas < 16 ? 2 : 4)
          consider(schedule, rows, ctas);
        return;
      default:
        return consider(schedule, rows, int(std::min<int64_t>(32, ceil_div(q_.H, 16))));
    }
  }

  void consider(int schedule, int rows, int ctas) {
    const int64_t units = round_up(ceil_div(q_.H, ctas), 8);
    // Where some would have nothing to do: a cluster has to be whole, but half of it should not be enough.
    const int64_t needed = ceil_div(q_.H, units);
    if (needed < ctas) {
      if (schedule == kGrid || (schedule == kCluster && needed <= ctas / 2)) return;
      if (schedule != kCluster) ctas = int(needed);
    }
    const int64_t groups = ceil_div(q_.B, rows);
    if (units * ctas > (1 << 18)) return;  // beyond, numbers of tiles would not fit an int
    if (schedule == kGrid && ctas * groups * q_.D > chip_.multiprocessors) return;
    Geometry geo{schedule, ctas, int(units), rows, int(groups), {1, 1}, {0, 0}, schedule != kStepwise};
    CudaPlan plan{geo, q_.kernels->needs(geo, q_.D, q_.backward), 0};
    if (plan.needs.shared_bytes <= 0 || plan.needs.shared_bytes > chip_.shared_bytes) return;
    divide_depth(plan);
    if (!keep_weights(plan)) return;
    plan.us_per_step = estimate(plan);
    if (found_ && plan.us_per_step >= best_.us_per_step) return;
    best_ = plan;
    found_ = true;
  }

  // Forward: sums are divided so that the busiest warp has the fewest tiles. Backward sends its sums on at once and
  // does without.
  void divide_depth(CudaPlan& plan) const {
    if (q_.backward) return;
    for (int stage = 0; stage < q_.kernels->stages; ++stage) {
      Geometry trial = plan.geometry;
      for (trial.ksplit[stage] = 2; trial.ksplit[stage] <= kWarps; ++trial.ksplit[stage]) {
        const Needs needs = q_.kernels->needs(trial, q_.D, q_.backward);
        if (needs.shared_bytes > chip_.shared_bytes) break;
        if (needs.tiles_per_warp[stage] >= plan.needs.tiles_per_warp[stage]) continue;
        plan.geometry = trial;
        plan.needs = needs;
      }
    }
  }

  // Weights go to registers, then to shared memory; false if some are left and the schedule is one that keeps them.
  bool keep_weights(CudaPlan& plan) const {
    if (plan.geometry.schedule == kStepwise) return true;
    int64_t left = chip_.shared_bytes - plan.needs.shared_bytes;
    bool all = true;
    for (int stage = 0; stage < q_.kernels->stages; ++stage) {
      const int wanted = std::max(0, plan.needs.tiles_per_warp[stage] - plan.needs.register_tiles);
      const int fits = int(std::min<int64_t>(wanted, left / (int64_t(kWarps) * plan.needs.tile_bytes)));
      plan.geometry.shared_tiles[stage] = fits;
      left -= int64_t(fits) * kWarps * plan.needs.tile_bytes;
      all = all && fits == wanted;
    }
    plan.needs = q_.kernels->needs(plan.geometry, q_.D, q_.backward);
    return all && plan.needs.shared_bytes <= chip_.shared_bytes;
  }

  double estimate(const CudaPlan& plan) const {
    const Geometry& geo = plan.geometry;
    const double walks = double(ceil_div(geo.rows, 8 * plan.needs.column_tiles));
    const double columns = double(std::min<int64_t>(geo.rows / 8, plan.needs.column_tiles));
    double us = 0;
    for (int stage = 0; stage < q_.kernels->stages; ++stage) {
      const int tiles = plan.needs.tiles_per_warp[stage];
      const int registers = geo.in_registers ? std::min(tiles, plan.needs.register_tiles) : 0;
      const int shared = geo.shared_tiles[stage], streamed = std::max(0, tiles - registers - shared);
      const double multiply = tiles * columns * (q_.kernels->tensor_cores ? kTensorTileCycles : kPlainTileCycles);
      const double read = shared * kSharedTileCycles + streamed * kStreamedTileCycles;
      us += walks * (multiply + read) / kCyclesPerUs;
    }
    const double exchange = kExchangeUs[geo.schedule] + kUsPerSender * geo.ctas + kFixedUs;
    us += q_.kernels->exchanges * exchange;
    us += double(geo.rows) * geo.units / kThreads * kPairCycles / kCyclesPerUs;
    const int64_t at_once = std::max<int64_t>(1, chip_.multiprocessors / geo.ctas);
    return us * double(ceil_div(geo.groups * q_.D, at_once));
  }

  const CudaQuery& q_;
  const Chip& chip_;
  CudaPlan best_{};
  bool found_ = false;
};
}  // namespace

const char* cuda_schedule_name(int schedule) { return kNames[schedule]; }

CudaPlan make_cuda_plan(const CudaQuery& query, const Chip& chip) {
  if (!query.schedule.empty() &&
      std::find(kNames, kNames + kNumCudaSchedules, query.schedule) == kNames + kNumCudaSchedules)
    throw std::invalid_argument("plan: schedule is '" + query.schedule + "', expected cta, cluster, grid or stepwise");
  return Search(query, chip).best();
}
}  // namespace fastrnn
