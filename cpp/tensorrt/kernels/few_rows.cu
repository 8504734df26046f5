// A block per multiprocessor takes a range of columns (rows of the weight matrix), tile by tile: 16 columns,
// or 8 with their 8 partners of the gate. Its warps share out k, so that a tile's weights are read once, in
// 64-byte pieces, by loads that are issued several chunks ahead, across tiles. Tensor cores multiply: a tile
// is the 16-row operand, the rows of x are the 8 columns of the other one, so the work is the same for 1 row
// and for 8.
//
// k is permuted within 32 elements: a lane loads 8 consecutive elements and uses them as the pairs that the
// instruction wants from it; x is read in the same way, and a sum does not mind.
#include <type_traits>

#include "tensorrt/kernels/element.cuh"
#include "tensorrt/kernels/few_rows.h"
#include "tensorrt/kernels/gate.cuh"
#include "tensorrt/kernels/launch.cuh"

namespace nt::kernels {

namespace {

constexpr int kWarps = 8;
constexpr int kThreads = kWarps * 32;
constexpr int kStep = 32;    // elements of k that a warp takes in one step
constexpr int kSteps = 4;    // steps of a chunk
constexpr int kBuffers = 2;  // chunks in flight
constexpr int kTileRows = 16;
constexpr int kTileFloats = kTileRows * kFewRowsMax;

struct Chunk {
  uint4 a[kSteps][2];
};

__device__ inline uint4 loadWeights(const void* p) {
  uint4 v;
  asm volatile("ld.global.nc.L1::no_allocate.L2::128B.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "l"(p));
  return v;
}

// Past L1: what the kernel before wrote may be there in an older state.
template <class T>
__device__ inline T loadFreshValue(const T* p) {
  unsigned short bits;
  asm volatile("ld.global.cg.u16 %0, [%1];" : "=h"(bits) : "l"(p) : "memory");
  T value;
  memcpy(&value, &bits, sizeof(value));
  return value;
}

template <class T>
__device__ inline void multiply(float (&c)[4], uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3,
                                uint32_t b0, uint32_t b1) {
  if constexpr (std::is_same_v<T, __half>) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
  } else {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
  }
}

// Elements between the rows of x in shared memory: an odd number of half bank rows, so that the two rows that
// a quarter of a warp reads lie in different banks.
__host__ __device__ constexpr int sharedStride(int k) {
  return k % 64 == 0 ? k + 32 : k;
}

__device__ inline void syncBlock() {
  asm volatile("bar.sync 1, %0;" ::"n"(kThreads) : "memory");
}

// Past L1 as well, and all at once: nothing waits for one piece before it asks for the next.
__device__ inline void copyFresh(void* shared, const void* from) {
  const auto to = static_cast<uint32_t>(__cvta_generic_to_shared(shared));
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(to), "l"(from) : "memory");
}

// Copies x to shared memory, normalised where the layer wants it.
template <class T>
__device__ inline void takeInput(const FewRowsArgs& args, T* shared, float (*sums)[kFewRowsMax]) {
  const int pieces = args.k / 8;
  const int stride = sharedStride(args.k);
  for (int row = 0; row < args.rows; ++row) {
    const auto* from = static_cast<const T*>(args.x) + static_cast<int64_t>(row) * args.k;
    for (int i = threadIdx.x; i < pieces; i += kThreads)
      copyFresh(shared + row * stride + i * 8, from + i * 8);
  }
  asm volatile("cp.async.wait_all;" ::: "memory");
  if (args.norm == nullptr) {
    syncBlock();
    return;
  }
  // A thread sums up and later scales the pieces that it has copied itself.
  const int warp = threadIdx.x / 32;
  for (int row = 0; row < args.rows; ++row) {
    float sum = 0;
    for (int i = threadIdx.x; i < pieces; i += kThreads) {
      T values[8];
      const uint4 v = *reinterpret_cast<const uint4*>(shared + row * stride + i * 8);
      memcpy(values, &v, sizeof(v));
#pragma unroll
      for (int j = 0; j < 8; ++j) {
        const float f = load(values + j);
        sum += f * f;
      }
    }
    for (int offset = 16; offset > 0; offset /= 2) sum += __shfl_xor_sync(0xffffffffU, sum, offset);
    if (threadIdx.x % 32 == 0) sums[warp][row] = sum;
  }
  syncBlock();
  for (int i = threadIdx.x; i < pieces; i += kThreads) {
    T weights[8];
    const uint4 w = __ldg(reinterpret_cast<const uint4*>(static_cast<const T*>(args.norm) + i * 8));
    memcpy(weights, &w, sizeof(w));
    for (int row = 0; row < args.rows; ++row) {
      float sum = 0;
#pragma unroll
      for (int part = 0; part < kWarps; ++part) sum += sums[part][row];
      const float scale = rsqrtf(sum / static_cast<float>(args.k) + args.eps);
      auto* at = reinterpret_cast<uint4*>(shared + row * stride + i * 8);
      uint4 v = *at;
      T values[8];
      memcpy(values, &v, sizeof(v));
#pragma unroll
      for (int j = 0; j < 8; ++j) store(values + j, rounded<T>(load(values + j) * scale) * load(weights + j));
      memcpy(&v, values, sizeof(v));
      *at = v;
    }
  }
  syncBlock();
}

template <class T, LinearGate Gate>
__global__ void __launch_bounds__(kThreads) fewRowsKernel(FewRowsArgs args) {
  extern __shared__ __align__(16) char memory[];
  __shared__ float partial[2][kWarps][kTileFloats];
  __shared__ float sums[kWarps][kFewRowsMax];
  T* x = reinterpret_cast<T*>(memory);

  constexpr bool kGated = Gate != LinearGate::kNone;
  constexpr int kColumns = kGated ? 8 : kTileRows;
  const int warp = threadIdx.x / 32;
  const int group = threadIdx.x % 32 / 4;
  const int quad = threadIdx.x % 4;
  const int first = static_cast<int>(static_cast<int64_t>(args.n) * blockIdx.x / gridDim.x);
  const int last = static_cast<int>(static_cast<int64_t>(args.n) * (blockIdx.x + 1) / gridDim.x);
  const int tiles = (last - first + kColumns - 1) / kColumns;
  const int steps = args.k / kStep;
  const int begin = steps * warp / kWarps;
  const int end = steps * (warp + 1) / kWarps;
  const int chunks = max((end - begin + kSteps - 1) / kSteps, 1);
  const T* weight = static_cast<const T*>(args.weight);

  int nextTile = 0;
  int nextChunk = 0;
  const auto fetch = [&](Chunk& chunk) {
    const int column = first + nextTile * kColumns + group;
    const int partner = kGated ? column + args.n : column + 8;
    const bool hasColumn = nextTile < tiles && column < last;
    const bool hasPartner = kGated ? hasColumn : nextTile < tiles && partner < last;
    const int64_t offset = static_cast<int64_t>(begin + nextChunk * kSteps) * kStep + quad * 8;
    const T* a = weight + static_cast<int64_t>(column) * args.k + offset;
    const T* b = weight + static_cast<int64_t>(partner) * args.k + offset;
#pragma unroll
    for (int s = 0; s < kSteps; ++s) {
      const bool inside = begin + nextChunk * kSteps + s < end;
      chunk.a[s][0] = hasColumn && inside ? loadWeights(a + s * kStep) : uint4{};
      chunk.a[s][1] = hasPartner && inside ? loadWeights(b + s * kStep) : uint4{};
    }
    if (++nextChunk == chunks) {
      nextChunk = 0;
      ++nextTile;
    }
  };

  Chunk buffers[kBuffers];
#pragma unroll
  for (int b = 0; b < kBuffers; ++b) fetch(buffers[b]);

#if __CUDA_ARCH__ >= 900
  cudaTriggerProgrammaticLaunchCompletion();
  // All of the kernels before are done and their writes visible from here on; weights nobody writes.
  cudaGridDependencySynchronize();
#endif
  takeInput<T>(args, x, sums);

  const int stride = sharedStride(args.k);
  const bool hasRow = group < args.rows;
  const T* xRow = x + group * stride + quad * 8;
  // In the epilogue a thread has one row of the tile and one row of x.
  const int outColumn = threadIdx.x / kFewRowsMax;
  const int outRow = threadIdx.x % kFewRowsMax;
  const bool writes = outColumn < kColumns && outRow < args.rows;

  float sum[4] = {};
  float residual = 0;
  int tile = 0;
  int chunk = 0;
  while (tile < tiles) {
#pragma unroll
    for (int b = 0; b < kBuffers; ++b) {
      if (tile >= tiles) break;
      const int column = first + tile * kColumns + outColumn;
      if (chunk == 0 && args.residual != nullptr && writes && column < last) {
        const auto* from = static_cast<const T*>(args.residual);
        const T value = loadFreshValue(from + static_cast<int64_t>(outRow) * args.n + column);
        residual = load(&value);
      }
#pragma unroll
      for (int s = 0; s < kSteps; ++s) {
        const int step = begin + chunk * kSteps + s;
        uint4 v{};
        if (hasRow && step < end) v = *reinterpret_cast<const uint4*>(xRow + step * kStep);
        const uint4& a = buffers[b].a[s][0];
        const uint4& c = buffers[b].a[s][1];
        multiply<T>(sum, a.x, c.x, a.y, c.y, v.x, v.y);
        multiply<T>(sum, a.z, c.z, a.w, c.w, v.z, v.w);
      }
      fetch(buffers[b]);
      if (++chunk < chunks) continue;

      chunk = 0;
      float* mine = partial[tile % 2][warp];
      *reinterpret_cast<float2*>(mine + group * kFewRowsMax + quad * 2) = make_float2(sum[0], sum[1]);
      *reinterpret_cast<float2*>(mine + (group + 8) * kFewRowsMax + quad * 2) = make_float2(sum[2], sum[3]);
      sum[0] = sum[1] = sum[2] = sum[3] = 0;
      // One barrier a tile is enough: a warp writes this half again only two tiles on, behind the next
      // barrier.
      syncBlock();
      if (writes && column < last) {
        float value = 0;
        float up = 0;
#pragma unroll
        for (int w = 0; w < kWarps; ++w) {
          value += partial[tile % 2][w][threadIdx.x];
          if constexpr (kGated) up += partial[tile % 2][w][threadIdx.x + 8 * kFewRowsMax];
        }
        if (args.bias != nullptr) {
          const auto* bias = static_cast<const T*>(args.bias);
          value = rounded<T>(value) + load(bias + column);
          if constexpr (kGated) up = rounded<T>(up) + load(bias + args.n + column);
        }
        if constexpr (kGated) value = activate<T, Gate>(value, up);
        if (args.residual != nullptr) value = rounded<T>(value) + residual;
        store(static_cast<T*>(args.y) + static_cast<int64_t>(outRow) * args.n + column, value);
      }
      ++tile;
    }
  }
}

int sharedBytes(int rows, int k) {
  return rows * sharedStride(k) * 2;
}

template <class T, LinearGate Gate>
cudaError_t launch(const FewRowsArgs& args, bool overlap, cudaStream_t stream) noexcept {
  int processors = 0;
  cudaError_t error = multiprocessorCount(&processors);
  const int bytes = sharedBytes(args.rows, args.k);
  if (error == cudaSuccess && bytes > 32 * 1024) {
    error = cudaFuncSetAttribute(fewRowsKernel<T, Gate>, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
  }
  if (error != cudaSuccess) return error;
  return launchKernel(fewRowsKernel<T, Gate>, dim3(static_cast<unsigned>(processors)), kThreads,
                      static_cast<size_t>(bytes), overlap, stream, args);
}

template <class T>
cudaError_t dispatch(const FewRowsArgs& args, bool overlap, cudaStream_t stream) noexcept {
  switch (args.gate) {
    case LinearGate::kSilu:
      return launch<T, LinearGate::kSilu>(args, overlap, stream);
    case LinearGate::kGeluTanh:
      return launch<T, LinearGate::kGeluTanh>(args, overlap, stream);
    case LinearGate::kNone:
      break;
  }
  return launch<T, LinearGate::kNone>(args, overlap, stream);
}

}  // namespace

bool fewRowsFits(DType type, int32_t rows, int32_t k) noexcept {
  constexpr int kStaticBytes = static_cast<int>((2 * kTileFloats + kFewRowsMax) * kWarps * sizeof(float));
  if (type == DType::kF32 || rows < 1 || rows > kFewRowsMax || k < kStep || k % kStep != 0) return false;
  int device = 0;
  int available = 0;
  return cudaGetDevice(&device) == cudaSuccess &&
         cudaDeviceGetAttribute(&available, cudaDevAttrMaxSharedMemoryPerBlockOptin, device) == cudaSuccess &&
         k <= available && sharedBytes(rows, k) + kStaticBytes <= available;
}

cudaError_t fewRowsLinear(DType type, const FewRowsArgs& args, bool overlap, cudaStream_t stream) noexcept {
  if (!fewRowsFits(type, args.rows, args.k) || args.n < 1) return cudaErrorInvalidValue;
  return type == DType::kF16 ? dispatch<__half>(args, overlap, stream)
                             : dispatch<__nv_bfloat16>(args, overlap, stream);
}

}  // namespace nt::kernels
