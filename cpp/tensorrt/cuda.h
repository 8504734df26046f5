// CUDA errors as Status, and owners of what CUDA hands out.
#pragma once

#include <cuda_runtime_api.h>

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

class DeviceBuffer {
 public:
  DeviceBuffer() = default;
  static Expected<DeviceBuffer> allocate(uint64_t bytes, const std::string& what);
  DeviceBuffer(DeviceBuffer&& other) noexcept
      : data_(std::exchange(other.data_, nullptr)), bytes_(other.bytes_) {}
  DeviceBuffer& operator=(DeviceBuffer&& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(bytes_, other.bytes_);
    return *this;
  }
  ~DeviceBuffer() { reset(); }

  void reset() noexcept {
    if (data_ != nullptr) cudaFree(std::exchange(data_, nullptr));
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

// Host memory that the device can copy from and to while the host goes on.
class PinnedBuffer {
 public:
  PinnedBuffer() = default;
  static Expected<PinnedBuffer> allocate(uint64_t bytes, const std::string& what);
  PinnedBuffer(PinnedBuffer&& other) noexcept
      : data_(std::exchange(other.data_, nullptr)), bytes_(other.bytes_) {}
  PinnedBuffer& operator=(PinnedBuffer&& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(bytes_, other.bytes_);
    return *this;
  }
  ~PinnedBuffer() {
    if (data_ != nullptr) cudaFreeHost(data_);
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
using GraphExec = CudaHandle<cudaGraphExec_t, cudaGraphExecDestroy>;

}  // namespace nt
