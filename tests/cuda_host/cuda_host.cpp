// The scheduler of cuda_host.h, and the few functions of the CUDA runtime that the engine calls.
#include "../../cuda/device.cuh"

#include <stdio.h>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
#endif

// Saves the registers that a call preserves, and the stack pointer at *from; continues on the stack `to`.
extern "C" void fastrnn_switch_stack(void** from, void* to);
asm(R"(
.text
.type fastrnn_switch_stack, @function
fastrnn_switch_stack:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
)");

namespace fastrnn {
namespace emulation {
Settings settings;
Fiber* current = nullptr;
std::mt19937 random;
std::vector<Block*> blocks;
std::vector<Barrier> cluster_barriers;
unsigned threads_per_block, blocks_per_cluster;
std::unordered_map<void*, std::vector<Push>> pushes;

namespace {
constexpr size_t kStackBytes = 64 * 1024;
const std::function<void()>* kernel_of_launch;
void* scheduler_stack;
bool progress;

#if defined(__SANITIZE_ADDRESS__)
const void* scheduler_bottom;
size_t scheduler_size;
void leave(bool for_good, void** fake, const void* bottom, size_t size) {
  __sanitizer_start_switch_fiber(for_good ? nullptr : fake, bottom, size);
}
void arrive(void* fake, bool note_scheduler) {
  const void* bottom;
  size_t size;
  __sanitizer_finish_switch_fiber(fake, &bottom, &size);
  if (note_scheduler) scheduler_bottom = bottom, scheduler_size = size;
}
#else
const void* scheduler_bottom = nullptr;
size_t scheduler_size = 0;
void leave(bool, void**, const void*, size_t) {}
void arrive(void*, bool) {}
#endif

void to_scheduler(bool for_good) {
  Fiber* self = current;
  void* fake = nullptr;
  leave(for_good, &fake, scheduler_bottom, scheduler_size);
  fastrnn_switch_stack(&self->stack_pointer, scheduler_stack);
  arrive(fake, true);
}

void fiber_main() {
  arrive(nullptr, true);
  (*kernel_of_launch)();
  current->done = true;
  progress = true;
  to_scheduler(true);
}

void* first_frame(unsigned char* stack) {
  void** top = reinterpret_cast<void**>(stack + kStackBytes) - 2;  // the stack is 16-byte aligned after `ret`
  *top = reinterpret_cast<void*>(&fiber_main);
  return top - 6;  // registers that the switch pops
}

// Runs the blocks of one cluster, or of the whole grid if it is cooperative, until all threads have returned.
bool run_together(const std::vector<uint3>& indices, const device::Launch& launch) {
  const unsigned threads = launch.threads;
  std::vector<std::unique_ptr<Block>> own;
  for (size_t i = 0; i < indices.size(); ++i) {
    auto b = std::make_unique<Block>();
    b->index = indices[i];
    b->cluster = unsigned(i / launch.cluster);
    b->rank = unsigned(i % launch.cluster);
    b->shared.reset(new unsigned char[std::max(1u, launch.shared_bytes)]);
    memset(b->shared.get(), 0xFF, launch.shared_bytes);
    b->warp_barriers.resize(threads / 32);
    b->warp_exchanges.resize(threads / 32);
    own.push_back(std::move(b));
  }
  blocks.clear();
  for (auto& b : own) blocks.push_back(b.get());
  cluster_barriers.assign(indices.size() / launch.cluster, Barrier());
  pushes.clear();
  const size_t count = indices.size() * threads;
  static std::vector<std::unique_ptr<unsigned char[]>> stacks;
  while (stacks.size() < count) stacks.emplace_back(new unsigned char[kStackBytes]);
  std::vector<Fiber> fibers(count);
  for (size_t i = 0; i < count; ++i) {
    fibers[i].block = blocks[i / threads];
    fibers[i].thread = {unsigned(i % threads), 0, 0};
    fibers[i].stack_pointer = first_frame(stacks[i].get());
  }
  // With a seed, warps now and then fall behind the others by some rounds.
  std::vector<unsigned> asleep_until(count / 32);
  for (unsigned round = 0, left = unsigned(count); left; ++round) {
    progress = false;
    // Another permutation in every round: from `start` in steps that share no factor with `count`.
    size_t start = random() % count, step = random() % count;
    while (std::__gcd(step, count) != 1) ++step;
    for (size_t i = 0; i < count; ++i) {
      const size_t at = (start + i * step) % count;
      Fiber& f = fibers[at];
      if (f.done || (f.waiting && f.waiting->generation == f.seen)) continue;
      const unsigned warp = unsigned(at / 32);
      if (settings.seed && i % 32 == 0 && random() % 16 == 0)
        asleep_until[random() % asleep_until.size()] = round + random() % 32;
      if (asleep_until[warp] > round) {
        progress = true;
        continue;
      }
      f.waiting = nullptr;
      current = &f;
      void* fake = nullptr;
      leave(false, &fake, stacks[at].get(), kStackBytes);
      fastrnn_switch_stack(&scheduler_stack, f.stack_pointer);
      arrive(fake, false);
      left -= f.done;
    }
    if (!progress) {
      fprintf(stderr, "cuda_host: deadlock, %u threads wait at barriers that nobody else will reach\n", left);
      return false;
    }
  }
  return true;
}
}  // namespace

void yield() {
  progress = true;  // polls are bounded by the kernel
  to_scheduler(false);
}

void wait(Barrier& barrier, unsigned members) {
  progress = true;
  if (++barrier.arrived == members) {
    barrier.arrived = 0;
    ++barrier.generation;
    return;
  }
  current->waiting = &barrier;
  current->seen = barrier.generation;
  to_scheduler(false);
}

void push(void* p, unsigned rank, const void* value, unsigned size, uint64_t* bar) {
  const Block* self = current->block;
  const Block* peer = blocks[self->cluster * blocks_per_cluster + rank];
  const auto there = [&](void* q) {
    return peer->shared.get() + (static_cast<unsigned char*>(q) - self->shared.get());
  };
  Push item{there(p) + settings.push_offset, size, {}};
  memcpy(item.bytes, value, size);
  pushes[there(bar)].push_back(item);
}

cudaError_t run(const device::Launch& launch, const std::function<void()>& kernel) {
  if (launch.threads % 32 || launch.threads > 1024 || launch.shared_bytes > 227 * 1024 || launch.x % launch.cluster ||
      !launch.x || !launch.y || !launch.z)
    return cudaErrorInvalidConfiguration;
  if (settings.launches_fail) return cudaErrorLaunchOutOfResources;
  random.seed(settings.seed);
  kernel_of_launch = &kernel;
  threads_per_block = launch.threads;
  blocks_per_cluster = launch.cluster;
  std::vector<uint3> indices;
  for (unsigned z = 0; z < launch.z; ++z)
    for (unsigned y = 0; y < launch.y; ++y)
      for (unsigned x = 0; x < launch.x; ++x) indices.push_back({x, y, z});
  const size_t together = launch.cooperative ? indices.size() : launch.cluster;
  for (size_t i = 0; i < indices.size(); i += together)
    if (!run_together({indices.begin() + i, indices.begin() + i + together}, launch)) return cudaErrorLaunchFailure;
  return cudaSuccess;
}
}  // namespace emulation

bool device::barrier_passed(uint64_t* bar, uint32_t parity) {
  emulation::yield();
  auto* t = reinterpret_cast<emulation::Transactions*>(bar);
  auto& waiting = emulation::pushes[bar];
  for (size_t i = 0; i < waiting.size();) {
    if (emulation::random() & 1) {
      ++i;
      continue;
    }
    memcpy(waiting[i].to, waiting[i].bytes, waiting[i].size);
    t->bytes -= int32_t(waiting[i].size);
    waiting[i] = waiting.back();
    waiting.pop_back();
  }
  emulation::finish_phase(t);
  return t->phase != parity;
}
}  // namespace fastrnn

// ---- the CUDA runtime of a machine with one H200
extern "C" {
cudaError_t cudaGetDeviceCount(int* count) {
  return *count = 1, fastrnn::emulation::settings.old_driver ? cudaErrorInsufficientDriver : cudaSuccess;
}
cudaError_t cudaGetLastError() { return cudaSuccess; }
cudaError_t cudaSetDevice(int) { return cudaSuccess; }
cudaError_t cudaGetDevice(int* device) { return *device = 0, cudaSuccess; }
cudaError_t cudaRuntimeGetVersion(int* version) { return *version = CUDART_VERSION, cudaSuccess; }
cudaError_t cudaDriverGetVersion(int* version) { return *version = 0, cudaSuccess; }
const char* cudaGetErrorName(cudaError_t e) { return e == cudaSuccess ? "cudaSuccess" : "cudaError"; }
const char* cudaGetErrorString(cudaError_t e) {
  return e == cudaErrorLaunchFailure          ? "the emulated kernel did not finish"
         : e == cudaErrorInsufficientDriver   ? "the emulated driver is too old"
         : e == cudaErrorLaunchOutOfResources ? "the emulated launch has no resources"
                                              : "emulated";
}
cudaError_t cudaMemsetAsync(void* p, int value, size_t bytes, cudaStream_t) {
  return memset(p, value, bytes), cudaSuccess;
}
cudaError_t cudaMalloc(void** p, size_t bytes) { return *p = calloc(1, bytes), cudaSuccess; }
cudaError_t cudaFree(void* p) { return free(p), cudaSuccess; }
cudaError_t cudaDeviceSynchronize() { return cudaSuccess; }
cudaError_t cudaHostAlloc(void** p, size_t bytes, unsigned) { return *p = calloc(1, bytes), cudaSuccess; }
cudaError_t cudaHostGetDevicePointer(void** device, void* host, unsigned) { return *device = host, cudaSuccess; }
cudaError_t cudaGetDeviceProperties(cudaDeviceProp* p, int) {
  memset(p, 0, sizeof(*p));
  strcpy(p->name, "emulated H200");
  p->major = 9;
  p->multiProcessorCount = 132;
  p->totalGlobalMem = size_t(139) << 30;
  return cudaSuccess;
}
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr which, int) {
  *value = which == cudaDevAttrMaxSharedMemoryPerBlockOptin ? 227 * 1024
           : which == cudaDevAttrMultiProcessorCount        ? 132
           : which == cudaDevAttrComputeCapabilityMajor     ? fastrnn::emulation::settings.capability
           : which == cudaDevAttrComputeCapabilityMinor     ? 0
                                                            : 1;
  return cudaSuccess;
}
}
