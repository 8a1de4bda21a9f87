#pragma once
// A small pool of std::thread that runs one team at a time. Workers spin briefly after a job, then sleep; after a fork
// the child builds its own. No OpenMP: a second OpenMP runtime costs milliseconds per region, and hangs after fork.
#include "team.h"

namespace fastrnn {
int default_num_threads();  // min(CPUs this process may run on, cgroup quota), or FASTRNN_NUM_THREADS
int num_threads();
void set_num_threads(int n);  // throws std::invalid_argument if n < 1

// Runs work(context, team) on `size` threads, the caller being rank 0. When the pool is busy with another caller, or no
// threads can be had, it returns false and nothing ran: the caller then plans for one thread.
bool run_team(int size, void (*work)(void* context, const Team& team), void* context, const Team& prototype);
}  // namespace fastrnn
