#pragma once
// Memory of the engine: aligned, never initialised, and kept where fresh pages would cost more than the work done in
// them.
#include <cstdint>
#include <memory>

namespace fastrnn {
// Heap memory aligned to a cache line.
class Buffer {
 public:
  Buffer() = default;
  explicit Buffer(int64_t bytes);
  char* data() const { return data_.get(); }
  int64_t size() const { return size_; }

 private:
  struct Free {
    void operator()(char* p) const;
  };
  std::unique_ptr<char, Free> data_;
  int64_t size_ = 0;
};

// Scratch of the calling thread, kept between calls unless it is large.
char* thread_scratch(int64_t bytes);

// A buffer of at least `bytes`, which may be one that was given back: a training step needs the same memory as the step
// before, and pages that the system has taken back and zeroed cost a tenth of the step and more.
Buffer take_buffer(int64_t bytes);
void give_back(Buffer buffer);
}  // namespace fastrnn
