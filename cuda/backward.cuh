#pragma once
// The backward time loop. Each step: the gradient of h of this CTA's units, from above and from the step after; the
// cell's backward; then the product of the gate gradients with this CTA's slice of the weights, which gives every unit
// a part of its gradient. The parts go to the units' owners, who add them in the order of the CTAs. Gradients of
// weights and input are long products over all steps and are left to the caller.
#include "layer.cuh"

namespace fastrnn {
template <class Cell, class E, bool kSpecial>
class BackwardRun : protected LayerRun<Cell, E, CudaBackward, true, kSpecial> {
 protected:
  using Base = LayerRun<Cell, E, CudaBackward, true, kSpecial>;
  using Base::G, Base::K, Base::kStates, Base::kLate, Base::p_, Base::at_, Base::cut_, Base::work_, Base::group_;
  using Base::state_, Base::extra_, Base::bias_, Base::shared_, Base::signals_, Base::product_, Base::pairs,
      Base::stepwise;
  using typename Base::A, typename Base::S, typename Base::Noise;

 public:
  __device__ BackwardRun(const CudaBackward& p, unsigned char* shared)
      : Base(p, shared), operand_(reinterpret_cast<E*>(shared + cut_.operand[0])) {}

  __device__ void run() {
    begin();
    for (int64_t e = p_.first; e < p_.last && e < exchanges(); ++e) {
      const int64_t k = p_.T - 1 - e / S::kCount;
      if (kLate && e % S::kCount == 0)
        step<S::kCount - 1>(e, k);  // the late gates come first
      else
        step<0>(e, k);
    }
    finish();
  }

 protected:
  __device__ int64_t exchanges() const { return p_.T * S::kExchanges; }
  // The parts that arrive in exchange e, [from CTA][row][unit].
  __device__ A* inbox(int64_t e) const {
    if (p_.geometry.schedule <= kCluster) return reinterpret_cast<A*>(shared_ + (e & 1 ? cut_.sums : cut_.operand[1]));
    return outbox(e, at_.rank) - int64_t(at_.rank) * pairs();
  }
  // Where this CTA's part for another one goes (grid and stepwise).
  __device__ A* outbox(int64_t e, int owner) const {
    A* all = reinterpret_cast<A*>(work_.buffer(p_.workspace, group_, e & 1));
    return all + (int64_t(owner) * p_.geometry.ctas + at_.rank) * pairs();
  }
  template <int stage>
  __device__ auto weights() const {
    const E* w = as<E>(p_.w_hh[at_.d]) + int64_t(S::first(stage)) * p_.H * p_.H;
    return [w, H = p_.H, unit0 = at_.unit0, units = at_.units](int m, int k) {
      const int64_t unit = unit0 + k % units, gate = k / units;
      return Cell::kProduct && gate < S::gates(stage) && unit < H && m < H ? w[(gate * H + unit) * H + m] : E(0.f);
    };
  }

  __device__ void begin() {
    if (p_.first == 0)
      Base::fill_states(p_.dstates_out);
    else
      Base::template carry<true>();
    Base::fill_bias(G);
    for (int i = threadIdx.x; i < at_.rows * cut_.ldb; i += kThreads) operand_[i] = E(0.f);
    Base::template load_weights<0>(weights<0>());
    if constexpr (kLate) Base::template load_weights<1>(weights<1>());
    device::sync_block(device::kSiteLoaded);
    signals_.open();
  }

  // Whether no gradient of a state crosses from step k to the one before.
  __device__ bool cuts(const RowTime& when, int64_t row, int64_t k) const {
    return Base::fresh(when, row, k) || detached(when, row, k);
  }
  __device__ bool detached(const RowTime& when, int64_t row, int64_t k) const {
    return kSpecial && when.marked(p_.detach_mask, p_.detach_stride_t, p_.detach_stride_b, row, k);
  }
  // Where the gradient of initial state q of one unit of one row is added up.
  __device__ A* owed(int q, int64_t row, int64_t unit) const {
    return as<A>(p_.dinitial) + ((at_.d * p_.B + row) * kStates + q) * p_.H + unit;
  }
  // If step k starts from the initial state again: what reached the state that entered it (ds, and through the product
  // dh) belongs to the initial state and not to the step before.
  __device__ void give_back(const RowTime& when, int64_t row, int64_t unit, int64_t k, A* ds, A& dh) const {
    if (k >= when.length || !Base::returns(when, row, k) || detached(when, row, k)) return;
    for (int q = 0; q < kStates; ++q) {
      *owed(q, row, unit) += q == 0 ? ds[0] + dh : ds[q * pairs()];
      ds[q * pairs()] = A(0);
    }
    dh = A(0);
  }
  template <int stage>
  __device__ void clip(A* dx, A* dr) const {
    const A bound = A(p_.grad_clip);
    for (int g = S::first(stage); kSpecial && bound > 0 && g < S::first(stage) + S::gates(stage); ++g) {
      dx[g] = dx[g] < -bound ? -bound : dx[g] > bound ? bound : dx[g];
      dr[g] = dr[g] < -bound ? -bound : dr[g] > bound ? bound : dr[g];
    }
  }

  // What forward has kept of step k for one unit of one row, and the gradient from above.
  struct Kept {
    A saved[K], s[kStates], s_new[kStates], dy, dc[kStates];  // s_new[0], dc[0] and, if not kSpecial, dc are not used
    Noise noise;
  };
  __device__ Kept kept(int i, int64_t k) const {
    Kept v{};
    const int64_t row = at_.row0 + i / at_.units, unit = at_.unit0 + i % at_.units;
    if (i >= pairs() || row >= p_.B || unit >= p_.H) return v;
    const RowTime when(p_, row, at_.d);
    if (k >= when.length) return v;
    const bool fresh = Base::fresh(when, row, k);
    const int64_t t = when.time(k), before = when.time(k - 1);
    const E* reserve = as<E>(p_.reserve) + Base::reserve_at(0, row, unit);
    const int64_t per_step = p_.B * Base::slots() * p_.H;
    const E* y = as<E>(p_.y) + row * p_.y_stride_b + at_.d * p_.H + unit;
    const int gates = Base::kept_gates();
    for (int q = 0; gates && q < K; ++q) v.saved[q] = widen(reserve[t * per_step + q * p_.H]);
    v.s_new[0] = widen(y[t * p_.y_stride_t]);
    const int raw =
        Base::keeps_raw() ? Base::slots() - kStates : gates - 1;  // what the cell found, not what zoneout left
    for (int q = 1; q < kStates; ++q) v.s_new[q] = widen(reserve[t * per_step + (raw + q) * p_.H]);
    for (int q = 0; q < kStates && !fresh; ++q) {
      if (k == 0 || Base::returns(when, row, k))
        v.s[q] = Base::initial(q, row, unit);
      else
        v.s[q] = widen(q == 0 ? y[before * p_.y_stride_t] : reserve[before * per_step + (gates + q - 1) * p_.H]);
    }
    v.noise = Base::noise(t, row, unit);
    if constexpr (kSpecial && !kLate && !Cell::kNormalised)
      if (!gates) recompute(v, i % at_.units, (t * p_.B + row) * p_.D + at_.d, unit);
    if (p_.dy) v.dy = widen(as<E>(p_.dy)[t * p_.dy_stride_t + row * p_.dy_stride_b + at_.d * p_.H + unit]);
    for (int q = 1; kSpecial && p_.dc && q < kStates; ++q) {
      const int64_t column = (at_.d * (kStates - 1) + q - 1) * p_.H + unit;
      v.dc[q] = widen(as<E>(p_.dc)[t * p_.dc_stride_t + row * p_.dc_stride_b + column]);
    }
    return v;
  }

  // The gates again. They are read where this thread will write their gradients, after it has read them.
  __device__ void recompute(Kept& v, int own, int64_t at, int64_t unit) const {
    A x[G], r[G], s_new[kStates], vectors[kVectorRoom<Cell>];
    for (int g = 0; g < G; ++g) {
      x[g] = widen(as<E>(p_.dgx)[(at * G + g) * p_.H + unit]);
      r[g] = p_.dgr ? widen(as<E>(p_.dgr)[(at * G + g) * p_.H + unit]) : A(0);
    }
    for (int q = 0; q < Cell::kVectors; ++q) vectors[q] = bias_[q * at_.units + own];
    if constexpr (Cell::kExponent > 0)
      Cell::recompute(x, r, v.s_new[Cell::kExponent], v.saved);
    else
      v.noise.forward(x, r, v.s, vectors, s_new, v.saved);
  }

  template <int stage>
  __device__ void step(int64_t e, int64_t k) {
    Kept ahead = kept(threadIdx.x, k);  // under way while we wait
    if (e > 0) receive(e);
    for (int i = threadIdx.x; i < pairs(); i += kThreads) {
      if (i >= kThreads) ahead = kept(i, k);
      unit<stage>(e, i, k, ahead);
    }
    multiply<stage>(e);
  }
  template <int stage>
  __device__ void multiply(int64_t e) {
    device::sync_block(device::kSiteProduct);
    product_[stage].run(weights<stage>(), operand_, cut_.ldb, at_.rows,
                        [&](int m, int n, int, A sum) { send(e + 1, m, n, sum); });
    signals_.sent(e + 1);
  }

  // The sum of the parts for one unit of one row that arrived in exchange e.
  __device__ A arrived(int64_t e, int i) const {
    if (e == 0) return A(0);
    const A* from = inbox(e) + i;
    const bool global = p_.geometry.schedule >= kGrid;
    A sum = A(0);
    for (int part = 0; part < p_.geometry.ctas; ++part)
      sum += global ? device::load_l2(from + int64_t(part) * pairs()) : from[part * pairs()];
    return sum;
  }

  // Gate gradients of one unit of one row. state_ holds what reached the state that left step k, except what is under
  // way in exchange e.
  template <int stage>
  __device__ void unit(int64_t e, int i, int64_t k, const Kept& at) {
    const int64_t row = at_.row0 + i / at_.units, unit = at_.unit0 + i % at_.units;
    if (row >= p_.B || unit >= p_.H) return;
    const RowTime when(p_, row, at_.d);
    if (k >= when.length) {  // nothing happens here in either direction: position k of x is padding
      if (stage == 0) write(k, row, unit, nullptr, nullptr, A(0));
      for (int g = 0; g < S::gates(stage); ++g)
        operand_[i / at_.units * cut_.ldb + g * at_.units + i % at_.units] = E(0.f);
      return;
    }
    A *ds = state_ + i, dx[G], dr[G + Cell::kVectors], ds_old[kStates];
    const bool cut = cuts(when, row, k);
    // Steps after this one sent parts of dh, unless the row ended here or its gradient does there.
    const bool continues = k + 1 < when.length && !cuts(when, row, k + 1);
    if constexpr (kLate && stage == 0) {
      for (int g = 1; g < G; ++g) dx[g] = dr[g] = extra_[g * pairs() + i];
      ds_old[0] = ds[0];
      Cell::backward_early(at.saved, at.s, at.noise.in_product(arrived(e, i)), dx, dr, ds_old);
      clip<0>(dx, dr);
      ds[0] = cut ? A(0) : ds_old[0];
    } else {
      A ds_new[kStates], past[kStates], dh = continues ? at.noise.in_product(arrived(e, i)) : A(0);
      give_back(when, row, unit, k + 1, ds, dh);
      for (int q = 0; q < kStates; ++q) ds_new[q] = ds[q * pairs()];
      ds_new[0] = ds_new[0] + at.dy + dh;
      for (int q = 1; kSpecial && q < kStates; ++q) ds_new[q] = ds_new[q] + at.dc[q];
      at.noise.split(ds_new, past);
      A vectors[kVectorRoom<Cell>];
      for (int q = 0; q < Cell::kVectors; ++q) vectors[q] = bias_[q * at_.units + i % at_.units];
      at.noise.backward(at.saved, at.s, vectors, at.s_new, ds_new, dx, dr, ds_old);
      at.noise.join(past, ds_old);
      clip<stage>(dx, dr);
      for (int q = 0; q < kStates; ++q) ds[q * pairs()] = cut && !kLate ? A(0) : ds_old[q];
      if constexpr (kLate)
        for (int g = 1; g < G; ++g) extra_[g * pairs() + i] = dr[g];
    }
    E* operand = operand_ + i / at_.units * cut_.ldb + i % at_.units;
    for (int g = 0; g < S::gates(stage); ++g) operand[g * at_.units] = narrow<E>(dr[S::first(stage) + g]);
    if (stage == 0) write(when.time(k), row, unit, dx, dr, at.noise.in_product(at.s[0]));
  }

  __device__ void write(int64_t t, int64_t row, int64_t unit, const A* dx, const A* dr, A h_prev) const {
    const int64_t at = (t * p_.B + row) * p_.D + at_.d;
    for (int g = 0; g < G; ++g) {
      as<E>(p_.dgx)[(at * G + g) * p_.H + unit] = dx ? narrow<E>(dx[g]) : E(0.f);
      if (p_.dgr) as<E>(p_.dgr)[(at * G + g) * p_.H + unit] = dr ? narrow<E>(dr[g]) : E(0.f);
    }
    for (int q = 0; q < Cell::kVectors; ++q)
      as<E>(p_.dvectors)[(at * Cell::kVectors + q) * p_.H + unit] = dr ? narrow<E>(dr[G + q]) : E(0.f);
    as<E>(p_.h_prev)[at * p_.H + unit] = narrow<E>(h_prev);
  }

  __device__ void send(int64_t e, int unit, int row, A sum) {
    const int owner = unit / at_.units, own = row * at_.units + unit % at_.units;
    if (owner >= p_.geometry.ctas) return;
    switch (p_.geometry.schedule) {
      case kCta:
        inbox(e)[own] = sum;
        break;
      case kCluster:
        device::push(inbox(e) + at_.rank * pairs() + own, owner, sum, reinterpret_cast<uint64_t*>(shared_) + (e & 1));
        break;
      default:
        outbox(e, owner)[own] = sum;
    }
  }
  __device__ void receive(int64_t e) {
    signals_.received(e, p_.geometry.ctas * pairs() * sizeof(A));
    // In a cluster all parts for this CTA may be here while one of its own warps still multiplies for others.
    if (p_.geometry.schedule == kCluster) device::sync_block(device::kSiteReceived);
  }

  // The gradient of the states that entered step 0.
  __device__ void finish() {
    const bool last = p_.last > exchanges();
    if (stepwise() && !last) Base::template carry<false>();
    if (last && exchanges() > 0) receive(exchanges());
    for (int s = 0; last && s < kStates; ++s)
      for (int i = threadIdx.x; i < pairs(); i += kThreads) {
        const int64_t row = at_.row0 + i / at_.units, unit = at_.unit0 + i % at_.units;
        E* out = as<E>(p_.dstates_in[s > 0]);
        if (!out || row >= p_.B || unit >= p_.H) continue;
        const RowTime when(p_, row, at_.d);
        const bool through = s == 0 && when.length > 0 && !cuts(when, row, 0);
        A sum = A(0);
        if (through) sum = kSpecial ? Base::h_factor(row, unit) * arrived(exchanges(), i) : arrived(exchanges(), i);
        sum = state_[s * pairs() + i] + sum;
        if (kSpecial && p_.dinitial) sum += *owed(s, row, unit);
        out[Base::state_index(s, row, unit)] = narrow<E>(sum);
      }
    signals_.close();
  }

  E* operand_;
};

template <class Run>
__global__ void __launch_bounds__(kThreads, 1) backward_kernel(const CudaBackward p) {
  FASTRNN_SHARED(shared);
  Run(p, shared).run();
}
}  // namespace fastrnn
