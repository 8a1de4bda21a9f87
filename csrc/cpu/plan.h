#pragma once
// Which schedule, how many threads, how many time steps per chunk: a pure function of the shape and the thread count.
#include "table.h"

namespace fastrnn {
struct PlanQuery {
  CellInfo cell;
  int itemsize;
  RnnShape shape;
  bool backward;
  int threads;                     // at most so many
  const char* schedule = nullptr;  // force "batch_split" or "hidden_split"; null or "" = choose
};
Plan make_plan(const PlanQuery& query);  // throws std::invalid_argument for an unknown schedule
const char* schedule_name(Schedule schedule);
}  // namespace fastrnn
