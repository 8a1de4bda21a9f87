#pragma once
// One step of an attention decoder for some rows: cell, query, attention, attentional state, in the order asked for.
// Rows are independent. A team either divides them (each member walks its own rows, nobody waits) or the columns of the
// products (all members walk all rows, a barrier after each stage): the second is for few rows.
#include "../decoder.h"
#include "decoder_attention.h"

namespace fastrnn {
namespace {
// The weights of a step in panels, see matmul.h.
template <class T>
struct PackedDecoder {
  const T *feed, *h, *bias, *query, *context, *hidden;
};

template <class Cell, class T>
struct DecoderPanels {
  static constexpr int W = Vec<T>::kWidth, G = Cell::kGates;
  static_assert(Stages<Cell>::nb(0) == 1 && Stages<Cell>::kCount == 1 && Cell::kVectors == 0 && Cell::kProduct,
                "a panel is every gate of one block of units");
  static int64_t units(const DecoderShape& s) { return ceil_div(s.H, W); }
  static int64_t plain(int64_t columns) { return ceil_div(columns, kMaxTileVecs * W); }
};

// Takes the panels' memory and fills them, the matrices being dealt out to the team; sync() before they are read. With
// a null base it only measures.
template <class Cell, class T>
PackedDecoder<T> pack_decoder(const DecoderInput<T>& p, Arena& arena, const Team& team) {
  using Panels = DecoderPanels<Cell, T>;
  const DecoderShape& s = p.shape;
  const int64_t gate_columns = Panels::units(s) * Panels::W * Panels::G;
  int turn = 0;
  const auto mine = [&] { return turn++ % team.size == team.rank && arena.base; };
  const auto gates = [&](const T* w, int64_t ld, int64_t K) {
    T* into = arena.take<T>(gate_columns * K);
    if (mine()) w ? pack_gates(w, ld, s.H, K, 0, Panels::G, 1, into) : fill_zero(into, gate_columns * K);
    return into;
  };
  const auto plain = [&](const T* w, int64_t ld, int64_t N, int64_t K) {
    T* into = arena.take<T>(w ? packed_columns_size<T>(K, N) : 0);
    if (mine() && w) pack_gates(w, ld, N, K, 0, 1, kMaxTileVecs, into);
    return into;
  };
  PackedDecoder<T> packed;
  packed.feed = gates(p.w_feed, p.ld_feed, s.F);
  packed.h = gates(p.w_hh, s.H, s.H);
  packed.bias = gates(p.b_hh, 1, 1);
  packed.query = plain(p.w_query, s.H, s.A, s.H);
  packed.context = plain(p.w_context, p.ld_context, s.H, s.M);
  packed.hidden = plain(p.w_hidden, p.ld_hidden, s.H, s.H);
  return packed;
}

// Pointers of one row at one step.
template <class T>
struct DecoderRow {
  int64_t memory;         // which memory it attends to
  const T* gates;         // [G*H] input part of the gates
  const T *h, *c, *feed;  // the state before; h readable in whole vectors; feed [F], the context in Bahdanau's order
  T* record;              // see DecoderRecord
  T *output, *weights;    // [H], [Tk]
};

template <class Cell, class T>
class DecoderStep {
  using V = Vec<T>;
  using Panels = DecoderPanels<Cell, T>;
  static constexpr int W = V::kWidth, G = Cell::kGates, K = Cell::kSaved, kExtra = Cell::kStates - 1;
  static constexpr int kColumns = kMaxTileVecs * W;

 public:
  DecoderStep(const DecoderInput<T>& p, const PackedDecoder<T>& packed, const Team& team, bool by_rows)
      : p_(p),
        s_(p.shape),
        w_(packed),
        team_(team),
        by_rows_(by_rows),
        at_(p.shape, K, Cell::kStates, p.v != nullptr, p.bahdanau) {}

  const DecoderRecord& record() const { return at_; }
  void take_own(Arena& arena, int64_t max_rows) {
    for (const T**& list : lists_) list = arena.take<const T*>(max_rows);
  }

  void run(const DecoderRow<T>* rows, int64_t n, StepAttention<T>& attention) {
    if (p_.bahdanau) {
      attend(rows, n, attention);
      cells(rows, n);
    } else {
      cells(rows, n);
      attend(rows, n, attention);
      attentional(rows, n);
    }
  }

 private:
  void sync() const {
    if (!by_rows_) team_.sync();
  }
  Range panels(int64_t count) const { return by_rows_ ? Range{0, count} : share(count, team_.rank, team_.size); }
  bool mine(int64_t i) const { return by_rows_ || i % team_.size == team_.rank; }

  void cells(const DecoderRow<T>* rows, int64_t n) {
    const T **feed = lists_[0], **h = lists_[1];
    for (int64_t i = 0; i < n; ++i) {
      feed[i] = p_.bahdanau ? rows[i].record + at_.context : rows[i].feed;
      h[i] = rows[i].h;
    }
    alignas(64) T x[kMaxTileRows * G * W], r[kMaxTileRows * G * W];
    if (!s_.F) fill_zero(x, kMaxTileRows * G * W);
    const Range own = panels(Panels::units(s_));
    for (int64_t panel = own.begin; panel < own.end; ++panel)
      for_each_row_tile<TileShape<T>::max_rows(G)>(n, [&](int64_t first, int mr) {
        if (s_.F) tile_rows<T, G>(mr, s_.F, feed + first, w_.feed + panel * s_.F * G * W, nullptr, x);
        tile_rows<T, G>(mr, s_.H, h + first, w_.h + panel * s_.H * G * W, w_.bias + panel * G * W, r);
        for (int i = 0; i < mr; ++i) units(rows[first + i], panel * W, x + i * G * W, r + i * G * W);
      });
    sync();
  }
  void units(const DecoderRow<T>& row, int64_t u, const T* from_feed, const T* from_h) {
    const int64_t lanes = s_.H - u;
    V x[G], r[G], s[Cell::kStates], s_new[Cell::kStates], saved[K];
    for (int g = 0; g < G; ++g) {
      x[g] = load_lanes(row.gates + g * s_.H + u, lanes) + V::load(from_feed + g * W);
      r[g] = V::load(from_h + g * W);
    }
    s[0] = Cell::kReadsH ? V::load(row.h + u) : V(0);
    for (int e = 0; e < kExtra; ++e) s[1 + e] = V::load(row.c + u);
    Cell::forward(x, r, s, s_new, saved);
    for (int q = 0; q < K; ++q) saved[q].store(row.record + q * at_.Hp + u);
    for (int e = 0; e < kExtra; ++e) s_new[1 + e].store(row.record + at_.c + u);
    s_new[0].store(row.record + at_.h + u);
    if (p_.bahdanau) store_lanes(s_new[0], row.output + u, lanes);
  }

  void attend(const DecoderRow<T>* rows, int64_t n, StepAttention<T>& attention) {
    const T** h = lists_[0];
    for (int64_t i = 0; i < n; ++i) h[i] = p_.bahdanau ? rows[i].h : rows[i].record + at_.h;
    if (p_.v) {
      const Range own = panels(Panels::plain(s_.A));
      matmul_rows<T, kMaxTileVecs>(
          s_.H, n, h, w_.query, nullptr, own.begin, own.end, false,
          [&](int64_t panel, int64_t first, int mr, const T* sums) {
            for (int i = 0; i < mr; ++i)
              for (int64_t j = 0, c = panel * kColumns; j < kColumns && c + j < s_.A; j += W)
                V::load(sums + i * kColumns + j).store(rows[first + i].record + at_.query + c + j);
          });
      sync();
    }
    for (int64_t i = 0; i < n; ++i)
      if (mine(i))
        attention.forward(rows[i].memory, p_.v ? rows[i].record + at_.query : h[i], rows[i].weights,
                          rows[i].record + at_.context);
    sync();
  }

  // h~ = tanh(W_c context + W_o h).
  void attentional(const DecoderRow<T>* rows, int64_t n) {
    const T **context = lists_[0], **h = lists_[1];
    for (int64_t i = 0; i < n; ++i) {
      context[i] = rows[i].record + at_.context;
      h[i] = rows[i].record + at_.h;
    }
    alignas(64) T a[kMaxTileRows * kColumns], b[kMaxTileRows * kColumns];
    const Range own = panels(Panels::plain(s_.H));
    for (int64_t panel = own.begin; panel < own.end; ++panel)
      for_each_row_tile<TileShape<T>::max_rows(kMaxTileVecs)>(n, [&](int64_t first, int mr) {
        tile_rows<T, kMaxTileVecs>(mr, s_.M, context + first, w_.context + panel * s_.M * kColumns, nullptr, a);
        tile_rows<T, kMaxTileVecs>(mr, s_.H, h + first, w_.hidden + panel * s_.H * kColumns, nullptr, b);
        for (int i = 0; i < mr; ++i)
          for (int64_t j = 0, u = panel * kColumns; j < kColumns && u + j < s_.H; j += W) {
            const V out = tanh(V::load(a + i * kColumns + j) + V::load(b + i * kColumns + j));
            out.store(rows[first + i].record + at_.out + u + j);
            store_lanes(out, rows[first + i].output + u + j, s_.H - u - j);
          }
      });
    sync();
  }

  const DecoderInput<T>& p_;
  const DecoderShape& s_;
  const PackedDecoder<T> w_;
  const Team& team_;
  const bool by_rows_;
  const DecoderRecord at_;
  const T** lists_[2] = {};
};

// A call of a Run. Scratch: the weights as it wants them packed, then what it takes itself.
template <class Run>
int64_t decoder_scratch(const typename Run::Params& p, int threads) {
  Arena arena{nullptr};
  Team team;
  team.size = threads;
  const auto packed = Run::pack(p, arena, team);
  return arena.used + Run(p, packed, team, nullptr).bytes();
}
template <class Run>
void decoder_call(const typename Run::Params& p, char* scratch, const Team& team) {
  Arena arena{scratch};
  const auto packed = Run::pack(p, arena, team);
  team.sync();
  Run(p, packed, team, scratch + arena.used).run();
}
}  // namespace
}  // namespace fastrnn
