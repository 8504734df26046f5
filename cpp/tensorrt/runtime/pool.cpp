#include "tensorrt/runtime/pool.h"

#include <algorithm>
#include <bit>
#include <utility>

namespace nt::runtime {

uint64_t sizeClass(uint64_t bytes) noexcept {
  constexpr uint64_t kSmallest = 512;
  if (bytes <= kSmallest) return kSmallest;
  const uint64_t step = std::bit_floor(bytes - 1) / 4;
  return (bytes + step - 1) / step * step;
}

void* Pool::take(uint64_t bytes) noexcept {
  const std::lock_guard lock(mutex_);
  const auto found = blocks_.find(bytes);
  if (found == blocks_.end()) return nullptr;
  void* memory = found->second.memory;
  blocks_.erase(found);
  bytes_ -= bytes;
  return memory;
}

bool Pool::put(void* memory, uint64_t bytes, Blocks& evicted) {
  if (bytes > capacity_) return false;
  const std::lock_guard lock(mutex_);
  blocks_.emplace(bytes, Block{memory, ++puts_});
  bytes_ += bytes;
  while (bytes_ > capacity_) {
    const auto oldest = std::min_element(blocks_.begin(), blocks_.end(), [](const auto& a, const auto& b) {
      return a.second.age < b.second.age;
    });
    bytes_ -= oldest->first;
    evicted.insert(blocks_.extract(oldest));
  }
  return true;
}

Pool::Blocks Pool::takeAll() noexcept {
  const std::lock_guard lock(mutex_);
  bytes_ = 0;
  return std::exchange(blocks_, {});
}

uint64_t Pool::bytes() const noexcept {
  const std::lock_guard lock(mutex_);
  return bytes_;
}

}  // namespace nt::runtime
