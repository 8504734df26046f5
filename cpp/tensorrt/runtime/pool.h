// Freed blocks of one kind of memory, kept by size for the next allocation. Frees nothing itself: blocks that
// are to go are handed out.
#pragma once

#include <cstdint>
#include <map>
#include <mutex>

namespace nt::runtime {

// Bytes of the block that serves `bytes`: four sizes to each power of two, so at most a quarter is unused.
uint64_t sizeClass(uint64_t bytes) noexcept;

class Pool {
 public:
  struct Block {
    void* memory;
    uint64_t age;  // counts up with every put
  };
  using Blocks = std::multimap<uint64_t, Block>;  // by size

  explicit Pool(uint64_t capacity) noexcept : capacity_(capacity) {}

  // Null = none of exactly this size.
  void* take(uint64_t bytes) noexcept;
  // False: a block of this size is never kept. `evicted` are those that had to make room, the oldest ones.
  // Throws std::bad_alloc before anything has changed.
  bool put(void* memory, uint64_t bytes, Blocks& evicted);
  Blocks takeAll() noexcept;
  uint64_t bytes() const noexcept;

 private:
  mutable std::mutex mutex_;
  const uint64_t capacity_;
  uint64_t bytes_ = 0;
  uint64_t puts_ = 0;
  Blocks blocks_;
};

}  // namespace nt::runtime
