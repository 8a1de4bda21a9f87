#pragma once
// An attention decoder as asked for by the caller: a recurrent cell that attends to a memory at every step. Shapes are
// checked in Python; arrays are contiguous unless a distance of rows (ld) is beside them; a null pointer means "absent"
// where the field says so.
//
//   scores     additive:  v . tanh(W_q query + key)  (Bahdanau et al. 2015, arXiv 1409.0473)      dot:  query . key
//   Luong's order (Luong et al. 2015, arXiv 1508.04025), feed = the attentional h~ of the step before, or nothing:
//     h = cell(gates + W_f feed, h)    query = h    h~ = tanh(W_c context + W_o h)    output = h~
//   Bahdanau's order, feed = the context of this step:
//     query = h of the step before     h = cell(gates + W_f context, h)               output = h
#include <stdint.h>

namespace fastrnn {
enum DecoderCell { kDecoderLstm, kDecoderGru, kNumDecoderCells };

struct DecoderShape {  // B rows, T steps, Tk keys, H hidden units, M memory, A keys' width, F feed's width (0 = none)
  int64_t B, T, Tk, H, M, A, F;
};

template <class T>
struct DecoderInput {
  DecoderShape shape;
  bool bahdanau;                           // the order
  const T *gates, *memory, *keys;          // W_x x + b_ih [B, T, G*H], [B, Tk, M], [B, Tk, A]
  const int64_t* lengths;                  // [B] keys that are real, in [0, Tk]; null = all
  const T *h0, *c0, *feed0;                // [B, H], [B, H] (LSTM), [B, F] (Luong's order with feed)
  const T *w_hh, *b_hh, *w_feed;           // [G*H, H], [G*H] or null, [G*H, F] or null
  const T *w_query, *v;                    // [A, H], [A]; null = dot score
  const T *w_context, *w_hidden;           // [H, M], [H, H]; null in Bahdanau's order
  int64_t ld_feed, ld_context, ld_hidden;  // parts of larger matrices
};
template <class T>
struct DecoderForward : DecoderInput<T> {
  T *outputs, *weights;  // [B, T, H], [B, T, Tk]
  T *h, *c;              // [B, H]; c null for a cell without
  T* reserve;            // [B, T, decoder_record()], null = inference
};
template <class T>
struct DecoderBackward : DecoderInput<T> {
  const T *weights, *reserve;
  const T *doutputs, *dweights, *dh, *dc;  // null = zero
  T *dgates, *dmemory, *dkeys, *dh0, *dc0, *dfeed0;
  T *dw_hh, *db_hh, *dw_feed, *dw_query, *dv, *dw_context, *dw_hidden;
};

// Generation: embedding, step, vocabulary product and choice, until every row has produced `end` or T tokens. A beam
// search keeps `beams` sequences of each batch, all attending to the same memory. `gates` is not read.
template <class T>
struct DecoderGenerate : DecoderInput<T> {
  int64_t E, V, beams;                  // widths of embedding and vocabulary, sequences per batch
  const T *embedding, *w_input, *b_ih;  // [*, E], [G*H, E], [G*H] or null
  int64_t ld_input;
  const T *w_vocabulary, *b_vocabulary;  // [V, H], [V] or null
  const int64_t* first;                  // [B] the tokens that enter the first step
  int64_t end;                           // the token that ends a sequence, negative = none
  double temperature;                    // of sampling; 0 = the most probable token
  int64_t top_k;                         // sampling is among that many; 0 = all
  uint64_t seed;                         // of sampling, see noise.h
  // By row = batch * beams + beam and step; a sequence that has ended leaves the rest of its row alone.
  int64_t *tokens, *parents;  // [B*beams, T] the token chosen, and the row that it continues; null = no beam search
  T *scores, *weights;        // [B*beams, T] log probability of the token, in a beam search of the whole sequence;
                              // [B*beams, T, Tk] attention of the row before its choice
  int64_t* steps;             // [B] steps taken
  // Beams that chose `end`: how many, and for each the step, the row that it continues, and its log probability.
  int64_t *ends, *end_steps, *end_rows;  // [B], [B, 2*beams], [B, 2*beams]
  T* end_scores;                         // [B, 2*beams]
};

// What forward keeps for backward of one step of one row, each part padded so that any ISA may store whole vectors:
// the cell's saved values, c, h, the query (additive), the context and h~ (Luong's order).
struct DecoderRecord {
  int64_t Hp, Mp, Ap;  // padded widths
  int64_t c, h, query, context, out, size;

  DecoderRecord(const DecoderShape& s, int saved, int states, bool additive, bool bahdanau)
      : Hp((s.H + 15) / 16 * 16),
        Mp((s.M + 15) / 16 * 16),
        Ap((s.A + 31) / 32 * 32),
        c(saved * Hp),
        h(c + (states - 1) * Hp),
        query(h + Hp),
        context(query + (additive ? Ap : 0)),
        out(context + Mp),
        size(out + (bahdanau ? 0 : Hp)) {}
};
}  // namespace fastrnn
