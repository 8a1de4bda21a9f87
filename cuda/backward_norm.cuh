#pragma once
// The backward time loop of a normalised cell, whose exchanges mirror those of forward: the gradient of c normalised,
// with c; the gate gradients; those of R h, which go to the product. The gradient of the input part is that of W x
// normalised: the caller goes on from there.
#include "backward.cuh"
#include "norm.cuh"

namespace fastrnn {
template <class Cell, class E>
class NormBackwardRun : BackwardRun<Cell, E, true> {
  using Base = BackwardRun<Cell, E, true>;
  using Base::G, Base::K, Base::kStates, Base::p_, Base::at_, Base::cut_, Base::work_, Base::group_, Base::state_,
      Base::extra_, Base::bias_, Base::signals_, Base::pairs, Base::operand_, Base::exchanges;
  using typename Base::A, typename Base::S, typename Base::Kept;
  using Slots = NormSlots<Cell>;
  static constexpr bool kNormsC = kStates > 1;

 public:
  __device__ NormBackwardRun(const CudaBackward& p, unsigned char* shared)
      : Base(p, shared), rows_(p, at_, cut_, work_, group_, shared) {}

  __device__ void run() {
    Base::begin();
    for (int64_t e = p_.first; e < p_.last && e < exchanges(); ++e) {
      const int64_t k = p_.T - 1 - e / S::kExchanges;
      const int left = S::kExchanges - 1 - int(e % S::kExchanges);  // exchanges of this step before the product
      if (left == 2)
        output(e, k);
      else if (left == 1)
        gates(e, k);
      else
        product(e, k);
    }
    Base::finish();
  }

 private:
  // One unit of one row at step k, where there is one and the row has not ended.
  struct Unit {
    int i;
    int64_t row, unit, k;
    RowTime when;
    bool real, runs;

    __device__ Unit(const CudaBackward& p, const Place& at, int i, int64_t k)
        : i(i),
          row(at.row0 + i / at.units),
          unit(at.unit0 + i % at.units),
          k(k),
          when(p, row < p.B ? row : 0, at.d),
          real(row < p.B && unit < p.H),
          runs(real && k < when.length) {}
  };
  __device__ A vector(int q, int i) const { return bias_[q * at_.units + i % at_.units]; }
  // As of every cell; what is recomputed is read where this thread will write, in a later exchange of this step.
  __device__ Kept kept(int i, int64_t k) const {
    Kept v = Base::kept(i, k);
    if (!p_.recompute || i >= pairs()) return v;
    const Unit u(p_, at_, i, k);
    if (u.runs) recompute(v, u);
    return v;
  }
  __device__ void recompute(Kept& v, const Unit& u) const {
    const int64_t t = u.when.time(u.k), at = (t * p_.B + u.row) * p_.D + at_.d;
    const E *deviations = as<E>(p_.deviations) + at * kStates, *shifts = as<E>(p_.b_hh[at_.d]) + u.unit;
    A x[G], r[G], s_new[kStates];
    for (int g = 0; g < G; ++g) {
      x[g] = widen(gate(p_.dgx, u, t, g));
      const A n = v.saved[Slots::kR + g] = widen(gate(p_.dgr, u, t, g));
      r[g] = n * vector(g, u.i) + widen(shifts[g * p_.H]);
    }
    cell_forward<Cell, A>(x, r, v.s, nullptr, s_new, v.saved);
    v.saved[Slots::kDeviationR] = widen(deviations[0]);
    if constexpr (kNormsC) {
      v.saved[Slots::kC] = widen(as<E>(p_.h_prev)[at * p_.H + u.unit]);
      v.saved[Slots::kDeviationC] = widen(deviations[1]);
    }
  }
  // Adds to the gradient of parameter q of this unit: shifts of r, gains of r, gain and shift of c.
  __device__ void add_to_vector(int q, const Unit& u, A v) const {
    as<A>(p_.dvectors)[((u.row * p_.D + at_.d) * Cell::kVectors + q) * p_.H + u.unit] += v;
  }
  // The gradient of h, from above and from the step after.
  __device__ A reached(int64_t e, const Unit& u, const Kept& at) {
    const bool continues = u.k + 1 < u.when.length && !Base::cuts(u.when, u.row, u.k + 1);
    A dh = continues ? at.noise.in_product(Base::arrived(e, u.i)) : A(0);
    Base::give_back(u.when, u.row, u.unit, u.k + 1, state_ + u.i, dh);
    return state_[u.i] + at.dy + dh;
  }

  // Through h = o tanh(LN(c)).
  __device__ void output(int64_t e, int64_t k) {
    Kept ahead = kept(threadIdx.x, k);  // under way while we wait
    if (e > 0) Base::receive(e);
    for (int i = threadIdx.x; i < pairs(); i += kThreads) {
      if (i >= kThreads) ahead = kept(i, k);
      const Unit u(p_, at_, i, k);
      A dn = A(0), n = A(0);
      if (u.runs) dn = output_gradient(e, u, ahead, n);
      extra_[pairs() + i] = dn;
      rows_.leave(i, dn, dn * n);
    }
    rows_.template send<false, 1>(e + 1, signals_);
  }
  __device__ A output_gradient(int64_t e, const Unit& u, const Kept& at, A& n) {
    if constexpr (kNormsC) {
      n = at.saved[Slots::kC];
      A dv;
      extra_[u.i] = Cell::backward_output(at.saved[Cell::kOutputGate], n * vector(G, u.i) + vector(G + 1, u.i),
                                          reached(e, u, at), &dv);
      add_to_vector(2 * G, u, dv * n);
      add_to_vector(2 * G + 1, u, dv);
      return dv * vector(G, u.i);
    }
    return A(0);
  }

  // Through the cell, to W x and R h as they are after normalisation.
  __device__ void gates(int64_t e, int64_t k) {
    Kept ahead = kept(threadIdx.x, k);
    if constexpr (kNormsC)
      rows_.template receive<false, 1>(e, signals_);
    else if (e > 0)
      Base::receive(e);
    for (int i = threadIdx.x; i < pairs(); i += kThreads) {
      if (i >= kThreads) ahead = kept(i, k);
      const Unit u(p_, at_, i, k);
      A d = A(0), dn = A(0);
      if (u.runs) gate_gradients(e, u, ahead, d, dn);
      rows_.leave(i, d, dn);
    }
    rows_.template send<false, G>(e + 1, signals_);
  }
  // d and dn: sums over the gates of the gradients of R h normalised, and of these times that.
  __device__ void gate_gradients(int64_t e, const Unit& u, const Kept& at, A& d, A& dn) {
    A ds_new[kStates], dx[G], dr[G], ds[kStates];
    if constexpr (kNormsC) {
      const int row = u.i / at_.units;
      const A n = at.saved[Slots::kC];
      const A dc = at.saved[Slots::kDeviationC] * (extra_[pairs() + u.i] - rows_.mean(row) - n * rows_.other(row));
      ds_new[0] = A(0);
      ds_new[1] = dc + state_[pairs() + u.i] + at.dc[1];
    } else {
      ds_new[0] = reached(e, u, at);
    }
    cell_backward<Cell, A>(at.saved, at.s, nullptr, at.s_new, ds_new, dx, dr, ds);
    if constexpr (kNormsC) dx[Cell::kOutputGate] = dr[Cell::kOutputGate] = extra_[u.i];
    const bool cut = Base::cuts(u.when, u.row, u.k);
    for (int q = 0; q < kStates; ++q) state_[q * pairs() + u.i] = cut ? A(0) : ds[q];
    for (int g = 0; g < G; ++g) {
      const A n = at.saved[Slots::kR + g];
      gate(p_.dgx, u, u.when.time(u.k), g) = narrow<E>(dx[g]);
      add_to_vector(g, u, dr[g]);
      add_to_vector(G + g, u, dr[g] * n);
      extra_[g * pairs() + u.i] = dr[g] * vector(g, u.i);
      d += extra_[g * pairs() + u.i];
      dn += extra_[g * pairs() + u.i] * n;
    }
  }

  // To R h, and through the product to h of the step before.
  __device__ void product(int64_t e, int64_t k) {
    Kept ahead = kept(threadIdx.x, k);
    rows_.template receive<false, G>(e, signals_);
    for (int i = threadIdx.x; i < pairs(); i += kThreads) {
      if (i >= kThreads) ahead = kept(i, k);
      const Unit u(p_, at_, i, k);
      const int row = i / at_.units;
      for (int g = 0; u.real && g < G; ++g) {
        A dr = A(0);
        if (u.runs)
          dr = ahead.saved[Slots::kDeviationR] *
               (extra_[g * pairs() + i] - rows_.mean(row) - ahead.saved[Slots::kR + g] * rows_.other(row));
        operand_[row * cut_.ldb + g * at_.units + i % at_.units] = narrow<E>(dr);
        const int64_t t = u.runs ? u.when.time(k) : k;
        gate(p_.dgr, u, t, g) = narrow<E>(dr);
        if (!u.runs) gate(p_.dgx, u, t, g) = E(0.f);
      }
      if (u.real)
        as<E>(p_.h_prev)[((u.runs ? u.when.time(k) : k) * p_.B + u.row) * p_.D * p_.H + at_.d * p_.H + u.unit] =
            narrow<E>(u.runs ? ahead.noise.in_product(ahead.s[0]) : A(0));
    }
    Base::template multiply<0>(e);
  }
  __device__ E& gate(void* of, const Unit& u, int64_t t, int g) const {
    return as<E>(of)[(((t * p_.B + u.row) * p_.D + at_.d) * G + g) * p_.H + u.unit];
  }

  const RowSums<Cell, E> rows_;
};
}  // namespace fastrnn
