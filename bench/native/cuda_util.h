// Error checks, buffers and timing for the measurement programs. They stop at the first error: there is
// nothing to recover.
#pragma once

#include <cuda_runtime_api.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <vector>

namespace bench {

#define CUDA_CHECK(call)                                                                               \
  do {                                                                                                 \
    const cudaError_t status_ = (call);                                                                \
    if (status_ != cudaSuccess) {                                                                      \
      std::fprintf(stderr, "%s:%d: %s: %s\n", __FILE__, __LINE__, #call, cudaGetErrorString(status_)); \
      std::exit(1);                                                                                    \
    }                                                                                                  \
  } while (0)

#define REQUIRE(condition)                                                         \
  do {                                                                             \
    if (!(condition)) {                                                            \
      std::fprintf(stderr, "%s:%d: failed: %s\n", __FILE__, __LINE__, #condition); \
      std::exit(1);                                                                \
    }                                                                              \
  } while (0)

class DeviceBuffer {
 public:
  DeviceBuffer() = default;
  explicit DeviceBuffer(size_t bytes) : bytes_(bytes) {
    CUDA_CHECK(cudaMalloc(&data_, std::max<size_t>(bytes, 1)));
  }
  DeviceBuffer(DeviceBuffer&& other) noexcept { *this = std::move(other); }
  DeviceBuffer& operator=(DeviceBuffer&& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(bytes_, other.bytes_);
    return *this;
  }
  ~DeviceBuffer() { cudaFree(data_); }
  template <class T = void>
  T* as() const {
    return static_cast<T*>(data_);
  }
  size_t bytes() const { return bytes_; }

 private:
  void* data_ = nullptr;
  size_t bytes_ = 0;
};

template <class T>
DeviceBuffer upload(const std::vector<T>& host) {
  DeviceBuffer buffer(host.size() * sizeof(T));
  CUDA_CHECK(cudaMemcpy(buffer.as<>(), host.data(), host.size() * sizeof(T), cudaMemcpyHostToDevice));
  return buffer;
}

class Graph {
 public:
  // Captures what `body` enqueues on the stream.
  Graph(cudaStream_t stream, const std::function<void()>& body) {
    CUDA_CHECK(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
    body();
    CUDA_CHECK(cudaStreamEndCapture(stream, &graph_));
    CUDA_CHECK(cudaGraphInstantiate(&exec_, graph_, 0));
    CUDA_CHECK(cudaGraphGetNodes(graph_, nullptr, &nodes_));
  }
  Graph(const Graph&) = delete;
  Graph& operator=(const Graph&) = delete;
  ~Graph() {
    cudaGraphExecDestroy(exec_);
    cudaGraphDestroy(graph_);
  }
  void launch(cudaStream_t stream) const { CUDA_CHECK(cudaGraphLaunch(exec_, stream)); }
  size_t nodes() const { return nodes_; }

 private:
  cudaGraph_t graph_ = nullptr;
  cudaGraphExec_t exec_ = nullptr;
  size_t nodes_ = 0;
};

inline double median(std::vector<double> values) {
  std::nth_element(values.begin(), values.begin() + values.size() / 2, values.end());
  return values[values.size() / 2];
}

// Device milliseconds of `body`: median of `repeats`, each between its own pair of events, after two warm-up
// runs.
inline double deviceMs(cudaStream_t stream, int repeats, const std::function<void()>& body) {
  cudaEvent_t start;
  cudaEvent_t stop;
  CUDA_CHECK(cudaEventCreate(&start));
  CUDA_CHECK(cudaEventCreate(&stop));
  for (int i = 0; i < 2; ++i) body();
  std::vector<double> times;
  for (int i = 0; i < repeats; ++i) {
    CUDA_CHECK(cudaEventRecord(start, stream));
    body();
    CUDA_CHECK(cudaEventRecord(stop, stream));
    CUDA_CHECK(cudaEventSynchronize(stop));
    float ms = 0;
    CUDA_CHECK(cudaEventElapsedTime(&ms, start, stop));
    times.push_back(ms);
  }
  CUDA_CHECK(cudaEventDestroy(start));
  CUDA_CHECK(cudaEventDestroy(stop));
  return median(std::move(times));
}

// Host microseconds of `body`: median of `repeats`; the stream is drained before each, so no queue pushes
// back.
inline double hostUs(cudaStream_t stream, int repeats, const std::function<void()>& body) {
  std::vector<double> times;
  for (int i = 0; i < repeats + 2; ++i) {
    CUDA_CHECK(cudaStreamSynchronize(stream));
    const auto start = std::chrono::steady_clock::now();
    body();
    const std::chrono::duration<double, std::micro> elapsed = std::chrono::steady_clock::now() - start;
    if (i >= 2) times.push_back(elapsed.count());
  }
  CUDA_CHECK(cudaStreamSynchronize(stream));
  return median(std::move(times));
}

// Random bfloat16 with |x| between 2^-exponent and 2^(1-exponent), sign random: finite, never zero.
inline void fillBf16(uint16_t* out, size_t count, uint32_t seed, int exponent = 6) {
  uint32_t state = seed * 2654435761U + 1;
  const uint32_t base = static_cast<uint32_t>(127 - exponent) << 7;
  for (size_t i = 0; i < count; ++i) {
    state = state * 1664525U + 1013904223U;
    out[i] = static_cast<uint16_t>(base | ((state >> 16) & 0x807fU));
  }
}

// The same on the device: one random megabyte-sized block, doubled until it fills the buffer.
inline void fillDeviceBf16(void* device, size_t count, uint32_t seed, int exponent = 6) {
  const size_t block =
      std::min<size_t>(count, size_t{1} << 20 | 1);  // odd: rows do not repeat in step with it
  std::vector<uint16_t> host(block);
  fillBf16(host.data(), block, seed, exponent);
  CUDA_CHECK(cudaMemcpy(device, host.data(), block * 2, cudaMemcpyHostToDevice));
  for (size_t done = block; done < count;) {
    const size_t part = std::min(done, count - done);
    CUDA_CHECK(cudaMemcpy(static_cast<char*>(device) + done * 2, device, part * 2, cudaMemcpyDeviceToDevice));
    done += part;
  }
}

}  // namespace bench
