// Both read and write 16 bytes a thread at a time: they are bound by memory.
#include "tensorrt/kernels/gate.cuh"
#include "tensorrt/kernels/launch.cuh"
#include "tensorrt/kernels/layer_rows.h"

namespace nt::kernels {

namespace {

constexpr int kWarp = 32;
constexpr int kThreads = 256;

template <class T>
struct alignas(16) Piece {
  static constexpr int kLength = 16 / sizeof(T);
  T values[kLength];
};

__device__ inline void awaitPredecessor() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
  asm volatile("griddepcontrol.launch_dependents;");
#endif
}

// What a row is divided by; `sum` is the thread's part of its squares.
__device__ inline float rootOf(float sum, int32_t width, float eps) {
  __shared__ float sums[kThreads / kWarp];
  for (int step = kWarp / 2; step > 0; step /= 2) sum += __shfl_xor_sync(0xffffffffU, sum, step);
  if (threadIdx.x % kWarp == 0) sums[threadIdx.x / kWarp] = sum;
  __syncthreads();
  sum = 0;
  for (const float part : sums) sum += part;
  return sqrtf(sum / static_cast<float>(width) + eps);
}

// One block a row, which its threads hold in registers: `Pieces` each.
template <class T, int Pieces>
__global__ void __launch_bounds__(kThreads)
    rmsNormKernel(const T* in, const T* weight, float eps, int32_t width, T* out) {
  constexpr int kLength = Piece<T>::kLength;
  const int64_t begin = static_cast<int64_t>(blockIdx.x) * width;
  Piece<T> row[Pieces];
  float sum = 0;
  awaitPredecessor();
#pragma unroll
  for (int p = 0; p < Pieces; ++p) {
    const int32_t at = (p * kThreads + static_cast<int32_t>(threadIdx.x)) * kLength;
    if (at >= width) break;
    row[p] = *reinterpret_cast<const Piece<T>*>(in + begin + at);
#pragma unroll
    for (int i = 0; i < kLength; ++i) {
      const float x = load(row[p].values + i);
      sum += x * x;
    }
  }
  const float root = rootOf(sum, width, eps);
#pragma unroll
  for (int p = 0; p < Pieces; ++p) {
    const int32_t at = (p * kThreads + static_cast<int32_t>(threadIdx.x)) * kLength;
    if (at >= width) break;
    const auto scale = *reinterpret_cast<const Piece<T>*>(weight + at);
#pragma unroll
    for (int i = 0; i < kLength; ++i) {
      store(row[p].values + i, rounded<T>(load(row[p].values + i) / root) * load(scale.values + i));
    }
    *reinterpret_cast<Piece<T>*>(out + begin + at) = row[p];
  }
}

// The same for rows of any width.
template <class T>
__global__ void __launch_bounds__(kThreads)
    anyRmsNormKernel(const T* in, const T* weight, float eps, int32_t width, T* out) {
  in += static_cast<int64_t>(blockIdx.x) * width;
  out += static_cast<int64_t>(blockIdx.x) * width;
  float sum = 0;
  awaitPredecessor();
  for (int32_t i = threadIdx.x; i < width; i += kThreads) {
    const float x = load(in + i);
    sum += x * x;
  }
  const float root = rootOf(sum, width, eps);
  for (int32_t i = threadIdx.x; i < width; i += kThreads) {
    store(out + i, rounded<T>(load(in + i) / root) * load(weight + i));
  }
}

// Rows by y, pieces of a row by x.
template <class T, LinearGate Gate>
__global__ void __launch_bounds__(kThreads) gateKernel(const T* in, int32_t width, T* out) {
  constexpr int kLength = Piece<T>::kLength;
  const int32_t at =
      (static_cast<int32_t>(blockIdx.x) * kThreads + static_cast<int32_t>(threadIdx.x)) * kLength;
  if (at >= width) return;
  const T* from = in + static_cast<int64_t>(blockIdx.y) * 2 * width + at;
  awaitPredecessor();
  const auto gate = *reinterpret_cast<const Piece<T>*>(from);
  const auto up = *reinterpret_cast<const Piece<T>*>(from + width);
  Piece<T> result;
#pragma unroll
  for (int i = 0; i < kLength; ++i) {
    store(result.values + i, activate<T, Gate>(load(gate.values + i), load(up.values + i)));
  }
  *reinterpret_cast<Piece<T>*>(out + static_cast<int64_t>(blockIdx.y) * width + at) = result;
}

}  // namespace

cudaError_t rmsNorm(DType type, const void* in, const void* weight, float eps, int32_t rows, int32_t width,
                    void* out, bool overlap, cudaStream_t stream) noexcept {
  if (rows == 0) return cudaSuccess;
  return withType(type, [&](auto element) {
    using T = decltype(element);
    const int32_t perPass = kThreads * Piece<T>::kLength;
    const bool aligned = width % Piece<T>::kLength == 0;
    const auto kernel = aligned && width <= perPass       ? rmsNormKernel<T, 1>
                        : aligned && width <= 2 * perPass ? rmsNormKernel<T, 2>
                        : aligned && width <= 4 * perPass ? rmsNormKernel<T, 4>
                                                          : anyRmsNormKernel<T>;
    return launchKernel(kernel, dim3(static_cast<unsigned>(rows)), kThreads, 0, overlap, stream,
                        static_cast<const T*>(in), static_cast<const T*>(weight), eps, width,
                        static_cast<T*>(out));
  });
}

cudaError_t gatedActivation(DType type, LinearGate gate, const void* in, int32_t rows, int32_t width,
                            void* out, bool overlap, cudaStream_t stream) noexcept {
  if (rows == 0) return cudaSuccess;
  if (gate == LinearGate::kNone) return cudaErrorInvalidValue;
  return withType(type, [&](auto element) {
    using T = decltype(element);
    const auto perBlock = kThreads * Piece<T>::kLength;
    const dim3 blocks(static_cast<unsigned>((width + perBlock - 1) / perBlock), static_cast<unsigned>(rows));
    const auto kernel =
        gate == LinearGate::kSilu ? gateKernel<T, LinearGate::kSilu> : gateKernel<T, LinearGate::kGeluTanh>;
    return launchKernel(kernel, blocks, kThreads, 0, overlap, stream, static_cast<const T*>(in), width,
                        static_cast<T*>(out));
  });
}

}  // namespace nt::kernels
