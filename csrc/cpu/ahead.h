#pragma once
// Memory that will be read soon, brought into the second-level cache while something else is computed. Products of rows
// that are a few KB long start a new stream at each row, which hardware prefetchers follow late: on Zen 4, dot
// attention of 50 by 50 rows of 2 KB took 55 us in the cache, 90 us in a batch of 32, and with this 62 us.
#include <stdint.h>

#include "../cells/math.h"

namespace fastrnn {
namespace {
// Asks for one line after the other.
struct FetchLines {
  const char* at;
  FASTRNN_HD void operator()() {
    __builtin_prefetch(at, 0, 2);
    at += 64;
  }
};

class Ahead {
 public:
  // What is asked for has to stay beside what is in use; of a cache of 1 MB or more.
  static constexpr int64_t kMostBytes = 512 * 1024;

  void clear() { count_ = bytes_ = 0; }
  void add(const void* from, int64_t bytes) {
    if (bytes <= 0 || bytes_ + bytes > kMostBytes || count_ == kRanges) return;
    const char* begin = static_cast<const char*>(from);
    ranges_[count_++] = {begin, begin + bytes};
    bytes_ += bytes;
  }
  // The next `lines` cache lines; `in_cache` where nothing is left to ask for. One line at each step of a tile: asked
  // for together, between two tiles, they wait for each other, and the tile for them.
  FetchLines next(int64_t lines, const void* in_cache) {
    if (!count_) return {static_cast<const char*>(in_cache)};
    Range& r = ranges_[0];
    const FetchLines found{r.at};
    r.at += 64 * lines;
    if (r.at >= r.end) {
      --count_;
      for (int i = 0; i < count_; ++i) ranges_[i] = ranges_[i + 1];
    }
    return found;
  }

 private:
  static constexpr int kRanges = 5;
  struct Range {
    const char *at, *end;
  };
  Range ranges_[kRanges];
  int count_ = 0;
  int64_t bytes_ = 0;
};

// Asks for the cache line of the vector at p, which need not be valid, in the second-level cache; of several vectors in
// a line, `first` in its row, the first does. A function that only prefetches, GCC takes for one without effect and
// drops calls of it: this and its callers have to be inlined.
template <class T>
FASTRNN_HD void fetch_line(const T* p, int64_t first) {
  if (first * int64_t(sizeof(T)) % 64 == 0) __builtin_prefetch(p, 0, 2);
}
}  // namespace
}  // namespace fastrnn
