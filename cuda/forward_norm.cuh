#pragma once
// The forward time loop of a normalised cell. What one exchange after the product is for other cells are two here, or
// three with c: each CTA multiplies its slice and sends what its part of R h adds to the row; then all know how to
// normalise it, and the gates follow; then the same for c, where the output gate reads it; then h. The input part comes
// normalised.
#include "forward.cuh"
#include "norm.cuh"

namespace fastrnn {
template <class Cell, class E>
class NormForwardRun : ForwardRun<Cell, E, true> {
  using Base = ForwardRun<Cell, E, true>;
  using Base::G, Base::K, Base::kStates, Base::p_, Base::at_, Base::cut_, Base::work_, Base::group_, Base::state_,
      Base::extra_, Base::bias_, Base::signals_, Base::pairs;
  using typename Base::A, typename Base::S, typename Base::Projected;
  using Slots = NormSlots<Cell>;
  static constexpr bool kNormsC = kStates > 1;

 public:
  __device__ NormForwardRun(const CudaForward& p, unsigned char* shared)
      : Base(p, shared), rows_(p, at_, cut_, work_, group_, shared) {}

  __device__ void run() {
    Base::begin();
    for (int64_t e = p_.first; e < p_.last; ++e) {
      const int64_t k = e / S::kExchanges;
      switch (e % S::kExchanges) {
        case 0:
          product(e, k);
          break;
        case 1:
          gates(e, k);
          break;
        default:
          output(e, k);
      }
    }
    Base::finish();
  }
  using Base::first_operand;

 private:
  // One unit of one row of the batch, where there is one.
  struct Unit {
    int64_t row, unit;
    bool real;
  };
  __device__ Unit unit_of(int i) const {
    const int64_t row = at_.row0 + i / at_.units, unit = at_.unit0 + i % at_.units;
    return {row, unit, row < p_.B && unit < p_.H};
  }

  // R h of one unit of one row, where the row has not ended and h is not zero.
  __device__ void product_of_unit(int i, int64_t k, const Unit& u, A* raw) const {
    const RowTime when(p_, u.row, at_.d);
    if (k >= when.length || Base::fresh(when, u.row, k)) return;
    const bool given = p_.first_product && (k == 0 || Base::returns(when, u.row, k));
    const E* from = as<E>(p_.first_product) + (at_.d * p_.B + u.row) * G * p_.H + u.unit;
    for (int g = 0; g < G; ++g) raw[g] = given ? widen(from[g * p_.H]) : Base::template product_of<0>(i, g);
  }
  __device__ void product(int64_t e, int64_t k) {
    if (e > 0) Base::receive(e);
    Base::template multiply<0>(e);
    for (int i = threadIdx.x; i < pairs(); i += kThreads) {
      const Unit u = unit_of(i);
      A raw[G] = {};
      if (u.real) product_of_unit(i, k, u, raw);
      for (int g = 0; g < G; ++g) extra_[g * pairs() + i] = raw[g];
      rows_.template leave_moments<G>(i, raw);
    }
    rows_.template send<true, G>(e + 1, signals_);
  }

  __device__ void gates(int64_t e, int64_t k) {
    Projected ahead = Base::projected(threadIdx.x, k);  // under way while we wait
    rows_.template receive<true, G>(e, signals_);
    for (int i = threadIdx.x; i < pairs(); i += kThreads) {
      if (i >= kThreads) ahead = Base::projected(i, k);
      const A h = cell(i, k, ahead);
      if constexpr (kNormsC)
        rows_.leave(i, state_[pairs() + i], A(0));
      else
        Base::send(e + 1, i, narrow<E>(h));
    }
    if constexpr (kNormsC)
      rows_.template send<true, 1>(e + 1, signals_);
    else
      Base::sent(e + 1);
  }
  // Puts one unit of one row through the cell: c into the state and the output gate aside, or h, as the next product
  // reads it.
  __device__ A cell(int i, int64_t k, const Projected& in) {
    const Unit u = unit_of(i);
    if (!u.real) return A(0);
    const RowTime when(p_, u.row, at_.d);
    if (k >= when.length) return kNormsC ? A(0) : past_the_end(i, k, u);
    const int row = i / at_.units, own = i % at_.units;
    const bool fresh = Base::fresh(when, u.row, k);
    A s[kStates], s_new[kStates], saved[K], r[G];
    for (int q = 0; q < kStates; ++q) s[q] = fresh ? A(0) : state_[q * pairs() + i];
    for (int g = 0; g < G; ++g) {
      saved[Slots::kR + g] = (extra_[g * pairs() + i] - rows_.mean(row)) * rows_.other(row);
      r[g] = saved[Slots::kR + g] * bias_[(G + g) * at_.units + own] + bias_[g * at_.units + own];
    }
    saved[Slots::kDeviationR] = rows_.other(row);
    cell_forward<Cell, A>(in.x, r, s, nullptr, s_new, saved);
    if (p_.reserve) {
      E* to = Base::slot(when.time(k), u.row, u.unit);
      const int gates = Base::kept_gates();
      for (int q = 0; gates && q <= Slots::kDeviationR; ++q) to[q * p_.H] = narrow<E>(saved[q]);
      for (int q = 1; q < kStates; ++q) to[(gates + q - 1) * p_.H] = narrow<E>(s_new[q]);
    }
    if constexpr (kNormsC) {
      state_[pairs() + i] = s_new[1];
      extra_[i] = saved[Cell::kOutputGate];
      return A(0);
    } else {
      return leave_step(i, k, when, u, s_new[0], in.noise.factor);
    }
  }

  // h of a cell with c.
  __device__ void output(int64_t e, int64_t k) {
    rows_.template receive<true, 1>(e, signals_);
    for (int i = threadIdx.x; i < pairs(); i += kThreads) Base::send(e + 1, i, narrow<E>(output_of(i, k)));
    Base::sent(e + 1);
  }
  __device__ A output_of(int i, int64_t k) {
    const Unit u = unit_of(i);
    if (!u.real) return A(0);
    const RowTime when(p_, u.row, at_.d);
    if (k >= when.length) return past_the_end(i, k, u);
    if constexpr (kNormsC) {
      const int row = i / at_.units;
      const A n = (state_[pairs() + i] - rows_.mean(row)) * rows_.other(row);
      const A *gain = bias_ + 2 * G * at_.units + i % at_.units, *shift = gain + at_.units;
      if (p_.reserve && Base::kept_gates()) {
        E* to = Base::slot(when.time(k), u.row, u.unit);
        to[Slots::kC * p_.H] = narrow<E>(n);
        to[Slots::kDeviationC * p_.H] = narrow<E>(rows_.other(row));
      }
      return leave_step(i, k, when, u, Cell::output(extra_[i], n * *gain + *shift), Base::h_factor(u.row, u.unit));
    }
    return A(0);
  }

  __device__ E& y_at(int64_t t, const Unit& u) const {
    return as<E>(p_.y)[t * p_.y_stride_t + u.row * p_.y_stride_b + at_.d * p_.H + u.unit];
  }
  __device__ A past_the_end(int i, int64_t k, const Unit& u) const {
    y_at(k, u) = E(0.f);
    return state_[i];
  }
  // h leaves step k; returns what the next product reads.
  __device__ A leave_step(int i, int64_t k, const RowTime& when, const Unit& u, A h, A factor) {
    y_at(when.time(k), u) = narrow<E>(h);
    state_[i] = h;
    if (k + 1 < when.length && Base::returns(when, u.row, k + 1))
      for (int q = 0; q < kStates; ++q) state_[q * pairs() + i] = Base::initial(q, u.row, u.unit);
    return factor * state_[i];
  }

  const RowSums<Cell, E> rows_;
};
}  // namespace fastrnn
