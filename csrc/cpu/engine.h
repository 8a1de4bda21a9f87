#pragma once
// Runs a layer: plan, packed weights, scratch, threads. And the stepper, which keeps all of that between calls.
#include <string>
#include <vector>

#include "../attention.h"
#include "dispatch.h"
#include "memory.h"
#include "plan.h"
#include "pool.h"

namespace fastrnn {
struct RunOptions {
  const char* schedule = "";
  int threads = 0;      // 0 = num_threads()
  int* stop = nullptr;  // see Team
  void (*poll)(void*) = nullptr;
  void* poll_arg = nullptr;
};
inline Team prototype(const RunOptions& options) {
  Team team;
  team.stop = options.stop;
  team.poll = options.poll;
  team.poll_arg = options.poll_arg;
  return team;
}

template <class T>
void run_forward(CellId cell, const RnnForward<T>& p, const RunOptions& options);
template <class T>
void run_backward(CellId cell, const RnnBackward<T>& p, const RunOptions& options);

template <class T>
void run_attention_forward(ScoreId score, const AttentionForward<T>& p, const RunOptions& options);
template <class T>
void run_attention_backward(ScoreId score, const AttentionBackward<T>& p, const RunOptions& options);

// Sets flush-to-zero and denormals-are-zero for the current thread, and restores the caller's mode on exit.
class FlushDenormals {
 public:
  FlushDenormals();
  ~FlushDenormals();
  FlushDenormals(const FlushDenormals&) = delete;
  FlushDenormals& operator=(const FlushDenormals&) = delete;

 private:
  unsigned saved_;
};

// Runs a kernel(params, scratch, team) on options.threads, on one where they are busy; scratch_bytes(n) is what n of
// them need.
template <class Params, class ScratchBytes>
void run_kernel(const Params& p, const RunOptions& options, ScratchBytes scratch_bytes,
                void (*kernel)(const Params&, char* scratch, const Team&)) {
  struct Context {
    const Params& p;
    char* scratch;
    void (*kernel)(const Params&, char*, const Team&);
  };
  for (int n : {options.threads > 0 ? options.threads : num_threads(), 1}) {
    Context context{p, thread_scratch(scratch_bytes(n)), kernel};
    const auto work = [](void* c, const Team& team) {
      const Context& own = *static_cast<Context*>(c);
      FlushDenormals flush;
      own.kernel(own.p, own.scratch, team);
    };
    if (run_team(n, work, &context, prototype(options))) return;
  }
}

struct LayerSize {
  int64_t I, H, P;
};
// One time step at a time through a stack of unidirectional layers, on the calling thread. step() neither allocates,
// locks nor calls the system.
template <class T>
class Stepper {
 public:
  Stepper(CellId cell, int64_t B, const std::vector<LayerSize>& sizes, const std::vector<RnnWeights<T>>& weights,
          const Zoneout& zoneout);
  void step(const T* x, T* y);                // x [B, I], y [B, P or H]
  void get_states(int state, T* into) const;  // 0: h [L, B, P or H]; 1: those beyond it [L, B, states - 1, H]
  void set_states(int state, const T* from);
  void reset(const uint8_t* mask);  // [B], null = all rows

 private:
  struct Layer {
    RnnShape shape;
    int states;
    Buffer packed_buffer, state_buffer, y;
    PackedForward<T> packed;
    int arrays() const { return states > 1 ? 2 : 1; }  // of states, see kStateArrays
    int64_t state_width(int state) const { return state == 0 ? shape.out() : (states - 1) * shape.H; }
    T* state(int state) const {
      return reinterpret_cast<T*>(state_buffer.data()) + (state ? shape.B * shape.out() : 0);
    }
  };
  const CpuTable* table_;
  CellId cell_;
  Zoneout zoneout_;
  std::vector<Layer> layers_;
  Buffer scratch_;
};
}  // namespace fastrnn
