#pragma once
// Everything that is CUDA and not C++: PTX, intrinsics, launches. Under nvcc the real instructions; a host compiler
// gets the same functions from tests/cuda_host, which runs the kernels on a CPU.
//
// `site` names a barrier, so that a test can leave it out and see that the kernels' tests notice.
#include <stdint.h>

namespace fastrnn {
namespace device {
enum Site {
  kSiteLoaded,
  kSiteProduct,
  kSiteExchange,
  kSiteReceived,
  kSiteWarps,  // attention: what each warp has found is there, and the tile before has been read
  kSiteTile,   // a tile is in place
  kSiteSums,   // the warps' sums are there, and the tile has been read
  kSiteUnits,  // layer normalisation: what each unit adds to its row is there
  kSiteRows,   // and what all units of a row make of it
  kSiteCount
};
struct Launch {
  unsigned x, y, z;  // grid
  unsigned threads;
  unsigned shared_bytes;
  unsigned cluster;  // CTAs of a cluster, along x; 1 = none
  bool cooperative;
};
}  // namespace device
}  // namespace fastrnn

#if !defined(__CUDACC__)
#include "cuda_host.h"
#else
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#define FASTRNN_SHARED(name) extern __shared__ __align__(128) unsigned char name[]

namespace fastrnn {
namespace device {
__device__ __forceinline__ void sync_block(Site) { __syncthreads(); }
__device__ __forceinline__ float shuffle_xor(float v, int lane) { return __shfl_xor_sync(~0u, v, lane); }
__device__ __forceinline__ double shuffle_xor(double v, int lane) { return __shfl_xor_sync(~0u, v, lane); }
// 1 / x: within one ulp for 2^-126 <= |x| <= 2^126.
__device__ __forceinline__ float reciprocal(float x) {
  float r;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(x));
  return r;
}
__device__ __forceinline__ double reciprocal(double x) { return 1 / x; }

// d += a b: a is 16 x 16 (row), b 16 x 8 (column), d 16 x 8, in the lanes' fragments that PTX defines for m16n8k16.
__device__ __forceinline__ void mma_16816(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1,
                                          __nv_bfloat16) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
__device__ __forceinline__ void mma_16816(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, __half) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// ---- the whole grid: flags and data in global memory, around the incoherent L1
__device__ __forceinline__ uint32_t load_acquire(const uint32_t* p) {
  uint32_t v;
  asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(v) : "l"(p) : "memory");
  return v;
}
__device__ __forceinline__ void store_release(uint32_t* p, uint32_t v) {
  asm volatile("st.release.gpu.global.u32 [%0], %1;" ::"l"(p), "r"(v) : "memory");
}
__device__ __forceinline__ void fence_grid() { __threadfence(); }
template <class T>
__device__ __forceinline__ T load_l2(const T* p) {
  return __ldcg(p);
}
__device__ __forceinline__ uint64_t now_ns() {
  uint64_t t;
  asm volatile("mov.u64 %0, %globaltimer;" : "=l"(t));
  return t;
}

// ---- clusters (sm_90): distributed shared memory and transaction barriers
__device__ __forceinline__ uint32_t shared_address(const void* p) { return uint32_t(__cvta_generic_to_shared(p)); }
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
__device__ __forceinline__ void cluster_sync() {
  asm volatile("barrier.cluster.arrive.release.aligned;\nbarrier.cluster.wait.acquire.aligned;" ::: "memory");
}
__device__ __forceinline__ void barrier_init(uint64_t* bar) {  // one arrival a phase: expect_bytes()
  asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;\nfence.mbarrier_init.release.cluster;" ::"r"(shared_address(bar))
               : "memory");
}
__device__ __forceinline__ void expect_bytes(uint64_t* bar, uint32_t bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(bar)), "r"(bytes)
               : "memory");
}
__device__ __forceinline__ bool barrier_passed(uint64_t* bar, uint32_t parity) {
  uint32_t passed;
  asm volatile(
      "{\n.reg .pred p;\nmbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 p, [%1], %2;\nselp.u32 %0, 1, 0, "
      "p;\n}"
      : "=r"(passed)
      : "r"(shared_address(bar)), "r"(parity)
      : "memory");
  return passed != 0;
}
__device__ __forceinline__ uint32_t address_in(const void* p, uint32_t rank) {
  uint32_t address;
  asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(address) : "r"(shared_address(p)), "r"(rank));
  return address;
}
// Writes to where `p` lies in the CTA `rank` of the cluster, and counts the bytes at its `bar`.
__device__ __forceinline__ void push(void* p, uint32_t rank, uint4 v, uint64_t* bar) {
  asm volatile("st.async.shared::cluster.mbarrier::complete_tx::bytes.v4.b32 [%0], {%1,%2,%3,%4}, [%5];" ::"r"(
                   address_in(p, rank)),
               "r"(v.x), "r"(v.y), "r"(v.z), "r"(v.w), "r"(address_in(bar, rank))
               : "memory");
}
__device__ __forceinline__ void push(void* p, uint32_t rank, float v, uint64_t* bar) {
  asm volatile("st.async.shared::cluster.mbarrier::complete_tx::bytes.b32 [%0], %1, [%2];" ::"r"(address_in(p, rank)),
               "r"(__float_as_uint(v)), "r"(address_in(bar, rank))
               : "memory");
}
__device__ __forceinline__ void push(void* p, uint32_t rank, double v, uint64_t* bar) {
  asm volatile("st.async.shared::cluster.mbarrier::complete_tx::bytes.b64 [%0], %1, [%2];" ::"r"(address_in(p, rank)),
               "l"(__double_as_longlong(v)), "r"(address_in(bar, rank))
               : "memory");
}
#else  // the plan never chooses clusters there
__device__ __forceinline__ void cluster_sync() { __trap(); }
__device__ __forceinline__ void barrier_init(uint64_t*) { __trap(); }
__device__ __forceinline__ void expect_bytes(uint64_t*, uint32_t) { __trap(); }
__device__ __forceinline__ bool barrier_passed(uint64_t*, uint32_t) { return true; }
template <class V>
__device__ __forceinline__ void push(void*, uint32_t, V, uint64_t*) {
  __trap();
}
#endif

// Calls use(config) with what the kernel needs to be launched as `l` says.
template <class Use>
cudaError_t with_config(const void* kernel, const Launch& l, cudaStream_t stream, const Use& use) {
  cudaError_t error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, int(l.shared_bytes));
  if (error == cudaSuccess && l.cluster > 8)
    error = cudaFuncSetAttribute(kernel, cudaFuncAttributeNonPortableClusterSizeAllowed, 1);
  if (error != cudaSuccess) return error;
  cudaLaunchAttribute attributes[2];
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(l.x, l.y, l.z);
  config.blockDim = dim3(l.threads);
  config.dynamicSmemBytes = l.shared_bytes;
  config.stream = stream;
  config.attrs = attributes;
  if (l.cooperative) {
    attributes[config.numAttrs].id = cudaLaunchAttributeCooperative;
    attributes[config.numAttrs++].val.cooperative = 1;
  }
  if (l.cluster > 1) {
    attributes[config.numAttrs].id = cudaLaunchAttributeClusterDimension;
    attributes[config.numAttrs++].val.clusterDim = {l.cluster, 1, 1};
  }
  return use(config);
}
template <class... P>
cudaError_t launch(void (*kernel)(P...), const Launch& l, cudaStream_t stream, P... args) {
  return with_config(reinterpret_cast<const void*>(kernel), l, stream,
                     [&](const cudaLaunchConfig_t& config) { return cudaLaunchKernelEx(&config, kernel, args...); });
}
// How many clusters of this launch the device can run at the same time; 0 where it has no room for one.
template <class... P>
int active_clusters(void (*kernel)(P...), const Launch& l) {
  int count = 0;
  const cudaError_t error = with_config(
      reinterpret_cast<const void*>(kernel), l, nullptr,
      [&](const cudaLaunchConfig_t& config) { return cudaOccupancyMaxActiveClusters(&count, kernel, &config); });
  if (error != cudaSuccess) cudaGetLastError();  // it means: none
  return error == cudaSuccess ? count : 0;
}
}  // namespace device
}  // namespace fastrnn
#endif
