#pragma once
// The backward time loop, for any cell. Only the recurrent product dr[k+1] R is serial. Per chunk of steps, walked from
// the last to the first: step by step the product of the previous gate gradients, whose sums meet dy and the carried
// state gradient in registers and go through the cell; then, for the whole chunk at once, dx = dX W and the weight
// gradients as long products over its rows. Sums over time are two-level (within a chunk, then over chunks), and each
// element is summed by one thread, so results do not depend on the number of threads.
#include "ahead.h"
#include "rnn_forward.h"

namespace fastrnn {
namespace {

template <class Cell, class T>
class BackwardRun {
  using V = Vec<T>;
  using S = Stages<Cell>;
  static constexpr int W = V::kWidth, G = Cell::kGates, K = Cell::kSaved, kExtra = Cell::kStates - 1;
  // Columns of a row of dr: gates, then the cell's vectors; of a normalised cell what enters the normalisations of c
  // and of R h, kRaw on. Of dx: gates.
  static constexpr int kRaw = G + kExtra;
  static constexpr int kColumns = G + (Cell::kNormalised ? kExtra + G : Cell::kVectors);
  static constexpr int kColumnsX = Cell::kSharedGateGrad ? kColumns : G;
  static constexpr int kNorm = norm_slot<Cell>(0), kNormX = norm_slot<Cell>(1), kNormC = norm_slot<Cell>(2);
  static constexpr int kGainX = Cell::kVectors - G;
  static constexpr int kPanel = kMaxTileVecs * W;  // columns of a plain panel

  struct Row {  // pointers of one row at the current step
    const T *h_prev, *c_prev, *c_new, *saved, *dy;
    const T* dc;             // [kExtra * H] gradient of c from above, null for none
    const T *dh_in, *dc_in;  // carried state gradient entering from step k+1; zeros where a segment ends
    T *dh_out, *dc_out;      // carried on to step k-1
    T *dx, *dr;              // [kColumnsX*Hp], [kColumns*Hp] gate gradients of this step
    T* dh_projected;         // [out()] gradient of the projected h
    const T *c_raw, *mask;   // c before zoneout; factors of h in the product; null without
    ZoneoutRow<T, kZoned<Cell>> zoneout;
    CandidateRow<T> candidate;
  };

 public:
  BackwardRun(const RnnBackward<T>& p, const PackedBackward<T>& packed, const Recompute<T>& recompute, int direction,
              const Plan& plan, const Team& team, char* scratch)
      : p_(p),
        s_(p.shape),
        w_(packed),
        d_(direction),
        plan_(plan),
        recompute_(recompute),
        team_(team),
        Hp_(p.shape.hidden_padded()),
        ld_(kColumns * p.shape.hidden_padded() + 16),
        ld_x_(kColumnsX * p.shape.hidden_padded() + 16) {
    bytes_ = lay_out(scratch, team, [&](Arena& a) { take_shared(a); }, [&](Arena& a) { take_own(a); });
  }
  int64_t bytes() const { return bytes_; }

  void run() {
    begin();
    const int64_t steps = all_.steps();
    const int64_t chunks = ceil_div(steps, plan_.chunk_steps);
    for (int64_t chunk = chunks - 1; chunk >= 0; --chunk) {
      team_.poll_stop();
      team_.sync();
      if (team_.stopped()) return;
      k0_ = chunk * plan_.chunk_steps;
      k1_ = k0_ + plan_.chunk_steps < steps ? k0_ + plan_.chunk_steps : steps;
      if (p_.segment_steps && (k1_ == steps || k1_ == segment_)) {
        recompute(k0_ / p_.segment_steps * p_.segment_steps, k1_);
        team_.sync();
        if (team_.stopped()) return;
      }
      for (int64_t k = k1_ - 1; k >= k0_; --k) special_ ? step<true>(k) : step<false>(k);
      team_.sync();
      list_chunk();
      if constexpr (Cell::kNormalised) {
        undo_input_norm();
        team_.sync();
      }
      input_gradient();
      weight_gradients(k1_ != steps);
      keep_boundary();
    }
    if (chunks == 0) {  // no row has a step: nothing has been written yet
      n_ = 0;
      weight_gradients(false);
    }
    team_.sync();
    state_gradients();
    store_weight_gradients();
  }

 private:
  void take_shared(Arena& arena) {
    const int64_t rows = plan_.chunk_steps * s_.B;
    dx_ = arena.take<T>(rows * ld_x_);
    dr_ = Cell::kSharedGateGrad ? dx_ : arena.take<T>(rows * ld_);
    boundary_ = arena.take<T>(s_.B * ld_);
    dh_ = arena.take<T>(s_.B * (Hp_ > s_.out() ? Hp_ : s_.out()));
    dc_ = arena.take<T>(s_.B * kExtra * Hp_);
    c0_ = arena.take<T>(s_.B * kExtra * Hp_);
    const int64_t returns = p_.reset_to_initial ? s_.B : 0;
    c_initial_ = arena.take<T>(returns * kExtra * Hp_);
    dr_initial_ = arena.take<T>(returns * ld_);
    dh_initial_ = arena.take<T>(returns * (Hp_ > s_.out() ? Hp_ : s_.out()));
    dc_initial_ = arena.take<T>(returns * kExtra * Hp_);
    ld_projected_ = round_up(s_.P, 16);
    dh_projected_ = arena.take<T>(s_.P ? rows * ld_projected_ : 0);
    masked_ = arena.take<T>(p_.h_mask ? rows * s_.out() : 0);
    wx_ = arena.take<T>(s_.I * G * Hp_);
    dn_ = arena.take<T>(Cell::kNormalised ? s_.B * Hp_ : 0);
    means_x_ = arena.take<NormSums<T>>(Cell::kNormalised ? rows : 0);
    wh_ = arena.take<T>((s_.out() > s_.H ? s_.out() : s_.H) * G * Hp_);
    wr_ = arena.take<T>(s_.P * Hp_);
    bx_ = arena.take<double>(2 * G * Hp_);
    bh_ = arena.take<double>((2 * G + Cell::kVectors) * Hp_);
    if (!p_.segment_steps) return;
    static_cast<RnnInput<T>&>(forward_) = p_;
    forward_.y = const_cast<T*>(p_.y);
    forward_.y_stride_t = p_.y_stride_t;
    forward_.y_stride_b = p_.y_stride_b;
    forward_.reserve = arena.take<T>(p_.segment_steps * s_.B * p_.slots(K, Cell::kStates) * Hp_);
    forward_scratch_ = arena.take<char>(forward_run(nullptr).bytes());
  }
  ForwardRun<Cell, T> forward_run(char* scratch) {
    return {forward_, recompute_.packed[d_], d_, recompute_.plan, team_, scratch};
  }
  void take_own(Arena& arena) {
    const bool by_rows = plan_.schedule == kBatchSplit;
    const int64_t max_rows = by_rows ? ceil_div(s_.B, team_.size) : s_.B, chunk_rows = plan_.chunk_steps * s_.B;
    all_ = take_rows(arena, s_.B, s_.T, p_.lengths, 0, 1);
    rows_ = take_rows(arena, s_.B, s_.T, p_.lengths, by_rows ? team_.rank : 0, by_rows ? team_.size : 1);
    row_ = arena.take<Row>(max_rows);
    a_ = arena.take<const T*>(max_rows);
    zeros_ = arena.take<T>(zeros_size());
    const auto list = [&] { return arena.take<const T*>(chunk_rows); };
    x_list_ = list(), h_list_ = list(), u_list_ = list(), m_list_ = list(), kept_list_ = list();
    dx_list_ = list(), dr_list_ = list(), dp_list_ = list();
    dx_out_ = arena.take<T*>(chunk_rows);
    hidden_ = own_panels(s_.H);
    output_ = own_panels(s_.out());
  }
  int64_t zeros_size() const {
    const int64_t widest = ld_ > s_.out() ? ld_ : s_.out();
    return (kExtra > 1 ? kExtra : 1) * widest;
  }
  // Panels of a serial product over n columns that this thread computes.
  Range own_panels(int64_t n) const {
    const int64_t panels = ceil_div(n, kPanel);
    return plan_.schedule == kBatchSplit ? Range{0, panels} : share(panels, team_.rank, team_.size);
  }

  bool reverse() const { return d_ == 1; }
  int64_t time(const Rows& rows, int64_t i, int64_t k) const { return reverse() ? rows.length[i] - 1 - k : k; }
  const T* h0_of(int64_t b) const { return p_.states_in[0] ? p_.states_in[0] + (d_ * s_.B + b) * s_.out() : zeros_; }
  const T* y_at(int64_t t, int64_t b) const { return p_.y + t * p_.y_stride_t + b * p_.y_stride_b + d_ * s_.out(); }
  const T* reserve_at(const Rows& rows, int64_t i, int64_t k) const {
    const T* reserve = p_.segment_steps ? forward_.reserve : p_.reserve;
    return reserve +
           reserve_row(p_, d_, time(rows, i, k), k - segment_, rows.batch[i]) * p_.slots(K, Cell::kStates) * Hp_;
  }
  // Whether no gradient of a state crosses from step k to the one before.
  bool cuts(const Rows& rows, int64_t i, int64_t k) const { return fresh(rows, i, k) || detached(rows, i, k); }
  bool detached(const Rows& rows, int64_t i, int64_t k) const {
    return starts_afresh(p_.detach_mask, p_.detach_stride_t, p_.detach_stride_b, reverse(), rows.batch[i],
                         rows.length[i], k);
  }
  bool fresh(const Rows& rows, int64_t i, int64_t k) const {
    return enters_fresh(p_, reverse(), rows.batch[i], rows.length[i], k);
  }
  const T* h_before(const Rows& rows, int64_t i, int64_t k) const {
    const bool first = fresh(rows, i, k);
    if (first && !p_.reset_to_initial) return zeros_;
    return first || k == 0 ? h0_of(rows.batch[i]) : y_at(time(rows, i, k - 1), rows.batch[i]);
  }
  const T* mask_of(int64_t b) const { return p_.h_mask ? p_.h_mask + (d_ * s_.B + b) * s_.out() : nullptr; }
  template <bool kSpecial>
  static V times_mask(const T* mask, int64_t c, int64_t lanes, V v) {
    return kSpecial && mask ? v * load_lanes(mask + c, lanes) : v;
  }
  V clip(V v) const { return min(max(v, V(-p_.grad_clip)), V(p_.grad_clip)); }
  int64_t chunk_row(int64_t order, int64_t k) const { return (k - k0_) * s_.B + order; }
  bool mine(int64_t i) const { return plan_.schedule == kBatchSplit || i % team_.size == team_.rank; }
  void step_barrier() const {
    if (plan_.schedule == kHiddenSplit) team_.sync();
  }

  void begin() {
    fill_zero(zeros_, zeros_size());
    for (int64_t i = 0; i < rows_.count; ++i) {
      if (!mine(i)) continue;
      const int64_t at = d_ * s_.B + rows_.batch[i];
      const T* dh = p_.dstates_out[0];
      const int64_t width = Hp_ > s_.out() ? Hp_ : s_.out();
      copy_or_zero(dh ? dh + at * s_.out() : nullptr, s_.out(), dh_ + rows_.order[i] * width, width);
      for (int e = 0; e < kExtra; ++e) {
        const T* dc = p_.dstates_out[1];
        copy_or_zero(dc ? dc + (at * kExtra + e) * s_.H : nullptr, s_.H, dc_ + (rows_.order[i] * kExtra + e) * Hp_,
                     Hp_);
      }
      load_c0(i);
      if (p_.reset_to_initial) begin_initial(i);
      if (p_.dx && d_ == 0)
        for (int64_t t = rows_.length[i]; t < s_.T; ++t)
          fill_zero(p_.dx + t * p_.dx_stride_t + rows_.batch[i] * p_.dx_stride_b, s_.I);
    }
    const auto clear = [&](auto* data, int64_t n) {
      const Range own = share(n / 16, team_.rank, team_.size);
      fill_zero(data + own.begin * 16, own.size() * 16);
    };
    clear(bx_, 2 * G * Hp_);
    clear(bh_, (2 * G + Cell::kVectors) * Hp_);
    clear_padding();
    team_.sync();
  }

  void load_c0(int64_t i) {
    for (int e = 0; e < kExtra; ++e)
      c_entering(p_, Cell::kStates, e, d_, segment_, rows_.batch[i], c0_ + (rows_.order[i] * kExtra + e) * Hp_);
  }
  // Runs the steps [first, last) forwards again, for their reserve.
  void recompute(int64_t first, int64_t last) {
    segment_ = first;
    for (int64_t i = 0; i < rows_.count && rows_.length[i] > first; ++i)
      if (mine(i)) load_c0(i);
    forward_run(forward_scratch_).again(first, last);
  }

  // Lanes that no vector store reaches (Hp beyond the last vector) take part in the products: they must be zero.
  void clear_padding() {
    const int64_t written = round_up(s_.H, W);
    if (written == Hp_ || team_.rank != 0) return;
    for (int64_t r = 0; r < plan_.chunk_steps * s_.B; ++r) {
      for (int g = 0; g < kColumnsX; ++g) fill_zero(dx_ + r * ld_x_ + g * Hp_ + written, Hp_ - written);
      for (int g = 0; g < kColumns; ++g) fill_zero(dr_ + r * ld_ + g * Hp_ + written, Hp_ - written);
    }
  }

  // Gate gradients of step k+1.
  const T* dr_after(int64_t i, int64_t k) const {
    return k + 1 < k1_ ? dr_ + chunk_row(rows_.order[i], k + 1) * ld_ : boundary_ + rows_.order[i] * ld_;
  }

  // Pointers of the rows that run at step k; a_ = the gate gradients of step k+1 (zeros where none flow back).
  int64_t set_rows(int64_t k) {
    const int64_t width = Hp_ > s_.out() ? Hp_ : s_.out();
    int64_t running = 0;
    for (; running < rows_.count && rows_.length[running] > k; ++running) {
      const int64_t i = running, b = rows_.batch[i], o = rows_.order[i], t = time(rows_, i, k);
      const bool last = k == rows_.length[i] - 1, cut = !last && cuts(rows_, i, k + 1), first = fresh(rows_, i, k);
      Row& row = row_[i];
      row.saved = reserve_at(rows_, i, k);
      row.c_new = row.saved + K * Hp_;
      row.h_prev = h_before(rows_, i, k);
      row.c_prev = first ? c_fresh(i) : k == segment_ ? c0_ + o * kExtra * Hp_ : reserve_at(rows_, i, k - 1) + K * Hp_;
      row.dy = p_.dy ? p_.dy + t * p_.dy_stride_t + b * p_.dy_stride_b + d_ * s_.out() : zeros_;
      row.dc = p_.dc ? p_.dc + t * p_.dc_stride_t + b * p_.dc_stride_b + d_ * kExtra * s_.H : nullptr;
      row.dh_out = dh_ + o * width;
      row.dc_out = dc_ + o * kExtra * Hp_;
      row.dh_in = cut || (s_.P && !last) ? zeros_ : row.dh_out;
      row.dc_in = cut ? zeros_ : row.dc_out;
      row.dx = dx_ + chunk_row(o, k) * ld_x_;
      row.dr = dr_ + chunk_row(o, k) * ld_;
      row.c_raw = p_.zoneout.rate[1] > 0 ? row.saved + (K + kExtra + (s_.P > 0)) * Hp_ : nullptr;
      if (zoned_) row.zoneout.at(p_.zoneout, d_, t, b);
      if (drops_) row.candidate.at(p_.candidate_dropout, d_, t, b);
      if ((row.mask = mask_of(b)) && mine(i))
        multiply(row.h_prev, row.mask, s_.out(), masked_ + chunk_row(o, k) * s_.out());
      row.dh_projected = dh_projected_ + chunk_row(o, k) * ld_projected_;
      a_[i] = last || cut ? zeros_ : dr_after(i, k);
    }
    if (p_.reset_to_initial) return_gradients(k, running);
    return running;
  }

  // Of these units, what the next step reads from memory: a few hundred bytes a row, too short for the hardware to see
  // a pattern. Backward of LSTM, GRU and RNN took 3 to 9 % less time (Zen 4, H 64 to 256, B 8 to 32); where a step
  // reads more than half of the cache, up to 4 % more.
  FASTRNN_HD void fetch_next(const Row& row, int64_t u) const {
    if (!fetches_) return;
    for (int q = 0; q < K && !Cell::kNormalised; ++q) fetch_line(row.saved + reserve_step_ + q * Hp_ + u, u);
    for (int e = 0; e < kExtra; ++e) fetch_line(row.c_prev + reserve_step_ + e * Hp_ + u, u);
    if (p_.dy) fetch_line(row.dy + (reverse() ? p_.dy_stride_t : -p_.dy_stride_t) + u, u);
    if (Cell::kReadsH) fetch_line(row.h_prev + (reverse() ? p_.y_stride_t : -p_.y_stride_t) + u, u);
  }

  // Of a normalised cell, whose reserve is three times as wide, while the product of this step runs: LSTM and GRU,
  // H=128, B=8, 5 % less.
  void fetch_reserve(int64_t running) {
    ahead_.clear();
    if (running && !p_.lengths)
      ahead_.add(row_[0].saved + reserve_step_, running * p_.slots(K, Cell::kStates) * Hp_ * int64_t(sizeof(T)));
  }

  // kSpecial: with a regulariser or gradients of c from outside; see ForwardRun::step().
  template <bool kSpecial>
  void step(int64_t k) {
    const int64_t running = set_rows(k);
    if (Cell::kNormalised && fetches_) fetch_reserve(running);
    if (s_.P) {
      product(serial_depth<Cell>(s_), running, w_.wh_t[0], output_, k, s_.P,
              [&](const Row& row, int64_t c, int64_t lanes, V sum) {
                const V dh = times_mask<kSpecial>(row.mask, c, lanes, sum) + load_lanes(row.dh_in + c, lanes) +
                             load_lanes(row.dy + c, lanes);
                store_lanes(dh, row.dh_projected + c, lanes);
              });
      step_barrier();
      for (int64_t i = 0; i < running; ++i) a_[i] = row_[i].dh_projected;
      product(s_.P, running, w_.wr_t, hidden_, k, s_.H,
              [&](const Row& row, int64_t u, int64_t lanes, V sum) { units<kSpecial>(row, u, lanes, sum); });
    } else {
      product(serial_depth<Cell>(s_), running, w_.wh_t[0], hidden_, k, s_.H,
              [&](const Row& row, int64_t u, int64_t lanes, V sum) {
                units<kSpecial>(row, u, lanes,
                                times_mask<kSpecial>(row.mask, u, lanes, sum) + V::load(row.dh_in + u) +
                                    load_lanes(row.dy + u, lanes));
              });
    }
    if constexpr (Cell::kLateGates != 0) {
      step_barrier();
      const int64_t from_late = S::gates(0) * Hp_;  // gates of the first stage come first in a row
      for (int64_t i = 0; i < running; ++i) a_[i] = row_[i].dr + from_late;
      product(Cell::kLateGates * Hp_, running, w_.wh_t[1], hidden_, k, s_.H,
              [&](const Row& row, int64_t u, int64_t lanes, V du) {
                units_early<kSpecial>(row, u, lanes, times_mask<kSpecial>(row.mask, u, lanes, du));
              });
    }
    if constexpr (Cell::kNormalised) undo_norms<kSpecial>(running);
    if (Cell::kProduct) step_barrier();
  }

  // a_ [running] x panels; visit(row, first column, lanes, sums) for every vector of columns below N.
  template <class Visit>
  void product(int64_t depth, int64_t running, const T* w, Range panels, int64_t k, int64_t N, Visit visit) {
    matmul_rows<T, kMaxTileVecs>(
        depth, running, a_, w, nullptr, panels.begin, panels.end, k & 1,
        [&](int64_t panel, int64_t r0, int mr, const T* sums) {
          for (int r = 0; r < mr; ++r)
            for (int j = 0; j < kMaxTileVecs; ++j) {
              const int64_t c = panel * kPanel + j * W;
              if (c >= N) break;
              visit(row_[r0 + r], c, N - c, V::load(sums + (r * kMaxTileVecs + j) * W));
            }
        },
        [&](int64_t steps) {
          if constexpr (Cell::kNormalised)
            return ahead_.next(steps, w);
          else
            return FetchNothing();
        });
  }

  void undo_zoneout(const Row& row, int64_t u, V* ds_new, V* s_new, V* kept);

  template <bool kSpecial>
  void undo_norms(int64_t running);
  void undo_input_norm();
  T* dn_of(int64_t i) const { return dn_ + rows_.order[i] * Hp_; }
  void output_gradient(const Row& row, int64_t i, int64_t u, V dh);
  template <bool kSpecial>
  void gates_from_c(const Row& row, int64_t u, V dc);

  template <bool kSpecial>
  void units(const Row& row, int64_t u, int64_t lanes, V dh);
  template <bool kSpecial>
  void units_early(const Row& row, int64_t u, int64_t lanes, V du);

  void list_chunk();
  void input_gradient();
  Range own_vectors(int64_t first, int64_t last, bool mirrored) const;
  void weight_gradients(bool add);
  void bias_gradients();
  void sum_rows(const T* const* rows, int64_t from, int64_t columns, double* out);
  struct Ignore {
    void operator()(int64_t, int64_t, V, V) const {}
  };
  template <class Visit = Ignore>
  void sum_rows(const T* const* rows, int64_t from, const T* const* factors, int64_t factor, int64_t columns,
                double* out, double* times, Visit visit = {});
  template <class Block>
  void sum_blocks(int64_t columns, Block block);
  static void add_lanes(V v, double* to) {
    for (int lane = 0; lane < W; ++lane) to[lane] += double(v.v[lane]);
  }

  // The next chunk (earlier in time) needs the gate gradients of this chunk's first step.
  void keep_boundary() {
    if (k0_ == 0) return;
    for (int64_t i = team_.rank; i < all_.count && all_.length[i] > k0_; i += team_.size)
      copy_or_zero(dr_ + all_.order[i] * ld_, G * Hp_, boundary_ + all_.order[i] * ld_, G * Hp_);
  }

  void state_gradients() {
    const int64_t width = Hp_ > s_.out() ? Hp_ : s_.out();
    for (int64_t i = 0; i < rows_.count; ++i) {
      const int64_t at = d_ * s_.B + rows_.batch[i], o = rows_.order[i];
      const bool empty = rows_.length[i] == 0, cut = !empty && cuts(rows_, i, 0);
      Row& row = row_[i];
      a_[i] = empty || cut ? zeros_ : dr_ + o * ld_;
      row.dh_in = cut || (s_.P && !empty) ? zeros_ : dh_ + o * width;
      row.dh_out = p_.dstates_in[0] + at * s_.out();
      row.mask = mask_of(rows_.batch[i]);
      const T* dc = cut ? nullptr : dc_ + o * kExtra * Hp_;
      if (p_.reset_to_initial) dc = with_returned(i, row, dc);
      if (mine(i))
        for (int e = 0; e < kExtra; ++e)
          if (p_.dstates_in[1])
            copy_or_zero(dc ? dc + e * Hp_ : nullptr, s_.H, p_.dstates_in[1] + (at * kExtra + e) * s_.H, s_.H);
    }
    if (p_.reset_to_initial) step_barrier();
    if (!p_.dstates_in[0]) return;
    product(serial_depth<Cell>(s_), rows_.count, w_.wh_t[0], output_, 0, s_.out(),
            [&](const Row& row, int64_t c, int64_t lanes, V sum) {
              store_lanes(times_mask<true>(row.mask, c, lanes, sum) + load_lanes(row.dh_in + c, lanes), row.dh_out + c,
                          lanes);
            });
  }
  const T* c_fresh(int64_t i) const {
    return p_.reset_to_initial ? c_initial_ + rows_.order[i] * kExtra * Hp_ : zeros_;
  }
  void begin_initial(int64_t i);
  void return_gradients(int64_t k, int64_t running);
  const T* with_returned(int64_t i, Row& row, const T* dc);

  void store_weight_gradients();
  void store_transposed(const OuterSums<T>& sums, T* out);
  OuterSums<T> wx_sums() const { return {wx_, s_.I, 0, G * Hp_ / W}; }
  OuterSums<T> wh_sums(int stage) const {
    const int64_t early = S::gates(0) * Hp_;
    if (stage == 0) return {wh_, s_.out(), 0, early / W};
    return {wh_ + s_.out() * early, s_.H, early / W, G * Hp_ / W};
  }
  OuterSums<T> wr_sums() const { return {wr_, s_.P, 0, Hp_ / W}; }

  const RnnBackward<T>& p_;
  const RnnShape& s_;
  const PackedBackward<T>& w_;
  const int d_;
  const Plan plan_;
  const Recompute<T>& recompute_;
  const Team team_;
  const int64_t Hp_, ld_, ld_x_;  // ld: row strides of dr and dx; the extra 16 keeps rows out of one cache set
  const bool zoned_ = p_.zoneout.any(), drops_ = p_.candidate_dropout.rate > 0;
  const bool special_ = zoned_ || drops_ || p_.h_mask || p_.dc || p_.grad_clip > 0;
  const bool fetches_ =
      s_.B * Hp_ * (K + kExtra + 2) * int64_t(sizeof(T)) <= Ahead::kMostBytes * team_.size;  // 2: dy, h before
  const int64_t reserve_step_ =  // from the reserve of a step to that of the one walked next
      (reverse() && !p_.segment_steps ? 1 : -1) * s_.B * p_.slots(K, Cell::kStates) * Hp_;
  int64_t bytes_, ld_projected_, k0_, k1_, n_;
  int64_t segment_ = 0;  // the first step that the reserve holds
  RnnForward<T> forward_{};
  char* forward_scratch_;
  Rows all_, rows_;
  Row* row_;
  Ahead ahead_;  // see fetch_reserve()
  const T** a_;
  T *dx_, *dr_, *boundary_, *dh_projected_, *masked_;  // gate gradients of the chunk [steps][B][ld]
  T *dh_, *dc_, *c0_, *zeros_;
  T *c_initial_, *dr_initial_, *dh_initial_, *dc_initial_;  // where resets return to the initial state, see rnn_reset.h
  T *wx_, *wh_, *wr_;                                       // sums of the weight gradients
  NormSums<T>* means_x_;  // of a normalised cell: what the gradients of W x need of a row, by row of the chunk
  T* dn_;                 // of a normalised cell with c: gradients of LN(c) times its gain
  double *bx_, *bh_;      // sums of the gradients of b_ih, then of the gains of x; of b_hh and the vectors
  const T **x_list_, **h_list_, **kept_list_, **u_list_, **dx_list_, **dr_list_, **m_list_, **dp_list_;
  T** dx_out_;
  Range hidden_, output_;  // panels of the serial products
};

template <class Cell, class T>
int64_t backward_scratch(const RnnBackward<T>& p, const Plan& plan, const Plan& forward) {
  Team team;
  team.size = plan.threads;
  const Recompute<T> recompute{{}, forward};
  return BackwardRun<Cell, T>(p, PackedBackward<T>{}, recompute, 0, plan, team, nullptr).bytes();
}

// The directions run one after the other, each with all threads: both add to dx.
template <class Cell, class T>
void rnn_backward(const BackwardJob<T>& job) {
  for (int d = 0; d < job.p->shape.D; ++d) {
    BackwardRun<Cell, T>(*job.p, job.packed[d], job.recompute, d, job.plan, job.team, job.scratch).run();
    job.team.sync();
  }
}
}  // namespace
}  // namespace fastrnn
