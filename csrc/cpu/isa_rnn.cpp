// The recurrent kernels of one ISA, and what is measured with its vectors. Compiled once per ISA, FASTRNN_ISA its name.
#include "isa.h"
#include "rnn_norm.h"
#include "rnn_reset.h"
#include "rnn_units.h"
#include "rnn_weight_gradients.h"

namespace fastrnn {
namespace {
// A multiply-rotate chain in each of 32 lanes of 64 bits over the content, folded into one word at the end.
uint64_t hash(const void* data, int64_t bytes) {
  constexpr int kLanes = 32;
  uint64_t lane[kLanes];
  for (int i = 0; i < kLanes; ++i) lane[i] = 0x9E3779B97F4A7C15ull * (2 * i + 1);
  const char* p = static_cast<const char*>(data);
  const auto mix = [](uint64_t h, uint64_t v) {
    h ^= v;
    h = (h & 0xFFFFFFFFu) * 0x9E3779B1u + ((h >> 32) | (h << 32));  // a 32x32 multiply vectorises on every ISA
    return h;
  };
  int64_t n = bytes;
  for (; n >= kLanes * 8; n -= kLanes * 8, p += kLanes * 8)
    for (int i = 0; i < kLanes; ++i) {
      uint64_t v;
      __builtin_memcpy(&v, p + 8 * i, 8);
      lane[i] = mix(lane[i], v);
    }
  for (; n > 0; n -= 4, p += 4) {  // element sizes are 4 and 8
    uint32_t v;
    __builtin_memcpy(&v, p, 4);
    lane[0] = mix(lane[0], v);
  }
  uint64_t h = uint64_t(bytes);
  for (int i = 0; i < kLanes; ++i) {
    h = (h ^ lane[i]) * 0xFF51AFD7ED558CCDull;
    h ^= h >> 32;
  }
  return h;
}

// Independent multiply-adds, enough of them in flight to fill the pipes; returns the FLOPs done.
double fma_loop(int64_t iterations) {
  using V = Vec<float>;
  constexpr int kChains = 12;
  V acc[kChains], a(0.999f), b(0.001f);
#pragma GCC unroll 12
  for (int i = 0; i < kChains; ++i) acc[i] = V(float(i));
  asm("" : "+v"(a.v), "+v"(b.v));  // hidden from constant folding
  for (int64_t n = 0; n < iterations; ++n)
#pragma GCC unroll 12
    for (int i = 0; i < kChains; ++i) acc[i] = acc[i] * a + b;
#pragma GCC unroll 12
  for (int i = 0; i < kChains; ++i) asm volatile("" : : "v"(acc[i].v));
  return 2.0 * kChains * V::kWidth * double(iterations);
}

void read_loop(const float* data, int64_t n, int64_t repeats) {
  using V = Vec<float>;
  constexpr int kChains = 8;
  for (int64_t r = 0; r < repeats; ++r) {
    V acc[kChains];
    for (int i = 0; i < kChains; ++i) acc[i] = V(0);
    for (int64_t k = 0; k + kChains * V::kWidth <= n; k += kChains * V::kWidth)
#pragma GCC unroll 8
      for (int i = 0; i < kChains; ++i) acc[i] = acc[i] + V::load(data + k + i * V::kWidth);
#pragma GCC unroll 8
    for (int i = 0; i < kChains; ++i) asm volatile("" : : "v"(acc[i].v));
  }
}

template <class F>
void apply(int64_t n, const float* x, float* y, F f) {
  using V = Vec<float>;
  for (int64_t i = 0; i < n; i += V::kWidth) store_lanes(f(load_lanes(x + i, n - i)), y + i, n - i);
}
void activation(const char* name, int64_t n, const float* x, float* y) {
  if (name[0] == 'e') apply(n, x, y, [](Vec<float> v) { return exp(v); });
  if (name[0] == 't') apply(n, x, y, [](Vec<float> v) { return tanh(v); });
  if (name[0] == 's') apply(n, x, y, [](Vec<float> v) { return sigmoid(v); });
  if (name[0] == 'l') apply(n, x, y, [](Vec<float> v) { return log1p_unit(v); });
}

// One row of a dropout mask: 0 where a unit is hit, `scale` elsewhere.
template <class T>
void dropout_row(uint64_t key, int64_t n, uint32_t threshold, T scale, T* out) {
  using V = Vec<T>;
  for (int64_t u = 0; u < n; u += V::kWidth)
    store_lanes(select(hit_units<T>(key, u, threshold), V(0), V(scale)), out + u, n - u);
}
}  // namespace

#define FASTRNN_ROW(Cell, T)                                                                                \
  {packed_forward_bytes<Cell, T>,  pack_forward<Cell, T>,  forward_scratch<Cell, T>,  rnn_forward<Cell, T>, \
   packed_backward_bytes<Cell, T>, pack_backward<Cell, T>, backward_scratch<Cell, T>, rnn_backward<Cell, T>},
#define FASTRNN_ROW_F32(name, Cell) FASTRNN_ROW(Cell, float)
#define FASTRNN_ROW_F64(name, Cell) FASTRNN_ROW(Cell, double)
extern const AttentionTable FASTRNN_OF_ISA(attention_table);
extern const DecoderTable FASTRNN_OF_ISA(decoder_table);
extern const CpuTable FASTRNN_OF_ISA(table);
const CpuTable FASTRNN_OF_ISA(table) = {FASTRNN_ISA_NAME,
                                        kVecBytes,
                                        {FASTRNN_FOR_EACH_CELL(FASTRNN_ROW_F32)},
                                        {FASTRNN_FOR_EACH_CELL(FASTRNN_ROW_F64)},
                                        &FASTRNN_OF_ISA(attention_table),
                                        &FASTRNN_OF_ISA(decoder_table),
                                        hash,
                                        fma_loop,
                                        read_loop,
                                        activation,
                                        dropout_row<float>,
                                        dropout_row<double>};
}  // namespace fastrnn
