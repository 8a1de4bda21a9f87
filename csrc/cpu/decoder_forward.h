#pragma once
// A whole teacher-forced decode: the input part of the gates and the keys are given for all steps, the rows are divided
// among the team, and each member runs its rows from the first step to the last.
#include "decoder_step.h"

namespace fastrnn {
namespace {
template <class T>
StepAttention<T> attention_of(const DecoderInput<T>& p) {
  const DecoderShape& s = p.shape;
  return {s.B, s.Tk, s.A, s.M, p.keys, p.memory, p.v, p.lengths};
}

template <class Cell, class T>
class DecoderForwardRun {
  static constexpr int K = Cell::kSaved, G = Cell::kGates;

 public:
  using Params = DecoderForward<T>;
  static PackedDecoder<T> pack(const Params& p, Arena& arena, const Team& team) {
    return pack_decoder<Cell, T>(p, arena, team);
  }
  DecoderForwardRun(const Params& p, const PackedDecoder<T>& packed, const Team& team, char* scratch)
      : p_(p),
        s_(p.shape),
        team_(team),
        own_(share(p.shape.B, team.rank, team.size)),
        step_(p, packed, team, true),
        attention_(attention_of<T>(p)) {
    bytes_ = lay_out(scratch, team, [&](Arena& a) { attention_.take_shared(a); }, [&](Arena& a) { take_own(a); });
  }
  int64_t bytes() const { return bytes_; }

  void run() {
    attention_.begin();
    const int64_t n = own_.size();
    const DecoderRecord& at = step_.record();
    for (int64_t i = 0; i < n; ++i) {
      const int64_t b = own_.begin + i;
      attention_.prepare(b);
      copy_or_zero(p_.h0 + b * s_.H, s_.H, h0_ + i * at.Hp, at.Hp);
      copy_or_zero(p_.c0 ? p_.c0 + b * s_.H : nullptr, p_.c0 ? s_.H : 0, c0_ + i * at.Hp, at.Hp);
    }
    for (int64_t t = 0; t < s_.T && n && !team_.poll_stop(); ++t) {
      for (int64_t i = 0; i < n; ++i) set_row(i, t);
      step_.run(rows_, n, attention_);
    }
    for (int64_t i = 0; i < n; ++i) {
      const int64_t b = own_.begin + i;
      const T* last = s_.T ? record(i, s_.T - 1) : nullptr;
      copy_or_zero(last ? last + at.h : h0_ + i * at.Hp, s_.H, p_.h + b * s_.H, s_.H);
      if (p_.c) copy_or_zero(last ? last + at.c : c0_ + i * at.Hp, s_.H, p_.c + b * s_.H, s_.H);
    }
  }

 private:
  void take_own(Arena& arena) {
    const int64_t most = ceil_div(s_.B, team_.size), size = step_.record().size;
    attention_.take_own(arena);
    step_.take_own(arena, most);
    rows_ = arena.take<DecoderRow<T>>(most);
    h0_ = arena.take<T>(most * step_.record().Hp);
    c0_ = arena.take<T>(most * step_.record().Hp);
    records_ = arena.take<T>(p_.reserve ? 0 : 2 * most * size);
  }
  // Without a reserve only this step's record and the one before are kept.
  T* record(int64_t i, int64_t t) const {
    const int64_t size = step_.record().size;
    return p_.reserve ? p_.reserve + ((own_.begin + i) * s_.T + t) * size : records_ + (2 * i + (t & 1)) * size;
  }
  void set_row(int64_t i, int64_t t) {
    const int64_t b = own_.begin + i, bt = b * s_.T + t;
    const DecoderRecord& at = step_.record();
    DecoderRow<T>& row = rows_[i];
    row.memory = b;
    row.gates = p_.gates + bt * G * s_.H;
    row.record = record(i, t);
    row.h = t ? record(i, t - 1) + at.h : h0_ + i * at.Hp;
    row.c = t ? record(i, t - 1) + at.c : c0_ + i * at.Hp;
    row.feed = p_.bahdanau || !s_.F ? nullptr : t ? record(i, t - 1) + at.out : p_.feed0 + b * s_.F;
    row.output = p_.outputs + bt * s_.H;
    row.weights = p_.weights + bt * s_.Tk;
  }

  const Params& p_;
  const DecoderShape& s_;
  const Team& team_;
  const Range own_;
  DecoderStep<Cell, T> step_;
  StepAttention<T> attention_;
  int64_t bytes_ = 0;
  DecoderRow<T>* rows_ = nullptr;
  T *h0_ = nullptr, *c0_ = nullptr, *records_ = nullptr;
};
}  // namespace
}  // namespace fastrnn
