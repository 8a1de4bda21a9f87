#pragma once
// What forward and backward agree on: how a cell's gates fall into stages and panels, the order of the rows, and
// scratch.
#include "matmul.h"
#include "table.h"

namespace fastrnn {
namespace {

// A step is one stage, or two for a cell whose last kLateGates gates multiply an intermediate u instead of h.
// A panel holds every gate of the stage for nb() blocks of W units, so that a tile's sums are enough for the gate math.
template <class Cell>
struct Stages {
  static constexpr int kCount = Cell::kLateGates ? 2 : 1;
  static constexpr int gates(int stage) { return stage == 0 ? Cell::kGates - Cell::kLateGates : Cell::kLateGates; }
  static constexpr int first_gate(int stage) { return stage == 0 ? 0 : Cell::kGates - Cell::kLateGates; }
  static constexpr int nb(int stage) { return gates(stage) >= 3 ? 1 : kMaxTileVecs / gates(stage); }
  static constexpr int nv(int stage) { return gates(stage) * nb(stage); }
};

// What a step's product reads of h.
template <class Cell>
int64_t recurrent_width(const RnnShape& s) {
  return Cell::kProduct ? s.out() : 0;
}

struct Range {
  int64_t begin, end;
  int64_t size() const { return end - begin; }
};
inline Range share(int64_t n, int rank, int size) { return {n * rank / size, n * (rank + 1) / size}; }

// The rows of the batch that one thread walks, longest first, so that the rows still running at step k are a prefix.
// Step k of a row is time k forwards, length-1-k in the reverse direction.
struct Rows {
  int64_t count = 0;
  int64_t* batch;   // [count] index into the batch
  int64_t* length;  // [count] descending
  int64_t* order;   // [count] position among all rows, an index into shared scratch

  int64_t steps() const { return count ? length[0] : 0; }
  // Rows still running at step k, given that `before` ran at an earlier (smaller) step.
  int64_t running(int64_t k, int64_t before) const {
    while (before > 0 && length[before - 1] <= k) --before;
    return before;
  }
};
inline int64_t length_of(const int64_t* lengths, int64_t T, int64_t b) { return lengths ? lengths[b] : T; }

// Every rank-th of `stride` rows. Counting sort by length would need T counters; B is small, so insertion into a
// merge-sorted permutation: bottom-up merge sort, stable, no allocation (temp: [B]).
inline void sort_rows(int64_t B, int64_t T, const int64_t* lengths, int64_t* sorted, int64_t* temp) {
  for (int64_t b = 0; b < B; ++b) sorted[b] = b;
  if (!lengths) return;
  for (int64_t width = 1; width < B; width *= 2) {
    for (int64_t lo = 0; lo < B; lo += 2 * width) {
      const int64_t mid = lo + width < B ? lo + width : B, hi = lo + 2 * width < B ? lo + 2 * width : B;
      for (int64_t i = lo, j = mid, k = lo; k < hi; ++k) {
        const bool left = i < mid && (j >= hi || length_of(lengths, T, sorted[i]) >= length_of(lengths, T, sorted[j]));
        temp[k] = left ? sorted[i++] : sorted[j++];
      }
    }
    for (int64_t b = 0; b < B; ++b) sorted[b] = temp[b];
  }
}

// A cell's vectors, packed [V][Hp] behind the weights, zero beyond H.
template <class Cell, class T>
void pack_vectors(const RnnShape& s, const T* b_hh, const T* into) {
  const int64_t Hp = s.hidden_padded();
  for (int64_t i = 0; i < Cell::kVectors * Hp; ++i)
    const_cast<T*>(into)[i] = i % Hp < s.H ? b_hh[(Cell::kGates + i / Hp) * s.H + i % Hp] : T(0);
}

template <class T>
inline void multiply(const T* a, const T* b, int64_t n, T* out) {
  for (int64_t i = 0; i < n; i += Vec<T>::kWidth)
    store_lanes(load_lanes(a + i, n - i) * load_lanes(b + i, n - i), out + i, n - i);
}
template <class T>
inline void add_row(const T* from, int64_t n, T* into) {
  for (int64_t i = 0; i < n; i += Vec<T>::kWidth)
    store_lanes(load_lanes(into + i, n - i) + load_lanes(from + i, n - i), into + i, n - i);
}
template <class T>
inline void fill_zero(T* p, int64_t n) {
  for (int64_t i = 0; i < n; ++i) p[i] = T(0);
}
template <class T>
inline void copy_or_zero(const T* src, int64_t n, T* dst, int64_t padded) {
  for (int64_t i = 0; i < n; ++i) dst[i] = src ? src[i] : T(0);
  for (int64_t i = n; i < padded; ++i) dst[i] = T(0);
}

// Hands out 64-byte aligned pieces of one block; with base null it only measures.
struct Arena {
  char* base;
  int64_t used = 0;
  template <class T>
  T* take(int64_t n) {
    T* p = base ? reinterpret_cast<T*>(base + used) : nullptr;
    used += round_up(n * int64_t(sizeof(T)), 64);
    return p;
  }
};

// Scratch of a run: what the team shares, then an equal piece for each member. Returns its bytes; with base null it
// only measures.
template <class TakeShared, class TakeOwn>
int64_t lay_out(char* base, const Team& team, TakeShared take_shared, TakeOwn take_own) {
  Arena shared{base};
  take_shared(shared);
  Arena measure{nullptr};
  take_own(measure);
  if (base) {
    Arena own{base + shared.used + team.rank * measure.used};
    take_own(own);
  }
  return shared.used + team.size * measure.used;
}

inline Rows take_rows(Arena& arena, int64_t B, int64_t T, const int64_t* lengths, int first, int stride) {
  Rows rows;
  rows.batch = arena.take<int64_t>(B);
  rows.length = arena.take<int64_t>(B);
  rows.order = arena.take<int64_t>(B);
  int64_t* temp = arena.take<int64_t>(B);
  if (!arena.base) return rows;
  sort_rows(B, T, lengths, rows.order, temp);
  // Neighbours, whose reserves lie side by side; of sorted rows every stride-th, so that all walk as far.
  const Range block = share(B, first, stride);
  const int64_t step = lengths ? stride : 1, begin = lengths ? first : block.begin, end = lengths ? B : block.end;
  for (int64_t k = begin; k < end; k += step) {
    rows.batch[rows.count] = rows.order[k];
    rows.length[rows.count] = length_of(lengths, T, rows.order[k]);
    temp[rows.count++] = k;
  }
  for (int64_t k = 0; k < rows.count; ++k) rows.order[k] = temp[k];
  return rows;
}

// Rows of the reserve before that of time t, batch row b: by time, or by step within a segment.
template <class T>
inline int64_t reserve_row(const RnnInput<T>& p, int d, int64_t t, int64_t step, int64_t b) {
  return (p.segment_steps ? step : d * p.shape.T + t) * p.shape.B + b;
}
// State e of those beyond h that enters step k of one row, where a call or a segment begins, padded with zeros.
template <class T>
inline void c_entering(const RnnInput<T>& p, int states, int e, int d, int64_t k, int64_t b, T* into) {
  const int64_t Hp = p.shape.hidden_padded();
  const T* c0 = p.states_in[1];
  if (k)
    copy_or_zero(p.checkpoint(states, d, k, b) + e * Hp, p.shape.H, into, Hp);
  else
    copy_or_zero(c0 ? c0 + ((d * p.shape.B + b) * (states - 1) + e) * p.shape.H : nullptr, p.shape.H, into, Hp);
}

// The states that zoneout can keep: h, and c where it is the only other one. States that mean something together cannot
// be blended one by one.
template <class Cell>
constexpr int kZoned = Cell::kStates <= 2 ? Cell::kStates : 1;

// Zoneout of W units of one row at one step.
template <class T, int kStates>
struct ZoneoutRow {
  uint64_t key[kStates];

  void at(const Zoneout& z, int d, int64_t t, int64_t b) {
    for (int q = 0; q < kStates; ++q) key[q] = noise_key(z.seed, 2 * d + q, t, b);
  }
  // The part of `keep` that stays and that of `change` that is taken, lane by lane.
  Vec<T> blend(const Zoneout& z, int q, int64_t unit, Vec<T> keep, Vec<T> change) const {
    if (!z.training) return change + Vec<T>(z.rate[q]) * (keep - change);
    return select(hit_units<T>(key[q], unit, noise_threshold(z.rate[q])), keep, change);
  }
};

// The factor of the candidate of W units of one row at one step.
template <class T>
struct CandidateRow {
  uint64_t key;

  void at(const CandidateDropout& c, int d, int64_t t, int64_t b) {
    key = noise_key(c.seed, kCandidateStream + d, c.per_step ? t : 0, b);
  }
  Vec<T> factor(const CandidateDropout& c, int64_t unit) const {
    const T scale = c.rate < 1 ? T(1 / (1 - c.rate)) : T(0);
    return select(hit_units<T>(key, unit, noise_threshold(c.rate)), Vec<T>(0), Vec<T>(scale));
  }
};

// Segment boundaries of one direction: true if nothing enters step k of the row (see reset_mask in docs/semantics.md).
inline bool starts_afresh(const uint8_t* mask, int64_t stride_t, int64_t stride_b, bool reverse, int64_t b,
                          int64_t length, int64_t k) {
  if (!mask || (reverse && k == 0)) return false;
  return mask[(reverse ? length - k : k) * stride_t + b * stride_b] != 0;
}
// Resets to the initial state do nothing at step 0, which starts from it.
template <class T>
inline bool enters_fresh(const RnnInput<T>& p, bool reverse, int64_t b, int64_t length, int64_t k) {
  if (p.reset_to_initial && k == 0) return false;
  return starts_afresh(p.reset_mask, p.reset_stride_t, p.reset_stride_b, reverse, b, length, k);
}
}  // namespace
}  // namespace fastrnn
