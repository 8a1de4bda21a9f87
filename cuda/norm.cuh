#pragma once
// Layer normalisation inside a step (Ba et al. 2016, arXiv 1607.06450): n = (v - mean) / sqrt(var + eps) over all units
// of a row, which are spread over the CTAs of a group. Every CTA finds two numbers of its own units, everybody gets
// those of all CTAs in an exchange of its own, and adds them in a fixed order:
//   forward    mean and the squares about it; means of parts are combined as in Chan et al. 1979
//   backward   sum d and sum d n, where d is the gradient of n: that of v is (d - mean(d) - n mean(d n)) / sqrt(...)
#include "layer.cuh"

namespace fastrnn {
// Where a normalised cell keeps what the norms found, in the order of the reserve: its own values; r normalised and its
// 1/deviation; then, of a cell with c, the same of c.
template <class Cell>
struct NormSlots {
  static constexpr int kOwn = Cell::kSaved - 2 * (Cell::kGates + 1) - 2 * (Cell::kStates - 1);
  static constexpr int kR = kOwn, kDeviationR = kR + Cell::kGates, kC = kDeviationR + 1, kDeviationC = kC + 1;
};

__device__ inline float root(float v) { return ::sqrtf(v); }
__device__ inline double root(double v) { return ::sqrt(v); }

// One warp has a row; lane l has the units, or the CTAs, l, l + 32, ... Sums meet in a butterfly: the same in each
// lane.
template <class Cell, class E>
class RowSums {
  using A = typename Core<E>::Acc;

 public:
  __device__ RowSums(const CudaLayer& p, const Place& at, const SharedLayout<Cell, E>& cut,
                     const Workspace<Cell, E>& work, int64_t group, unsigned char* shared)
      : p_(p),
        rank_(at.rank),
        rows_(at.rows),
        units_(at.units),
        global_(p.geometry.schedule >= kGrid),
        own_(reinterpret_cast<A*>(shared + cut.rows)),
        found_(own_ + 2 * rows_ * units_),
        boxes_(global_ ? work.row_sums(p.workspace, group, 0) : found_ + 2 * rows_),
        box_size_(global_ ? work.row_bytes * work.groups / sizeof(A) : int64_t(2) * p.geometry.ctas * rows_),
        bars_(reinterpret_cast<uint64_t*>(shared)) {}

  // What one unit of one row has: the mean of its values and their squares about it, or its parts of two sums.
  __device__ void leave(int i, A first, A second) const {
    own_[i] = first;
    own_[rows_ * units_ + i] = second;
  }
  // The mean and the squares about it of `values` of one unit.
  template <int values>
  __device__ void leave_moments(int i, const A* v) const {
    A sum = A(0), squares = A(0);
    for (int g = 0; g < values; ++g) sum += v[g];
    const A mean = sum / A(values);
    for (int g = 0; g < values; ++g) squares += (v[g] - mean) * (v[g] - mean);
    leave(i, mean, squares);
  }

  // Exchange e: the two numbers of this CTA's units go to everybody.
  template <bool moments, int values>
  __device__ void send(int64_t e, Signals& signals) const {
    device::sync_block(device::kSiteUnits);
    const int lane = threadIdx.x % 32, n = units_of(rank_);
    for (int row = threadIdx.x / 32; row < rows_; row += kWarps) {
      const A *first = own_ + row * units_, *second = first + rows_ * units_;
      A a = A(0), b = A(0);
      for (int u = lane; u < n; u += 32) a += first[u];
      a = warp_sum(a);
      if (moments && n) a = a / A(n);
      for (int u = lane; u < n; u += 32)
        b += moments ? second[u] + values * (first[u] - a) * (first[u] - a) : second[u];
      b = warp_sum(b);
      put(e, row, lane, a, b);
    }
    signals.sent(e);
  }

  // Waits for exchange e; then mean(row) and other(row) are of all units: with moments 1/deviation, else the mean of
  // the second sum. `values` of each unit count.
  template <bool moments, int values>
  __device__ void receive(int64_t e, Signals& signals) const {
    const int ctas = p_.geometry.ctas, lane = threadIdx.x % 32;
    signals.received(e, ctas * rows_ * 2 * sizeof(A));
    for (int row = threadIdx.x / 32; row < rows_; row += kWarps) {
      A a = A(0), b = A(0);
      for (int from = lane; from < ctas; from += 32) a += (moments ? A(units_of(from)) : A(1)) * get(e, row, from, 0);
      a = warp_sum(a) / A(moments ? p_.H : values * p_.H);
      for (int from = lane; from < ctas; from += 32) {
        b += get(e, row, from, 1);
        const A apart = moments ? get(e, row, from, 0) - a : A(0);
        if (moments) b += A(values * units_of(from)) * apart * apart;
      }
      b = warp_sum(b) / A(values * p_.H);
      if (moments) b = A(1) / root(b + A(kNormEps));
      if (lane == 0) {
        found_[row] = a;
        found_[rows_ + row] = b;
      }
    }
    device::sync_block(device::kSiteRows);
  }
  __device__ A mean(int row) const { return found_[row]; }
  __device__ A other(int row) const { return found_[rows_ + row]; }

 private:
  __device__ int units_of(int cta) const {
    const int64_t left = p_.H - int64_t(cta) * units_;
    return left < 0 ? 0 : left < units_ ? int(left) : units_;
  }
  // Of exchange e, [from CTA][row][2].
  __device__ A* box(int64_t e, int from, int row) const {
    return boxes_ + (e & 1) * box_size_ + (int64_t(from) * rows_ + row) * 2;
  }
  __device__ A get(int64_t e, int row, int from, int which) const {
    const A* at = box(e, from, row) + which;
    return global_ ? device::load_l2(at) : *at;
  }
  __device__ void put(int64_t e, int row, int lane, A a, A b) const {
    A* to = box(e, rank_, row);
    if (p_.geometry.schedule == kCluster) {
      for (int peer = lane; peer < p_.geometry.ctas; peer += 32) {
        device::push(to, peer, a, bars_ + (e & 1));
        device::push(to + 1, peer, b, bars_ + (e & 1));
      }
    } else if (lane == 0) {
      to[0] = a;
      to[1] = b;
    }
  }

  // Values, no references into the run, which would keep all of it, and the weights with it, out of the registers.
  const CudaLayer& p_;
  const int rank_, rows_, units_;
  const bool global_;
  A *own_, *found_, *boxes_;  // [2][rows][units]; [2][rows]; for even and odd exchanges [ctas][rows][2]
  const int64_t box_size_;
  uint64_t* bars_;
};
}  // namespace fastrnn
