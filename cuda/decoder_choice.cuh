#pragma once
// The choice of tokens from the logits of a step, as csrc/cpu/decoder_choice.h: the most probable one or a sample, by a
// block for each row; or the best continuations of beams, by a block for each batch. A thread has a run of neighbouring
// tokens, so that what counts in their order (ties, the sum that a sample is drawn by) has one.
#include <string.h>

#include <type_traits>

#include "../csrc/noise.h"
#include "decoder.h"
#include "decoder_attention.cuh"

namespace fastrnn {
template <class E>
struct ChoiceShared {
  E room[kSumWarps];
  double counts[kSumWarps];
  E scores[kSumThreads];
  int64_t tokens[kSumThreads];
  double sums[kSumThreads];
};

// The first of the highest x.
template <class E>
struct Highest {
  E x;
  int64_t at;

  __device__ void offer(E other, int64_t where) {
    if (other > x || (other == x && where < at)) x = other, at = where;
  }
};
constexpr int64_t kNowhere = INT64_MAX;

// Numbers as unsigned integers of the same order.
template <class E>
struct OrderedBits {
  using Type = std::conditional_t<sizeof(E) == 4, uint32_t, uint64_t>;
  static constexpr Type kSign = Type(1) << (8 * sizeof(E) - 1);

  __device__ static Type of(E x) {
    Type bits;
    memcpy(&bits, &x, sizeof(E));
    return bits & kSign ? ~bits : bits | kSign;
  }
  __device__ static E value(Type bits) {
    bits = bits & kSign ? bits & ~kSign : ~bits;
    E x;
    memcpy(&x, &bits, sizeof(E));
    return x;
  }
};

template <class E>
class Choice {
 public:
  using Shared = ChoiceShared<E>;
  __device__ Choice(const CudaDecoderGenerate<E>& p, Shared& shared) : p_(p), shared_(shared) {
    const int64_t own = (p.V + kSumThreads - 1) / kSumThreads;
    begin_ = own * threadIdx.x < p.V ? own * threadIdx.x : p.V;
    end_ = begin_ + own < p.V ? begin_ + own : p.V;
  }

  // One token of a row. The log probability is that of softmax(logits), whatever temperature and top_k say.
  __device__ void choose(int64_t t, int64_t row) {
    const E* logits = p_.logits + row * p_.V;
    Highest<E> found{E(-INFINITY), kNowhere};
    for (int64_t v = begin_; v < end_; ++v) found.offer(logits[v], v);
    found = of_block(found);
    const E norm = log_sum_exp(logits, found.x);
    int64_t token = found.at < p_.V ? found.at : 0;  // nothing but NaN
    if (p_.temperature != 0) token = sample(logits, found.x, noise_key(p_.seed, 0, t, row));
    if (threadIdx.x != 0) return;
    p_.tokens[row * p_.shape.T + t] = token;
    p_.scores[row * p_.shape.T + t] = logits[token] - norm;
    p_.steps[row] = t + 1;
    p_.done[row] = token == p_.end;
  }

  // The best 2*beams continuations of the batch: those that end are put aside, the others go on. A batch is done when
  // as many have ended as there are beams.
  __device__ void choose_beams(int64_t t, int64_t b) {
    const int64_t rows = p_.shape.B * p_.beams, first = b * p_.beams, room = 2 * p_.beams;
    const E* totals = p_.totals + (t & 1) * rows;
    for (int64_t row = first; row < first + p_.beams; ++row) {
      const E* logits = p_.logits + row * p_.V;
      Highest<E> found{E(-INFINITY), kNowhere};
      for (int64_t v = begin_; v < end_; ++v) found.offer(logits[v], v);
      const E norm = log_sum_exp(logits, of_block(found).x);
      if (threadIdx.x == 0) p_.shifts[row] = totals[row] - norm;
    }
    device::sync_block(device::kSiteTile);
    // Each is the first of the highest after the one before it.
    Highest<E> last{E(INFINITY), -1};
    int64_t count = 0;
    for (; count < room; ++count) {
      Highest<E> found{E(-INFINITY), kNowhere};
      for (int64_t j = 0; j < p_.beams; ++j) {
        if (totals[first + j] == E(-INFINITY)) continue;
        const E *logits = p_.logits + (first + j) * p_.V, shift = p_.shifts[first + j];
        for (int64_t v = begin_; v < end_; ++v) {
          const E x = logits[v] + shift;
          const int64_t at = j * p_.V + v;
          if (x < last.x || (x == last.x && at > last.at)) found.offer(x, at);
        }
      }
      found = of_block(found);
      if (found.at == kNowhere) break;
      if (threadIdx.x == 0) {
        p_.best_scores[b * room + count] = found.x;
        p_.best[b * room + count] = found.at;
      }
      last = found;
    }
    if (threadIdx.x == 0) sort_out(t, b, count);
  }

 private:
  __device__ Highest<E> of_block(Highest<E> found) {
    device::sync_block(device::kSiteSums);  // what was there has been read
    shared_.scores[threadIdx.x] = found.x;
    shared_.tokens[threadIdx.x] = found.at;
    for (int n = kSumThreads / 2; n > 0; n /= 2) {
      device::sync_block(device::kSiteWarps);
      if (int(threadIdx.x) >= n) continue;
      found.offer(shared_.scores[threadIdx.x + n], shared_.tokens[threadIdx.x + n]);
      shared_.scores[threadIdx.x] = found.x;
      shared_.tokens[threadIdx.x] = found.at;
    }
    device::sync_block(device::kSiteWarps);
    return {shared_.scores[0], shared_.tokens[0]};
  }
  __device__ E log_sum_exp(const E* logits, E highest) {
    E sum = 0;
    for (int64_t v = begin_; v < end_; ++v) sum += exp(logits[v] - highest);
    device::sync_block(device::kSiteSums);
    return highest + log(block_sum(sum, shared_.room));
  }
  // Of what all threads have: the sum of those before this one, and of all.
  struct Sums {
    double before, all;
  };
  __device__ Sums sums_of(double own) {
    device::sync_block(device::kSiteSums);
    shared_.sums[threadIdx.x] = own;
    device::sync_block(device::kSiteWarps);
    Sums s{0, 0};
    for (int i = 0; i < kSumThreads; ++i) {
      if (i == int(threadIdx.x)) s.before = s.all;
      s.all += shared_.sums[i];
    }
    return s;
  }
  template <class Test>
  __device__ int64_t count(const E* logits, const Test& test) {
    int64_t n = 0;
    for (int64_t v = begin_; v < end_; ++v) n += test(logits[v]);
    device::sync_block(device::kSiteSums);
    return int64_t(block_sum(double(n), shared_.counts));
  }

  // The k-th largest logit: the largest that at least k of them reach, bit by bit.
  __device__ E kth_largest(const E* logits, int64_t k) {
    using Bits = OrderedBits<E>;
    typename Bits::Type least = 0;
    for (int bit = 8 * sizeof(E) - 1; bit >= 0; --bit) {
      const auto next = least | (typename Bits::Type(1) << bit);
      if (count(logits, [&](E x) { return Bits::of(x) >= next; }) >= k) least = next;
    }
    return Bits::value(least);
  }
  __device__ int64_t sample(const E* logits, E highest, uint64_t key) {
    const int64_t n = p_.V, k = p_.top_k > 0 && p_.top_k < n ? p_.top_k : n;
    const E least = k < n ? kth_largest(logits, k) : E(-INFINITY);
    double ties = double(n);  // of those equal to the least, the first ones count
    if (k < n) {
      const double more = double(count(logits, [&](E x) { return x > least; }));
      int64_t own = 0;
      for (int64_t v = begin_; v < end_; ++v) own += logits[v] == least;
      ties = double(k) - more - sums_of(double(own)).before;
    }
    const auto visit = [&](const auto& use) {  // use(token, probability) of those that may be drawn
      double left = ties;
      for (int64_t v = begin_; v < end_; ++v) {
        if (k < n && !(logits[v] > least || (logits[v] == least && left-- > 0))) continue;
        const E chance = exp((logits[v] - highest) / E(p_.temperature));
        if (chance > 0 && use(v, chance)) return;
      }
    };
    double own = 0;
    visit([&](int64_t, E chance) {
      own += double(chance);
      return false;
    });
    const Sums sums = sums_of(own);
    const double wanted = sums.all * (noise_bits(key, uint32_t(0)) / 4294967296.0);
    if (threadIdx.x == 0) shared_.tokens[0] = 0;
    device::sync_block(device::kSiteSums);
    if (sums.before <= wanted && wanted < sums.before + own) {
      double sum = sums.before;
      int64_t token = 0;  // rounding must not lead beyond the last of this thread's
      visit([&](int64_t v, E chance) {
        token = v;
        sum += double(chance);
        return sum > wanted;
      });
      shared_.tokens[0] = token;
    }
    device::sync_block(device::kSiteWarps);
    return shared_.tokens[0];
  }

  __device__ void sort_out(int64_t t, int64_t b, int64_t count) {
    const int64_t room = 2 * p_.beams;
    E* next = p_.totals + ((t + 1) & 1) * p_.shape.B * p_.beams;
    int64_t kept = 0;
    for (int64_t i = 0; i < count && kept < p_.beams; ++i) {
      const E score = p_.best_scores[b * room + i];
      const int64_t at = p_.best[b * room + i], row = b * p_.beams + at / p_.V, token = at % p_.V;
      if (token != p_.end) {
        keep(t, b * p_.beams + kept++, score, row, token, next);
      } else if (i < p_.beams && p_.ends[b] < room) {
        const int64_t slot = b * room + p_.ends[b]++;
        p_.end_steps[slot] = t;
        p_.end_rows[slot] = row;
        p_.end_scores[slot] = score;
      }
    }
    while (kept < p_.beams)  // a vocabulary below 2*beams
      keep(t, b * p_.beams + kept++, E(-INFINITY), b * p_.beams, 0, next);
    p_.steps[b] = t + 1;
    p_.done[b] = p_.ends[b] >= p_.beams;
  }
  __device__ void keep(int64_t t, int64_t row, E score, int64_t parent, int64_t token, E* totals) {
    const int64_t at = row * p_.shape.T + t;
    p_.tokens[at] = token;
    p_.parents[at] = parent;
    p_.scores[at] = totals[row] = score;
  }

  const CudaDecoderGenerate<E>& p_;
  ChoiceShared<E>& shared_;
  int64_t begin_, end_;
};

template <class E>
struct CudaChoice {
  CudaDecoderGenerate<E> p;
  int64_t t;
};
template <class E>
__global__ void __launch_bounds__(kSumThreads) choice_kernel(CudaChoice<E> call) {
  FASTRNN_SHARED(choice_shared);
  const int64_t at = blockIdx.x;
  if (call.p.done[at]) return;
  Choice<E> choice(call.p, *reinterpret_cast<ChoiceShared<E>*>(choice_shared));
  call.p.parents ? choice.choose_beams(call.t, at) : choice.choose(call.t, at);
}
template <class E>
cudaError_t launch_choice(const CudaDecoderGenerate<E>& p, int64_t t, cudaStream_t stream) {
  return launch_blocks<CudaChoice<E>>(choice_kernel<E>, p.shape.B, kSumThreads, sizeof(ChoiceShared<E>), {p, t},
                                      stream);
}
}  // namespace fastrnn
