#include "tensorrt/cuda.h"

#include <array>
#include <chrono>
#include <cstdio>

#include "tensorrt/spin.h"

namespace nt {

namespace {
constexpr int kPausesPerQuery = 16;
}  // namespace

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
  if (bytes < 1U << 20) return std::to_string(bytes) + " bytes";
  const double gib = static_cast<double>(bytes) / (1U << 30);
  if (gib >= 1) {
    std::snprintf(text.data(), text.size(), "%.1f GiB", gib);
  } else {
    std::snprintf(text.data(), text.size(), "%.1f MiB", gib * 1024);
  }
  return text.data();
}

cudaError_t awaitEvent(cudaEvent_t event, int32_t spinUs) noexcept {
  using Clock = std::chrono::steady_clock;
  const Clock::time_point end = Clock::now() + std::chrono::microseconds(spinUs);
  do {
    const cudaError_t state = cudaEventQuery(event);
    if (state != cudaErrorNotReady) return state;
    // A query takes a lock that launches want too: leave them room.
    spinPause(kPausesPerQuery);
  } while (Clock::now() < end);
  return cudaEventSynchronize(event);
}

}  // namespace nt
