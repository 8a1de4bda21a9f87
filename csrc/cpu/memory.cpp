#include "memory.h"

#include <sys/mman.h>
#include <algorithm>
#include <mutex>
#include <new>
#include <vector>

namespace fastrnn {
namespace {
// Large memory that is about to be written for the first time: ask for 2 MiB pages, as one page fault per 4 KiB costs
// up to a tenth of a training step. Only a hint.
void prefer_huge_pages(void* data, int64_t bytes) {
  constexpr int64_t kHuge = int64_t(2) << 20;
  if (bytes < 2 * kHuge) return;
  const uintptr_t begin = (reinterpret_cast<uintptr_t>(data) + kHuge - 1) / kHuge * kHuge;
  const uintptr_t end = (reinterpret_cast<uintptr_t>(data) + uintptr_t(bytes)) / kHuge * kHuge;
  if (end > begin) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
}

// Buffers given back, the latest last. Never destroyed: they may come during interpreter exit. Whoever finds the lock
// taken (perhaps for ever, by a thread that a fork left behind) does without.
struct Kept {
  static constexpr int64_t kMaxBytes = int64_t(256) << 20;
  std::mutex mutex;
  std::vector<Buffer> buffers;
  int64_t bytes = 0;

  static Kept& instance() {
    static Kept* kept = new Kept;
    return *kept;
  }
};
}  // namespace

Buffer::Buffer(int64_t bytes) : size_(bytes) {
  data_.reset(static_cast<char*>(::operator new(size_t(std::max<int64_t>(bytes, 64)), std::align_val_t(64))));
  prefer_huge_pages(data_.get(), bytes);
}
void Buffer::Free::operator()(char* p) const { ::operator delete(p, std::align_val_t(64)); }

char* thread_scratch(int64_t bytes) {
  constexpr int64_t kKeep = int64_t(64) << 20;
  thread_local Buffer scratch;
  if (scratch.size() < bytes || scratch.size() > std::max(kKeep, 4 * bytes)) {
    scratch = Buffer();
    scratch = Buffer(bytes);
  }
  return scratch.data();
}

Buffer take_buffer(int64_t bytes) {
  Kept& kept = Kept::instance();
  std::unique_lock<std::mutex> lock(kept.mutex, std::try_to_lock);
  if (lock)
    for (auto it = kept.buffers.rbegin(); it != kept.buffers.rend(); ++it)
      if (it->size() >= bytes && it->size() <= 2 * bytes) {
        Buffer found = std::move(*it);
        kept.buffers.erase(std::next(it).base());
        kept.bytes -= found.size();
        return found;
      }
  return Buffer(bytes);
}

void give_back(Buffer buffer) {
  Kept& kept = Kept::instance();
  std::vector<Buffer> dropped;  // freed after the lock
  std::unique_lock<std::mutex> lock(kept.mutex, std::try_to_lock);
  if (!lock || buffer.size() > Kept::kMaxBytes) return;
  kept.bytes += buffer.size();
  kept.buffers.push_back(std::move(buffer));
  while (kept.bytes > Kept::kMaxBytes) {
    kept.bytes -= kept.buffers.front().size();
    dropped.push_back(std::move(kept.buffers.front()));
    kept.buffers.erase(kept.buffers.begin());
  }
}
}  // namespace fastrnn
