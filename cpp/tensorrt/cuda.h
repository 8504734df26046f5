// CUDA errors as Status, and owners of what CUDA hands out.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>
#include <string>
#include <utility>

#include "core/status.h"

namespace nt {

// ERR_OUT_OF_DEVICE_MEMORY or ERR_CUDA, named after what failed.
Status toStatus(cudaError_t error, const std::string& what);

// The error that this thread's last CUDA calls left, which is cleared unless it is sticky; ok if there is
// none.
Status takeCudaError(const std::string& what);

// Bytes as "1.5 GiB".
std::string bytesText(uint64_t bytes);

struct DeviceAllocation {
  static cudaError_t allocate(void** data, uint64_t bytes) noexcept { return cudaMalloc(data, bytes); }
  static void free(void* data) noexcept { cudaFree(data); }
  static Status outOfMemory(const std::string& what) { return toStatus(cudaErrorMemoryAllocation, what); }
};

struct PinnedAllocation {
  static cudaError_t allocate(void** data, uint64_t bytes) noexcept { return cudaMallocHost(data, bytes); }
  static void free(void* data) noexcept { cudaFreeHost(data); }
  static Status outOfMemory(const std::string& what) {
    cudaGetLastError();  // it is no sticky error: the next call must not report it again
    return {"ERR_OUT_OF_MEMORY", what + ": no pinned host memory"};
  }
};

template <class Allocation>
class CudaBuffer {
 public:
  CudaBuffer() = default;
  static Expected<CudaBuffer> allocate(uint64_t bytes, const std::string& what) {
    CudaBuffer buffer;
    const cudaError_t error = Allocation::allocate(&buffer.data_, bytes == 0 ? 1 : bytes);
    if (error == cudaSuccess) {
      buffer.bytes_ = bytes;
      return buffer;
    }
    buffer.data_ = nullptr;
    const std::string text = what + " of " + bytesText(bytes);
    return error == cudaErrorMemoryAllocation ? Allocation::outOfMemory(text) : toStatus(error, text);
  }
  CudaBuffer(CudaBuffer&& other) noexcept
      : data_(std::exchange(other.data_, nullptr)), bytes_(std::exchange(other.bytes_, 0)) {}
  CudaBuffer& operator=(CudaBuffer&& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(bytes_, other.bytes_);
    return *this;
  }
  ~CudaBuffer() { reset(); }

  void reset() noexcept {
    if (data_ != nullptr) Allocation::free(std::exchange(data_, nullptr));
    bytes_ = 0;
  }
  template <class T = void>
  T* as() const noexcept {
    return static_cast<T*>(data_);
  }
  uint64_t bytes() const noexcept { return bytes_; }

 private:
  void* data_ = nullptr;
  uint64_t bytes_ = 0;
};
using DeviceBuffer = CudaBuffer<DeviceAllocation>;
// Host memory that the device can copy from and to while the host goes on.
using PinnedBuffer = CudaBuffer<PinnedAllocation>;

// A stream, an event or an executable graph.
template <class Handle, cudaError_t (*Destroy)(Handle)>
class CudaHandle {
 public:
  CudaHandle() = default;
  CudaHandle(CudaHandle&& other) noexcept : handle_(std::exchange(other.handle_, nullptr)) {}
  CudaHandle& operator=(CudaHandle&& other) noexcept {
    std::swap(handle_, other.handle_);
    return *this;
  }
  ~CudaHandle() {
    if (handle_ != nullptr) Destroy(handle_);
  }
  Handle get() const noexcept { return handle_; }
  Handle* put() noexcept { return &handle_; }

 private:
  Handle handle_ = nullptr;
};
using Stream = CudaHandle<cudaStream_t, cudaStreamDestroy>;
using Event = CudaHandle<cudaEvent_t, cudaEventDestroy>;
using CapturedGraph = CudaHandle<cudaGraph_t, cudaGraphDestroy>;
using GraphExec = CudaHandle<cudaGraphExec_t, cudaGraphExecDestroy>;

// Waits until what was recorded into `event` has completed: asks for `spinUs` microseconds, which costs a
// core and no wake-up, then sleeps, if the event was made with cudaEventBlockingSync.
cudaError_t awaitEvent(cudaEvent_t event, int32_t spinUs) noexcept;

}  // namespace nt
