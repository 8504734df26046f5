// Device and pinned memory.
#pragma once

#include <memory>

#include "core/runtime.h"
#include "tensorrt/runtime/device_state.h"

namespace nt::runtime {

// All memory that the module hands out is of this class.
class MemoryObject final : public Memory {
 public:
  // `block`: the size class of pooled memory; 0 = not of the pool.
  MemoryObject(DeviceState& device, MemoryKind kind, uint64_t bytes, uint64_t block) noexcept
      : device_(device), kind_(kind), bytes_(bytes), block_(block) {}
  ~MemoryObject() override;
  // Throws std::bad_alloc.
  Status allocate();

  MemoryKind kind() const noexcept override { return kind_; }
  uint64_t bytes() const noexcept override { return bytes_; }
  void* address() const noexcept override { return address_; }
  DeviceState& deviceState() const noexcept { return device_; }

 private:
  DeviceState& device_;
  const MemoryKind kind_;
  const uint64_t bytes_;
  const uint64_t block_;
  void* address_ = nullptr;
};

// ERR_OUT_OF_DEVICE_MEMORY, ERR_OUT_OF_MEMORY (pinned), ERR_BACKEND_DEAD. Blocks shortly.
Expected<std::shared_ptr<Memory>> createMemory(DeviceState& device, MemoryKind kind, uint64_t bytes,
                                               bool pooled) noexcept;

}  // namespace nt::runtime
