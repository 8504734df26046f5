// What all objects on one device share: whether the device still works, its memory's counters and pools. One
// for each device and process, since an error that CUDA cannot recover from concerns the whole process.
#pragma once

#include <cuda_runtime_api.h>

#include <atomic>
#include <cstdint>
#include <mutex>
#include <string>
#include <unordered_map>

#include "core/runtime.h"
#include "tensorrt/runtime/pool.h"

namespace nt::runtime {

class DeviceState {
 public:
  // The same at every call, never destroyed. The device must exist (requireDevice in driver.h).
  static Expected<DeviceState*> of(int32_t device) noexcept;

  int32_t device() const noexcept { return device_; }
  // Makes the device current on the calling thread.
  Status select() noexcept;

  // ERR_BACKEND_DEAD with the first error that CUDA could not recover from; ok until then.
  Status alive() const noexcept;
  bool isDead() const noexcept { return dead_.load(std::memory_order_acquire); }
  // ERR_OUT_OF_DEVICE_MEMORY or ERR_CUDA named after what failed. An error that CUDA cannot recover from
  // makes the device dead, and the answer ERR_BACKEND_DEAD. Clears the thread's last error.
  Status check(cudaError_t error, const char* what) noexcept;

  // Every allocation on the device goes through here, TensorRT's too: counted, and failed on demand
  // (faults.h). Memory is aligned to 256 bytes. Where the device is out of memory, pooled blocks are given
  // back first.
  cudaError_t allocateDeviceRaw(uint64_t bytes, void** memory) noexcept;
  // Takes what allocateDeviceRaw gave, or null. May block until the device is idle.
  void freeDeviceRaw(void* memory) noexcept;
  cudaError_t allocatePinnedRaw(uint64_t bytes, void** memory) noexcept;
  void freePinnedRaw(void* memory) noexcept;

  Expected<MemoryFigures> memory() noexcept;
  DeviceCounters counters() const noexcept;
  // Pooled blocks leave the pool at once and are freed on the reaper's thread.
  void trim() noexcept;

  // Blocks for reuse. `bytes` is what sizeClass() gave.
  void* takePooled(MemoryKind kind, uint64_t bytes) noexcept;
  void putPooled(MemoryKind kind, void* memory, uint64_t bytes) noexcept;

 private:
  struct Account {
    std::mutex mutex;
    std::unordered_map<void*, uint64_t> sizes;  // bytes, of all that is allocated, pooled or not
    uint64_t bytes = 0;
    std::atomic<uint64_t> allocations = 0;
    std::atomic<uint64_t> frees = 0;
  };

  explicit DeviceState(int32_t device) noexcept;
  Pool& pool(MemoryKind kind) noexcept { return kind == MemoryKind::kDevice ? devicePool_ : pinnedPool_; }
  Account& account(MemoryKind kind) noexcept { return kind == MemoryKind::kDevice ? onDevice_ : pinned_; }
  cudaError_t allocate(MemoryKind kind, uint64_t bytes, void** memory) noexcept;
  void free(MemoryKind kind, void* memory) noexcept;
  void freeBlocks(MemoryKind kind, const Pool::Blocks& blocks) noexcept;
  void freeBlocksLater(MemoryKind kind, Pool::Blocks blocks) noexcept;

  const int32_t device_;
  std::atomic<bool> dead_ = false;
  mutable std::mutex deathMutex_;
  std::string death_;  // the first error's text
  Account onDevice_;
  Account pinned_;
  Pool devicePool_;
  Pool pinnedPool_;
  std::atomic<uint64_t> poolHits_ = 0;
};

// Makes a device current on this thread, for a scope that needs it. It stays current: going back to another
// device would start that one up, which takes hundreds of MiB there.
class DeviceScope {
 public:
  explicit DeviceScope(int32_t device) noexcept {
    int before = -1;
    if (cudaGetDevice(&before) != cudaSuccess || before != device) cudaSetDevice(device);
  }
  DeviceScope(const DeviceScope&) = delete;
  DeviceScope& operator=(const DeviceScope&) = delete;
};

}  // namespace nt::runtime
