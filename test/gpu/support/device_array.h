// Arrays of 16-bit types on host and device, for tests of kernels against plain computations.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <random>
#include <stdexcept>
#include <type_traits>
#include <vector>

#include "tensorrt/cuda.h"

namespace nt::test {

inline void cuda(cudaError_t error) {
  if (error != cudaSuccess) throw std::runtime_error(cudaGetErrorString(error));
}

inline double valueOf(__half x) {
  return static_cast<double>(__half2float(x));
}
inline double valueOf(__nv_bfloat16 x) {
  return static_cast<double>(__bfloat162float(x));
}
template <class T>
T toType(double x) {
  if constexpr (std::is_same_v<T, __half>) return __float2half_rn(static_cast<float>(x));
  if constexpr (std::is_same_v<T, __nv_bfloat16>) return __float2bfloat16_rn(static_cast<float>(x));
}

template <class T>
struct Array {
  Array(size_t count, double scale, std::mt19937& random) : host(count) {
    std::normal_distribution<double> normal(0, scale);
    for (T& x : host) x = toType<T>(normal(random));
    auto memory = DeviceBuffer::allocate(count * sizeof(T), "test");
    if (!memory) throw std::runtime_error(memory.status().message());
    device = *std::move(memory);
    cuda(cudaMemcpy(device.as<void>(), host.data(), count * sizeof(T), cudaMemcpyHostToDevice));
  }
  void* at() const { return device.as<void>(); }

  std::vector<T> host;
  DeviceBuffer device;
};

}  // namespace nt::test
