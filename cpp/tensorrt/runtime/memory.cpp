#include "tensorrt/runtime/memory.h"

#include <algorithm>
#include <string>

#include "tensorrt/cuda.h"
#include "tensorrt/guarded.h"
#include "tensorrt/runtime/reaper.h"

namespace nt::runtime {

namespace {

Status outOfMemory(DeviceState& device, MemoryKind kind, uint64_t bytes, cudaError_t error) {
  const bool onDevice = kind == MemoryKind::kDevice;
  const std::string what = (onDevice ? "Device memory of " : "Pinned memory of ") + bytesText(bytes);
  if (error != cudaErrorMemoryAllocation) return device.check(error, what.c_str());
  if (!onDevice) {
    return {"ERR_OUT_OF_MEMORY", what + ": the system gives no more pinned host memory",
            "Close buffers that are no longer used, or raise the limit on locked memory"};
  }
  std::string free;
  if (const Expected<MemoryFigures> figures = device.memory(); figures) {
    free = ", " + bytesText(figures->freeBytes) + " of " + bytesText(figures->totalBytes) + " are free";
  }
  return {"ERR_OUT_OF_DEVICE_MEMORY",
          what + ": GPU " + std::to_string(device.device()) + " is out of memory" + free,
          "Close buffers, contexts and engines that are no longer used, or stop what else runs on this GPU"};
}

}  // namespace

MemoryObject::~MemoryObject() {
  if (address_ == nullptr) return;
  if (block_ != 0) {
    device_.putPooled(kind_, address_, block_);
  } else if (kind_ == MemoryKind::kDevice) {
    device_.freeDeviceRaw(address_);
  } else {
    device_.freePinnedRaw(address_);
  }
}

Status MemoryObject::allocate() {
  // Beyond any machine, and where rounding up would overflow.
  if (bytes_ > uint64_t{1} << 60) return outOfMemory(device_, kind_, bytes_, cudaErrorMemoryAllocation);
  if (block_ != 0) address_ = device_.takePooled(kind_, block_);
  if (address_ != nullptr) return {};
  const uint64_t wanted = std::max(bytes_, block_);
  const cudaError_t error = kind_ == MemoryKind::kDevice ? device_.allocateDeviceRaw(wanted, &address_)
                                                         : device_.allocatePinnedRaw(wanted, &address_);
  return error == cudaSuccess ? Status() : outOfMemory(device_, kind_, bytes_, error);
}

Expected<std::shared_ptr<Memory>> createMemory(DeviceState& device, MemoryKind kind, uint64_t bytes,
                                               bool pooled) noexcept {
  return guarded([&]() -> Expected<std::shared_ptr<Memory>> {
    if (Status status = device.alive(); !status) return status;
    // A block of the pool goes back there from any thread; others are freed by the reaper, as that blocks.
    const auto memory = pooled ? std::make_shared<MemoryObject>(device, kind, bytes, sizeClass(bytes))
                               : makeReaped<MemoryObject>(device, kind, bytes, 0);
    if (Status status = memory->allocate(); !status) return status;
    return std::shared_ptr<Memory>(memory);
  });
}

}  // namespace nt::runtime
