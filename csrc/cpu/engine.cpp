#include "engine.h"

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <list>
#include <mutex>
#include <type_traits>
#if defined(__SSE__)
#include <xmmintrin.h>
#endif

namespace fastrnn {
FlushDenormals::FlushDenormals() : saved_(0) {
#if defined(__SSE__)
  saved_ = _mm_getcsr();
  _mm_setcsr(saved_ | 0x8040);  // FTZ | DAZ
#endif
}
FlushDenormals::~FlushDenormals() {
#if defined(__SSE__)
  _mm_setcsr(saved_);
#endif
}

namespace {
template <class T>
const CellKernels<T>& kernels(const CpuTable& table, CellId cell) {
  if constexpr (std::is_same<T, float>::value)
    return table.f32[cell];
  else
    return table.f64[cell];
}

// Packed weights of recent inference calls, found by address and by content: a change of the weights by any means
// (optimiser, .data, NumPy view) changes the hash, so a stale pack is never used. The cache is an optimisation only:
// when another thread holds it, the caller packs for itself.
template <class T>
class PackCache {
 public:
  struct Entry {
    const CpuTable* table;
    CellId cell;
    RnnShape shape;  // T and B are ignored
    RnnWeights<T> weights;
    uint64_t hash;
    std::shared_ptr<Buffer> buffer;
    PackedForward<T> packed;
  };

  Entry get(const CpuTable& table, CellId cell, const RnnShape& shape, const RnnWeights<T>& w) {
    Entry wanted{&table, cell, shape, w, content_hash(table, cell, shape, w), nullptr, {}};
    std::unique_lock<std::mutex> lock(mutex_, std::try_to_lock);
    if (lock)
      for (auto it = entries_.begin(); it != entries_.end(); ++it)
        if (same_weights(*it, wanted)) {
          if (it->hash == wanted.hash) {
            entries_.splice(entries_.begin(), entries_, it);
            return entries_.front();
          }
          bytes_ -= it->buffer->size();
          entries_.erase(it);
          break;
        }
    const CellKernels<T>& k = kernels<T>(table, cell);
    wanted.buffer = std::make_shared<Buffer>(k.packed_forward_bytes(shape));
    wanted.packed = k.pack_forward(shape, w, wanted.buffer->data());
    if (lock && wanted.buffer->size() <= kMaxBytes) {
      entries_.push_front(wanted);
      for (bytes_ += wanted.buffer->size(); bytes_ > kMaxBytes; entries_.pop_back())
        bytes_ -= entries_.back().buffer->size();
    }
    return wanted;
  }

 private:
  static constexpr int64_t kMaxBytes = int64_t(64) << 20;

  static bool same_weights(const Entry& a, const Entry& b) {
    return a.table == b.table && a.cell == b.cell && a.shape.I == b.shape.I && a.shape.H == b.shape.H &&
           a.shape.P == b.shape.P && a.weights.w_ih == b.weights.w_ih && a.weights.w_hh == b.weights.w_hh &&
           a.weights.b_ih == b.weights.b_ih && a.weights.b_hh == b.weights.b_hh && a.weights.w_hr == b.weights.w_hr;
  }
  static uint64_t content_hash(const CpuTable& table, CellId cell, const RnnShape& s, const RnnWeights<T>& w) {
    const int64_t rows = kCells[cell].gates * s.H, size = sizeof(T);
    uint64_t h = 0;
    const auto add = [&](const T* p, int64_t n) { h = h * 0x9E3779B97F4A7C15ull + (p ? table.hash(p, n * size) : 1); };
    add(w.w_ih, rows * s.I);
    add(w.w_hh, kCells[cell].product ? rows * s.out() : 0);
    add(w.b_ih, rows);
    add(w.b_hh, rows + kCells[cell].vectors * s.H);
    add(w.w_hr, s.P * s.H);
    return h;
  }

  std::mutex mutex_;
  std::list<Entry> entries_;
  int64_t bytes_ = 0;
};
template <class T>
PackCache<T>& pack_cache() {
  static PackCache<T>* cache = new PackCache<T>;  // never destroyed: calls may come during interpreter exit
  return *cache;
}

void log_plan(const char* what, CellId cell, const RnnShape& s, const Plan& plan) {
  static const bool enabled = [] {
    const char* env = std::getenv("FASTRNN_LOG");
    return env && std::strcmp(env, "1") == 0;
  }();
  if (!enabled) return;
  std::fprintf(
      stderr,
      "fastrnn: %s_%s T=%lld B=%lld I=%lld H=%lld P=%lld D=%lld isa=%s -> %s, %d thread%s, %lld steps a chunk\n",
      kCells[cell].name, what, (long long)s.T, (long long)s.B, (long long)s.I, (long long)s.H, (long long)s.P,
      (long long)s.D, cpu_table().isa, schedule_name(plan.schedule), plan.threads, plan.threads == 1 ? "" : "s",
      (long long)plan.chunk_steps);
}

// Plans and runs one job; on a busy pool it plans again for one thread. make(plan) yields the job and its kernel call.
template <class Launch>
void run_planned(PlanQuery query, CellId cell, const RunOptions& options, Launch launch) {
  query.threads = options.threads > 0 ? options.threads : num_threads();
  query.schedule = options.schedule;
  Plan plan = make_plan(query);
  log_plan(query.backward ? "backward" : "forward", cell, query.shape, plan);
  if (launch(plan)) return;
  query.threads = 1;
  launch(make_plan(query));
}
}  // namespace

template <class T>
void run_forward(CellId cell, const RnnForward<T>& p, const RunOptions& options) {
  const CpuTable& table = cpu_table();
  const CellKernels<T>& k = kernels<T>(table, cell);
  const RnnShape& s = p.shape;
  ForwardJob<T> job{};
  job.p = &p;
  // Training changes the weights every step: pack into scratch. Inference: keep the packs.
  const bool training = p.reserve || p.segment_steps;
  const int64_t pack_bytes = training ? k.packed_forward_bytes(s) : 0;
  std::shared_ptr<Buffer> keep[2];
  for (int d = 0; d < s.D && !training; ++d) {
    auto entry = pack_cache<T>().get(table, cell, s, p.weights[d]);
    keep[d] = entry.buffer;
    job.packed[d] = entry.packed;
  }
  run_planned({kCells[cell], int(sizeof(T)), s, false, 0}, cell, options, [&](const Plan& plan) {
    job.plan = plan;
    char* scratch = thread_scratch(s.D * pack_bytes + k.forward_scratch(p, plan));
    for (int d = 0; d < s.D && training; ++d) job.packed[d] = k.pack_forward(s, p.weights[d], scratch + d * pack_bytes);
    job.scratch = scratch + s.D * pack_bytes;
    struct Context {
      const ForwardJob<T>& job;
      void (*forward)(const ForwardJob<T>&);
    } context{job, k.forward};
    return run_team(
        plan.threads,
        [](void* c, const Team& team) {
          const Context& context = *static_cast<Context*>(c);
          FlushDenormals flush;
          ForwardJob<T> mine = context.job;
          mine.team = team;
          context.forward(mine);
        },
        &context, prototype(options));
  });
}

template <class T>
void run_backward(CellId cell, const RnnBackward<T>& p, const RunOptions& options) {
  const CellKernels<T>& k = kernels<T>(cpu_table(), cell);
  const RnnShape& s = p.shape;
  BackwardJob<T> job{};
  job.p = &p;
  const int64_t backward_bytes = k.packed_backward_bytes(s);
  const int64_t pack_bytes = backward_bytes + (p.segment_steps ? k.packed_forward_bytes(s) : 0);
  run_planned({kCells[cell], int(sizeof(T)), s, true, 0}, cell, options, [&](const Plan& plan) {
    job.plan = plan;
    PlanQuery forward{kCells[cell], int(sizeof(T)), s, false, plan.threads};
    forward.shape.D = 1;  // the directions take turns here
    job.recompute.plan = make_plan(forward);
    job.recompute.plan.threads = plan.threads;
    char* scratch = thread_scratch(s.D * pack_bytes + k.backward_scratch(p, plan, job.recompute.plan));
    for (int d = 0; d < s.D; ++d) {
      char* into = scratch + d * pack_bytes;
      job.packed[d] = k.pack_backward(s, p.weights[d], into);
      if (p.segment_steps) job.recompute.packed[d] = k.pack_forward(s, p.weights[d], into + backward_bytes);
    }
    job.scratch = scratch + s.D * pack_bytes;
    struct Context {
      const BackwardJob<T>& job;
      void (*backward)(const BackwardJob<T>&);
    } context{job, k.backward};
    return run_team(
        plan.threads,
        [](void* c, const Team& team) {
          const Context& context = *static_cast<Context*>(c);
          FlushDenormals flush;
          BackwardJob<T> mine = context.job;
          mine.team = team;
          context.backward(mine);
        },
        &context, prototype(options));
  });
}

template <class T>
Stepper<T>::Stepper(CellId cell, int64_t B, const std::vector<LayerSize>& sizes,
                    const std::vector<RnnWeights<T>>& weights, const Zoneout& zoneout)
    : table_(&cpu_table()), cell_(cell), zoneout_(zoneout), layers_(sizes.size()) {
  const CellKernels<T>& k = kernels<T>(*table_, cell);
  int64_t scratch = 0;
  for (size_t l = 0; l < sizes.size(); ++l) {
    Layer& layer = layers_[l];
    layer.shape = {1, B, sizes[l].I, sizes[l].H, sizes[l].P, 1};
    layer.states = kCells[cell].states;
    layer.packed_buffer = Buffer(k.packed_forward_bytes(layer.shape));
    layer.packed = k.pack_forward(layer.shape, weights[l], layer.packed_buffer.data());
    layer.state_buffer = Buffer(B * (layer.state_width(0) + layer.state_width(1)) * int64_t(sizeof(T)));
    layer.y = Buffer(B * layer.shape.out() * int64_t(sizeof(T)));
    RnnForward<T> p{};
    p.shape = layer.shape;
    scratch = std::max(scratch, k.forward_scratch(p, {kBatchSplit, 1, 1}));
  }
  scratch_ = Buffer(scratch);
  reset(nullptr);
}

template <class T>
void Stepper<T>::step(const T* x, T* y) {
  FlushDenormals flush;
  for (size_t l = 0; l < layers_.size(); ++l) {
    Layer& layer = layers_[l];
    RnnForward<T> p{};
    p.shape = layer.shape;
    p.zoneout = zoneout_;
    p.x = x;
    p.x_stride_b = layer.shape.I;
    p.y = l + 1 == layers_.size() ? y : reinterpret_cast<T*>(layer.y.data());
    p.y_stride_b = layer.shape.out();
    for (int state = 0; state < layer.arrays(); ++state) p.states_in[state] = p.states_out[state] = layer.state(state);
    ForwardJob<T> job{&p, {layer.packed, {}}, {kBatchSplit, 1, 1}, scratch_.data(), Team()};
    kernels<T>(*table_, cell_).forward(job);
    x = p.y;
  }
}

template <class T>
void Stepper<T>::get_states(int state, T* into) const {
  for (const Layer& layer : layers_) {
    const int64_t n = layer.shape.B * layer.state_width(state);
    std::copy_n(layer.state(state), n, into);
    into += n;
  }
}
template <class T>
void Stepper<T>::set_states(int state, const T* from) {
  for (Layer& layer : layers_) {
    const int64_t n = layer.shape.B * layer.state_width(state);
    std::copy_n(from, n, layer.state(state));
    from += n;
  }
}
template <class T>
void Stepper<T>::reset(const uint8_t* mask) {
  for (Layer& layer : layers_)
    for (int state = 0; state < layer.arrays(); ++state)
      for (int64_t b = 0; b < layer.shape.B; ++b)
        if (!mask || mask[b])
          std::fill_n(layer.state(state) + b * layer.state_width(state), layer.state_width(state), T(0));
}

template void run_forward<float>(CellId, const RnnForward<float>&, const RunOptions&);
template void run_forward<double>(CellId, const RnnForward<double>&, const RunOptions&);
template void run_backward<float>(CellId, const RnnBackward<float>&, const RunOptions&);
template void run_backward<double>(CellId, const RnnBackward<double>&, const RunOptions&);
template class Stepper<float>;
template class Stepper<double>;
}  // namespace fastrnn
