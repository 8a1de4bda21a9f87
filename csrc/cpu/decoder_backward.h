#pragma once
// The gradients of a whole teacher-forced decode. The loop from the last step to the first holds only what a step needs
// from the one after it: the gate gradients through W_feed and W_hh, the attention, the cell. What the loop leaves, the
// gradients of every weight, are long products over all steps and rows, divided by columns. Each element is summed by
// one thread in one order, so results do not depend on the number of threads.
#include "decoder_forward.h"

namespace fastrnn {
namespace {
// The transposed weights, packed for products with gradients.
template <class T>
struct PackedDecoderBackward {
  const T *feed, *h, *query, *context, *hidden;
};

template <class Cell, class T>
PackedDecoderBackward<T> pack_decoder_backward(const DecoderInput<T>& p, Arena& arena, const Team& team) {
  const DecoderShape& s = p.shape;
  const int64_t Hw = round_up(s.H, Vec<T>::kWidth);  // units of a row of gate gradients
  int turn = 0;
  const auto put = [&](const T* w, int64_t K, int64_t N, auto row) {
    T* into = arena.take<T>(w ? packed_columns_size<T>(K, N) : 0);
    if (turn++ % team.size == team.rank && arena.base && w) pack_columns<T>(K, N, row, into);
    return into;
  };
  // Row k is gate k / Hw, unit k % Hw.
  const auto gates = [&](const T* w, int64_t ld, int64_t N) {
    return put(w, Cell::kGates * Hw, N,
               [=](int64_t k) { return k % Hw < s.H ? w + (k / Hw * s.H + k % Hw) * ld : nullptr; });
  };
  const auto plain = [&](const T* w, int64_t ld, int64_t K, int64_t N) {
    return put(w, K, N, [=](int64_t k) { return w + k * ld; });
  };
  PackedDecoderBackward<T> packed;
  packed.feed = gates(p.w_feed, p.ld_feed, s.F);
  packed.h = gates(p.w_hh, s.H, s.H);
  packed.query = plain(p.w_query, s.H, s.A, s.H);
  packed.context = plain(p.w_context, p.ld_context, s.H, s.M);
  packed.hidden = plain(p.w_hidden, p.ld_hidden, s.H, s.H);
  return packed;
}

template <class Cell, class T>
class DecoderBackwardRun {
  using V = Vec<T>;
  static constexpr int W = V::kWidth, G = Cell::kGates, K = Cell::kSaved, kExtra = Cell::kStates - 1;
  static constexpr int kColumns = kMaxTileVecs * W;
  static constexpr bool kTwo = !Cell::kSharedGateGrad;

  // One factor of a sum of products: rows a [n] of `depth` numbers, and a packed matrix.
  struct Part {
    const T* const* a;
    int64_t depth;
    const T* w;
  };

 public:
  using Params = DecoderBackward<T>;
  static PackedDecoderBackward<T> pack(const Params& p, Arena& arena, const Team& team) {
    return pack_decoder_backward<Cell, T>(p, arena, team);
  }
  DecoderBackwardRun(const Params& p, const PackedDecoderBackward<T>& packed, const Team& team, char* scratch)
      : p_(p),
        s_(p.shape),
        w_(packed),
        team_(team),
        own_(share(p.shape.B, team.rank, team.size)),
        at_(p.shape, K, Cell::kStates, p.v != nullptr, p.bahdanau),
        attention_(attention_of<T>(p)),
        Hw_(round_up(p.shape.H, W)),
        ld_(G * Hw_ + 16),
        ld_out_(Hw_ + 16),
        Fw_(p.bahdanau  ? at_.Mp
            : p.shape.F ? at_.Hp
                        : 0),
        Aw_(attention_.key_width()),
        Mw_(attention_.memory_width()),
        ld_query_(Aw_ + 16) {
    bytes_ = lay_out(scratch, team, [&](Arena& a) { take_shared(a); }, [&](Arena& a) { take_own(a); });
  }
  int64_t bytes() const { return bytes_; }

  void run() {
    begin();
    for (int64_t t = s_.T - 1; t >= 0 && own_.size() && !team_.poll_stop(); --t) {
      if (p_.bahdanau) {
        hidden_gradient(t);
        context_gradient(t);
        attend(t);
      } else {
        output_gradient(t);
        context_gradient(t);
        attend(t);
        hidden_gradient(t);
      }
    }
    finish_rows();
    team_.sync();
    if (team_.stopped()) return;
    weight_gradients();
  }

 private:
  void take_shared(Arena& arena) {
    const int64_t n = s_.B * s_.T;
    attention_.take_shared(arena);
    dx_ = arena.take<T>(n * ld_);
    dr_ = kTwo ? arena.take<T>(n * ld_) : dx_;
    dout_ = arena.take<T>(p_.bahdanau ? 0 : n * ld_out_);
    dquery_ = arena.take<T>(n * ld_query_);
    dv_ = arena.take<T>(s_.B * Aw_);
    h0_ = arena.take<T>(s_.B * at_.Hp);
    c0_ = arena.take<T>(s_.B * at_.Hp);
    feed0_ = arena.take<T>(s_.B * Fw_);
  }
  void take_own(Arena& arena) {
    const int64_t most = ceil_div(s_.B, team_.size);
    attention_.take_own(arena);
    for (const T**& list : lists_) list = arena.take<const T*>(most);
    dh_ = arena.take<T>(most * Hw_);
    dc_ = arena.take<T>(most * Hw_);
    dcontext_ = arena.take<T>(most * Mw_);
    dkeys_ = arena.take<T>(most * s_.Tk * Aw_);
    dmemory_ = arena.take<T>(most * s_.Tk * Mw_);
    zeros_ = arena.take<T>(zeros_size());
    left_ = arena.take<const T*>(s_.B * s_.T);
    right_ = arena.take<const T*>(s_.B * s_.T);
    const int64_t widest = ceil_div(s_.H > s_.M ? s_.H : s_.M, W), rows = s_.A > G * Hw_ ? s_.A : G * Hw_;
    sums_ = arena.take<T>(rows * ceil_div(widest, team_.size) * W);
  }
  int64_t zeros_size() const { return G * Hw_ > Aw_ ? G * Hw_ : Aw_; }

  // Scratch and arguments of row i of this member at step t.
  int64_t at(int64_t i, int64_t t) const { return (own_.begin + i) * s_.T + t; }
  const T* record(int64_t i, int64_t t) const { return p_.reserve + at(i, t) * at_.size; }
  const T* h_before(int64_t i, int64_t t) const {
    return t ? record(i, t - 1) + at_.h : h0_ + (own_.begin + i) * at_.Hp;
  }
  const T* c_before(int64_t i, int64_t t) const {
    return t ? record(i, t - 1) + at_.c : c0_ + (own_.begin + i) * at_.Hp;
  }
  const T* dx_of(int64_t i, int64_t t) const { return t < s_.T ? dx_ + at(i, t) * ld_ : zeros_; }
  const T* dr_of(int64_t i, int64_t t) const { return t < s_.T ? dr_ + at(i, t) * ld_ : zeros_; }
  const T* dquery_of(int64_t i, int64_t t) const { return t < s_.T ? dquery_ + at(i, t) * ld_query_ : zeros_; }
  V given(const T* gradient, int64_t row, int64_t u) const {
    return gradient ? load_lanes(gradient + row * s_.H + u, s_.H - u) : V(0);
  }

  void begin() {
    attention_.begin();
    fill_zero(zeros_, zeros_size());
    for (int64_t i = 0; i < own_.size(); ++i) {
      const int64_t b = own_.begin + i;
      attention_.prepare(b);
      copy_or_zero(p_.h0 + b * s_.H, s_.H, h0_ + b * at_.Hp, at_.Hp);
      copy_or_zero(p_.c0 ? p_.c0 + b * s_.H : nullptr, p_.c0 ? s_.H : 0, c0_ + b * at_.Hp, at_.Hp);
      if (p_.feed0) copy_or_zero(p_.feed0 + b * s_.F, s_.F, feed0_ + b * Fw_, Fw_);
      fill_zero(dv_ + b * Aw_, Aw_);
      copy_or_zero(p_.dh ? p_.dh + b * s_.H : nullptr, p_.dh ? s_.H : 0, dh_ + i * Hw_, Hw_);
      copy_or_zero(p_.dc ? p_.dc + b * s_.H : nullptr, p_.dc ? s_.H : 0, dc_ + i * Hw_, Hw_);
    }
    fill_zero(dkeys_, own_.size() * s_.Tk * Aw_);
    fill_zero(dmemory_, own_.size() * s_.Tk * Mw_);
  }

  // visit(row, column, sum) for every vector of columns below N of the sum of the parts' products.
  template <int kParts, class Visit>
  void product(const Part (&parts)[kParts], int64_t N, Visit visit) const {
    alignas(64) T sums[kParts][kMaxTileRows * kColumns];
    for (int64_t panel = 0; panel * kColumns < N; ++panel)
      for_each_row_tile<TileShape<T>::max_rows(kMaxTileVecs)>(own_.size(), [&](int64_t first, int mr) {
        for (int q = 0; q < kParts; ++q)
          if (parts[q].w)
            tile_rows<T, kMaxTileVecs>(mr, parts[q].depth, parts[q].a + first,
                                       parts[q].w + panel * parts[q].depth * kColumns, nullptr, sums[q]);
        for (int i = 0; i < mr; ++i)
          for (int64_t j = 0, c = panel * kColumns; j < kColumns && c + j < N; j += W) {
            V sum(0);
            for (int q = 0; q < kParts; ++q)
              if (parts[q].w) sum = sum + V::load(sums[q] + i * kColumns + j);
            visit(first + i, c + j, sum);
          }
      });
  }
  // This member's rows of something, as a list.
  template <class Of>
  const T* const* list(int which, Of of) const {
    for (int64_t i = 0; i < own_.size(); ++i) lists_[which][i] = of(i);
    return lists_[which];
  }

  // Luong's order: of W_c context + W_o h, from what is asked of h~ and what the next step does with it.
  void output_gradient(int64_t t) {
    const auto unit = [&](int64_t i, int64_t u, V d) {
      const V out = V::load(record(i, t) + at_.out + u);
      ((d + given(p_.doutputs, at(i, t), u)) * d_tanh(out)).store(dout_ + at(i, t) * ld_out_ + u);
    };
    if (s_.F && t + 1 < s_.T)
      return product<1>({{list(0, [&](int64_t i) { return dx_of(i, t + 1); }), G * Hw_, w_.feed}}, s_.H, unit);
    for (int64_t i = 0; i < own_.size(); ++i)
      for (int64_t u = 0; u < s_.H; u += W) unit(i, u, V(0));
  }
  void context_gradient(int64_t t) {
    const auto store = [&](int64_t i, int64_t c, V d) { d.store(dcontext_ + i * Mw_ + c); };
    if (p_.bahdanau)
      product<1>({{list(0, [&](int64_t i) { return dx_of(i, t); }), G * Hw_, w_.feed}}, s_.M, store);
    else
      product<1>({{list(0, [&](int64_t i) { return dout_ + at(i, t) * ld_out_; }), s_.H, w_.context}}, s_.M, store);
  }
  void attend(int64_t t) {
    for (int64_t i = 0; i < own_.size(); ++i) {
      const int64_t b = own_.begin + i, bt = at(i, t);
      const T* h = p_.bahdanau ? h_before(i, t) : record(i, t) + at_.h;
      attention_.backward(b, p_.v ? record(i, t) + at_.query : h, p_.weights + bt * s_.Tk, dcontext_ + i * Mw_,
                          p_.dweights ? p_.dweights + bt * s_.Tk : nullptr, dquery_ + bt * ld_query_,
                          dkeys_ + i * s_.Tk * Aw_, dmemory_ + i * s_.Tk * Mw_, dv_ + b * Aw_);
    }
  }
  // Of the gates, from h: what this step's output and query ask of it, and the step after.
  void hidden_gradient(int64_t t) {
    const int64_t asked = p_.bahdanau ? t + 1 : t;  // the step whose query this h is
    const Part parts[] = {{list(0, [&](int64_t i) { return dr_of(i, t + 1); }), G * Hw_, w_.h},
                          {list(1, [&](int64_t i) { return dquery_of(i, asked); }), s_.A, p_.v ? w_.query : nullptr},
                          {list(2, [&](int64_t i) { return dout_ + (p_.bahdanau ? 0 : at(i, t)) * ld_out_; }), s_.H,
                           p_.bahdanau ? nullptr : w_.hidden}};
    product(parts, s_.H, [&](int64_t i, int64_t u, V d) {
      if (!p_.v) d = d + V::load(dquery_of(i, asked) + u);
      if (p_.bahdanau) d = d + given(p_.doutputs, at(i, t), u);
      units(i, t, u, d + V::load(dh_ + i * Hw_ + u));
    });
  }
  void units(int64_t i, int64_t t, int64_t u, V dh) {
    V saved[K], s[Cell::kStates], s_new[Cell::kStates], ds_new[Cell::kStates], ds[Cell::kStates], dx[G], dr[G];
    const T* kept = record(i, t);
    for (int q = 0; q < K; ++q) saved[q] = V::load(kept + q * at_.Hp + u);
    s[0] = Cell::kReadsH ? V::load(h_before(i, t) + u) : V(0);
    s_new[0] = V(0);
    ds_new[0] = dh;
    for (int e = 0; e < kExtra; ++e) {
      s[1 + e] = V::load(c_before(i, t) + u);
      s_new[1 + e] = V::load(kept + at_.c + u);
      ds_new[1 + e] = V::load(dc_ + i * Hw_ + u);
    }
    Cell::backward(saved, s, s_new, ds_new, dx, dr, ds);
    const int64_t row = at(i, t);
    for (int g = 0; g < G; ++g) {
      dx[g].store(dx_ + row * ld_ + g * Hw_ + u);
      if (kTwo) dr[g].store(dr_ + row * ld_ + g * Hw_ + u);
      store_lanes(dx[g], p_.dgates + (row * G + g) * s_.H + u, s_.H - u);
    }
    ds[0].store(dh_ + i * Hw_ + u);
    for (int e = 0; e < kExtra; ++e) ds[1 + e].store(dc_ + i * Hw_ + u);
  }

  // Gradients of the initial states, keys and memory.
  void finish_rows() {
    const int64_t n = own_.size();
    const Part parts[] = {
        {list(0, [&](int64_t i) { return dr_of(i, 0); }), G * Hw_, w_.h},
        {list(1, [&](int64_t i) { return dquery_of(i, 0); }), s_.A, p_.bahdanau && p_.v ? w_.query : nullptr}};
    product(parts, s_.H, [&](int64_t i, int64_t u, V d) {
      if (p_.bahdanau && !p_.v) d = d + V::load(dquery_of(i, 0) + u);
      store_lanes(d + V::load(dh_ + i * Hw_ + u), p_.dh0 + (own_.begin + i) * s_.H + u, s_.H - u);
    });
    if (p_.dfeed0)
      product<1>({{list(0, [&](int64_t i) { return dx_of(i, 0); }), G * Hw_, w_.feed}}, s_.F,
                 [&](int64_t i, int64_t u, V d) { store_lanes(d, p_.dfeed0 + (own_.begin + i) * s_.F + u, s_.F - u); });
    for (int64_t i = 0; i < n; ++i) {
      const int64_t b = own_.begin + i;
      if (p_.dc0) copy_or_zero(dc_ + i * Hw_, s_.H, p_.dc0 + b * s_.H, s_.H);
      attention_.finish_keys(b, dkeys_ + i * s_.Tk * Aw_, p_.dkeys + b * s_.Tk * s_.A);
      for (int64_t k = 0; k < s_.Tk; ++k)
        copy_or_zero(dmemory_ + (i * s_.Tk + k) * Mw_, s_.M, p_.dmemory + (b * s_.Tk + k) * s_.M, s_.M);
    }
  }

  // ---- after the loop, by columns of the results

  void weight_gradients() {
    const auto dx = [&](int64_t b, int64_t t) { return dx_ + (b * s_.T + t) * ld_; };
    const auto dr = [&](int64_t b, int64_t t) { return dr_ + (b * s_.T + t) * ld_; };
    const auto kept = [&](int64_t b, int64_t t) { return p_.reserve + (b * s_.T + t) * at_.size; };
    const auto h = [&](int64_t b, int64_t t) { return kept(b, t) + at_.h; };
    const auto h_old = [&](int64_t b, int64_t t) { return t ? h(b, t - 1) : h0_ + b * at_.Hp; };
    const auto context = [&](int64_t b, int64_t t) { return kept(b, t) + at_.context; };
    const auto dout = [&](int64_t b, int64_t t) { return dout_ + (b * s_.T + t) * ld_out_; };
    outer(dr, h_old, G, s_.H, p_.dw_hh);
    if (p_.bahdanau) {
      outer(dx, context, G, s_.M, p_.dw_feed);
    } else {
      const auto feed = [&](int64_t b, int64_t t) { return t ? kept(b, t - 1) + at_.out : feed0_ + b * Fw_; };
      if (s_.F) outer(dx, feed, G, s_.F, p_.dw_feed);
      outer(dout, context, 1, s_.M, p_.dw_context);
      outer(dout, h, 1, s_.H, p_.dw_hidden);
    }
    if (p_.v) {
      const auto dquery = [&](int64_t b, int64_t t) { return dquery_ + (b * s_.T + t) * ld_query_; };
      p_.bahdanau ? outer(dquery, h_old, 0, s_.H, p_.dw_query) : outer(dquery, h, 0, s_.H, p_.dw_query);
    }
    if (p_.db_hh) bias_gradient();
    for (int64_t d = team_.rank; p_.v && d < s_.A; d += team_.size) {
      T sum = 0;
      for (int64_t b = 0; b < s_.B; ++b) sum += dv_[b * Aw_ + d];
      p_.dv[d] = T(-2) * sum;
    }
  }
  // out [rows of a, N] = sum over all steps and rows of the batch of a^T b. A row of a is `gates` times H units, each
  // padded to Hw_; or, with gates = 0, A numbers.
  template <class A, class B>
  void outer(A a, B b, int gates, int64_t N, T* out) {
    const Range own = share(ceil_div(N, W), team_.rank, team_.size);
    const OuterSums<T> sums{sums_, gates ? gates * Hw_ : s_.A, own.begin, own.end};
    int64_t n = 0;
    for (int64_t i = 0; i < s_.B; ++i)
      for (int64_t t = 0; t < s_.T; ++t, ++n) {
        left_[n] = a(i, t);
        right_[n] = b(i, t);
      }
    matmul_outer(n, 64, left_, right_, own.begin, own.end, false, sums);
    const int64_t units = gates ? s_.H : s_.A, padded = gates ? Hw_ : s_.A;
    for (int64_t m = 0; m < (gates ? gates : 1) * units; ++m)
      for (int64_t v = own.begin; v < own.end; ++v)
        store_lanes(V::load(sums.at(m / units * padded + m % units, v)), out + m * N + v * W, N - v * W);
  }
  void bias_gradient() {
    for (int64_t u = team_.rank * W; u < s_.H; u += team_.size * W)
      for (int g = 0; g < G; ++g) {
        V total(0);
        for (int64_t b = 0; b < s_.B; ++b) {
          V sum(0);
          for (int64_t t = 0; t < s_.T; ++t) sum = sum + V::load(dr_ + (b * s_.T + t) * ld_ + g * Hw_ + u);
          total = total + sum;
        }
        store_lanes(total, p_.db_hh + g * s_.H + u, s_.H - u);
      }
  }

  const Params& p_;
  const DecoderShape& s_;
  const PackedDecoderBackward<T> w_;
  const Team& team_;
  const Range own_;
  const DecoderRecord at_;
  StepAttention<T> attention_;
  // Padded widths of rows: units, feed, keys, memory; and strides of rows that long products walk, never a multiple of
  // 4 KiB, at which the rows of a column would share one set of the first cache.
  const int64_t Hw_, ld_, ld_out_, Fw_, Aw_, Mw_, ld_query_;
  int64_t bytes_ = 0;
  // Of the team, by row of the batch and step: gradients of the gates, of what becomes h~, of the queries.
  T *dx_ = nullptr, *dr_ = nullptr, *dout_ = nullptr, *dquery_ = nullptr;
  T *dv_ = nullptr, *h0_ = nullptr, *c0_ = nullptr, *feed0_ = nullptr;
  // Of this member, by its rows.
  T *dh_ = nullptr, *dc_ = nullptr, *dcontext_ = nullptr, *dkeys_ = nullptr, *dmemory_ = nullptr, *zeros_ = nullptr;
  T* sums_ = nullptr;
  const T **lists_[3] = {}, **left_ = nullptr, **right_ = nullptr;
};
}  // namespace
}  // namespace fastrnn
