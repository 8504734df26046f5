// Device and pinned memory.
#pragma once

#include <memory>

#include "core/runtime.h"
#include "tensorrt/runtime/device_state.h"

namespace nt::runtime {

// All memory that the module hands out is of this class.
class MemoryObject final : public Memory {
 public:
  MemoryObject(DeviceState& device, MemoryKind kind, void* address, uint64_t bytes,
               uint64_t pooledAs) noexcept
      : device_(device), kind_(kind), address_(address), bytes_(bytes), pooledAs_(pooledAs) {}
  ~MemoryObject() override;

  MemoryKind kind() const noexcept override { return kind_; }
  uint64_t bytes() const noexcept override { return bytes_; }
  void* address() const noexcept override { return address_; }
  DeviceState& deviceState() const noexcept { return device_; }

 private:
  DeviceState& device_;
  const MemoryKind kind_;
  void* const address_;
  const uint64_t bytes_;
  const uint64_t pooledAs_;  // the block's size class; 0 = not of the pool
};

// ERR_OUT_OF_DEVICE_MEMORY, ERR_OUT_OF_MEMORY (pinned), ERR_BACKEND_DEAD. Blocks shortly.
Expected<std::shared_ptr<Memory>> createMemory(DeviceState& device, MemoryKind kind, uint64_t bytes,
                                               bool pooled) noexcept;

}  // namespace nt::runtime
