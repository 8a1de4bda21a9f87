#pragma once
// The backward time loop, for any cell. Only the recurrent product dr[k+1] R is serial. Per chunk of steps, walked from
// the last to the first: step by step the product of the previous gate gradients, whose sums meet dy and the carried
// state gradient in registers and go through the cell; then, for the whole chunk at once, dx = dX W and the weight
// gradients as long products over its rows. Sums over time are two-level (within a chunk, then over chunks), and each
// element is summed by one thread, so results do not depend on the number of threads.
#include "norm.h"

namespace fastrnn {
namespace {

// Rows of the product that carries a step's gate gradients to the step before: the gates of the first stage.
template <class Cell>
int64_t serial_depth(const RnnShape& s) {
  return Cell::kProduct ? Stages<Cell>::gates(0) * s.hidden_padded() : 0;
}

template <class Cell, class T>
int64_t packed_backward_layout(const RnnShape& s, Arena& arena, PackedBackward<T>* into) {
  const int64_t Hp = s.hidden_padded();
  PackedBackward<T> packed{};
  packed.wx_t = arena.take<T>(packed_columns_size<T>(Cell::kGates * Hp, s.I));
  packed.wh_t[0] = arena.take<T>(packed_columns_size<T>(serial_depth<Cell>(s), s.out()));
  packed.wh_t[1] = Cell::kLateGates ? arena.take<T>(packed_columns_size<T>(Cell::kLateGates * Hp, s.H)) : nullptr;
  packed.wr_t = s.P ? arena.take<T>(packed_columns_size<T>(s.P, s.H)) : nullptr;
  packed.vectors = arena.take<T>(Cell::kVectors * Hp);
  if (into) *into = packed;
  return arena.used;
}
template <class Cell, class T>
int64_t packed_backward_bytes(const RnnShape& s) {
  Arena arena{nullptr};
  return packed_backward_layout<Cell, T>(s, arena, nullptr);
}
template <class Cell, class T>
PackedBackward<T> pack_backward(const RnnShape& s, const RnnWeights<T>& w, char* into) {
  const int64_t Hp = s.hidden_padded();
  Arena arena{into};
  PackedBackward<T> packed;
  packed_backward_layout<Cell, T>(s, arena, &packed);
  // Row k of the transposed product is gate k / Hp, unit k % Hp: a row of W, or zero beyond H.
  const auto row = [&](const T* weight, int first_gate, int64_t width) {
    return [=](int64_t k) {
      const int64_t g = first_gate + k / Hp, u = k % Hp;
      return u < s.H ? weight + (g * s.H + u) * width : nullptr;
    };
  };
  const auto put = [](int64_t K, int64_t N, auto rows, const T* dst) {
    pack_columns<T>(K, N, rows, const_cast<T*>(dst));
  };
  pack_vectors<Cell>(s, w.b_hh, packed.vectors);
  put(Cell::kGates * Hp, s.I, row(w.w_ih, 0, s.I), packed.wx_t);
  put(serial_depth<Cell>(s), s.out(), row(w.w_hh, 0, s.out()), packed.wh_t[0]);
  if (Cell::kLateGates) put(Cell::kLateGates * Hp, s.H, row(w.w_hh, Stages<Cell>::gates(0), s.H), packed.wh_t[1]);
  if (s.P) put(s.P, s.H, [&](int64_t k) { return w.w_hr + k * s.H; }, packed.wr_t);
  return packed;
}

template <class Cell, class T>
class BackwardRun {
  using V = Vec<T>;
  using S = Stages<Cell>;
  static constexpr int W = V::kWidth, G = Cell::kGates, K = Cell::kSaved, kExtra = Cell::kStates - 1;
  // Columns of a row of gradients: gates, the cell's vectors, and of a normalised cell the gates before normalisation
  // is undone, whose sum is the gradient of the shift b_hh.
  static constexpr int kColumns = G + Cell::kVectors + (Cell::kNormalised ? G : 0);
  static constexpr int kNorm = norm_slot<Cell>(0), kNormX = norm_slot<Cell>(1), kNormC = norm_slot<Cell>(2);
  static constexpr int kGainX = Cell::kVectors - G;
  static constexpr int kInputColumns = Cell::kNormalised ? 3 * G : G;  // see undo_input_norm()
  static_assert(kInputColumns <= kColumns, "a row of dx has as many columns as one of dr");
  static constexpr int kPanel = kMaxTileVecs * W;  // columns of a plain panel

  struct Row {  // pointers of one row at the current step
    const T *h_prev, *c_prev, *c_new, *saved, *dy;
    const T* dc;             // [H] gradient of c from above, null for none
    const T *dh_in, *dc_in;  // carried state gradient entering from step k+1; zeros where a segment ends
    T *dh_out, *dc_out;      // carried on to step k-1
    T *dx, *dr;              // [kColumns*Hp] gate gradients of this step
    T* dh_projected;         // [out()] gradient of the projected h
    const T *c_raw, *mask;   // c before zoneout; factors of h in the product; null without
    ZoneoutRow<T, Cell::kStates> zoneout;
  };

 public:
  BackwardRun(const RnnBackward<T>& p, const PackedBackward<T>& packed, int direction, const Plan& plan,
              const Team& team, char* scratch)
      : p_(p),
        s_(p.shape),
        w_(packed),
        d_(direction),
        plan_(plan),
        team_(team),
        Hp_(p.shape.hidden_padded()),
        ld_(kColumns * p.shape.hidden_padded() + 16) {
    Arena shared{scratch};
    take_shared(shared);
    Arena measure{nullptr};
    take_own(measure);
    bytes_ = shared.used + team.size * measure.used;
    if (!scratch) return;
    Arena own{scratch + shared.used + team.rank * measure.used};
    take_own(own);
  }
  int64_t bytes() const { return bytes_; }

  void run() {
    begin();
    const int64_t steps = all_.steps();
    const int64_t chunks = ceil_div(steps, plan_.chunk_steps);
    for (int64_t chunk = chunks - 1; chunk >= 0; --chunk) {
      if (team_.rank == 0 && team_.poll) team_.poll(team_.poll_arg);
      team_.sync();
      if (team_.stopped()) return;
      k0_ = chunk * plan_.chunk_steps;
      k1_ = k0_ + plan_.chunk_steps < steps ? k0_ + plan_.chunk_steps : steps;
      for (int64_t k = k1_ - 1; k >= k0_; --k) special_ ? step<true>(k) : step<false>(k);
      team_.sync();
      list_chunk();
      if constexpr (Cell::kNormalised) {
        undo_input_norm();
        team_.sync();
      }
      input_gradient();
      weight_gradients();
      keep_boundary();
    }
    team_.sync();
    state_gradients();
    store_weight_gradients();
  }

 private:
  void take_shared(Arena& arena) {
    const int64_t rows = plan_.chunk_steps * s_.B;
    dx_ = arena.take<T>(rows * ld_);
    dr_ = Cell::kSharedGateGrad ? dx_ : arena.take<T>(rows * ld_);
    boundary_ = arena.take<T>(s_.B * ld_);
    dh_ = arena.take<T>(s_.B * (Hp_ > s_.out() ? Hp_ : s_.out()));
    dc_ = arena.take<T>(s_.B * kExtra * Hp_);
    c0_ = arena.take<T>(s_.B * kExtra * Hp_);
    ld_projected_ = round_up(s_.P, 16);
    dh_projected_ = arena.take<T>(s_.P ? rows * ld_projected_ : 0);
    masked_ = arena.take<T>(p_.h_mask ? rows * s_.out() : 0);
    wx_ = arena.take<T>(s_.I * G * Hp_);
    dn_ = arena.take<T>(Cell::kNormalised ? s_.B * Hp_ : 0);
    wh_ = arena.take<T>((s_.out() > s_.H ? s_.out() : s_.H) * G * Hp_);
    wr_ = arena.take<T>(s_.P * Hp_);
    bx_ = arena.take<double>(kInputColumns * Hp_);
    bh_ = arena.take<double>(kColumns * Hp_);
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
  const T* reserve_at(int64_t t, int64_t b) const {
    return p_.reserve + ((d_ * s_.T + t) * s_.B + b) * p_.slots(K, Cell::kStates) * Hp_;
  }
  bool fresh(const Rows& rows, int64_t i, int64_t k) const {
    return enters_fresh(p_, reverse(), rows.batch[i], rows.length[i], k);
  }
  const T* h_before(const Rows& rows, int64_t i, int64_t k) const {
    if (fresh(rows, i, k)) return zeros_;
    return k == 0 ? h0_of(rows.batch[i]) : y_at(time(rows, i, k - 1), rows.batch[i]);
  }
  const T* mask_of(int64_t b) const { return p_.h_mask ? p_.h_mask + (d_ * s_.B + b) * s_.out() : nullptr; }
  template <bool kSpecial>
  static V times_mask(const T* mask, int64_t c, int64_t lanes, V v) {
    return kSpecial && mask ? v * load_lanes(mask + c, lanes) : v;
  }
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
        const T* dc = p_.dstates_out[1 + e];
        copy_or_zero(dc ? dc + at * s_.H : nullptr, s_.H, dc_ + (rows_.order[i] * kExtra + e) * Hp_, Hp_);
        const T* c0 = p_.states_in[1 + e];
        copy_or_zero(c0 ? c0 + at * s_.H : nullptr, s_.H, c0_ + (rows_.order[i] * kExtra + e) * Hp_, Hp_);
      }
      if (p_.dx && d_ == 0)
        for (int64_t t = rows_.length[i]; t < s_.T; ++t)
          fill_zero(p_.dx + t * p_.dx_stride_t + rows_.batch[i] * p_.dx_stride_b, s_.I);
    }
    const auto clear = [&](auto* data, int64_t n) {
      const Range own = share(n / 16, team_.rank, team_.size);
      fill_zero(data + own.begin * 16, own.size() * 16);
    };
    clear(wx_, s_.I * G * Hp_);
    clear(wh_, (s_.out() > s_.H ? s_.out() : s_.H) * G * Hp_);
    clear(wr_, s_.P * Hp_);
    clear(bx_, kInputColumns * Hp_);
    clear(bh_, kColumns * Hp_);
    clear_padding();
    team_.sync();
  }

  // Lanes that no vector store reaches (Hp beyond the last vector) take part in the products: they must be zero.
  void clear_padding() {
    const int64_t written = round_up(s_.H, W);
    if (written == Hp_ || team_.rank != 0) return;
    for (int64_t r = 0; r < plan_.chunk_steps * s_.B; ++r)
      for (int g = 0; g < kColumns; ++g) {
        fill_zero(dx_ + r * ld_ + g * Hp_ + written, Hp_ - written);
        fill_zero(dr_ + r * ld_ + g * Hp_ + written, Hp_ - written);
      }
  }

  // Pointers of the rows that run at step k; a_ = the gate gradients of step k+1 (zeros where none flow back).
  int64_t set_rows(int64_t k) {
    const int64_t width = Hp_ > s_.out() ? Hp_ : s_.out();
    int64_t running = 0;
    for (; running < rows_.count && rows_.length[running] > k; ++running) {
      const int64_t i = running, b = rows_.batch[i], o = rows_.order[i], t = time(rows_, i, k);
      const bool last = k == rows_.length[i] - 1, cut = !last && fresh(rows_, i, k + 1), first = fresh(rows_, i, k);
      Row& row = row_[i];
      row.saved = reserve_at(t, b);
      row.c_new = row.saved + K * Hp_;
      row.h_prev = h_before(rows_, i, k);
      row.c_prev = first ? zeros_ : k == 0 ? c0_ + o * kExtra * Hp_ : reserve_at(time(rows_, i, k - 1), b) + K * Hp_;
      row.dy = p_.dy ? p_.dy + t * p_.dy_stride_t + b * p_.dy_stride_b + d_ * s_.out() : zeros_;
      row.dc = p_.dc ? p_.dc + t * p_.dc_stride_t + b * p_.dc_stride_b + d_ * s_.H : nullptr;
      row.dh_out = dh_ + o * width;
      row.dc_out = dc_ + o * kExtra * Hp_;
      row.dh_in = cut || (s_.P && !last) ? zeros_ : row.dh_out;
      row.dc_in = cut ? zeros_ : row.dc_out;
      row.dx = dx_ + chunk_row(o, k) * ld_;
      row.dr = dr_ + chunk_row(o, k) * ld_;
      row.c_raw = p_.zoneout.rate[1] > 0 ? row.saved + (K + kExtra + (s_.P > 0)) * Hp_ : nullptr;
      if (zoned_) row.zoneout.at(p_.zoneout, d_, t, b);
      if ((row.mask = mask_of(b)) && mine(i))
        multiply(row.h_prev, row.mask, s_.out(), masked_ + chunk_row(o, k) * s_.out());
      row.dh_projected = dh_projected_ + chunk_row(o, k) * ld_projected_;
      a_[i] = last || cut ? zeros_ : k + 1 < k1_ ? row.dr + s_.B * ld_ : boundary_ + o * ld_;
    }
    return running;
  }

  // kSpecial: with a regulariser or gradients of c from outside; see ForwardRun::step().
  template <bool kSpecial>
  void step(int64_t k) {
    const int64_t running = set_rows(k);
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
                units_early(row, u, lanes, times_mask<kSpecial>(row.mask, u, lanes, du));
              });
    }
    if constexpr (Cell::kNormalised) undo_norms<kSpecial>(running);
    if (Cell::kProduct) step_barrier();
  }

  // a_ [running] x panels; visit(row, first column, lanes, sums) for every vector of columns below N.
  template <class Visit>
  void product(int64_t depth, int64_t running, const T* w, Range panels, int64_t k, int64_t N, Visit visit) {
    matmul_rows<T, kMaxTileVecs>(depth, running, a_, w, nullptr, panels.begin, panels.end, k & 1,
                                 [&](int64_t panel, int64_t r0, int mr, const T* sums) {
                                   for (int r = 0; r < mr; ++r)
                                     for (int j = 0; j < kMaxTileVecs; ++j) {
                                       const int64_t c = panel * kPanel + j * W;
                                       if (c >= N) break;
                                       visit(row_[r0 + r], c, N - c, V::load(sums + (r * kMaxTileVecs + j) * W));
                                     }
                                 });
  }

  // Splits the gradient of the new states between the states before and what the cell computed; c_raw is what it
  // computed.
  void undo_zoneout(const Row& row, int64_t u, V* ds_new, V* s_new, V* kept) {
    for (int q = 0; q < Cell::kStates; ++q) {
      kept[q] = V(0);
      if (p_.zoneout.rate[q] == 0) continue;
      kept[q] = row.zoneout.blend(p_.zoneout, q, u, ds_new[q], V(0));
      ds_new[q] = ds_new[q] - kept[q];
      if (q) s_new[q] = V::load(row.c_raw + (q - 1) * Hp_ + u);
    }
  }

  // Gradients of a normalised step, after units() of all units: of c where there is one, then of R h.
  template <bool kSpecial>
  void undo_norms(int64_t running) {
    const Range own{hidden_.begin * kPanel, hidden_.end * kPanel < s_.H ? hidden_.end * kPanel : s_.H};
    const T* gains = w_.vectors;
    if constexpr (kExtra == 1) {
      step_barrier();
      for (int64_t i = 0; i < running; ++i) {
        const Row& row = row_[i];
        const T *dn = dn_of(i), *n = row.saved + kNormC * Hp_;
        const auto means =
            norm_sums<1, T>(s_.H, [&](int, int64_t u) { return std::make_pair(V::load(dn + u), V::load(n + u)); });
        for (int64_t u = own.begin; u < own.end; u += W) {
          const V rstd = V::load(row.saved + (kNormC + 1) * Hp_ + u);
          gates_from_c<kSpecial>(row, u, norm_backward(V::load(dn + u), V::load(n + u), rstd, means, s_.H - u));
        }
      }
    }
    step_barrier();
    for (int64_t i = 0; i < running; ++i) {
      const Row& row = row_[i];
      const T *da = row.dr + (G + Cell::kVectors) * Hp_, *n = row.saved + kNorm * Hp_;
      const auto means = norm_sums<G, T>(s_.H, [&](int g, int64_t u) {
        return std::make_pair(V::load(da + g * Hp_ + u) * V::load(gains + g * Hp_ + u), V::load(n + g * Hp_ + u));
      });
      for (int64_t u = own.begin; u < own.end; u += W) {
        const V rstd = V::load(row.saved + (kNorm + G) * Hp_ + u);
        for (int g = 0; g < G; ++g) {
          const V d = V::load(da + g * Hp_ + u), at = V::load(n + g * Hp_ + u);
          (d * at).store(row.dr + (G + g) * Hp_ + u);
          norm_backward(d * V::load(gains + g * Hp_ + u), at, rstd, means, s_.H - u).store(row.dr + g * Hp_ + u);
        }
      }
    }
  }
  // Gate gradients of the chunk, of x normalised -> of W x. The columns after the gates get what the gains and the bias
  // need.
  void undo_input_norm() {
    const T* gains = w_.vectors + kGainX * Hp_;
    for (int64_t r = team_.rank; r < n_; r += team_.size) {
      T* dx = const_cast<T*>(dx_list_[r]);
      const T* n = kept_list_[r] + kNormX * Hp_;
      const auto means = norm_sums<G, T>(s_.H, [&](int g, int64_t u) {
        return std::make_pair(V::load(dx + g * Hp_ + u) * V::load(gains + g * Hp_ + u), V::load(n + g * Hp_ + u));
      });
      for (int g = 0; g < G; ++g)
        for (int64_t u = 0; u < s_.H; u += W) {
          const V d = V::load(dx + g * Hp_ + u), at = V::load(n + g * Hp_ + u), rstd = V::load(n + G * Hp_ + u);
          (d * at).store(dx + (G + g) * Hp_ + u);
          d.store(dx + (2 * G + g) * Hp_ + u);
          norm_backward(d * V::load(gains + g * Hp_ + u), at, rstd, means, s_.H - u).store(dx + g * Hp_ + u);
        }
    }
  }
  T* dn_of(int64_t i) const { return dn_ + rows_.order[i] * Hp_; }

  // The gradients of the output gate and of LN(c), and of its gain and shift.
  void output_gradient(const Row& row, int64_t i, int64_t u, V dh) {
    const V o = V::load(row.saved + Cell::kOutputGate * Hp_ + u), n = V::load(row.saved + kNormC * Hp_ + u);
    const V gain = V::load(w_.vectors + G * Hp_ + u), shift = V::load(w_.vectors + (G + 1) * Hp_ + u);
    V d;
    Cell::backward_output(o, n * gain + shift, dh, &d).store(row.dx + Cell::kOutputGate * Hp_ + u);
    (d * n).store(row.dr + (G + G) * Hp_ + u);
    d.store(row.dr + (G + G + 1) * Hp_ + u);
    (d * gain).store(dn_of(i) + u);
  }
  // The other gates, from the gradient of c.
  template <bool kSpecial>
  void gates_from_c(const Row& row, int64_t u, V dc) {
    V saved[K], s[2] = {V(0), V::load(row.c_prev + u)}, s_new[2] = {V(0), V::load(row.c_new + u)}, ds[2], dx[G], dr[G];
    for (int q = 0; q < kNorm; ++q) saved[q] = V::load(row.saved + q * Hp_ + u);
    V ds_new[2] = {V(0), dc + V::load(row.dc_in + u)};
    if (kSpecial && row.dc) ds_new[1] = ds_new[1] + load_lanes(row.dc + u, s_.H - u);
    cell_backward<Cell>(saved, s, static_cast<const V*>(nullptr), s_new, ds_new, dx, dr, ds);
    for (int g = 0; g < G; ++g) {
      if (g != Cell::kOutputGate) dx[g].store(row.dx + g * Hp_ + u);
      V::load(row.dx + g * Hp_ + u).store(row.dr + (G + Cell::kVectors + g) * Hp_ + u);
    }
    if (!s_.P) V(0).store(row.dh_out + u);
    ds[1].store(row.dc_out + u);
  }

  template <bool kSpecial>
  void units(const Row& row, int64_t u, int64_t lanes, V dh) {
    if constexpr (Cell::kNormalised && kExtra == 1) return output_gradient(row, &row - row_, u, dh);
    V saved[K], s[Cell::kStates], s_new[Cell::kStates], ds_new[Cell::kStates], ds[Cell::kStates], dx[G], dr[kColumns];
    V vectors[kVectorRoom<Cell>];
    for (int q = 0; q < Cell::kVectors; ++q) vectors[q] = V::load(w_.vectors + q * Hp_ + u);
    for (int q = 0; q < K; ++q) saved[q] = V::load(row.saved + q * Hp_ + u);
    s[0] = Cell::kReadsH ? load_lanes(row.h_prev + u, lanes) : V(0);
    s_new[0] = V(0);
    ds_new[0] = dh;
    for (int g = 0; g < G; ++g) dx[g] = dr[g] = V(0);  // gates left to backward_early()
    for (int e = 0; e < kExtra; ++e) {
      s[1 + e] = V::load(row.c_prev + e * Hp_ + u);
      s_new[1 + e] = V::load(row.c_new + e * Hp_ + u);
      ds_new[1 + e] = V::load(row.dc_in + e * Hp_ + u);
    }
    if (kSpecial && kExtra && row.dc) ds_new[kExtra] = ds_new[kExtra] + load_lanes(row.dc + u, lanes);
    V kept[Cell::kStates] = {};  // by zoneout: what goes straight to the state before
    if (kSpecial && zoned_) undo_zoneout(row, u, ds_new, s_new, kept);
    cell_backward<Cell>(saved, s, vectors, s_new, ds_new, dx, dr, ds);
    for (int q = 0; kSpecial && zoned_ && q < Cell::kStates; ++q) ds[q] = ds[q] + kept[q];
    for (int g = 0; g < G; ++g) {
      dx[g].store(row.dx + g * Hp_ + u);
      if (Cell::kNormalised)
        dr[g].store(row.dr + (G + Cell::kVectors + g) * Hp_ + u);
      else if (!Cell::kSharedGateGrad)
        dr[g].store(row.dr + g * Hp_ + u);
    }
    for (int g = G; kTakesVectors<Cell> && g < kColumns; ++g) dr[g].store(row.dr + g * Hp_ + u);
    if (!s_.P) ds[0].store(row.dh_out + u);
    for (int e = 0; e < kExtra; ++e) ds[1 + e].store(row.dc_out + e * Hp_ + u);
  }

  void units_early(const Row& row, int64_t u, int64_t lanes, V du) {
    if constexpr (Cell::kLateGates != 0) {
      static_assert(Cell::kSharedGateGrad, "two-stage cells keep one row of gate gradients");
      V saved[K], s[Cell::kStates], ds[Cell::kStates], dx[G], dr[G];
      for (int q = 0; q < K; ++q) saved[q] = V::load(row.saved + q * Hp_ + u);
      for (int g = 0; g < G; ++g) dx[g] = V::load(row.dx + g * Hp_ + u);
      s[0] = load_lanes(row.h_prev + u, lanes);
      ds[0] = V::load(row.dh_out + u);
      Cell::backward_early(saved, s, du, dx, dr, ds);
      for (int g = 0; g < S::gates(0); ++g) dx[g].store(row.dx + g * Hp_ + u);
      ds[0].store(row.dh_out + u);
    }
  }

  // The rows of the chunk, for the long products: all rows that run at k0_, then at k0_ + 1, ...
  void list_chunk() {
    n_ = 0;
    for (int64_t k = k0_; k < k1_; ++k)
      for (int64_t i = 0; i < all_.count && all_.length[i] > k; ++i, ++n_) {
        const int64_t b = all_.batch[i], t = time(all_, i, k), at = chunk_row(all_.order[i], k);
        const T* saved = reserve_at(t, b);
        x_list_[n_] = p_.x + t * p_.x_stride_t + b * p_.x_stride_b;
        h_list_[n_] = p_.h_mask ? masked_ + at * s_.out() : h_before(all_, i, k);
        dx_list_[n_] = dx_ + at * ld_;
        dr_list_[n_] = dr_ + at * ld_;
        kept_list_[n_] = saved;
        u_list_[n_] = saved + (K - 1) * Hp_;
        m_list_[n_] = saved + (K + kExtra) * Hp_;
        dp_list_[n_] = dh_projected_ + at * ld_projected_;
        dx_out_[n_] = p_.dx + t * p_.dx_stride_t + b * p_.dx_stride_b;
      }
  }

  void input_gradient() {
    if (!p_.dx) return;
    const Range own = share(n_, team_.rank, team_.size);
    matmul_rows<T, kMaxTileVecs>(G * Hp_, own.size(), dx_list_ + own.begin, w_.wx_t, nullptr, 0, ceil_div(s_.I, kPanel),
                                 false, [&](int64_t panel, int64_t r0, int mr, const T* sums) {
                                   for (int r = 0; r < mr; ++r)
                                     for (int j = 0; j < kMaxTileVecs; ++j) {
                                       const int64_t c = panel * kPanel + j * W;
                                       if (c >= s_.I) break;
                                       T* out = dx_out_[own.begin + r0 + r] + c;
                                       V v = V::load(sums + (r * kMaxTileVecs + j) * W);
                                       if (d_ == 1)
                                         v = v + load_lanes(out, s_.I - c);  // the forward direction wrote first
                                       store_lanes(v, out, s_.I - c);
                                     }
                                 });
  }

  // Vectors [first, last) of G*Hp columns, shared by whole panels; odd products share in the opposite order for
  // balance.
  Range own_vectors(int64_t first, int64_t last, bool mirrored) const {
    const int64_t panels = ceil_div(last - first, kMaxTileVecs);
    const Range own = share(panels, mirrored ? team_.size - 1 - team_.rank : team_.rank, team_.size);
    const int64_t end = first + own.end * kMaxTileVecs;
    return {first + own.begin * kMaxTileVecs, end < last ? end : last};
  }

  void weight_gradients() {
    const RnnGrads<T>& g = p_.grads[d_];
    const int64_t all = G * Hp_ / W, early = S::gates(0) * Hp_ / W;
    // Rows per inner sum: about the square root of their number keeps rounding error lowest.
    const int64_t block = s_.T * s_.B > 4096 ? 128 : 64;
    const auto outer = [&](int64_t M, const T* const* a, const T* const* b, Range v, T* out, int64_t ld) {
      matmul_outer<T>(n_, block, M, a, b, v.begin, v.end, out, ld);
    };
    if (g.w_ih) outer(s_.I, x_list_, dx_list_, own_vectors(0, all, false), wx_, G * Hp_);
    if (g.w_hh && Cell::kProduct) {
      outer(s_.out(), h_list_, dr_list_, own_vectors(0, early, true), wh_, G * Hp_);
      if (Cell::kLateGates) outer(s_.H, u_list_, dr_list_, own_vectors(early, all, false), wh_, G * Hp_);
    }
    if (g.w_hr) outer(s_.P, dp_list_, m_list_, own_vectors(0, Hp_ / W, false), wr_, Hp_);
    const Range own = share(all, team_.rank, team_.size),
                own_x = share(kInputColumns * Hp_ / W, team_.rank, team_.size);
    if (g.b_ih || (g.b_hh && (Cell::kSharedGateGrad || Cell::kNormalised))) sum_rows(dx_list_, own_x, bx_);
    if (g.b_hh && !Cell::kSharedGateGrad && !Cell::kNormalised) sum_rows(dr_list_, own, bh_);
    if (g.b_hh && Cell::kVectors) {
      const Range vectors = share((kColumns - G) * Hp_ / W, team_.rank, team_.size);
      sum_rows(dr_list_, {all + vectors.begin, all + vectors.end}, bh_);
    }
  }
  // Inner sums of 16 rows in T, the rest in double: a bias gradient is one long sum over time.
  void sum_rows(const T* const* rows, Range vectors, double* out) {
    for (int64_t v = vectors.begin; v < vectors.end; ++v)
      for (int64_t k0 = 0; k0 < n_; k0 += 16) {
        V sum(0);
        for (int64_t k = k0; k < n_ && k < k0 + 16; ++k) sum = sum + V::load(rows[k] + v * W);
        for (int lane = 0; lane < W; ++lane) out[v * W + lane] += double(sum.v[lane]);
      }
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
      const bool empty = rows_.length[i] == 0, cut = !empty && fresh(rows_, i, 0);
      Row& row = row_[i];
      a_[i] = empty || cut ? zeros_ : dr_ + o * ld_;
      row.dh_in = cut || (s_.P && !empty) ? zeros_ : dh_ + o * width;
      row.dh_out = p_.dstates_in[0] + at * s_.out();
      row.mask = mask_of(rows_.batch[i]);
      if (mine(i))
        for (int e = 0; e < kExtra; ++e)
          if (p_.dstates_in[1 + e])
            copy_or_zero(cut ? nullptr : dc_ + (o * kExtra + e) * Hp_, s_.H, p_.dstates_in[1 + e] + at * s_.H, s_.H);
    }
    if (!p_.dstates_in[0]) return;
    product(serial_depth<Cell>(s_), rows_.count, w_.wh_t[0], output_, 0, s_.out(),
            [&](const Row& row, int64_t c, int64_t lanes, V sum) {
              store_lanes(times_mask<true>(row.mask, c, lanes, sum) + load_lanes(row.dh_in + c, lanes), row.dh_out + c,
                          lanes);
            });
  }

  // Sums are kept transposed and padded, [in][G*Hp]; the caller's layout is [G*H][in].
  void store_weight_gradients() {
    const RnnGrads<T>& g = p_.grads[d_];
    if (g.w_ih) store_transposed(wx_, s_.I, g.w_ih);
    if (g.w_hh && Cell::kProduct) store_transposed(wh_, s_.out(), g.w_hh);
    const Range own = share(s_.P, team_.rank, team_.size);
    if (g.w_hr)
      for (int64_t r = own.begin; r < own.end; ++r) copy_or_zero(wr_ + r * Hp_, s_.H, g.w_hr + r * s_.H, s_.H);
    if (team_.rank != 0) return;
    for (int gate = 0; gate < G; ++gate) {
      const double* bh = Cell::kNormalised ? bh_ + (G + Cell::kVectors) * Hp_ : Cell::kSharedGateGrad ? bx_ : bh_;
      for (int64_t u = 0; u < s_.H; ++u) {
        if (g.b_ih) g.b_ih[gate * s_.H + u] = T(bx_[(kInputColumns - G + gate) * Hp_ + u]);
        if (g.b_hh) g.b_hh[gate * s_.H + u] = T(bh[gate * Hp_ + u]);
      }
    }
    for (int column = G; g.b_hh && column < G + Cell::kVectors; ++column)
      for (int64_t u = 0; u < s_.H; ++u) {
        const bool of_x = Cell::kNormalised && column >= G + kGainX;
        g.b_hh[column * s_.H + u] = T(of_x ? bx_[(column - kGainX) * Hp_ + u] : bh_[column * Hp_ + u]);
      }
  }
  void store_transposed(const T* sums, int64_t in, T* out) {
    const int64_t blocks = ceil_div(s_.H, W);
    const Range own = share(G * blocks, team_.rank, team_.size);
    for (int64_t block = own.begin; block < own.end; ++block) {
      const int64_t gate = block / blocks, u0 = block % blocks * W;
      for (int64_t i = 0; i < in; i += W) {
        V row[W];
#pragma GCC unroll 16
        for (int64_t l = 0; l < W; ++l)
          row[l] = i + l < in ? V::load(sums + (i + l) * G * Hp_ + gate * Hp_ + u0) : V(0);
        transpose(row);
        for (int64_t l = 0; l < W && u0 + l < s_.H; ++l)
          store_lanes(row[l], out + (gate * s_.H + u0 + l) * in + i, in - i);
      }
    }
  }

  const RnnBackward<T>& p_;
  const RnnShape& s_;
  const PackedBackward<T>& w_;
  const int d_;
  const Plan plan_;
  const Team team_;
  const int64_t Hp_, ld_;  // ld_: row stride of gate gradients; the extra 16 keeps rows out of one cache set
  const bool zoned_ = p_.zoneout.any(), special_ = zoned_ || p_.h_mask || p_.dc;
  int64_t bytes_, ld_projected_, k0_, k1_, n_;
  Rows all_, rows_;
  Row* row_;
  const T** a_;
  T *dx_, *dr_, *boundary_, *dh_projected_, *masked_;  // gate gradients of the chunk [steps][B][ld_]
  T *dh_, *dc_, *c0_, *zeros_;
  T *wx_, *wh_, *wr_;  // sums of the weight gradients
  T* dn_;              // of a normalised cell with c: gradients of LN(c) times its gain
  double *bx_, *bh_;
  const T **x_list_, **h_list_, **kept_list_, **u_list_, **dx_list_, **dr_list_, **m_list_, **dp_list_;
  T** dx_out_;
  Range hidden_, output_;  // panels of the serial products
};

template <class Cell, class T>
int64_t backward_scratch(const RnnBackward<T>& p, const Plan& plan) {
  Team team;
  team.size = plan.threads;
  return BackwardRun<Cell, T>(p, PackedBackward<T>{}, 0, plan, team, nullptr).bytes();
}

// The directions run one after the other, each with all threads: both add to dx.
template <class Cell, class T>
void rnn_backward(const BackwardJob<T>& job) {
  for (int d = 0; d < job.p->shape.D; ++d) {
    BackwardRun<Cell, T>(*job.p, job.packed[d], d, job.plan, job.team, job.scratch).run();
    job.team.sync();
  }
}
}  // namespace
}  // namespace fastrnn
