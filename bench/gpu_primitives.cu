// What the schedules of cuda/ are made of, measured alone on the GPU of this machine: exchanges as the kernels make
// them (cuda/layer.cuh), barriers, tensor cores, and how many clusters find room. Prints JSON; docs/cuda.md has the
// model that these numbers belong into.
//
//   gpu_primitives [steps]      `make gpu` builds and runs it
//
// An exchange: every CTA of a group gives 16-byte pieces to every other one and waits until all have arrived, as a step
// of a layer does. 0 pieces: the signals alone.
#include <stdio.h>
#include <stdlib.h>

#include <string>
#include <vector>

#include "../cuda/forward.cuh"

namespace fastrnn {
struct Exchange {
  int schedule, ctas, pieces, steps, warm_up;
  uint32_t* flags;  // [ctas], zero; grid
  uint4* pool;      // [2, ctas, ctas, pieces]; grid
  CudaLayer wait;   // its error word and limit
  float* ns;        // of a step, by CTA
};

__host__ __device__ inline int64_t piece_count(const Exchange& p) { return int64_t(p.ctas) * p.pieces; }

__global__ void __launch_bounds__(kThreads) exchange_kernel(Exchange p) {
  FASTRNN_SHARED(exchange_shared);
  const int rank = int(blockIdx.x);
  uint64_t* bars = reinterpret_cast<uint64_t*>(exchange_shared);
  uint4* inbox = reinterpret_cast<uint4*>(exchange_shared + 128);  // [2, ctas, pieces]
  Signals signals{p.schedule, p.ctas, rank, p.flags, bars, Patience(p.wait)};
  signals.open();
  uint4 seen{0, 0, 0, 0};
  uint64_t start = 0;
  for (int e = 1; e <= p.steps + p.warm_up; ++e) {
    if (e == p.warm_up + 1) start = device::now_ns();
    for (int64_t i = threadIdx.x; i < piece_count(p); i += kThreads) {
      const int peer = int(i / p.pieces), at = int(i % p.pieces);
      const uint4 v{uint32_t(e), seen.x, 0, 0};
      if (p.schedule == kCluster)
        device::push(inbox + ((e & 1) * p.ctas + rank) * p.pieces + at, uint32_t(peer), v, bars + (e & 1));
      else
        p.pool[((int64_t(e & 1) * p.ctas + peer) * p.ctas + rank) * p.pieces + at] = v;
    }
    signals.sent(e);
    signals.received(e, uint32_t(piece_count(p) * 16));
    for (int64_t i = threadIdx.x; i < piece_count(p); i += kThreads)
      seen = p.schedule == kCluster ? inbox[(e & 1) * piece_count(p) + i]
                                    : device::load_l2(p.pool + (int64_t(e & 1) * p.ctas + rank) * piece_count(p) + i);
    device::sync_block(device::kSiteProduct);  // as a step's product does: nobody falls two exchanges behind
  }
  if (threadIdx.x == 0) p.ns[rank] = float(device::now_ns() - start) / float(p.steps) + (seen.w ? 1.f : 0.f);
  signals.close();
}

struct Repeat {
  int steps, warm_up;
  float* out;  // ns of a step, by CTA
};
__global__ void __launch_bounds__(kThreads) cluster_sync_kernel(Repeat p) {
  for (int e = 0; e < p.warm_up; ++e) device::cluster_sync();
  const uint64_t start = device::now_ns();
  for (int e = 0; e < p.steps; ++e) device::cluster_sync();
  if (threadIdx.x == 0) p.out[blockIdx.x] = float(device::now_ns() - start) / float(p.steps);
}

// A step is kChains products of 16 x 16 by 16 x 8 in each warp, none of which waits for another.
constexpr int kChains = 8;
__global__ void __launch_bounds__(kThreads) mma_kernel(Repeat p) {
  float sums[kChains][4];
  const uint32_t lane = threadIdx.x % 32;
  const uint32_t a[4] = {lane, lane + 1, lane + 2, lane + 3};
  for (int i = 0; i < 4 * kChains; ++i) sums[i / 4][i % 4] = 0;
  const uint64_t start = device::now_ns();
  for (int e = 0; e < p.steps; ++e) {
#pragma unroll
    for (int i = 0; i < kChains; ++i) device::mma_16816(sums[i], a, lane, lane + 1, __nv_bfloat16());
  }
  float total = 0;
  for (int i = 0; i < 4 * kChains; ++i) total += sums[i / 4][i % 4];
  const float ns = float(device::now_ns() - start) / float(p.steps);
  if (threadIdx.x == 0) p.out[blockIdx.x] = total == 1e30f ? 0.f : ns;
}

// ---- the host

void check(cudaError_t status, const char* what) {
  if (status == cudaSuccess) return;
  fprintf(stderr, "gpu_primitives: %s: %s\n", what, cudaGetErrorString(status));
  exit(1);
}

class Bench {
 public:
  explicit Bench(int steps) : steps_(steps) {
    cudaDeviceProp found;
    check(cudaGetDeviceProperties(&found, 0), "cudaGetDeviceProperties");
    name_ = found.name;
    processors_ = found.multiProcessorCount;
    check(cudaHostAlloc(reinterpret_cast<void**>(&ns_), kMaxCtas * sizeof(float), cudaHostAllocMapped), "out");
    check(cudaHostAlloc(reinterpret_cast<void**>(&error_), sizeof(uint32_t), cudaHostAllocMapped), "error");
  }

  void run() {
    printf("{\"gpu\": \"%s\", \"multiprocessors\": %d, \"steps\": %d, \"threads\": %d,\n", name_.c_str(), processors_,
           steps_, kThreads);
    printf(" \"exchange\": [");
    for (int ctas : {2, 4, 8, 16})
      for (int pieces : {1, 48}) exchange(kCluster, ctas, pieces);
    for (int ctas : {2, 16, 64, processors_})
      for (int pieces : {0, 4}) exchange(kGrid, ctas, pieces);
    printf("],\n \"cluster_sync\": [");
    first_ = true;
    for (int ctas : {2, 4, 8, 16}) cluster_sync(ctas);
    printf("],\n \"active_clusters\": [");
    first_ = true;
    for (int ctas : {2, 4, 8, 16})
      for (int kilobytes : {64, 128, 200}) active_clusters(ctas, kilobytes);
    printf("],\n \"mma_bf16\": ");
    mma();
    printf("}\n");
  }

 private:
  int warm_up() const { return steps_ < 32 ? steps_ : 32; }
  void separate() {
    if (!first_) printf(",\n  ");
    first_ = false;
  }
  float slowest(int ctas) const {
    check(cudaDeviceSynchronize(), "a kernel");
    if (*error_) {
      fprintf(stderr, "gpu_primitives: a wait ran out of time\n");
      exit(1);
    }
    float ns = 0;
    for (int i = 0; i < ctas; ++i) ns = ns < ns_[i] ? ns_[i] : ns;
    return ns;
  }

  void exchange(int schedule, int ctas, int pieces) {
    Exchange p{schedule, ctas, pieces, steps_, warm_up(), nullptr, nullptr, {}, ns_};
    p.wait.error = error_;
    p.wait.wait_limit_ns = 2'000'000'000;
    const size_t pool = schedule == kGrid ? 2 * size_t(ctas) * piece_count(p) * 16 : 0;
    check(cudaMalloc(reinterpret_cast<void**>(&p.flags), ctas * 4), "cudaMalloc");
    check(cudaMemsetAsync(p.flags, 0, ctas * 4, nullptr), "cudaMemset");
    if (pool) check(cudaMalloc(reinterpret_cast<void**>(&p.pool), pool), "cudaMalloc");
    const bool cluster = schedule == kCluster;
    const unsigned shared = unsigned(128 + (cluster ? 2 * piece_count(p) * 16 : 0));
    const device::Launch l{unsigned(ctas), 1, 1, kThreads, shared, cluster ? unsigned(ctas) : 1u, !cluster};
    if (!cluster || device::active_clusters(exchange_kernel, l) > 0) {
      check(device::launch<Exchange>(exchange_kernel, l, nullptr, p), "exchange");
      const float ns = slowest(ctas);
      separate();
      printf("{\"schedule\": \"%s\", \"ctas\": %d, \"bytes_per_cta\": %lld, \"ns\": %.1f}",
             cluster ? "cluster" : "grid", ctas, static_cast<long long>(piece_count(p) * 16), ns);
    }
    cudaFree(p.flags);
    if (pool) cudaFree(p.pool);
  }
  void cluster_sync(int ctas) {
    const device::Launch l{unsigned(ctas), 1, 1, kThreads, 0, unsigned(ctas), false};
    if (device::active_clusters(cluster_sync_kernel, l) == 0) return;
    check(device::launch<Repeat>(cluster_sync_kernel, l, nullptr, {steps_, warm_up(), ns_}), "cluster_sync");
    separate();
    printf("{\"ctas\": %d, \"ns\": %.1f}", ctas, slowest(ctas));
  }
  void active_clusters(int ctas, int kilobytes) {
    const device::Launch l{unsigned(ctas), 1, 1, kThreads, unsigned(kilobytes) * 1024, unsigned(ctas), false};
    separate();
    printf("{\"ctas\": %d, \"shared_kilobytes\": %d, \"clusters\": %d}", ctas, kilobytes,
           device::active_clusters(exchange_kernel, l));
  }
  void mma() {
    const int ctas = processors_ < kMaxCtas ? processors_ : kMaxCtas;
    const device::Launch l{unsigned(ctas), 1, 1, kThreads, 0, 1, false};
    check(device::launch<Repeat>(mma_kernel, l, nullptr, {steps_, warm_up(), ns_}), "mma");
    const double flops = 2.0 * 16 * 16 * 8 * kChains * kWarps * ctas;
    printf("{\"ctas\": %d, \"warps\": %d, \"teraflops\": %.1f}", ctas, kWarps, flops / slowest(ctas) / 1e3);
  }

  const int steps_;
  std::string name_;
  int processors_;
  float* ns_;
  uint32_t* error_;
  bool first_ = true;
};
}  // namespace fastrnn

int main(int argc, char** argv) { fastrnn::Bench(argc > 1 ? atoi(argv[1]) : 4000).run(); }
