#include "pool.h"

#include <dlfcn.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <condition_variable>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <stdexcept>
#include <string>
#include <system_error>
#include <thread>

namespace fastrnn {
namespace {
// About 100 us on current x86: longer than the gap between two calls of a busy caller, short for everybody else.
constexpr int kIdleSpins = 4000;
// Spins of a barrier before it yields: with more threads than cores a pure spin loses whole time slices.
constexpr int kBarrierSpins = 2048;

void relax() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// Moves the calling thread to another core, if it may use one.
void step_aside() {
  cpu_set_t allowed, others;
  if (sched_getaffinity(0, sizeof(allowed), &allowed) != 0 || CPU_COUNT(&allowed) < 2) return;
  others = allowed;
  CPU_CLR(sched_getcpu(), &others);
  if (sched_setaffinity(0, sizeof(others), &others) == 0) sched_setaffinity(0, sizeof(allowed), &allowed);
}

struct Job {
  void (*work)(void*, const Team&);
  void* context;
  Team prototype;
  int size;
};

// The OpenMP runtime that torch has loaded, if any (GCC's interface). Its workers keep spinning for milliseconds after
// a region of torch's, on the very cores that threads of our own would need; borrowed, they start at once instead.
// Nothing is linked. A forked child must not use it (its threads are gone, and it would wait for them): `usable` says
// so.
struct OpenMp {
  void (*parallel)(void (*)(void*), void*, unsigned, unsigned);
  int (*thread_num)();
  int (*num_threads)();
  int (*in_parallel)();
  std::atomic<bool> usable{true};

  bool find() {
    if (!usable) return false;
    if (parallel) return !in_parallel();
    const auto symbol = [](const char* name) { return dlsym(RTLD_DEFAULT, name); };
    thread_num = reinterpret_cast<int (*)()>(symbol("omp_get_thread_num"));
    num_threads = reinterpret_cast<int (*)()>(symbol("omp_get_num_threads"));
    in_parallel = reinterpret_cast<int (*)()>(symbol("omp_in_parallel"));
    if (thread_num && num_threads && in_parallel)
      parallel = reinterpret_cast<decltype(parallel)>(symbol("GOMP_parallel"));
    return parallel && !in_parallel();
  }
};
OpenMp open_mp;

class Pool {
 public:
  bool run(const Job& job) {
    std::unique_lock<std::mutex> lock(running_, std::try_to_lock);
    if (!lock) return false;
    job_ = job;
    job_.prototype.flags = flags_;
    caller_core_ = sched_getcpu();
    std::memset(static_cast<void*>(flags_), 0, sizeof(TeamFlag) * job.size);
    if (open_mp.find() && run_borrowed()) return true;
    if (!grow(job.size - 1)) return false;
    done_.store(0, std::memory_order_relaxed);
    epoch_.fetch_add(1, std::memory_order_seq_cst);
    if (sleepers_.load(std::memory_order_seq_cst) > 0) {
      std::lock_guard<std::mutex> wake_lock(sleep_);
      wake_.notify_all();
    }
    work(0);
    for (int spins = 0; done_.load(std::memory_order_acquire) < workers_; ++spins)
      spins < kBarrierSpins ? relax() : std::this_thread::yield();
    return true;
  }

 private:
  // False, and nothing ran, if the runtime grants fewer threads than the job has members.
  bool run_borrowed() {
    granted_ = true;
    open_mp.parallel(
        [](void* self) {
          Pool& pool = *static_cast<Pool*>(self);
          if (open_mp.num_threads() == pool.job_.size)
            pool.work(open_mp.thread_num());
          else
            pool.granted_ = false;
        },
        this, unsigned(job_.size), 0);
    return granted_;
  }

  void work(int rank) {
    // Linux likes to wake a thread on the core of its waker. Two members of a team on one core take turns of whole time
    // slices, and it takes the scheduler milliseconds to notice.
    if (rank > 0 && sched_getcpu() == caller_core_) step_aside();
    Team team = job_.prototype;
    team.rank = rank;
    team.size = job_.size;
    job_.work(job_.context, team);
  }

  bool grow(int workers) {
    if (workers >= kMaxThreads) return false;
    sigset_t all, before;  // signals belong to the caller's threads
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    try {
      while (workers_ < workers) {
        std::thread(&Pool::loop, this, workers_ + 1, epoch_.load()).detach();
        ++workers_;
      }
    } catch (const std::system_error&) {
    }
    pthread_sigmask(SIG_SETMASK, &before, nullptr);
    return workers_ >= workers;
  }

  void loop(int rank, uint64_t seen) {
    for (;;) {
      for (int spins = 0; epoch_.load(std::memory_order_acquire) == seen; ++spins) {
        if (spins < kIdleSpins) {
          relax();
          continue;
        }
        std::unique_lock<std::mutex> lock(sleep_);
        sleepers_.fetch_add(1, std::memory_order_seq_cst);
        wake_.wait(lock, [&] { return epoch_.load(std::memory_order_seq_cst) != seen; });
        sleepers_.fetch_sub(1, std::memory_order_relaxed);
      }
      ++seen;
      if (rank < job_.size) work(rank);
      done_.fetch_add(1, std::memory_order_release);
    }
  }

  std::mutex running_;
  Job job_{};
  int caller_core_ = 0;
  std::atomic<bool> granted_{true};
  int workers_ = 0;
  alignas(64) std::atomic<uint64_t> epoch_{0};
  alignas(64) std::atomic<int> done_{0};
  std::atomic<int> sleepers_{0};
  std::mutex sleep_;
  std::condition_variable wake_;
  TeamFlag flags_[kMaxThreads];
};

// Never destroyed: workers may outlive static destructors. After fork the child's copy has no threads: forget it.
std::atomic<Pool*> pool{nullptr};
Pool& the_pool() {
  if (Pool* p = pool) return *p;
  static std::once_flag once;
  std::call_once(once, [] {
    pthread_atfork(nullptr, nullptr, [] {
      pool = nullptr;
      open_mp.usable = false;
    });
  });
  Pool* fresh = new Pool;
  Pool* none = nullptr;
  if (!pool.compare_exchange_strong(none, fresh)) delete fresh;
  return *pool;
}

int affinity_count() {
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof(set), &set) == 0) return CPU_COUNT(&set);
  return int(std::thread::hardware_concurrency());
}

// CPUs granted by the cgroup's quota (v2, then v1), or a large number.
int cgroup_quota() {
  double quota = -1, period = -1;
  if (FILE* f = std::fopen("/sys/fs/cgroup/cpu.max", "r")) {
    if (std::fscanf(f, "%lf %lf", &quota, &period) != 2) quota = -1;
    std::fclose(f);
  } else {
    const auto number = [](const char* path) {
      double v = -1;
      if (FILE* g = std::fopen(path, "r")) {
        if (std::fscanf(g, "%lf", &v) != 1) v = -1;
        std::fclose(g);
      }
      return v;
    };
    quota = number("/sys/fs/cgroup/cpu/cpu.cfs_quota_us");
    period = number("/sys/fs/cgroup/cpu/cpu.cfs_period_us");
  }
  return quota > 0 && period > 0 ? std::max(1, int(std::ceil(quota / period))) : kMaxThreads;
}

std::atomic<int> chosen_threads{0};
}  // namespace

void Team::wait_for_all() const {
  const uint64_t phase = flags[rank * flag_stride].phase + 1;
  __atomic_store_n(&flags[rank * flag_stride].phase, phase, __ATOMIC_RELEASE);
  for (int other = 0; other < size; ++other)
    for (int spins = 0; __atomic_load_n(&flags[other * flag_stride].phase, __ATOMIC_ACQUIRE) < phase; ++spins)
      spins < kBarrierSpins ? relax() : std::this_thread::yield();
}

int default_num_threads() {
  if (const char* env = std::getenv("FASTRNN_NUM_THREADS"); env && *env) {
    char* end;
    const long n = std::strtol(env, &end, 10);
    if (*end || n < 1)
      throw std::invalid_argument("fastrnn: FASTRNN_NUM_THREADS is '" + std::string(env) +
                                  "', expected an integer >= 1");
    return int(std::min<long>(n, kMaxThreads));
  }
  return std::max(1, std::min(std::min(affinity_count(), cgroup_quota()), kMaxThreads));
}

int num_threads() {
  if (int n = chosen_threads) return n;
  chosen_threads = default_num_threads();
  return chosen_threads;
}

void set_num_threads(int n) {
  if (n < 1) throw std::invalid_argument("set_num_threads: n is " + std::to_string(n) + ", expected n >= 1");
  chosen_threads = std::min(n, kMaxThreads);
}

bool run_team(int size, void (*work)(void*, const Team&), void* context, const Team& prototype) {
  if (size == 1) {
    Team team = prototype;
    team.rank = 0;
    team.size = 1;
    work(context, team);
    return true;
  }
  return the_pool().run(Job{work, context, prototype, size});
}
}  // namespace fastrnn
