#pragma once
// Memory that will be read soon, brought into the second-level cache while something else is computed. Products of rows
// that are a few KB long start a new stream at each row, which hardware prefetchers follow late: on Zen 4, dot
// attention of 50 by 50 rows of 2 KB took 55 us in the cache, 90 us in a batch of 32, and with this 62 us.
#include <stdint.h>

#include "../cells/math.h"

namespace fastrnn {
namespace {
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
  // Asks for the next few cache lines.
  void fetch(int64_t lines) {
    while (count_ && lines > 0) {
      Range& r = ranges_[0];
      for (; lines > 0 && r.at < r.end; --lines, r.at += 64) __builtin_prefetch(r.at, 0, 2);
      if (r.at < r.end) return;
      --count_;
      for (int i = 0; i < count_; ++i) ranges_[i] = ranges_[i + 1];
    }
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
