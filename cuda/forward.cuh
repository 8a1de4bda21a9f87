#pragma once
// The forward time loop, for any cell and schedule. Each step: wait for h of all units, multiply with this CTA's slice
// of the recurrent weights, put the sums through the cell, send the new h on.
#include "layer.cuh"

namespace fastrnn {
template <class Cell, class E, bool kSpecial>
class ForwardRun : protected LayerRun<Cell, E, CudaForward, false, kSpecial> {
 protected:
  using Base = LayerRun<Cell, E, CudaForward, false, kSpecial>;
  using Base::G, Base::K, Base::kStates, Base::kLate, Base::p_, Base::at_, Base::cut_, Base::work_, Base::group_;
  using Base::state_, Base::extra_, Base::bias_, Base::shared_, Base::signals_, Base::product_, Base::pairs,
      Base::stepwise, Base::slots, Base::reserve_at;
  using typename Base::A, typename Base::S, typename Base::Noise;

 public:
  __device__ ForwardRun(const CudaForward& p, unsigned char* shared)
      : Base(p, shared),
        sums_(reinterpret_cast<A*>(shared + cut_.sums)),
        staging_(reinterpret_cast<E*>(shared + cut_.staging)) {}

  __device__ void run() {
    begin();
    for (int64_t e = p_.first; e < p_.last; ++e) {
      const int64_t k = e / S::kCount;
      if (S::kCount == 1 || e % S::kCount == 0)
        step<0>(e, k);
      else
        step<S::kCount - 1>(e, k);
    }
    finish();
  }

  // Stepwise: what exchange 0 is for the first step.
  __device__ void first_operand() { fill_operand(operand(0)); }

 protected:
  __device__ bool whole() const { return p_.last == p_.T * S::kExchanges; }
  __device__ E* operand(int64_t e) const {
    if (stepwise()) return reinterpret_cast<E*>(work_.buffer(p_.workspace, group_, e & 1));
    return reinterpret_cast<E*>(shared_ + (e & 1 ? cut_.operand[1] : cut_.operand[0]));
  }
  template <int stage>
  __device__ auto weights() const {
    const E* w = as<E>(p_.w_hh[at_.d]) + int64_t(S::first(stage)) * p_.H * p_.H;
    return [w, H = p_.H, unit0 = at_.unit0, units = at_.units](int m, int k) {
      const int64_t unit = unit0 + m % units, gate = m / units;
      return Cell::kProduct && gate < S::gates(stage) && unit < H && k < H ? w[(gate * H + unit) * H + k] : E(0.f);
    };
  }

  // The states that enter step 0 are the operand of the first product and this CTA's own state.
  __device__ void fill_operand(E* into) const {
    const E* h0 = as<E>(p_.states_in[0]);
    for (int64_t i = threadIdx.x; i < int64_t(at_.rows) * cut_.ldb; i += kThreads) {
      const int64_t row = at_.row0 + i / cut_.ldb, unit = i % cut_.ldb;
      const bool inside = h0 && row < p_.B && unit < p_.H;
      into[i] = inside ? h0[(at_.d * p_.B + row) * p_.H + unit] : E(0.f);
      if (kSpecial && inside) into[i] = narrow<E>(Base::h_factor(row, unit) * widen(into[i]));
    }
  }
  __device__ void begin() {
    Base::fill_bias(0);
    if (p_.first == 0)
      Base::fill_states(p_.states_in);
    else
      Base::template carry<true>();
    if (!stepwise()) {
      fill_operand(operand(0));
      for (int64_t i = threadIdx.x; i < int64_t(at_.rows) * cut_.ldb; i += kThreads) operand(1)[i] = E(0.f);
    }
    Base::template load_weights<0>(weights<0>());
    if constexpr (kLate) Base::template load_weights<1>(weights<1>());
    device::sync_block(device::kSiteLoaded);
    signals_.open();
  }

  struct Projected {
    A x[G];
    Noise noise;
  };
  __device__ Projected projected(int i, int64_t k) const {
    Projected v{};
    const int64_t row = at_.row0 + i / at_.units, unit = at_.unit0 + i % at_.units;
    if (i >= pairs() || row >= p_.B || unit >= p_.H) return v;
    const RowTime when(p_, row, at_.d);
    if (k >= when.length) return v;
    const int64_t t = when.time(k);
    const E* from = as<E>(p_.gx) + t * p_.gx_stride_t + row * p_.gx_stride_b + at_.d * G * p_.H + unit;
    for (int g = 0; g < G; ++g) v.x[g] = widen(from[g * p_.H]);
    v.noise = Base::noise(t, row, unit);
    return v;
  }

  template <int stage>
  __device__ void multiply(int64_t e) {
    const int ld = cut_.ld_sums, rows = at_.rows;
    product_[stage].run(weights<stage>(), operand(e), cut_.ldb, rows,
                        [&](int m, int n, int part, A sum) { sums_[(part * rows + n) * ld + m] = sum; });
    device::sync_block(device::kSiteProduct);
  }
  // The product of gate g of this stage for one unit of one row.
  template <int stage>
  __device__ A product_of(int i, int g) const {
    A sum = A(0);
    for (int part = 0; part < p_.geometry.ksplit[stage]; ++part)
      sum += sums_[(part * at_.rows + i / at_.units) * cut_.ld_sums + g * at_.units + i % at_.units];
    return sum;
  }

  template <int stage>
  __device__ void step(int64_t e, int64_t k) {
    Projected ahead = projected(threadIdx.x, k);  // under way while we wait
    if (e > 0) receive(e);
    multiply<stage>(e);
    for (int i = threadIdx.x; i < pairs(); i += kThreads) {
      if (i >= kThreads) ahead = projected(i, k);
      send(e + 1, i, narrow<E>(unit<stage>(i, k, ahead)));
    }
    sent(e + 1);
  }

  // The gate math of one unit of one row; the result is what the next product needs of it.
  template <int stage>
  __device__ A unit(int i, int64_t k, const Projected& in) {
    const int64_t row = at_.row0 + i / at_.units, unit = at_.unit0 + i % at_.units;
    A* state = state_ + i;
    if (row >= p_.B || unit >= p_.H) return A(0);
    const RowTime when(p_, row, at_.d);
    E* y = as<E>(p_.y) + row * p_.y_stride_b + at_.d * p_.H + unit;
    if (k >= when.length) {
      if (stage == S::kCount - 1) y[k * p_.y_stride_t] = E(0.f);
      if (kLate && p_.reserve) slot(k, row, unit)[(K - 1) * p_.H] = E(0.f);  // backward's product reads every u
      return state[0];
    }
    const bool fresh = Base::fresh(when, row, k);
    A s[kStates], s_new[kStates], saved[K], rec[G];
    for (int q = 0; q < kStates; ++q) s[q] = fresh ? A(0) : state[q * pairs()];
    for (int g = 0; g < S::gates(stage); ++g) {
      const A sum = product_of<stage>(i, g);
      const int gate = S::first(stage) + g;
      rec[gate] = bias_[gate * at_.units + i % at_.units] + (fresh && stage == 0 ? A(0) : sum);
    }
    const int64_t t = when.time(k);
    if constexpr (kLate && stage == 0) {
      A u;
      Cell::early(in.x, rec, s, &u, saved);
      u = in.noise.in_product(u);
      for (int q = 0; q < K - 1; ++q) extra_[q * pairs() + i] = saved[q];
      extra_[(K - 1) * pairs() + i] = u;
      return u;
    } else {
      if constexpr (kLate)
        for (int q = 0; q < K; ++q) saved[q] = extra_[q * pairs() + i];
      A vectors[kVectorRoom<Cell>];
      for (int q = 0; q < Cell::kVectors; ++q) vectors[q] = bias_[(G + q) * at_.units + i % at_.units];
      in.noise.forward(in.x, rec, s, vectors, s_new, saved);
      if (p_.reserve && Base::keeps_raw())
        for (int q = 1; q < kStates; ++q) slot(t, row, unit)[(slots() - kStates + q) * p_.H] = narrow<E>(s_new[q]);
      in.noise.zone_out(s, s_new);
      for (int q = 0; q < kStates; ++q) state[q * pairs()] = s_new[q];
      y[t * p_.y_stride_t] = narrow<E>(s_new[0]);
      if (p_.reserve) {
        E* to = slot(t, row, unit);
        const int gates = Base::kept_gates();
        for (int q = 0; gates && q < K; ++q) to[q * p_.H] = narrow<E>(saved[q]);
        for (int q = 1; q < kStates; ++q) to[(gates + q - 1) * p_.H] = narrow<E>(s_new[q]);
        if constexpr (kSpecial && Cell::kExponent > 0)
          if (!gates) to[(Cell::kExponent - 1) * p_.H] = narrow<E>(Cell::exponentials(saved));
      }
      if (k + 1 < when.length && Base::returns(when, row, k + 1))  // then the next step, and its product, finds this
        for (int q = 0; q < kStates; ++q) state[q * pairs()] = s_new[q] = Base::initial(q, row, unit);
      return in.noise.in_product(s_new[0]);
    }
  }

  __device__ E* slot(int64_t t, int64_t row, int64_t unit) const {
    return as<E>(p_.reserve) + reserve_at(t, row, unit);
  }

  // ---- the exchange: this CTA's units go to everybody in the group
  __device__ void send(int64_t e, int i, E v) {
    const int row = i / at_.units, column = i % at_.units;
    switch (p_.geometry.schedule) {
      case kCta:
        operand(e)[row * cut_.ldb + column] = v;
        break;
      case kCluster:
        staging_[i] = v;
        break;
      default:
        reinterpret_cast<E*>(work_.buffer(p_.workspace, group_, e & 1))[row * cut_.ldb + at_.unit0 + column] = v;
    }
  }
  __device__ void sent(int64_t e) {
    if (p_.geometry.schedule == kCluster && e < p_.last) {
      device::sync_block(device::kSiteExchange);
      constexpr int kLanes = 16 / sizeof(E);  // of one push; units are a multiple of it
      const int per_row = at_.units / kLanes, n = at_.rows * per_row;
      for (int i = threadIdx.x; i < n * p_.geometry.ctas; i += kThreads) {
        const int peer = i / n, row = i % n / per_row, column = i % per_row * kLanes;
        const uint4 v = *reinterpret_cast<const uint4*>(staging_ + row * at_.units + column);
        device::push(operand(e) + row * cut_.ldb + at_.unit0 + column, peer, v,
                     reinterpret_cast<uint64_t*>(shared_) + (e & 1));
      }
    }
    signals_.sent(e);
  }
  __device__ void receive(int64_t e) {
    signals_.received(e, p_.geometry.ctas * pairs() * sizeof(E));
    if (p_.geometry.schedule != kGrid) return;
    const uint4* from = reinterpret_cast<const uint4*>(work_.buffer(p_.workspace, group_, e & 1));
    uint4* into = reinterpret_cast<uint4*>(operand(e));
    for (int i = threadIdx.x; i < at_.rows * cut_.ldb * int(sizeof(E)) / 16; i += kThreads)
      into[i] = device::load_l2(from + i);
    device::sync_block(device::kSiteReceived);
  }

  __device__ void finish() {
    if (stepwise() && !whole()) Base::template carry<false>();
    for (int s = 0; whole() && s < kStates; ++s)
      for (int i = threadIdx.x; i < pairs(); i += kThreads) {
        const int64_t row = at_.row0 + i / at_.units, unit = at_.unit0 + i % at_.units;
        E* out = as<E>(p_.states_out[s > 0]);
        if (out && row < p_.B && unit < p_.H) out[Base::state_index(s, row, unit)] = narrow<E>(state_[s * pairs() + i]);
      }
    signals_.close();
  }

  A* sums_;
  E* staging_;
};

template <class Run>
__global__ void __launch_bounds__(kThreads, 1) forward_kernel(const CudaForward p) {
  FASTRNN_SHARED(shared);
  Run(p, shared).run();
}
template <class Run>
__global__ void __launch_bounds__(kThreads, 1) forward_first_operand_kernel(const CudaForward p) {
  FASTRNN_SHARED(shared);
  Run(p, shared).first_operand();
}
}  // namespace fastrnn
