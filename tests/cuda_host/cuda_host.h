#pragma once
// CUDA on a CPU, for tests: cuda/device.cuh includes this instead of PTX when the compiler is not nvcc.
//
// One fiber per CUDA thread, all on one OS thread, in an order shuffled by a seed, so that code which lacks a barrier
// gives another result. Fibers change only where real threads wait: at barriers, warp exchanges and polls. Pushed bytes
// arrive late and piecemeal, when their barrier is polled. Shared memory is a heap block of exactly the size asked for,
// filled with NaN, so that AddressSanitizer sees its ends.
// It cannot show memory order, residency, alignment faults or speed.
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime_api.h>
#include <string.h>

#include <algorithm>
#include <chrono>
#include <functional>
#include <memory>
#include <random>
#include <unordered_map>
#include <vector>

#undef __launch_bounds__
#define __launch_bounds__(...)
#define FASTRNN_SHARED(name) unsigned char* name = fastrnn::emulation::current->block->shared.get()
#define threadIdx (fastrnn::emulation::current->thread)
#define blockIdx (fastrnn::emulation::current->block->index)

namespace fastrnn {
namespace emulation {
struct Barrier {
  unsigned arrived = 0, generation = 0;
};

struct Exchange {  // what the lanes of a warp show each other; two, so that one barrier an exchange is enough
  unsigned char value[2][32][32];
};

struct Block {
  uint3 index;
  unsigned cluster, rank;
  std::unique_ptr<unsigned char[]> shared;
  Barrier barrier;
  std::vector<Barrier> warp_barriers;
  std::vector<Exchange> warp_exchanges;
};

struct Fiber {
  Block* block;
  uint3 thread;
  void* stack_pointer;
  unsigned exchanges = 0;            // warp exchanges made so far
  const Barrier* waiting = nullptr;  // not to be resumed before waiting->generation changes
  unsigned seen = 0;
  bool done = false;
};

struct Push {
  void* to;
  unsigned size;
  unsigned char bytes[16];
};

// An mbarrier with one arrival a phase.
struct Transactions {
  int32_t bytes;
  uint16_t pending, phase;
};
static_assert(sizeof(Transactions) == 8, "an mbarrier has 8 bytes");

struct Settings {
  unsigned seed = 0;
  bool left_out[device::kSiteCount] = {};  // barriers that a test removes
  int largest_cluster = 16;                // that finds room
  int push_offset = 0;                     // bytes that a test adds to where pushes land
  int wrong_lane = 0;                      // a distance that a test adds to that of the lanes of a shuffle
  int capability = 9;                      // major compute capability of the device
  bool old_driver = false, launches_fail = false;
};

extern Settings settings;
extern Fiber* current;
extern std::mt19937 random;
extern std::vector<Block*> blocks;  // of this launch, cluster after cluster
extern std::vector<Barrier> cluster_barriers;
extern unsigned threads_per_block, blocks_per_cluster;
extern std::unordered_map<void*, std::vector<Push>> pushes;  // by their barrier, not yet arrived

void yield();
void wait(Barrier& barrier, unsigned members);
cudaError_t run(const device::Launch& launch, const std::function<void()>& kernel);

// use(of): of(lane) is what that lane of the warp has passed as `mine`.
template <class T, class Use>
void with_warp(const T& mine, Use use) {
  static_assert(sizeof(T) <= 32, "");
  Fiber* self = current;
  const unsigned warp = self->thread.x / 32, lane = self->thread.x % 32;
  auto& slots = self->block->warp_exchanges[warp].value[self->exchanges++ & 1];
  memcpy(slots[lane], &mine, sizeof(T));
  wait(self->block->warp_barriers[warp], 32);
  use([&](int lane) {
    T v;
    memcpy(&v, slots[lane], sizeof(T));
    return v;
  });
}

template <class E>
float element(uint32_t pair, int high) {
  const uint16_t bits = uint16_t(high ? pair >> 16 : pair);
  E v;
  memcpy(static_cast<void*>(&v), &bits, 2);
  return float(v);
}

inline void finish_phase(Transactions* bar) {
  if (bar->pending || bar->bytes) return;
  bar->pending = 1;
  bar->phase ^= 1;
}
void push(void* p, unsigned rank, const void* value, unsigned size, uint64_t* bar);
}  // namespace emulation

namespace device {
inline void sync_block(Site site) {
  if (!emulation::settings.left_out[site])
    emulation::wait(emulation::current->block->barrier, emulation::threads_per_block);
}
template <class T>
T shuffle_xor(T v, int lane) {
  T other;
  const int from = int(threadIdx.x % 32) ^ lane ^ emulation::settings.wrong_lane;
  emulation::with_warp(v, [&](auto of) { other = of(from); });
  return other;
}
template <class T>
T reciprocal(T x) {
  return 1 / x;
}
template <class E>
void mma_16816(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, E) {
  struct Fragment {
    uint32_t a[4], b[2];
  } mine{{a[0], a[1], a[2], a[3]}, {b0, b1}};
  const int lane = threadIdx.x % 32;
  emulation::with_warp(mine, [&](auto of) {
    for (int i = 0; i < 4; ++i) {
      const int row = lane / 4 + (i >> 1) * 8, column = lane % 4 * 2 + (i & 1);
      for (int k = 0; k < 16; ++k) {
        const Fragment fa = of(row % 8 * 4 + k % 8 / 2), fb = of(column * 4 + k % 8 / 2);
        d[i] += emulation::element<E>(fa.a[row / 8 + k / 8 * 2], k & 1) * emulation::element<E>(fb.b[k / 8], k & 1);
      }
    }
  });
}

inline uint32_t load_acquire(const uint32_t* p) {
  emulation::yield();
  return *p;
}
inline void store_release(uint32_t* p, uint32_t v) { *p = v; }
inline void fence_grid() {}
template <class T>
T load_l2(const T* p) {
  return *p;
}
inline uint64_t now_ns() {
  using namespace std::chrono;
  return uint64_t(duration_cast<nanoseconds>(steady_clock::now().time_since_epoch()).count());
}

inline void cluster_sync() {
  emulation::wait(emulation::cluster_barriers[emulation::current->block->cluster],
                  emulation::threads_per_block * emulation::blocks_per_cluster);
}
inline void barrier_init(uint64_t* bar) { *reinterpret_cast<emulation::Transactions*>(bar) = {0, 1, 0}; }
inline void expect_bytes(uint64_t* bar, uint32_t bytes) {
  auto* t = reinterpret_cast<emulation::Transactions*>(bar);
  t->bytes += int32_t(bytes);
  --t->pending;
  emulation::finish_phase(t);
}
bool barrier_passed(uint64_t* bar, uint32_t parity);
template <class V>
void push(void* p, uint32_t rank, V v, uint64_t* bar) {
  emulation::push(p, rank, &v, sizeof(V), bar);
}

template <class... P>
cudaError_t launch(void (*kernel)(P...), const Launch& l, cudaStream_t, P... args) {
  return emulation::run(l, [=] { kernel(args...); });
}
template <class... P>
int active_clusters(void (*)(P...), const Launch& l) {
  return int(l.cluster) <= emulation::settings.largest_cluster ? 1 : 0;
}
}  // namespace device
}  // namespace fastrnn
