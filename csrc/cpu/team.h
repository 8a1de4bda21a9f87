#pragma once
// Team: the threads that run one job together, and the barrier between their steps. Plain data and compiler builtins
// only, because per-ISA files include it. Waits spin briefly, then yield, so that more threads than cores still make
// progress; a failed or interrupted member sets `stop`, which releases everybody at the next chunk of time steps.
#include <stdint.h>

namespace fastrnn {
constexpr int kMaxThreads = 256;

struct alignas(64) TeamFlag {
  uint64_t phase;
};

struct Team {
  int rank = 0;
  int size = 1;
  TeamFlag* flags = nullptr;  // shared; member k owns flags[k * flag_stride]
  int flag_stride = 1;
  const int* stop = nullptr;      // shared; set between chunks only
  void (*poll)(void*) = nullptr;  // rank 0 calls it between chunks: may set stop
  void* poll_arg = nullptr;

  // All members reach the call before any leaves it; writes before it are visible after it.
  inline __attribute__((always_inline)) void sync() const {
    if (size > 1) wait_for_all();
  }
  // The members of rank % parts == part, as a team of their own (used for the two directions of a layer).
  Team part(int part, int parts) const {
    Team sub = *this;
    sub.rank = rank / parts;
    sub.size = (size - part + parts - 1) / parts;
    sub.flags = flags + part;
    sub.flag_stride = flag_stride * parts;
    return sub;
  }
  // Asked by every member between steps; true if the call was stopped.
  bool poll_stop() const {
    if (rank == 0 && poll) poll(poll_arg);
    return stopped();
  }
  bool stopped() const { return stop && __atomic_load_n(stop, __ATOMIC_ACQUIRE); }

 private:
  void wait_for_all() const;  // pool.cpp: out of line, so that per-ISA objects hold no copy of it
};
}  // namespace fastrnn
