#include "tensorrt/runtime/faults.h"

#include <atomic>

namespace nt::runtime {

namespace {

// Calls until the one that is to fail; 0 or less = none is.
std::atomic<int64_t> deviceAllocations{0};
std::atomic<int64_t> pinnedAllocations{0};
std::atomic<int64_t> enqueues{0};
std::atomic<int64_t> copies{0};

bool fails(std::atomic<int64_t>& left) noexcept {
  if (left.load(std::memory_order_relaxed) <= 0) return false;
  return left.fetch_sub(1, std::memory_order_relaxed) == 1;
}

}  // namespace

void injectFaults(const Faults& faults) noexcept {
  deviceAllocations = faults.failDeviceAllocation;
  pinnedAllocations = faults.failPinnedAllocation;
  enqueues = faults.failEnqueue;
  copies = faults.failCopy;
}

bool failsDeviceAllocation() noexcept {
  return fails(deviceAllocations);
}
bool failsPinnedAllocation() noexcept {
  return fails(pinnedAllocations);
}
bool failsEnqueue() noexcept {
  return fails(enqueues);
}
bool failsCopy() noexcept {
  return fails(copies);
}

}  // namespace nt::runtime
