#include "tensorrt/cuda.h"

#include <algorithm>
#include <array>
#include <cstdio>

namespace nt {

Status toStatus(cudaError_t error, const std::string& what) {
  if (error == cudaSuccess) return {};
  if (error == cudaErrorMemoryAllocation) {
    cudaGetLastError();  // it is no sticky error: the next call must not report it again
    return {"ERR_OUT_OF_DEVICE_MEMORY", what + ": the GPU is out of memory",
            "Lower the KV cache's share or the largest step, or stop what else runs on this GPU"};
  }
  return {"ERR_CUDA", what + ": " + cudaGetErrorString(error) + " (" + cudaGetErrorName(error) + ")"};
}

Status takeCudaError(const std::string& what) {
  return toStatus(cudaGetLastError(), what);
}

std::string bytesText(uint64_t bytes) {
  std::array<char, 32> text{};
  const double gib = static_cast<double>(bytes) / (1U << 30);
  if (gib >= 1) {
    std::snprintf(text.data(), text.size(), "%.1f GiB", gib);
  } else {
    std::snprintf(text.data(), text.size(), "%.1f MiB", gib * 1024);
  }
  return text.data();
}

Expected<DeviceBuffer> DeviceBuffer::allocate(uint64_t bytes, const std::string& what) {
  DeviceBuffer buffer;
  const cudaError_t error = cudaMalloc(&buffer.data_, std::max<uint64_t>(bytes, 1));
  if (error != cudaSuccess) {
    buffer.data_ = nullptr;
    return toStatus(error, what + " of " + bytesText(bytes));
  }
  buffer.bytes_ = bytes;
  return buffer;
}

Expected<PinnedBuffer> PinnedBuffer::allocate(uint64_t bytes, const std::string& what) {
  PinnedBuffer buffer;
  const cudaError_t error = cudaMallocHost(&buffer.data_, std::max<uint64_t>(bytes, 1));
  if (error != cudaSuccess) {
    buffer.data_ = nullptr;
    if (error == cudaErrorMemoryAllocation) {
      cudaGetLastError();
      return Status("ERR_OUT_OF_MEMORY", what + " of " + bytesText(bytes) + ": no pinned host memory");
    }
    return toStatus(error, what);
  }
  buffer.bytes_ = bytes;
  return buffer;
}

}  // namespace nt
