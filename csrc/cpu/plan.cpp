#include "plan.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <stdexcept>
#include <string>

namespace fastrnn {
namespace {
// A rough model of one core, good enough to rank schedules: what matters is where two threads stop paying.
// Measured with `python -m fastrnn bench --ceilings` on Zen 4 and Cascade Lake servers; both lie within 30 % of these.
constexpr double kFlopsPerUs = 100e3;  // float32 multiply-adds, counted as two
constexpr double kL1Bytes = 32e3, kL2Bytes = 0.9e6;
constexpr double kL1BytesPerUs = 200e3, kL2BytesPerUs = 100e3, kL3BytesPerUs = 50e3;
constexpr double kBarrierUs = 0.15;
constexpr double kWakeUs = 3.0;     // handing a job to the pool and back
constexpr double kGateUs = 0.3e-3;  // one gate of one unit, activation included

double stream_us(double bytes) {
  return bytes / (bytes <= kL1Bytes ? kL1BytesPerUs : bytes <= kL2Bytes ? kL2BytesPerUs : kL3BytesPerUs);
}

struct Candidate {
  Schedule schedule;
  int threads;
  double us;
};

double estimate_us(const PlanQuery& q, Schedule schedule, int threads) {
  const RnnShape& s = q.shape;
  const bool side_by_side = s.D == 2 && threads > 1 && !q.backward;  // forward directions run in parallel
  const double sequential = side_by_side ? 1 : double(s.D), team = side_by_side ? threads / 2 : threads;
  const double rows = schedule == kBatchSplit ? std::ceil(s.B / team) : double(s.B);
  // The part of the hidden units that the busiest thread computes: whole panels (see layout.h; 16 lanes a vector).
  const double width = q.backward ? 64 : q.cell.gates >= 3 ? 16 : 64 / q.cell.gates;
  const double panels = std::ceil(s.H / width);
  const double part = schedule == kBatchSplit ? 1.0 : std::ceil(panels / team) / panels;
  const double gates = q.cell.gates, scale = q.itemsize / 4.0;
  const double weights = (q.cell.product ? gates * s.H * s.out() : 0) + double(s.P) * s.H;
  const double serial =
      std::max(2 * weights * rows * part * scale / kFlopsPerUs, stream_us(weights * part * q.itemsize));
  const double step = serial + rows * part * gates * s.H * kGateUs * scale +
                      (schedule == kHiddenSplit && team > 1 && q.cell.product ? kBarrierUs : 0);
  // Long products: forward's input projection follows the schedule; backward's are shared by all threads.
  const double columns = gates * s.H * s.I, shared_rows = s.B / team;
  const double long_products = q.backward ? (4 * columns + 2 * weights) * shared_rows : 2 * columns * rows * part;
  return sequential * s.T * (step + long_products * scale / kFlopsPerUs) + (threads > 1 ? kWakeUs : 0);
}

int64_t chunk_steps(const PlanQuery& q, Schedule schedule, int threads) {
  const RnnShape& s = q.shape;
  const int64_t B = std::max<int64_t>(s.B, 1);
  if (q.backward) {  // not of `threads`: sums must not depend on it
    // Rows of gate gradients that stay in L2: fewer of a cell whose vectors or norms widen them, and of one whose
    // reserve is read again with them (layer-normalised LSTM, H=128 to 320, B=8 and 32, Zen 4: 2 to 6 % less time).
    const int64_t most = q.cell.saved > 2 * q.cell.gates ? 256 : 512;
    const int64_t rows = most * q.cell.gates / (q.cell.gates + q.cell.vectors);
    return std::clamp<int64_t>((rows + B - 1) / B, 1, s.T);
  }
  const int64_t rows = schedule == kBatchSplit ? (B + threads - 1) / threads : B;
  const int64_t row_bytes = q.cell.gates * s.H * q.itemsize / (schedule == kHiddenSplit ? threads : 1) + 1;
  // Projected input that stays in L2, but at least enough rows to reuse each weight panel.
  const int64_t fit = (int64_t(256) << 10) / (row_bytes * rows), enough = (96 + rows - 1) / rows;
  return std::clamp<int64_t>(std::max(fit, enough), 1, s.T);
}
}  // namespace

const char* schedule_name(Schedule schedule) { return schedule == kBatchSplit ? "batch_split" : "hidden_split"; }

Plan make_plan(const PlanQuery& q) {
  const int most = std::clamp<int>(q.threads, 1, kMaxThreads);
  const bool forced = q.schedule && *q.schedule;
  if (forced && std::strcmp(q.schedule, "batch_split") && std::strcmp(q.schedule, "hidden_split"))
    throw std::invalid_argument(std::string("plan: schedule is '") + q.schedule +
                                "', expected batch_split or hidden_split");
  Candidate best{kBatchSplit, 1, 0};
  bool any = false;
  const auto consider = [&](Schedule schedule, int threads) {
    if (forced && std::strcmp(q.schedule, schedule_name(schedule))) return;
    const double us = estimate_us(q, schedule, threads);
    if (!any || us < 0.97 * best.us) best = {schedule, threads, us};
    any = true;
  };
  if (forced) {
    consider(kBatchSplit, most);
    consider(kHiddenSplit, most);
  } else {
    for (int threads = 1; threads <= most; threads = threads < most && 2 * threads > most ? most : 2 * threads) {
      consider(kBatchSplit, threads);
      if (threads > 1) consider(kHiddenSplit, threads);
    }
  }
  return {best.schedule, best.threads, chunk_steps(q, best.schedule, best.threads)};
}
}  // namespace fastrnn
