// A GPU on host memory, for the module's own code to run on where there is none. What the fakes of CUDA and
// TensorRT share, and what a test asks of the device. See README.md.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>
#include <functional>
#include <string>

#define NT_FAKE_EXPORT __attribute__((visibility("default")))

namespace nt::fake {

// Done on a stream's thread, in the stream's order. Another answer than cudaSuccess makes the device dead.
using Work = std::function<cudaError_t()>;

// Appends to the stream's queue, or to the graph that it captures.
NT_FAKE_EXPORT cudaError_t submit(cudaStream_t stream, Work work);
NT_FAKE_EXPORT bool isStream(cudaStream_t stream);
NT_FAKE_EXPORT bool isCapturing(cudaStream_t stream);
// What was not allowed during the capture breaks it.
NT_FAKE_EXPORT void invalidateCapture(cudaStream_t stream);

// Where the host reaches `bytes` of device or pinned memory; null where they are not all of one allocation
// that is alive.
NT_FAKE_EXPORT void* reach(const void* address, size_t bytes);
// Device memory cannot be touched by the host: an access ends the process, as it would with a GPU.
NT_FAKE_EXPORT bool isDeviceAddress(const void* address);

// For what no correct program does (a pointer freed twice, a handle used after its end, a copy past an
// allocation): printed, counted, and with FAKE_GPU_ABORT=1 the end of the process.
NT_FAKE_EXPORT void violation(const std::string& what);

struct Figures {
  uint64_t violations = 0;
  uint64_t deviceBlocks = 0;  // allocations that are alive, of all devices
  uint64_t deviceBytes = 0;
  uint64_t pinnedBlocks = 0;
  uint64_t pinnedBytes = 0;
  uint64_t streams = 0;  // not destroyed
  uint64_t events = 0;
  uint64_t graphs = 0;       // executable ones too
  uint64_t allocations = 0;  // calls since the start, failed ones too
  bool operator==(const Figures&) const = default;
};
NT_FAKE_EXPORT Figures figures();
NT_FAKE_EXPORT std::string lastViolation();
NT_FAKE_EXPORT void clearViolations();

// From now on every call on the device answers `error`, and what is queued is dropped.
NT_FAKE_EXPORT void kill(int device, cudaError_t error);
// The error of which the device died; cudaSuccess while it lives.
NT_FAKE_EXPORT cudaError_t deathOf(int device);
// Takes `kill` back. The module itself never uses a device again that has died.
NT_FAKE_EXPORT void revive(int device);
// The n-th call of cudaMalloc or cudaMallocHost from now fails, from 1; 0 = none.
NT_FAKE_EXPORT void failAllocation(uint64_t n);
// Of each device. Before: FAKE_GPU_TOTAL_BYTES, else 16 GiB.
NT_FAKE_EXPORT void setTotalBytes(uint64_t bytes);
// Every piece of work first sleeps for a random time up to this. Before: FAKE_GPU_JITTER_US, else 0.
NT_FAKE_EXPORT void setJitter(uint32_t microseconds);

}  // namespace nt::fake
