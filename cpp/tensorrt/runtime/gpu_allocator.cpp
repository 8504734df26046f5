#include "tensorrt/runtime/gpu_allocator.h"

#include <algorithm>
#include <new>

#include "tensorrt/logger.h"

namespace nt::runtime {

namespace {

// Blocks that a context keeps for its next runs.
constexpr size_t kKeptBlocks = 8;

void* allocateOrLog(DeviceState& device, uint64_t bytes) noexcept {
  void* memory = nullptr;
  if (device.allocateDeviceRaw(bytes, &memory) == cudaSuccess) return memory;
  logFailedAllocation(bytes);
  return nullptr;
}

}  // namespace

void* GpuAllocator::allocateAsync(uint64_t size, uint64_t, nvinfer1::AllocatorFlags, cudaStream_t) noexcept {
  return size == 0 ? nullptr : allocateOrLog(device_, size);
}

// Freeing waits for the device, and so for whatever stream the memory was used on.
bool GpuAllocator::deallocateAsync(void* memory, cudaStream_t) noexcept {
  device_.freeDeviceRaw(memory);
  return true;
}

TemporaryAllocator::~TemporaryAllocator() {
  for (const Block& block : free_) device_.freeDeviceRaw(block.memory);
}

void* TemporaryAllocator::allocateAsync(uint64_t size, uint64_t, nvinfer1::AllocatorFlags,
                                        cudaStream_t) noexcept {
  if (size == 0) return nullptr;
  const uint64_t bytes = sizeClass(size);
  try {
    const std::lock_guard lock(mutex_);
    const auto fits = [&](const Block& block) { return block.bytes == bytes; };
    if (const auto found = std::find_if(free_.begin(), free_.end(), fits); found != free_.end()) {
      void* memory = found->memory;
      used_.emplace(memory, bytes);
      free_.erase(found);
      return memory;
    }
    void* memory = allocateOrLog(device_, bytes);
    if (memory == nullptr) return nullptr;
    try {
      used_.emplace(memory, bytes);
    } catch (const std::bad_alloc&) {
      device_.freeDeviceRaw(memory);
      return nullptr;
    }
    return memory;
  } catch (const std::bad_alloc&) {
    return nullptr;
  }
}

bool TemporaryAllocator::deallocateAsync(void* memory, cudaStream_t) noexcept {
  if (memory == nullptr) return true;
  void* surplus = nullptr;
  try {
    const std::lock_guard lock(mutex_);
    const auto found = used_.find(memory);
    if (found == used_.end()) return false;
    surplus = memory;
    const uint64_t bytes = found->second;
    used_.erase(found);
    free_.push_back({memory, bytes});
    surplus = nullptr;
    if (free_.size() > kKeptBlocks) {
      surplus = free_.front().memory;
      free_.erase(free_.begin());
    }
  } catch (const std::bad_alloc&) {
    // It is freed then.
  }
  device_.freeDeviceRaw(surplus);
  return true;
}

}  // namespace nt::runtime
