// Freed blocks of one kind of memory, kept by size for the next allocation. Frees nothing itself: blocks that
// are to go are handed out.
#pragma once

#include <cstdint>
#include <map>
#include <mutex>
#include <vector>

namespace nt::runtime {

// Bytes of the block that serves `bytes`: four sizes to each power of two, so at most a quarter is unused.
uint64_t sizeClass(uint64_t bytes) noexcept;

class Pool {
 public:
  explicit Pool(uint64_t capacity) noexcept : capacity_(capacity) {}

  // Null = none of exactly this size.
  void* take(uint64_t bytes) noexcept;
  // Blocks that no longer fit, oldest first; `block` itself where it cannot be kept.
  std::vector<void*> put(void* block, uint64_t bytes);
  std::vector<void*> takeAll();
  uint64_t bytes() const noexcept;
  void setCapacity(uint64_t bytes) noexcept;

 private:
  struct Block {
    void* memory;
    uint64_t age;  // counts up with every put
  };

  mutable std::mutex mutex_;
  uint64_t capacity_;
  uint64_t bytes_ = 0;
  uint64_t puts_ = 0;
  std::multimap<uint64_t, Block> blocks_;  // by size
};

}  // namespace nt::runtime
