#include <algorithm>

#include "tensorrt/kernels/element.cuh"
#include "tensorrt/kernels/rows.h"

namespace nt::kernels {

namespace {

constexpr int kThreads = 256;
constexpr int kWarp = 32;
constexpr int64_t kMaxBlocks = 65535;

// One block a row.
template <class T>
__global__ void embedKernel(EmbedArgs args) {
  const int64_t row = blockIdx.x;
  T* out = static_cast<T*>(args.out) + row * args.width;
  const int32_t sequence = args.batchIndices[row];
  if (sequence < 0) {
    for (int32_t i = threadIdx.x; i < args.width; i += blockDim.x) store(out + i, 0.0F);
    return;
  }
  int32_t token = args.tokens[row];
  if (token < 0) token = args.lastTokens[args.sequenceSlots[sequence]];
  // A slot whose step failed has no token; its step fails as well, but must not read outside the table.
  token = min(max(token, 0), args.vocab - 1);
  const T* in = static_cast<const T*>(args.table) + static_cast<int64_t>(token) * args.width;
  constexpr int32_t kPiece = 16 / sizeof(T);
  if (args.scale == 1.0F && args.width % kPiece == 0) {
    const auto* from = reinterpret_cast<const uint4*>(in);
    auto* to = reinterpret_cast<uint4*>(out);
    for (int32_t i = threadIdx.x; i < args.width / kPiece; i += blockDim.x) to[i] = __ldg(from + i);
  } else {
    for (int32_t i = threadIdx.x; i < args.width; i += blockDim.x) store(out + i, load(in + i) * args.scale);
  }
}

// One block a row; Word divides the row's bytes.
template <class Word>
__global__ void gatherKernel(const Word* in, const int32_t* rows, int64_t words, Word* out) {
  const Word* from = in + rows[blockIdx.x] * words;
  Word* to = out + blockIdx.x * words;
  for (int64_t i = threadIdx.x; i < words; i += blockDim.x) to[i] = from[i];
}

template <class From, class To>
__global__ void convertKernel(const From* in, To* out, int64_t count) {
  const int64_t stride = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < count; i += stride) {
    store(out + i, load(in + i));
  }
}

__global__ void ropeKernel(const float* invFreq, float scale, int32_t half, float* out) {
  const int64_t position = blockIdx.x;
  for (int32_t i = threadIdx.x; i < half; i += blockDim.x) {
    const float angle = static_cast<float>(position) * invFreq[i];
    out[position * 2 * half + i] = cosf(angle) * scale;
    out[position * 2 * half + half + i] = sinf(angle) * scale;
  }
}

__global__ void faultKernel() {
  __trap();
}

}  // namespace

cudaError_t embed(DType type, const EmbedArgs& args, cudaStream_t stream) noexcept {
  if (args.rows == 0) return cudaSuccess;
  withType(type, [&](auto element) {
    embedKernel<decltype(element)><<<static_cast<unsigned>(args.rows), kThreads, 0, stream>>>(args);
  });
  return cudaGetLastError();
}

cudaError_t gatherRows(const void* in, const int32_t* rows, int32_t count, int64_t bytes, void* out,
                       cudaStream_t stream) noexcept {
  if (count == 0) return cudaSuccess;
  const auto launch = [&](auto word) {
    using Word = decltype(word);
    gatherKernel<Word><<<static_cast<unsigned>(count), kThreads, 0, stream>>>(
        static_cast<const Word*>(in), rows, bytes / static_cast<int64_t>(sizeof(Word)),
        static_cast<Word*>(out));
  };
  if (bytes % 16 == 0) {
    launch(uint4{});
  } else {
    launch(uint16_t{});  // every element type has a multiple of two bytes
  }
  return cudaGetLastError();
}

cudaError_t convert(DType from, const void* in, DType to, void* out, int64_t count,
                    cudaStream_t stream) noexcept {
  if (count == 0) return cudaSuccess;
  const auto blocks = static_cast<unsigned>(std::min((count + kThreads - 1) / kThreads, kMaxBlocks));
  withType(from, [&](auto source) {
    withType(to, [&](auto target) {
      convertKernel<<<blocks, kThreads, 0, stream>>>(static_cast<const decltype(source)*>(in),
                                                     static_cast<decltype(target)*>(out), count);
    });
  });
  return cudaGetLastError();
}

cudaError_t ropeTable(const float* invFreq, float scale, int32_t positions, int32_t half, float* out,
                      cudaStream_t stream) noexcept {
  if (positions == 0) return cudaSuccess;
  ropeKernel<<<static_cast<unsigned>(positions), std::min(half, kThreads), 0, stream>>>(invFreq, scale, half,
                                                                                        out);
  return cudaGetLastError();
}

cudaError_t fault(cudaStream_t stream) noexcept {
  faultKernel<<<1, 1, 0, stream>>>();
  return cudaGetLastError();
}

}  // namespace nt::kernels
