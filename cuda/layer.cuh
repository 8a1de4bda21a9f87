#pragma once
// What the forward and the backward kernel share: which rows and units a CTA owns, when a row starts, ends or resets,
// the cut of shared memory, and waiting for the other CTAs of a group.
#include "../csrc/cells/all.h"
#include "product.cuh"
#include "special.cuh"

namespace fastrnn {
// A cell with late gates runs two products in each step (see csrc/cells/gru_reset_before.h). After each product there
// is an exchange; a normalised cell has one product, and an exchange more for each normalisation (see norm.cuh).
template <class Cell>
struct Stages {
  static constexpr int kCount = Cell::kLateGates ? 2 : 1, kEarly = Cell::kGates - Cell::kLateGates;
  static constexpr int kExchanges = Cell::kNormalised ? 1 + Cell::kStates : kCount;
  // Values of a unit that what comes after an exchange needs of what came before it, besides the states.
  static constexpr int kHanded = Cell::kLateGates ? Cell::kSaved : Cell::kNormalised ? Cell::kGates : 0;
  __host__ __device__ static constexpr int gates(int stage) { return stage == 0 ? kEarly : Cell::kLateGates; }
  __host__ __device__ static constexpr int first(int stage) { return stage == 0 ? 0 : kEarly; }
};
// Values of a unit that forward keeps of a step: W x is normalised outside, by torch.
template <class Cell>
constexpr int kept_values() {
  return Cell::kSaved - (Cell::kNormalised ? Cell::kGates + 1 : 0);
}
// Tiles of one product in registers: half as many where a kernel keeps two products.
template <class Cell, class E>
constexpr int register_tiles() {
  return Core<E>::kRegisterTiles / Stages<Cell>::kCount;
}
__host__ __device__ constexpr int reserve_slots(int saved, int states) { return saved + states - 1; }

// Pieces of shared memory, in bytes from its start. The same arithmetic on the host, which asks for `bytes`.
template <class Cell, class E>
struct SharedLayout {
  using A = typename Core<E>::Acc;
  using S = Stages<Cell>;
  ProductShape product[2];
  int ldb;                                                                   // row stride of the product's operand
  int ld_sums;                                                               // forward: of its result
  int operand[2], sums, state, extra, rows, staging, bias, tiles[2], bytes;  // bias: forward's; then the cell's vectors

  // Forward: out[gates x own units] over K = all units. Backward: out[all units] over K = gates x own units.
  __host__ __device__ SharedLayout(const Geometry& geo, bool backward) {
    const int all = geo.ctas * geo.units;
    ldb = ld_sums = 0;
    int sums_size = 0;
    for (int stage = 0; stage < S::kCount; ++stage) {
      const int own = S::gates(stage) * geo.units;
      product[stage] = product_shape<E>(backward ? all : own, backward ? own : all, geo.ksplit[stage]);
      ldb = larger(ldb, padded_depth<E>(backward ? own : all, geo.ksplit[stage]));
      const int ld = product[stage].row_tiles * Core<E>::kRows + 4;
      ld_sums = larger(ld_sums, ld);
      sums_size = larger(sums_size, geo.ksplit[stage] * geo.rows);
    }
    bytes = 128;  // two transaction barriers
    const int pairs = geo.rows * geo.units;
    const bool global_operand = !backward && geo.schedule == kStepwise, pushed = geo.schedule <= kCluster;
    // Forward reads one operand while the other is filled; backward's operand is its own CTA's, its results travel.
    operand[0] = take(global_operand ? 0 : geo.rows * ldb * sizeof(E));
    operand[1] = backward ? take(pushed ? pairs * geo.ctas * sizeof(A) : 0)
                          : take(global_operand ? 0 : geo.rows * ldb * sizeof(E));
    sums = backward ? take(pushed ? pairs * geo.ctas * sizeof(A) : 0) : take(sums_size * ld_sums * sizeof(A));
    state = take(Cell::kStates * pairs * sizeof(A));
    extra = take(S::kHanded * pairs * sizeof(A));
    rows = take(Cell::kNormalised ? (2 * (pairs + geo.rows) + (pushed ? 4 * geo.ctas * geo.rows : 0)) * sizeof(A) : 0);
    staging = take(!backward && geo.schedule == kCluster ? pairs * sizeof(E) : 0);
    bias = take(((backward ? 0 : Cell::kGates) + Cell::kVectors) * geo.units * sizeof(A));
    for (int stage = 0; stage < S::kCount; ++stage)
      tiles[stage] = take(size_t(geo.shared_tiles[stage]) * kThreads * sizeof(typename Core<E>::Tile));
  }

 private:
  static __host__ __device__ int larger(int a, int b) { return a > b ? a : b; }
  __host__ __device__ int take(size_t n) {
    const int at = bytes;
    bytes += int((n + 127) / 128 * 128);
    return at;
  }
};

// The position of a CTA: its units, its rows, its direction.
struct Place {
  int rank, group, d, units, rows;
  int64_t unit0, row0;

  __device__ explicit Place(const Geometry& geo)
      : rank(blockIdx.x),
        group(blockIdx.y),
        d(blockIdx.z),
        units(geo.units),
        rows(geo.rows),
        unit0(int64_t(blockIdx.x) * geo.units),
        row0(int64_t(blockIdx.y) * geo.rows) {}
};

// Times and boundaries of one row, docs/semantics.md.
struct RowTime {
  int64_t length;
  bool reverse;

  __device__ RowTime(const CudaLayer& p, int64_t row, int d) : length(p.T), reverse(d == 1) {
    if (!p.lengths) return;
    const int64_t n = p.lengths[row];
    length = n < 0 ? 0 : n > p.T ? p.T : n;
  }
  __device__ int64_t time(int64_t k) const { return reverse ? length - 1 - k : k; }
  // Whether a mask [T, B] has something to say about what enters step k.
  __device__ bool marked(const uint8_t* mask, int64_t stride_t, int64_t stride_b, int64_t row, int64_t k) const {
    if (!mask || (reverse && k == 0)) return false;
    return mask[(reverse ? length - k : k) * stride_t + row * stride_b] != 0;
  }
  // Whether step k starts from the zero state.
  __device__ bool fresh(const CudaLayer& p, int64_t row, int64_t k) const {
    return marked(p.reset_mask, p.reset_stride_t, p.reset_stride_b, row, k);
  }
};

template <class E>
__device__ inline const E* as(const void* p) {
  return static_cast<const E*>(p);
}
template <class E>
__device__ inline E* as(void* p) {
  return static_cast<E*>(p);
}

// Waiting with a limit. When time runs out the error word is set, and this thread waits no more: the kernel then runs
// to its end on whatever data it has, and the host raises.
class Patience {
 public:
  __device__ explicit Patience(const CudaLayer& p) : error_(p.error), limit_ns_(p.wait_limit_ns) {}

  template <class Ready>
  __device__ void wait(const Ready& ready) {
    if (lost_) return;
    if (limit_ns_ != 0 && ready()) return;
    const uint64_t start = device::now_ns();
    for (unsigned polls = 1; limit_ns_ != 0; ++polls) {
      if (ready()) return;
      if (polls % 64 == 0 && (device::now_ns() - start > limit_ns_ || device::load_acquire(error_))) break;
    }
    lost_ = true;
    device::store_release(error_, 1);
  }
  __device__ bool lost() const { return lost_; }

 private:
  uint32_t* error_;
  uint64_t limit_ns_;
  bool lost_ = false;
};

// Global workspace: flags (a word per CTA), then two buffers that alternate, two for layer normalisation, then what a
// stepwise launch leaves for the next one. Forward's buffers hold the operand of each group, backward's the partial
// sums for each CTA; those of layer normalisation two numbers for each CTA and row.
template <class Cell, class E>
struct Workspace {
  using A = typename Core<E>::Acc;
  using S = Stages<Cell>;
  int64_t buffer_bytes, row_bytes, carried_bytes, flag_bytes;  // of a group, a group, a CTA, everything
  int64_t groups, ctas;

  __host__ __device__ Workspace(const Geometry& geo, int64_t D, bool backward)
      : groups(D * geo.groups), ctas(geo.ctas) {
    const SharedLayout<Cell, E> shared(geo, backward);
    const int64_t pairs = int64_t(geo.rows) * geo.units;
    const bool global = geo.schedule >= kGrid;
    buffer_bytes = !global    ? 0
                   : backward ? ctas * ctas * pairs * sizeof(A)
                              : int64_t(geo.rows) * shared.ldb * sizeof(E);
    buffer_bytes = (buffer_bytes + 127) / 128 * 128;
    row_bytes = global && Cell::kNormalised ? (2 * ctas * geo.rows * sizeof(A) + 127) / 128 * 128 : 0;
    carried_bytes = geo.schedule == kStepwise ? (Cell::kStates + S::kHanded) * pairs * sizeof(A) : 0;
    carried_bytes = (carried_bytes + 127) / 128 * 128;
    flag_bytes = geo.schedule == kGrid ? (groups * ctas * 4 + 127) / 128 * 128 : 0;
  }
  __host__ __device__ int64_t bytes() const {
    return flag_bytes + 2 * groups * (buffer_bytes + row_bytes) + groups * ctas * carried_bytes;
  }
  __device__ uint32_t* flags(void* base, int64_t group) const { return static_cast<uint32_t*>(base) + group * ctas; }
  __device__ char* buffer(void* base, int64_t group, int parity) const {
    return static_cast<char*>(base) + flag_bytes + (parity * groups + group) * buffer_bytes;
  }
  __device__ A* row_sums(void* base, int64_t group, int parity) const {
    char* p = static_cast<char*>(base) + flag_bytes + 2 * groups * buffer_bytes;
    return reinterpret_cast<A*>(p + (parity * groups + group) * row_bytes);
  }
  __device__ A* carried(void* base, int64_t group, int rank) const {
    char* p = static_cast<char*>(base) + flag_bytes + 2 * groups * (buffer_bytes + row_bytes);
    return reinterpret_cast<A*>(p + (group * ctas + rank) * carried_bytes);
  }
};

// The signals of a group. Exchange e (1, 2, ...) is the e-th that every CTA of the group makes and needs; its data lie
// in buffer e & 1. Two buffers suffice: who sends e + 1 has received all of e, and so everybody has read e - 1.
struct Signals {
  const int schedule, ctas, rank;
  uint32_t* flags;  // grid
  uint64_t* bars;   // cluster: one for each buffer
  Patience patience;

  // Makes the barriers known to the peers.
  __device__ void open() {
    if (schedule != kCluster) return;
    if (threadIdx.x == 0)
      for (int i = 0; i < 2; ++i) device::barrier_init(bars + i);
    device::cluster_sync();
  }
  // What this CTA's threads have written for exchange e is complete. In a cluster the pushed bytes say so themselves.
  __device__ void sent(int64_t e) {
    if (schedule == kGrid) device::fence_grid();
    if (schedule != kCluster && schedule != kStepwise) device::sync_block(device::kSiteExchange);
    if (schedule == kGrid && threadIdx.x == 0) device::store_release(flags + rank, uint32_t(e));
  }
  // Waits until exchange e has arrived from everybody; `bytes`: how many are pushed to this CTA.
  __device__ void received(int64_t e, uint32_t bytes) {
    if (schedule == kCluster) {
      uint64_t* bar = bars + (e & 1);
      if (threadIdx.x == 0) device::expect_bytes(bar, bytes);
      patience.wait([&] { return device::barrier_passed(bar, uint32_t((e - 1) >> 1) & 1); });
    } else if (schedule == kGrid) {
      // A flag may wrap around: compare by difference.
      for (int other = threadIdx.x; other < ctas; other += kThreads)
        patience.wait([&] { return int32_t(device::load_acquire(flags + other) - uint32_t(e)) >= 0; });
      device::sync_block(device::kSiteReceived);
    }
  }
  // Nobody leaves while a peer may still write into its shared memory: all that was pushed has been received, unless a
  // wait was given up; then what is under way gets a millisecond to land.
  __device__ void close() {
    if (schedule != kCluster) return;
    if (patience.lost() && threadIdx.x == 0)
      for (const uint64_t start = device::now_ns(); device::now_ns() - start < 1'000'000;) {
      }
    device::cluster_sync();
  }
};

// A CTA's part of a layer: what the forward and the backward run have in common.
template <class Cell, class E, class Params, bool backward, bool kSpecial>
class LayerRun {
 protected:
  using A = typename Core<E>::Acc;
  using S = Stages<Cell>;
  using Noise = UnitNoise<Cell, A, kSpecial>;
  static constexpr int G = Cell::kGates, K = kept_values<Cell>(), kStates = Cell::kStates;
  static constexpr bool kLate = S::kCount == 2;

  __device__ LayerRun(const Params& p, unsigned char* shared)
      : p_(p),
        at_(p.geometry),
        cut_(p.geometry, backward),
        work_(p.geometry, p.D, backward),
        group_(int64_t(at_.d) * p.geometry.groups + at_.group),
        state_(reinterpret_cast<A*>(shared + cut_.state)),
        extra_(reinterpret_cast<A*>(shared + cut_.extra)),
        bias_(reinterpret_cast<A*>(shared + cut_.bias)),
        shared_(shared),
        signals_{p.geometry.schedule,
                 p.geometry.ctas,
                 at_.rank,
                 work_.flags(p.workspace, group_),
                 reinterpret_cast<uint64_t*>(shared),
                 Patience(p)} {}

  __device__ int pairs() const { return at_.rows * at_.units; }
  __device__ bool stepwise() const { return p_.geometry.schedule == kStepwise; }

  // Of the reserve, a position: the gates unless recomputed, the states beyond h (of an exponent with recomputed gates
  // what they cannot do without), with zoneout of c those before it.
  __device__ int slots() const { return reserve_slots(kept_gates(), kStates) + (keeps_raw() ? kStates - 1 : 0); }
  __device__ int kept_gates() const { return kSpecial && p_.recompute ? 0 : K; }
  __device__ bool keeps_raw() const { return kSpecial && kStates > 1 && p_.zoneout.rate[1] > 0; }
  __device__ int64_t reserve_at(int64_t t, int64_t row, int64_t unit) const {
    return ((at_.d * p_.T + t) * p_.B + row) * slots() * p_.H + unit;
  }

  // Whether step k starts from the zero state.
  __device__ bool fresh(const RowTime& when, int64_t row, int64_t k) const {
    return !(kSpecial && p_.reset_to_initial) && when.fresh(p_, row, k);
  }
  // Whether step k starts from the initial state again; step 0 does so without a reset.
  __device__ bool returns(const RowTime& when, int64_t row, int64_t k) const {
    return kSpecial && p_.reset_to_initial && k > 0 && when.fresh(p_, row, k);
  }
  __device__ A initial(int q, int64_t row, int64_t unit) const {
    const E* from = as<E>(p_.states_in[q > 0]);
    return from ? widen(from[state_index(q, row, unit)]) : A(0);
  }

  // What reads h of this unit in a product reads it times this.
  __device__ A h_factor(int64_t row, int64_t unit) const {
    if (!kSpecial || !p_.h_mask) return A(1);
    return widen(as<E>(p_.h_mask)[(at_.d * p_.B + row) * p_.H + unit]);
  }
  __device__ Noise noise(int64_t t, int64_t row, int64_t unit) const {
    Noise found{};
    if constexpr (kSpecial) {
      found.factor = h_factor(row, unit);
      if (Cell::kDropsCandidate) found.candidate = candidate_factor<A>(p_.candidate_dropout, at_.d, t, row, unit);
      for (int q = 0; q < kStates; ++q) found.share[q] = zoneout_share<A>(p_.zoneout, q, at_.d, t, row, unit);
    }
    return found;
  }

  // Where state s is in one of two arrays: of h [D, B, H], of the states beyond it [D, B, states - 1, H].
  __device__ int64_t state_index(int s, int64_t row, int64_t unit) const {
    const int64_t at = at_.d * p_.B + row;
    return (s == 0 ? at : at * (kStates - 1) + s - 1) * p_.H + unit;
  }
  // The states that this CTA owns; zero where there are none.
  __device__ void fill_states(const void* const (&given)[2]) {
    for (int s = 0; s < kStates; ++s)
      for (int i = threadIdx.x; i < pairs(); i += kThreads) {
        const int64_t row = at_.row0 + i / at_.units, unit = at_.unit0 + i % at_.units;
        const E* from = as<E>(given[s > 0]);
        const bool inside = from && row < p_.B && unit < p_.H;
        state_[s * pairs() + i] = inside ? widen(from[state_index(s, row, unit)]) : A(0);
      }
  }
  // Rows [first, G + V) of b_hh for this CTA's units.
  __device__ void fill_bias(int first) {
    const E* b = as<E>(p_.b_hh[at_.d]);
    for (int i = threadIdx.x; i < (G + Cell::kVectors - first) * at_.units; i += kThreads) {
      const int64_t unit = at_.unit0 + i % at_.units, gate = first + i / at_.units;
      bias_[i] = b && unit < p_.H ? widen(b[gate * p_.H + unit]) : A(0);
    }
  }
  template <int stage, class Weights>
  __device__ void load_weights(const Weights& weights) {
    const Geometry& geo = p_.geometry;
    auto* tiles = reinterpret_cast<typename Core<E>::Tile*>(shared_ + cut_.tiles[stage]);
    product_[stage].load(weights, cut_.product[stage], geo.in_registers, geo.shared_tiles[stage], tiles);
  }
  // Between the launches of a stepwise run. Every thread moves what is its own in a step, so that no barrier is needed.
  template <bool in>
  __device__ void carry() {
    A* kept = work_.carried(p_.workspace, group_, at_.rank);
    for (int i = threadIdx.x; i < pairs(); i += kThreads) {
      for (int q = 0; q < kStates; ++q) move<in>(state_ + q * pairs() + i, kept + q * pairs() + i);
      for (int q = 0; q < S::kHanded; ++q) move<in>(extra_ + q * pairs() + i, kept + (kStates + q) * pairs() + i);
    }
  }

  const Params& p_;
  const Place at_;
  const SharedLayout<Cell, E> cut_;
  const Workspace<Cell, E> work_;
  const int64_t group_;
  A *state_, *extra_, *bias_;  // of this CTA's units; backward: gradients of the states
  unsigned char* shared_;
  Signals signals_;
  Product<E, register_tiles<Cell, E>()> product_[S::kCount];

 private:
  template <bool in>
  __device__ static void move(A* here, A* kept) {
    in ? void(*here = *kept) : void(*kept = *here);
  }
};
}  // namespace fastrnn
