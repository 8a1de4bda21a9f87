#pragma once
// The forward time loop, for any cell. Per chunk of time steps: the input projection of the whole chunk (one long
// product), then step by step the recurrent product of a tile of rows x units, whose sums meet the projected input in
// registers and go through the cell before anything is stored. y itself is the h that the next step reads.
#include "ahead.h"
#include "norm.h"
#include "rnn_pack.h"

namespace fastrnn {
namespace {

template <class Cell, class T>
class ForwardRun {
  using V = Vec<T>;
  using S = Stages<Cell>;
  static constexpr int W = V::kWidth, G = Cell::kGates, K = Cell::kSaved, kExtra = Cell::kStates - 1;
  static constexpr int kNorm = norm_slot<Cell>(0), kNormX = norm_slot<Cell>(1), kNormC = norm_slot<Cell>(2);
  static constexpr int kGainX = Cell::kVectors - G;
  static constexpr bool kKeepsSaved = Cell::kLateGates || Cell::kNormalised;  // also within a step of inference

  struct Row {        // pointers of one row at the current step
    const T* h_prev;  // [out()]
    const T* c_prev;  // [kExtra * Hp]
    T* c_new;         // [kExtra * Hp]
    T* saved;         // [kSaved * Hp], null when nobody needs the gates
    T* h_full;        // [Hp] h before projection, null without
    T* y;             // [out()]
    T* c_raw;         // [kExtra * Hp] c before zoneout, null when nobody needs it
    const T* mask;    // [out()] factors of h for the next product, null without
    T* masked;        // [out()] where that goes
    ZoneoutRow<T, kZoned<Cell>> zoneout;
    CandidateRow<T> candidate;
  };

 public:
  // Of one direction.
  ForwardRun(const RnnForward<T>& p, const PackedForward<T>& packed, int direction, const Plan& plan, const Team& team,
             char* scratch)
      : p_(p), s_(p.shape), w_(packed), d_(direction), plan_(plan), team_(team), Hp_(p.shape.hidden_padded()) {
    bytes_ = lay_out(scratch, team, [&](Arena& a) { take_shared(a); }, [&](Arena& a) { take_own(a); });
  }
  int64_t bytes() const { return bytes_; }

  void run() {
    begin();
    if (steps(0, rows_.steps())) finish();
  }
  // Steps [first, last) once more, for backward, into a reserve of these steps alone. They write the h that is in y
  // already.
  void again(int64_t first, int64_t last) {
    first_ = first;
    begin();
    steps(first, last);
  }

 private:
  void take_shared(Arena& arena) {
    state_ = arena.take<T>(s_.B * kExtra * Hp_);
    u_ = arena.take<T>(Cell::kLateGates ? s_.B * Hp_ : 0);
    saved_ = arena.take<T>(kKeepsSaved && !p_.reserve ? s_.B * K * Hp_ : 0);
    raw_ = arena.take<T>(Cell::kNormalised ? s_.B * G * Hp_ : 0);
    if (Cell::kNormalised) {
      const bool by_rows = plan_.schedule == kBatchSplit;
      const int64_t rows = (by_rows ? ceil_div(s_.B, team_.size) : s_.B) * plan_.chunk_steps;
      sums_ = arena.take<T>((by_rows ? team_.size : 1) * rows * 2 * Hp_);
      if (by_rows && sums_) sums_ += team_.rank * rows * 2 * Hp_;
    }
    h_full_ = arena.take<T>(s_.P ? s_.B * Hp_ : 0);
    for (T*& masked : masked_) masked = arena.take<T>(p_.h_mask ? s_.B * s_.out() : 0);
    c0_ = arena.take<T>(p_.reset_to_initial ? s_.B * kExtra * Hp_ : 0);
    masked_h0_ = arena.take<T>(p_.reset_to_initial && p_.h_mask ? s_.B * s_.out() : 0);
  }
  void take_own(Arena& arena) {
    const bool by_rows = plan_.schedule == kBatchSplit;
    const int64_t max_rows = by_rows ? ceil_div(s_.B, team_.size) : s_.B;
    rows_ = take_rows(arena, s_.B, s_.T, p_.lengths, by_rows ? team_.rank : 0, by_rows ? team_.size : 1);
    row_ = arena.take<Row>(max_rows);
    a_ = arena.take<const T*>(max_rows * plan_.chunk_steps);
    base_ = arena.take<int64_t>(plan_.chunk_steps + 1);
    kept_ = arena.take<T*>(Cell::kNormalised && p_.reserve ? max_rows * plan_.chunk_steps : 0);
    zeros_ = arena.take<T>(zeros_size());
    for (int stage = 0; stage < S::kCount; ++stage) {
      const int64_t panels = ceil_div(s_.H, S::nb(stage) * W);
      panels_[stage] = by_rows ? Range{0, panels} : share(panels, team_.rank, team_.size);
      const int64_t max_panels = by_rows ? panels : ceil_div(panels, team_.size);
      gx_[stage] = arena.take<T>(max_rows * plan_.chunk_steps * max_panels * S::nv(stage) * W);
    }
    const int64_t panels = ceil_div(s_.P, kMaxTileVecs * W);
    projected_ = by_rows ? Range{0, panels} : share(panels, team_.rank, team_.size);
  }
  int64_t zeros_size() const { return (kExtra > 1 ? kExtra : 1) * (Hp_ > s_.out() ? Hp_ : s_.out()); }

  bool recomputing() const { return p_.reserve && p_.segment_steps; }
  bool reverse() const { return d_ == 1; }
  int64_t time(int64_t i, int64_t k) const { return reverse() ? rows_.length[i] - 1 - k : k; }
  T* y_at(int64_t i, int64_t k) const {
    return p_.y + time(i, k) * p_.y_stride_t + rows_.batch[i] * p_.y_stride_b + d_ * s_.out();
  }
  const T* h0_of(int64_t i) const {
    return p_.states_in[0] ? p_.states_in[0] + (d_ * s_.B + rows_.batch[i]) * s_.out() : zeros_;
  }
  T* reserve_at(int64_t i, int64_t k) const {
    return p_.reserve + reserve_row(p_, d_, time(i, k), k - first_, rows_.batch[i]) * p_.slots(K, Cell::kStates) * Hp_;
  }
  const T* mask_of(int64_t i) const {
    return p_.h_mask ? p_.h_mask + (d_ * s_.B + rows_.batch[i]) * s_.out() : nullptr;
  }
  // What enters a step that starts a segment: zeros, or the initial state.
  const T* h_fresh(int64_t i) const { return p_.reset_to_initial ? h0_of(i) : zeros_; }
  const T* c_fresh(int64_t i) const { return p_.reset_to_initial ? c0_ + rows_.order[i] * kExtra * Hp_ : zeros_; }
  T* masked_at(int64_t i, int64_t k) const { return masked_[k & 1] + rows_.order[i] * s_.out(); }
  // This thread's part of per-row chores: its own rows, or every size-th row when the team shares them all.
  bool mine(int64_t i) const { return plan_.schedule == kBatchSplit || i % team_.size == team_.rank; }
  // Between stages and steps. By rows nobody waits: no thread reads what another wrote.
  void step_barrier() const {
    if (plan_.schedule == kHiddenSplit) team_.sync();
  }

  // False if the call was stopped.
  bool steps(int64_t first, int64_t last) {
    int64_t running = rows_.count;
    for (int64_t k0 = first; k0 < last; k0 += plan_.chunk_steps) {
      team_.poll_stop();
      if (plan_.schedule == kHiddenSplit) team_.sync();
      if (team_.stopped()) return false;
      const int64_t k1 = k0 + plan_.chunk_steps < last ? k0 + plan_.chunk_steps : last;
      running = rows_.running(k0, running);
      list_chunk(k0, k1, running);
      project_inputs<0>(base_[k1 - k0]);
      if constexpr (Cell::kNormalised) normalise_inputs(base_[k1 - k0]);
      if constexpr (S::kCount == 2) project_inputs<1>(base_[k1 - k0]);
      for (int64_t k = k0; k < k1; ++k) {
        running = rows_.running(k, running);
        if (kExtra && p_.segment_steps && !p_.reserve && k && k % p_.segment_steps == 0) keep_c(k, running);
        set_rows(k, running);
        if (special_)
          step<true>(k, base_[k - k0], base_[k1 - k0], running);
        else
          step<false>(k, base_[k - k0], base_[k1 - k0], running);
      }
    }
    return true;
  }

  void begin() {
    fill_zero(zeros_, zeros_size());
    for (int64_t i = 0; i < rows_.count; ++i) {
      if (!mine(i) || (first_ && rows_.length[i] <= first_)) continue;
      for (int e = 0; e < kExtra; ++e)
        c_entering(p_, Cell::kStates, e, d_, first_, rows_.batch[i], state_ + (rows_.order[i] * kExtra + e) * Hp_);
      if (p_.reset_to_initial) begin_initial(i);
      if (const T* mask = mask_of(i))
        multiply(first_ ? y_at(i, first_ - 1) : h0_of(i), mask, s_.out(), masked_at(i, first_));
      for (int64_t t = rows_.length[i]; t < s_.T && !recomputing(); ++t)
        fill_zero(p_.y + t * p_.y_stride_t + rows_.batch[i] * p_.y_stride_b + d_ * s_.out(), s_.out());
    }
    step_barrier();
  }

  void begin_initial(int64_t i) {
    for (int e = 0; e < kExtra; ++e)
      c_entering(p_, Cell::kStates, e, d_, 0, rows_.batch[i], c0_ + (rows_.order[i] * kExtra + e) * Hp_);
    if (const T* mask = mask_of(i)) multiply(h0_of(i), mask, s_.out(), masked_h0_ + rows_.order[i] * s_.out());
  }

  // The checkpoint of step k: this thread's units, since others may be a step ahead with theirs.
  void keep_c(int64_t k, int64_t running) {
    static_assert(!kExtra || S::kCount == 1, "a thread's units are those of its panels of the only stage");
    const int64_t u0 = panels_[0].begin * S::nb(0) * W, u1 = panels_[0].end * S::nb(0) * W;
    for (int64_t i = 0; i < running; ++i)
      for (int e = 0; e < kExtra; ++e) {
        const int64_t n = (u1 < Hp_ ? u1 : Hp_) - u0;
        copy_or_zero(state_ + (rows_.order[i] * kExtra + e) * Hp_ + u0, n,
                     p_.checkpoint(Cell::kStates, d_, k, rows_.batch[i]) + e * Hp_ + u0, n);
      }
  }

  void finish() {
    if (!Cell::kProduct) step_barrier();
    for (int64_t i = 0; i < rows_.count; ++i) {
      if (!mine(i)) continue;
      const int64_t last = rows_.length[i] - 1, at = d_ * s_.B + rows_.batch[i];
      if (p_.states_out[0])
        copy_or_zero(last < 0 ? h0_of(i) : y_at(i, last), s_.out(), p_.states_out[0] + at * s_.out(), s_.out());
      for (int e = 0; e < kExtra; ++e) {
        const T* c = state_ + (rows_.order[i] * kExtra + e) * Hp_;
        if (p_.reserve && last >= 0) c = reserve_at(i, last) + (K + e) * Hp_;
        if (p_.states_out[1]) copy_or_zero(c, s_.H, p_.states_out[1] + (at * kExtra + e) * s_.H, s_.H);
      }
    }
  }

  // Rows of x for steps [k0, k1), in the order of steps; base_[k - k0] is where step k starts.
  void list_chunk(int64_t k0, int64_t k1, int64_t running) {
    int64_t n = 0;
    for (int64_t k = k0; k < k1; ++k) {
      base_[k - k0] = n;
      running = rows_.running(k, running);
      for (int64_t i = 0; i < running; ++i) {
        if (Cell::kNormalised && p_.reserve) kept_[n] = reserve_at(i, k);
        a_[n++] = p_.x + time(i, k) * p_.x_stride_t + rows_.batch[i] * p_.x_stride_b;
      }
    }
    base_[k1 - k0] = n;
  }

  template <int stage>
  void project_inputs(int64_t n) {
    constexpr int NV = S::nv(stage);
    for (int64_t p = panels_[stage].begin; p < panels_[stage].end; ++p) {
      T* out = gx_[stage] + (p - panels_[stage].begin) * n * NV * W;
      for_each_row_tile<TileShape<T>::max_rows(NV)>(n, [&](int64_t r, int mr) {
        tile_rows<T, NV>(mr, s_.I, a_ + r, w_.wx[stage] + p * s_.I * NV * W,
                         Cell::kNormalised ? nullptr : w_.bx[stage] + p * NV * W, out + r * NV * W);
      });
    }
  }

  void normalise_inputs(int64_t n);

  void set_rows(int64_t k, int64_t running) {
    for (int64_t i = 0; i < running; ++i) {
      Row& row = row_[i];
      const bool fresh = enters_fresh(p_, reverse(), rows_.batch[i], rows_.length[i], k);
      T* state = state_ + rows_.order[i] * kExtra * Hp_;
      row.y = y_at(i, k);
      row.h_prev = fresh ? h_fresh(i) : k == 0 ? h0_of(i) : y_at(i, k - 1);
      row.c_prev = fresh ? c_fresh(i) : state;
      row.c_new = state;
      row.saved = kKeepsSaved ? saved_ + rows_.order[i] * K * Hp_ : nullptr;
      row.h_full = s_.P ? h_full_ + rows_.order[i] * Hp_ : nullptr;
      row.c_raw = nullptr;
      if (p_.reserve) {
        row.saved = reserve_at(i, k);
        row.c_new = row.saved + K * Hp_;
        if (!fresh && k > first_) row.c_prev = reserve_at(i, k - 1) + K * Hp_;
        if (s_.P) row.h_full = row.saved + (K + kExtra) * Hp_;
        if (p_.zoneout.rate[1] > 0) row.c_raw = row.saved + (K + kExtra + (s_.P > 0)) * Hp_;
      }
      a_[i] = row.h_prev;
      if (zoned_) row.zoneout.at(p_.zoneout, d_, time(i, k), rows_.batch[i]);
      if (drops_) row.candidate.at(p_.candidate_dropout, d_, time(i, k), rows_.batch[i]);
      if (p_.h_mask) {
        row.mask = mask_of(i);
        row.masked = masked_at(i, k + 1);
        if (!fresh)
          a_[i] = masked_at(i, k);
        else if (p_.reset_to_initial)
          a_[i] = masked_h0_ + rows_.order[i] * s_.out();
      }
    }
  }

  // kSpecial: with a regulariser. The step without is compiled apart, so that it pays nothing for what it does not do.
  template <bool kSpecial>
  void step(int64_t k, int64_t gx_base, int64_t gx_rows, int64_t running) {
    if constexpr (Cell::kNormalised)
      recur_normalised<kSpecial>(k, gx_base, gx_rows, running);
    else
      recur<0, kSpecial>(k, gx_base, gx_rows, running);
    if constexpr (S::kCount == 2) {
      step_barrier();
      for (int64_t i = 0; i < running; ++i) a_[i] = u_ + rows_.order[i] * Hp_;
      recur<1, kSpecial>(k, gx_base, gx_rows, running);
    }
    if (s_.P) {
      step_barrier();
      for (int64_t i = 0; i < running; ++i) a_[i] = row_[i].h_full;
      matmul_rows<T, kMaxTileVecs>(s_.H, running, a_, w_.wr, nullptr, projected_.begin, projected_.end, k & 1,
                                   [&](int64_t panel, int64_t r0, int mr, const T* sums) {
                                     for (int r = 0; r < mr; ++r)
                                       for (int j = 0; j < kMaxTileVecs; ++j) {
                                         const int64_t c = (panel * kMaxTileVecs + j) * W;
                                         if (c < s_.P)
                                           put_h<kSpecial>(row_[r0 + r], c, s_.P - c,
                                                           V::load(sums + (r * kMaxTileVecs + j) * W));
                                       }
                                   });
    }
    if (Cell::kProduct) step_barrier();
  }

  template <int stage, bool kSpecial>
  void recur(int64_t k, int64_t gx_base, int64_t gx_rows, int64_t running) {
    constexpr int NV = S::nv(stage), NB = S::nb(stage), kGates = S::gates(stage), kFirst = S::first_gate(stage);
    const Range panels = panels_[stage];
    const int64_t depth = stage == 0 ? recurrent_width<Cell>(s_) : s_.H;
    const auto cell = [&](int64_t panel, int64_t r0, int mr, const T* sums) {
      const T* gx = gx_[stage] + ((panel - panels.begin) * gx_rows + gx_base + r0) * NV * W;
      for (int r = 0; r < mr; ++r)
        for (int b = 0; b < NB; ++b) {
          const int64_t unit = (panel * NB + b) * W;
          if (NB > 1 && unit >= s_.H) break;
          V x[G], rec[G];
          for (int g = 0; g < kGates; ++g) {
            x[kFirst + g] = V::load(gx + (r * NV + b * kGates + g) * W);
            rec[kFirst + g] = V::load(sums + (r * NV + b * kGates + g) * W);
          }
          units<stage, kSpecial>(row_[r0 + r], r0 + r, unit, x, rec);
        }
    };
    matmul_rows<T, NV>(depth, running, a_, w_.wh[stage], w_.bh[stage], panels.begin, panels.end, k & 1, cell);
  }

  T* raw_of(int64_t i) const { return raw_ + rows_.order[i] * G * Hp_; }
  template <bool kSpecial>
  void recur_normalised(int64_t k, int64_t gx_base, int64_t gx_rows, int64_t running);
  template <bool kSpecial>
  void units_normalised(const Row& row, int64_t panel, const Moments<T>& of_r, const T* raw, const T* gx);

  template <int stage, bool kSpecial>
  void units(const Row& row, int64_t i, int64_t unit, const V* x, const V* rec);
  template <bool kSpecial>
  void put_h(const Row& row, int64_t unit, int64_t lanes, V h);
  void zone_out(const Row& row, int64_t unit, int64_t lanes, const V* s, V* s_new);

  const RnnForward<T>& p_;
  const RnnShape& s_;
  const PackedForward<T>& w_;
  const int d_;
  const Plan plan_;
  const Team team_;
  const int64_t Hp_;
  const bool zoned_ = p_.zoneout.any(), drops_ = p_.candidate_dropout.rate > 0;
  const bool special_ = zoned_ || drops_ || p_.h_mask;
  int64_t bytes_, first_ = 0;
  Rows rows_;
  Row* row_;
  const T** a_;  // row pointers of the current product
  int64_t* base_;
  T *state_, *u_, *saved_, *h_full_, *zeros_, *masked_[2];
  T *c0_, *masked_h0_;  // of the initial state, where resets return to it
  T *raw_, *sums_;      // of a normalised cell: R h of the step, sums of the projected inputs of the chunk
  T** kept_;            // reserves of the rows of the chunk
  T* gx_[2];            // projected input of the chunk: [own panels][rows of the chunk][NV*W]
  Range panels_[2], projected_;
};

// Two directions run side by side when there are threads for both.
inline int direction_teams(const RnnShape& s, int threads) { return s.D == 2 && threads > 1 ? 2 : 1; }

template <class Cell, class T>
int64_t forward_scratch(const RnnForward<T>& p, const Plan& plan) {
  Team team;
  team.size = plan.threads;
  team = team.part(0, direction_teams(p.shape, plan.threads));
  return p.shape.D * ForwardRun<Cell, T>(p, PackedForward<T>{}, 0, plan, team, nullptr).bytes();
}

template <class Cell, class T>
void rnn_forward(const ForwardJob<T>& job) {
  const RnnForward<T>& p = *job.p;
  const int teams = direction_teams(p.shape, job.team.size);
  const int64_t bytes = forward_scratch<Cell, T>(p, job.plan) / p.shape.D;
  for (int d = 0; d < p.shape.D; ++d) {
    const int part = teams == 2 ? d : 0;
    if (job.team.rank % teams != part) continue;
    ForwardRun<Cell, T>(p, job.packed[d], d, job.plan, job.team.part(part, teams), job.scratch + d * bytes).run();
  }
}
}  // namespace
}  // namespace fastrnn
