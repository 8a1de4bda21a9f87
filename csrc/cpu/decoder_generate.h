#pragma once
// Generation without a word from outside: embedding -> step -> vocabulary product -> choice of a token, whose embedding
// enters the next step. The rows are few, so the team divides the columns of the products, with a barrier after each;
// the rows themselves (attention, choice) are dealt out. A sequence that has ended leaves the products.
#include "decoder_choice.h"
#include "decoder_forward.h"

namespace fastrnn {
namespace {
// The weights outside of the step in panels.
template <class T>
struct PackedGenerate {
  PackedDecoder<T> step;
  const T *input, *bias, *vocabulary, *vocabulary_bias;
};

template <class Cell, class T>
PackedGenerate<T> pack_generate(const DecoderGenerate<T>& p, Arena& arena, const Team& team) {
  using Panels = DecoderPanels<Cell, T>;
  constexpr int W = Panels::W, kColumns = kMaxTileVecs * W;
  const int64_t H = p.shape.H, columns = Panels::units(p.shape) * W * Panels::G;
  const bool first = team.rank == 0 && arena.base;
  const PackedDecoder<T> step = pack_decoder<Cell, T>(p, arena, team);
  T* input = arena.take<T>(columns * p.E);
  T* bias = arena.take<T>(columns);
  T* vocabulary = arena.take<T>(packed_columns_size<T>(H, p.V));
  T* vocabulary_bias = arena.take<T>(round_up(p.V, kColumns));
  if (first) {
    pack_gates(p.w_input, p.ld_input, H, p.E, 0, Panels::G, 1, input);
    p.b_ih ? pack_gates(p.b_ih, 1, H, 1, 0, Panels::G, 1, bias) : fill_zero(bias, columns);
    copy_or_zero(p.b_vocabulary, p.b_vocabulary ? p.V : 0, vocabulary_bias, round_up(p.V, kColumns));
  }
  if (arena.base) {  // the large one: each member packs the panels that it will use
    const Range own = share(Panels::plain(p.V), team.rank, team.size);
    const int64_t c0 = own.begin * kColumns, c1 = own.end * kColumns < p.V ? own.end * kColumns : p.V;
    if (c0 < c1) pack_gates(p.w_vocabulary + c0 * H, H, c1 - c0, H, 0, 1, kMaxTileVecs, vocabulary + c0 * H);
  }
  return {step, input, bias, vocabulary, vocabulary_bias};
}

template <class Cell, class T>
class DecoderGenerateRun {
  using V = Vec<T>;
  using Panels = DecoderPanels<Cell, T>;
  static constexpr int W = V::kWidth, G = Cell::kGates, kColumns = kMaxTileVecs * W;

 public:
  using Params = DecoderGenerate<T>;
  static PackedGenerate<T> pack(const Params& p, Arena& arena, const Team& team) {
    return pack_generate<Cell, T>(p, arena, team);
  }
  DecoderGenerateRun(const Params& p, const PackedGenerate<T>& packed, const Team& team, char* scratch)
      : p_(p),
        s_(p.shape),
        w_(packed),
        team_(team),
        rows_(p.shape.B * p.beams),
        Vp_(round_up(p.V, kColumns)),
        step_(p, w_.step, team, false),
        attention_(attention_of<T>(p)) {
    bytes_ = lay_out(scratch, team, [&](Arena& a) { take_shared(a); }, [&](Arena& a) { take_own(a); });
  }
  int64_t bytes() const { return bytes_; }

  void run() {
    begin();
    for (int64_t t = 0; t < s_.T; ++t) {
      if (t % 16 == 15) {  // together: whoever leaves alone is waited for
        team_.poll_stop();
        team_.sync();
        if (team_.stopped()) return;
      }
      const int64_t n = set_rows(t);
      if (!n) return;
      inputs(n);
      step_.run(row_, n, attention_);
      vocabulary(n);
      if (p_.parents) {
        for (int64_t b = team_.rank; b < s_.B; b += team_.size)
          if (!done_[b]) choose_beams(t, b);
      } else {
        for (int64_t i = team_.rank; i < n; i += team_.size) choose(t, index_[i], logits_ + i * Vp_);
      }
      team_.sync();
    }
  }

 private:
  void take_shared(Arena& arena) {
    const DecoderRecord& at = step_.record();
    attention_.take_shared(arena);
    records_ = arena.take<T>(2 * rows_ * at.size);
    h0_ = arena.take<T>(s_.B * at.Hp);
    c0_ = arena.take<T>(s_.B * at.Hp);
    gates_ = arena.take<T>(rows_ * G * s_.H);
    outputs_ = arena.take<T>(rows_ * s_.H);
    logits_ = arena.take<T>(rows_ * Vp_);
    total_ = arena.take<T>(2 * rows_);
    done_ = arena.take<uint8_t>(s_.B);
  }
  void take_own(Arena& arena) {
    attention_.take_own(arena);
    step_.take_own(arena, rows_);
    row_ = arena.take<DecoderRow<T>>(rows_);
    index_ = arena.take<int64_t>(rows_);
    a_ = arena.take<const T*>(rows_);
    room_ = arena.take<T>(p_.temperature > 0 ? Vp_ : 0);
    heap_ = arena.take<T>(p_.temperature > 0 ? p_.top_k : 0);
    best_ = arena.take<Continuation<T>>(2 * p_.beams);
  }

  void begin() {
    attention_.begin();
    const DecoderRecord& at = step_.record();
    for (int64_t b = team_.rank; b < s_.B; b += team_.size) {
      attention_.prepare(b);
      copy_or_zero(p_.h0 + b * s_.H, s_.H, h0_ + b * at.Hp, at.Hp);
      copy_or_zero(p_.c0 ? p_.c0 + b * s_.H : nullptr, p_.c0 ? s_.H : 0, c0_ + b * at.Hp, at.Hp);
      done_[b] = 0;
      p_.steps[b] = 0;
      if (p_.parents) p_.ends[b] = 0;
      for (int64_t j = 0; j < p_.beams; ++j) total_[b * p_.beams + j] = j ? -INFINITY : T(0);  // all start as one
    }
    team_.sync();
  }
  T* record(int64_t row, int64_t t) const { return records_ + (2 * row + (t & 1)) * step_.record().size; }

  // The rows that still run, the same list for every member; returns how many.
  int64_t set_rows(int64_t t) {
    const DecoderRecord& at = step_.record();
    int64_t n = 0;
    for (int64_t r = 0; r < rows_; ++r) {
      const int64_t b = r / p_.beams;
      if (done_[b]) continue;
      const int64_t parent = t && p_.parents ? p_.parents[r * s_.T + t - 1] : r;
      DecoderRow<T>& row = row_[n];
      row.memory = b;
      row.gates = gates_ + n * G * s_.H;
      row.record = record(r, t);
      row.h = t ? record(parent, t - 1) + at.h : h0_ + b * at.Hp;
      row.c = t ? record(parent, t - 1) + at.c : c0_ + b * at.Hp;
      row.feed = p_.bahdanau || !s_.F ? nullptr : t ? record(parent, t - 1) + at.out : p_.feed0 + b * s_.F;
      row.output = outputs_ + n * s_.H;
      row.weights = p_.weights + (r * s_.T + t) * s_.Tk;
      a_[n] = p_.embedding + (t ? p_.tokens[r * s_.T + t - 1] : p_.first[b]) * p_.E;
      index_[n++] = r;
    }
    return n;
  }

  // The input part of the gates. A member computes the columns that it reads itself in the step.
  void inputs(int64_t n) {
    const Range own = share(Panels::units(s_), team_.rank, team_.size);
    matmul_rows<T, G>(p_.E, n, a_, w_.input, w_.bias, own.begin, own.end, false,
                      [&](int64_t panel, int64_t first, int mr, const T* sums) {
                        for (int i = 0; i < mr; ++i)
                          for (int g = 0; g < G; ++g)
                            store_lanes(V::load(sums + (i * G + g) * W),
                                        gates_ + ((first + i) * G + g) * s_.H + panel * W, s_.H - panel * W);
                      });
  }
  void vocabulary(int64_t n) {
    for (int64_t i = 0; i < n; ++i) a_[i] = outputs_ + i * s_.H;
    const Range own = share(Panels::plain(p_.V), team_.rank, team_.size);
    matmul_rows<T, kMaxTileVecs>(
        s_.H, n, a_, w_.vocabulary, w_.vocabulary_bias, own.begin, own.end, false,
        [&](int64_t panel, int64_t first, int mr, const T* sums) {
          for (int i = 0; i < mr; ++i)
            for (int j = 0; j < kColumns; j += W)
              V::load(sums + i * kColumns + j).store(logits_ + (first + i) * Vp_ + panel * kColumns + j);
        });
    team_.sync();
  }

  void choose(int64_t t, int64_t row, const T* logits) {
    const TokenChoice<T> found = choose_token(p_, logits, t, row, room_, heap_);
    p_.tokens[row * s_.T + t] = found.token;
    p_.scores[row * s_.T + t] = found.log_prob;
    p_.steps[row] = t + 1;
    done_[row] = found.token == p_.end;
  }

  // The best 2*beams continuations of the batch: those that end are put aside, the others go on. A batch is done when
  // as many have ended as there are beams.
  void choose_beams(int64_t t, int64_t b) {
    BestList<T> best{best_, 2 * p_.beams};
    const T* totals = total_ + (t & 1) * rows_;
    T* next = total_ + ((t + 1) & 1) * rows_;
    int64_t at = 0;  // position of the batch's first row among those that run
    while (index_[at] / p_.beams != b) ++at;
    for (int64_t j = 0; j < p_.beams; ++j) {
      const int64_t row = b * p_.beams + j;
      const T* logits = logits_ + (at + j) * Vp_;
      if (totals[row] == -INFINITY) continue;
      const T shift = totals[row] - log_sum_exp(logits, p_.V, highest_of(logits, p_.V));
      for (int64_t v = 0; v < p_.V; ++v)
        if (best.count < best.room || logits[v] + shift > best.bar()) best.offer(logits[v] + shift, row, v);
    }
    int64_t kept = 0;
    for (int64_t i = 0; i < best.count && kept < p_.beams; ++i) {
      const Continuation<T>& c = best_[i];
      if (c.token == p_.end) {
        const int64_t slot = b * 2 * p_.beams + p_.ends[b];
        if (i >= p_.beams || p_.ends[b] == 2 * p_.beams) continue;
        p_.end_steps[slot] = t;
        p_.end_rows[slot] = c.row;
        p_.end_scores[slot] = c.score;
        ++p_.ends[b];
      } else {
        keep(t, b, kept++, c, next);
      }
    }
    while (kept < p_.beams) keep(t, b, kept++, {T(-INFINITY), b * p_.beams, 0}, next);  // a vocabulary below 2*beams
    p_.steps[b] = t + 1;
    done_[b] = p_.ends[b] >= p_.beams;
  }
  void keep(int64_t t, int64_t b, int64_t j, const Continuation<T>& c, T* totals) {
    const int64_t row = b * p_.beams + j, at = row * s_.T + t;
    p_.tokens[at] = c.token;
    p_.parents[at] = c.row;
    p_.scores[at] = totals[row] = c.score;
  }

  const Params& p_;
  const DecoderShape& s_;
  const PackedGenerate<T> w_;
  const Team& team_;
  const int64_t rows_, Vp_;
  DecoderStep<Cell, T> step_;
  StepAttention<T> attention_;
  int64_t bytes_ = 0;
  // Of the team.
  T *records_ = nullptr, *h0_ = nullptr, *c0_ = nullptr, *gates_ = nullptr, *outputs_ = nullptr, *logits_ = nullptr;
  T* total_ = nullptr;  // log probability of each beam, before and after the step
  uint8_t* done_ = nullptr;
  // Of this member.
  DecoderRow<T>* row_ = nullptr;
  int64_t* index_ = nullptr;
  const T** a_ = nullptr;
  T *room_ = nullptr, *heap_ = nullptr;
  Continuation<T>* best_ = nullptr;
};
}  // namespace
}  // namespace fastrnn
