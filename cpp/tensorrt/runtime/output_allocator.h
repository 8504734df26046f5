// Memory of outputs whose size TensorRT learns during the run.
#pragma once

#include <NvInferRuntime.h>

#include <cstdint>
#include <memory>
#include <mutex>
#include <string>

#include "core/runtime.h"
#include "tensorrt/runtime/context_run.h"

namespace nt::runtime {

// One output's memory and its shape in the last run. The block that a context allocates by itself is written
// again by the next run only while nobody else holds it: a caller's handle, a queued copy and a captured
// graph keep what they have seen. `view` may come from any thread, the rest from the stream's.
class OutputSlot final : public nvinfer1::IOutputAllocator {
 public:
  explicit OutputSlot(DeviceState& device) noexcept : device_(device) {}

  // The caller's memory, of so many bytes; null: allocate. What it replaces goes to `dropped`.
  void setGiven(void* address, uint64_t bytes, References& dropped);
  // Before a run: nothing has been refused.
  void begin() noexcept;
  // Memory of the context's own for `bytes`, of the kind; what it replaces goes to `dropped`.
  Expected<void*> reserve(MemoryKind kind, uint64_t bytes, References& dropped) noexcept;

  // Bytes that the run asked for and did not get, 0 = none; why, where memory was to be allocated.
  uint64_t refusedBytes() const noexcept { return refusedBytes_; }
  const Status& refusal() const noexcept { return refusal_; }
  void takeDropped(References& dropped);
  // The address that TensorRT is told before the run.
  void* current() noexcept;

  void setShape(const Shape& shape);
  // ERR_INVALID_ARGUMENT before the first run.
  Expected<OutputView> view(const std::string& name) const;
  std::shared_ptr<const void> own() const;

  void* reallocateOutputAsync(const char* name, void* current, uint64_t size, uint64_t alignment,
                              cudaStream_t stream) noexcept override;
  void notifyShape(const char* name, const nvinfer1::Dims& dims) noexcept override;

 private:
  DeviceState& device_;
  void* given_ = nullptr;
  uint64_t givenBytes_ = 0;
  uint64_t refusedBytes_ = 0;
  Status refusal_;
  References dropped_;

  mutable std::mutex mutex_;
  std::shared_ptr<Memory> own_;
  Shape shape_;
  bool ran_ = false;
};

}  // namespace nt::runtime
