// Where TensorRT gets device memory from: weights, activations and scratch count with all else on the device,
// and fail on demand.
#pragma once

#include <NvInferRuntime.h>

#include <cstdint>
#include <mutex>
#include <unordered_map>
#include <vector>

#include "tensorrt/runtime/device_state.h"

namespace nt::runtime {

// For a runtime: memory that stays for long. Any thread.
class GpuAllocator final : public nvinfer1::IGpuAsyncAllocator {
 public:
  explicit GpuAllocator(DeviceState& device) noexcept : device_(device) {}
  void* allocateAsync(uint64_t size, uint64_t alignment, nvinfer1::AllocatorFlags flags,
                      cudaStream_t stream) noexcept override;
  bool deallocateAsync(void* memory, cudaStream_t stream) noexcept override;

 private:
  DeviceState& device_;
};

// For one context: scratch whose size depends on the data, wanted and given back in every run. What is given
// back serves the context's later runs, which come after those that used it.
class TemporaryAllocator final : public nvinfer1::IGpuAsyncAllocator {
 public:
  explicit TemporaryAllocator(DeviceState& device) noexcept : device_(device) {}
  TemporaryAllocator(const TemporaryAllocator&) = delete;
  TemporaryAllocator& operator=(const TemporaryAllocator&) = delete;
  ~TemporaryAllocator() override;
  void* allocateAsync(uint64_t size, uint64_t alignment, nvinfer1::AllocatorFlags flags,
                      cudaStream_t stream) noexcept override;
  bool deallocateAsync(void* memory, cudaStream_t stream) noexcept override;

 private:
  struct Block {
    void* memory;
    uint64_t bytes;
  };

  DeviceState& device_;
  std::mutex mutex_;
  std::unordered_map<void*, uint64_t> used_;  // bytes by address
  std::vector<Block> free_;
};

}  // namespace nt::runtime
