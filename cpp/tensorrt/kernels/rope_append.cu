// A block has one row, or a share of its heads where rows are few. A thread has 8 neighbouring elements of a
// head's first half and their partners of the second, 16 bytes each, in head after head: it looks up the
// row's angles and page once.
#include <algorithm>
#include <type_traits>

#include "tensorrt/kernels/element.cuh"
#include "tensorrt/kernels/launch.cuh"
#include "tensorrt/kernels/rope_append.h"

namespace nt::kernels {

namespace {

constexpr uint32_t kThreads = 128;
constexpr uint32_t kBlocksPerProcessor = 8;
constexpr uint32_t kElements = 8;  // of 16 bytes
constexpr uint32_t kBatch = 3;     // heads that a thread has in flight

// Past L1: what the kernel before wrote may be there in an older state.
__device__ inline uint4 loadFresh(const void* p) {
  uint4 v;
  asm volatile("ld.global.cg.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "l"(p)
               : "memory");
  return v;
}

__device__ inline void loadFloats(const float* from, float (&to)[kElements]) {
  const float4 a = __ldg(reinterpret_cast<const float4*>(from));
  const float4 b = __ldg(reinterpret_cast<const float4*>(from) + 1);
  memcpy(to, &a, sizeof(a));
  memcpy(to + 4, &b, sizeof(b));
}

// Sums of products are fused as in FlashInfer's kernels, so that both round alike.
template <class T>
__device__ inline void rotate(uint4& low, uint4& high, const float (&cosine)[kElements],
                              const float (&sine)[kElements]) {
  T a[kElements];
  T b[kElements];
  memcpy(a, &low, sizeof(low));
  memcpy(b, &high, sizeof(high));
#pragma unroll
  for (uint32_t i = 0; i < kElements; ++i) {
    const float x = load(a + i);
    const float y = load(b + i);
    store(a + i, __fmaf_rn(x, cosine[i], -__fmul_rn(y, sine[i])));
    store(b + i, __fmaf_rn(y, cosine[i], __fmul_rn(x, sine[i])));
  }
  memcpy(&low, a, sizeof(low));
  memcpy(&high, b, sizeof(high));
}

// grid (rows, shares of the heads).
template <class T, uint32_t HeadDim>
__global__ void __launch_bounds__(kThreads, kBlocksPerProcessor) ropeAppendKernel(RopeAppendArgs args) {
  constexpr uint32_t kHalf = HeadDim / 2;
  constexpr uint32_t kLanes = kHalf / kElements;  // threads of a head
  constexpr uint32_t kHeads = kThreads / kLanes;  // heads of a block at a time
  const uint32_t row = blockIdx.x;
  const uint32_t d = threadIdx.x % kLanes * kElements;
  const uint32_t keys = args.heads;
  const uint32_t values = keys + args.kv.kvHeads;
  const uint32_t end = values + args.kv.kvHeads;

  // The step's tables were written long before the kernel in front, which may still run.
  const int32_t sequence = __ldg(args.batchIndices + row);
  float cosine[kElements] = {};
  float sine[kElements] = {};
  int64_t place = 0;
  if (sequence >= 0) {
    const auto position = static_cast<uint32_t>(__ldg(args.positions + row));
    const float* angles = args.cosSin + static_cast<int64_t>(position) * HeadDim + d;
    loadFloats(angles, cosine);
    loadFloats(angles + kHalf, sine);
    const uint32_t entry = position / args.kv.pageSize;
    const int32_t page = __ldg(args.kv.indices + __ldg(args.kv.indptr + sequence) + entry);
    place = page * args.kv.pageStride + (position - entry * args.kv.pageSize) * args.kv.tokenStride + d;
  }
#if __CUDA_ARCH__ >= 900
  cudaTriggerProgrammaticLaunchCompletion();
  // All of the kernels before are done and their writes visible from here on. Blocks of padding wait as well:
  // who waits for this kernel counts on those before it.
  cudaGridDependencySynchronize();
#endif
  if (sequence < 0) return;

  const int64_t rowOffset = row * args.rowStride + d;
  const T* q = static_cast<const T*>(args.q) + rowOffset;
  const T* k = static_cast<const T*>(args.k) + rowOffset;
  const T* v = static_cast<const T*>(args.v) + rowOffset;
  T* qOut = static_cast<T*>(args.qOut) + row * args.qOutStride + d;
  T* kPage = static_cast<T*>(args.kv.k) + place;
  T* vPage = static_cast<T*>(args.kv.v) + place;
  const uint32_t stride = gridDim.y * kHeads;
  for (uint32_t first = blockIdx.y * kHeads + threadIdx.x / kLanes; first < end; first += kBatch * stride) {
    uint4 low[kBatch];
    uint4 high[kBatch];
#pragma unroll
    for (uint32_t i = 0; i < kBatch; ++i) {
      const uint32_t head = first + i * stride;
      if (head >= end) continue;
      const T* in = head < keys     ? q + head * HeadDim
                    : head < values ? k + (head - keys) * HeadDim
                                    : v + (head - values) * HeadDim;
      low[i] = loadFresh(in);
      high[i] = loadFresh(in + kHalf);
    }
#pragma unroll
    for (uint32_t i = 0; i < kBatch; ++i) {
      const uint32_t head = first + i * stride;
      if (head >= end) continue;
      if (head < values) rotate<T>(low[i], high[i], cosine, sine);
      const auto write = [&](T* out) {
        *reinterpret_cast<uint4*>(out) = low[i];
        *reinterpret_cast<uint4*>(out + kHalf) = high[i];
      };
      if (head < keys) {
        write(qOut + head * HeadDim);
        continue;
      }
      const bool isKey = head < values;
      const uint32_t kvHead = head - (isKey ? keys : values);
      T* page = (isKey ? kPage : vPage) + kvHead * args.kv.headStride;
      if (args.kOut == nullptr) {
        write(page);
      } else {
        // Nobody reads the page in this step: the rows are to stay in the cache, not it.
        __stcs(reinterpret_cast<uint4*>(page), low[i]);
        __stcs(reinterpret_cast<uint4*>(page + kHalf), high[i]);
        if (isKey) write(static_cast<T*>(args.kOut) + rowOffset + kvHead * HeadDim);
      }
    }
  }
}

bool isAligned(const RopeAppendArgs& args) noexcept {
  uintptr_t addresses = 0;
  for (const void* pointer : {args.q, args.k, args.v, static_cast<const void*>(args.qOut),
                              static_cast<const void*>(args.kOut), static_cast<const void*>(args.kv.k),
                              static_cast<const void*>(args.kv.v), static_cast<const void*>(args.cosSin)}) {
    addresses |= reinterpret_cast<uintptr_t>(pointer);
  }
  const int64_t strides =
      args.rowStride | args.qOutStride | args.kv.pageStride | args.kv.tokenStride | args.kv.headStride;
  return addresses % 16 == 0 && strides % kElements == 0;
}

}  // namespace

template <DType Type, uint32_t HeadDim>
cudaError_t ropeAppend(const RopeAppendArgs& given, cudaStream_t stream) noexcept {
  using T = std::conditional_t<Type == DType::kF16, __half, __nv_bfloat16>;
  if (given.rows == 0) return cudaSuccess;
  RopeAppendArgs args = given;
  if (args.qOutStride == 0) args.qOutStride = static_cast<int64_t>(args.heads) * HeadDim;
  if (!isAligned(args) || args.kv.pageSize == 0) return cudaErrorInvalidValue;
  int processors = 0;
  if (const cudaError_t error = multiprocessorCount(&processors); error != cudaSuccess) return error;

  constexpr uint32_t kHeads = kThreads / (HeadDim / 2 / kElements);
  const uint32_t most = (args.heads + 2 * args.kv.kvHeads + kHeads - 1) / kHeads;
  const uint32_t room = kBlocksPerProcessor * static_cast<uint32_t>(processors) / args.rows;
  return launchKernel(ropeAppendKernel<T, HeadDim>, dim3(args.rows, std::clamp(room, 1U, most)), kThreads, 0,
                      args.overlap, stream, args);
}

template cudaError_t ropeAppend<DType::kBF16, 64>(const RopeAppendArgs&, cudaStream_t) noexcept;
template cudaError_t ropeAppend<DType::kBF16, 128>(const RopeAppendArgs&, cudaStream_t) noexcept;
template cudaError_t ropeAppend<DType::kF16, 64>(const RopeAppendArgs&, cudaStream_t) noexcept;
template cudaError_t ropeAppend<DType::kF16, 128>(const RopeAppendArgs&, cudaStream_t) noexcept;

}  // namespace nt::kernels
