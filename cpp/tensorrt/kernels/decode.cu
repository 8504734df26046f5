// A warp reads the keys and values of one KV head in tiles of 16 tokens through a ring of shared memory of
// its own, and multiplies them with all query heads of the group at once: the tokens are the rows of mma's 16
// x 8 tiles, the heads its columns. Warps share nothing, so none waits for another; what one copies runs
// ahead of what it computes across the ends of its chunks.
#include <algorithm>
#include <cstring>
#include <exception>
#include <type_traits>

#include "tensorrt/kernels/decode.h"
#include "tensorrt/kernels/decode_partials.cuh"
#include "tensorrt/kernels/launch.cuh"

namespace nt::kernels {

namespace {

using namespace decode;

__device__ inline float maxOfTokens(float x) {
#pragma unroll
  for (uint32_t distance = 4; distance < kLanes; distance *= 2)
    x = fmaxf(x, __shfl_xor_sync(~0U, x, distance));
  return x;
}
__device__ inline float sumOfTokens(float x) {
#pragma unroll
  for (uint32_t distance = 4; distance < kLanes; distance *= 2) x += __shfl_xor_sync(~0U, x, distance);
  return x;
}

// `first`: the first token that the row sees; `length`: what it does not see any more.
template <class T, uint32_t HeadDim>
__device__ inline void addTile(const DecodeArgs& args, uint32_t shared, const uint32_t (&q)[HeadDim / 16][2],
                               int32_t tile, int32_t first, int32_t length, Sums<HeadDim>& sums) {
  const uint32_t lane = threadIdx.x % kLanes;
  float logits[2][4] = {};  // two chains, as each mma waits for the one before it in its own
#pragma unroll
  for (uint32_t j = 0; j < HeadDim / 16; ++j) {
    uint32_t keys[4];
    loadMatrices(keys, shared + placeInTile<HeadDim>(lane % 16, 2 * j + lane / 16));
    mma(logits[j % 2], keys, q[j][0], q[j][1], T{});
  }
  float p[4];
#pragma unroll
  for (uint32_t i = 0; i < 4; ++i) p[i] = (logits[0][i] + logits[1][i]) * args.scale;
  const int32_t begin = tile * static_cast<int32_t>(kTile);
  if (begin < first || begin + static_cast<int32_t>(kTile) > length) {
#pragma unroll
    for (uint32_t i = 0; i < 4; ++i) {
      const int32_t token = begin + static_cast<int32_t>(lane / 4 + i / 2 * 8);
      if (token < first || token >= length) p[i] = kMinusInfinity;
    }
  }
  float maximum[2];
#pragma unroll
  for (uint32_t i = 0; i < 2; ++i) maximum[i] = fmaxf(sums.maximum[i], maxOfTokens(fmaxf(p[i], p[i + 2])));
  if (__any_sync(~0U, maximum[0] > sums.maximum[0] || maximum[1] > sums.maximum[1])) {
#pragma unroll
    for (uint32_t i = 0; i < 2; ++i) {
      // Each tile has a token that is seen, so only the old maximum can be infinite.
      const float factor = exp2Fast(sums.maximum[i] - maximum[i]);
      sums.maximum[i] = maximum[i];
      sums.denominator[i] *= factor;
#pragma unroll
      for (uint32_t j = 0; j < HeadDim / 16; ++j) {
        sums.values[j][i] *= factor;
        sums.values[j][i + 2] *= factor;
      }
    }
  }
#pragma unroll
  for (uint32_t i = 0; i < 4; ++i) p[i] = exp2Fast(p[i] - sums.maximum[i % 2]);
  sums.denominator[0] += p[0] + p[2];
  sums.denominator[1] += p[1] + p[3];
  const uint32_t low = transposed(packed<T>(p[0], p[1]));
  const uint32_t high = transposed(packed<T>(p[2], p[3]));
  const uint32_t values = shared + kTileBytes<HeadDim> / 2;
#pragma unroll
  for (uint32_t j = 0; j < HeadDim / 16; ++j) {
    uint32_t v[4];
    loadTransposed(v, values + placeInTile<HeadDim>(lane % 8 + lane / 16 * 8, 2 * j + lane / 8 % 2));
    mma(sums.values[j], v, low, high, T{});
  }
}

template <class T, uint32_t HeadDim>
__device__ inline void writeOutput(const DecodeArgs& args, uint32_t head, int32_t row, Sums<HeadDim>& sums) {
  const uint32_t lane = threadIdx.x % kLanes;
  float factor[2];
#pragma unroll
  for (uint32_t i = 0; i < 2; ++i) factor[i] = 1 / sums.denominator[i];
  T* out = outputOf<T, HeadDim>(args, head, row) + lane / 4 * HeadDim + lane % 4 * 2;
#pragma unroll
  for (uint32_t j = 0; j < HeadDim / 16; ++j) {
#pragma unroll
    for (uint32_t half = 0; half < 2; ++half) {
      const float* pair = sums.values[j] + 2 * half;
      const uint32_t mine = transposed(packed<T>(pair[0] * factor[0], pair[1] * factor[1]));
      if (lane / 4 < args.group) *reinterpret_cast<uint32_t*>(out + 16 * j + 8 * half) = mine;
    }
  }
}

// Pairs of (worker, KV head) are dealt to the blocks in turns, to and fro: the plan gives the first workers
// most, and multiprocessors that have more than others are through later.
template <class T, uint32_t HeadDim, bool Rotate>
__global__ void __launch_bounds__(kMostWarps<HeadDim>* kLanes)
    decodeKernel(const __grid_constant__ DecodeArgs args) {
  extern __shared__ __align__(128) char memory[];
  const uint32_t turn = threadIdx.x / kLanes;
  const uint32_t place = turn % 2 == 0 ? blockIdx.x : gridDim.x - 1 - blockIdx.x;
  const uint32_t warp = turn * gridDim.x + place;
  const uint32_t worker = warp / args.kvHeads;
  const uint32_t head = warp % args.kvHeads;
#if __CUDA_ARCH__ >= 900
  cudaTriggerProgrammaticLaunchCompletion();
#endif
  // Tables were written long before the kernel in front, which may still run.
  const bool works = worker < static_cast<uint32_t>(args.workers);
  const int32_t begin = works ? __ldg(args.begins + worker) : 0;
  const int32_t end = works ? __ldg(args.begins + worker + 1) : 0;
  if (begin == end) {
    // Leaves its multiprocessor to the kernel behind this one, which may read weights already. But who waits
    // for this kernel counts on those before it, so one warp waits for them, work or not.
    if (warp == 0) waitForPredecessors();
    return;
  }
  char* const ring = memory + turn * kWarpBytes<HeadDim>;
  const auto shared = static_cast<uint32_t>(__cvta_generic_to_shared(ring));

  Copies<T, HeadDim, Rotate> copies(args, head, shared, begin, end);
#pragma unroll
  for (uint32_t i = 0; i + 1 < kStages<HeadDim>; ++i) copies.next();
  waitForPredecessors();

  Inputs<T, HeadDim, Rotate> next;
  next.load(args, head, begin);
  uint32_t stage = 0;
  for (int32_t c = begin; c < end; ++c) {
    Inputs<T, HeadDim, Rotate> inputs = next;
    inputs.finish(args, head);
    if (c + 1 < end) next.load(args, head, c + 1);
    const DecodeChunk& chunk = inputs.chunk;
    const int32_t lastTile = (chunk.length - 1) / static_cast<int32_t>(kTile);
    const int32_t first = args.window > 0 ? chunk.length - args.window : 0;
    Sums<HeadDim> sums;
#pragma unroll
    for (uint32_t j = 0; j < HeadDim / 16; ++j) {
#pragma unroll
      for (uint32_t i = 0; i < 4; ++i) sums.values[j][i] = 0;
    }
#pragma unroll
    for (uint32_t i = 0; i < 2; ++i) {
      sums.maximum[i] = kMinusInfinity;
      sums.denominator[i] = 0;
    }
    for (int32_t tile = chunk.begin; tile < chunk.end; ++tile) {
      waitCopies<kStages<HeadDim> - 2>();
      // All lanes' copies are there, and all lanes have read the tile whose place is filled next.
      __syncwarp();
      copies.next();
      if constexpr (Rotate) {
        if (tile == lastTile) {
          inputs.writeToTile(ring + stage * kTileBytes<HeadDim>);
          __syncwarp();
        }
      }
      addTile<T, HeadDim>(args, shared + stage * kTileBytes<HeadDim>, inputs.q, tile, first, chunk.length,
                          sums);
      stage = stage + 1 == kStages<HeadDim> ? 0 : stage + 1;
    }
#pragma unroll
    for (uint32_t i = 0; i < 2; ++i) sums.denominator[i] = sumOfTokens(sums.denominator[i]);
    if (chunk.partial < 0) {
      writeOutput<T, HeadDim>(args, head, chunk.row, sums);
    } else {
      addPartial<T, HeadDim>(args, head, chunk, sums);
    }
  }
}

// Where a plan's tables lie in the workspace, from the counts that a captured graph keeps.
struct Tables {
  Tables(uint32_t rows, uint32_t kvHeads, int32_t workers) noexcept {
    const auto most = static_cast<size_t>(mostDecodeChunks(static_cast<int32_t>(rows), workers));
    chunks = (static_cast<size_t>(workers) + 1) * sizeof(int32_t);
    chunks = (chunks + alignof(DecodeChunk) - 1) / alignof(DecodeChunk) * alignof(DecodeChunk);
    arrived = chunks + most * sizeof(DecodeChunk);
    bytes = arrived + most * kvHeads * sizeof(int32_t);
  }

  // After the workers' begins.
  size_t chunks;
  size_t arrived;
  size_t bytes;
};

template <class T, uint32_t HeadDim, bool Rotate>
cudaError_t allowShared(int bytes) noexcept {
  return cudaFuncSetAttribute(decodeKernel<T, HeadDim, Rotate>, cudaFuncAttributeMaxDynamicSharedMemorySize,
                              bytes);
}

// Blocks, warps of a block, workers, partials that there is room for.
constexpr int32_t kPlanValues = 4;

size_t bytesOfPartial(uint32_t heads, uint32_t headDim) noexcept {
  return size_t{heads} * (headDim * sizeof(float) + sizeof(float2));
}

}  // namespace

template <DType Type, uint32_t HeadDim>
cudaError_t Decode<Type, HeadDim>::plan(const Workspace& ws, const PlanArgs& args, Plan* plan,
                                        cudaStream_t stream) noexcept {
  using T = std::conditional_t<Type == DType::kF16, __half, __nv_bfloat16>;
  if (args.rows != args.batch || args.kvHeads == 0 || args.heads / args.kvHeads > kMostDecodeGroup ||
      args.heads % args.kvHeads != 0 || args.pageSize == 0 || args.pageSize % kTile != 0)
    return cudaErrorInvalidValue;
  int device = 0;
  int processors = 0;
  int sharedBytes = 0;
  cudaError_t error = multiprocessorCount(&processors);
  if (error == cudaSuccess) error = cudaGetDevice(&device);
  if (error == cudaSuccess)
    error = cudaDeviceGetAttribute(&sharedBytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
  const uint32_t warps =
      std::min(kMostWarps<HeadDim>, static_cast<uint32_t>(sharedBytes) / kWarpBytes<HeadDim>);
  const auto bytes = static_cast<int>(warps * kWarpBytes<HeadDim>);
  if (error == cudaSuccess) error = allowShared<T, HeadDim, false>(bytes);
  if (error == cudaSuccess) error = allowShared<T, HeadDim, true>(bytes);
  if (error != cudaSuccess) return error;
  const auto workers = static_cast<int32_t>(static_cast<uint32_t>(processors) * warps / args.kvHeads);
  const Tables tables(args.rows, args.kvHeads, workers);
  if (workers < 1 || tables.bytes > ws.intBytes) return cudaErrorInvalidValue;
  const size_t most = ws.floatBytes / bytesOfPartial(args.heads, HeadDim);

  static thread_local DecodePlan chunks;
  try {
    DecodePlanArgs decode;
    decode.kvIndptr = args.kvIndptr;
    decode.lastPageLen = args.lastPageLen;
    decode.rows = static_cast<int32_t>(args.rows);
    decode.pageSize = static_cast<int32_t>(args.pageSize);
    decode.window = args.window;
    decode.workers = workers;
    decode.mostPartials = static_cast<int32_t>(std::min<size_t>(most, INT32_MAX));
    planDecodeChunks(decode, &chunks);
  } catch (const std::exception&) {
    return cudaErrorMemoryAllocation;
  }
  plan->values = {processors, warps, workers, static_cast<int64_t>(most)};
  plan->count = kPlanValues;
  char* const host = static_cast<char*>(ws.intsHost);
  const size_t chunkBytes = chunks.chunks.size() * sizeof(DecodeChunk);
  std::memcpy(host, chunks.begins.data(), chunks.begins.size() * sizeof(int32_t));
  std::memcpy(host + tables.chunks, chunks.chunks.data(), chunkBytes);
  error = cudaMemcpyAsync(ws.ints, host, tables.chunks + chunkBytes, cudaMemcpyHostToDevice, stream);
  if (error != cudaSuccess || chunks.partials == 0) return error;
  return cudaMemsetAsync(static_cast<char*>(ws.ints) + tables.arrived, 0,
                         static_cast<size_t>(chunks.partials) * args.kvHeads * sizeof(int32_t), stream);
}

template <DType Type, uint32_t HeadDim>
cudaError_t Decode<Type, HeadDim>::run(const Workspace& ws, const Plan& plan, const AttentionArgs& args,
                                       cudaStream_t stream) noexcept {
  using T = std::conditional_t<Type == DType::kF16, __half, __nv_bfloat16>;
  if (plan.count != kPlanValues) return cudaErrorInvalidValue;
  const auto workers = static_cast<int32_t>(plan.values[2]);
  const Tables tables(args.rows, args.kv.kvHeads, workers);
  char* const ints = static_cast<char*>(ws.ints);
  DecodeArgs decode{};
  decode.q = args.q;
  decode.k = args.k;
  decode.v = args.v;
  decode.out = args.out;
  decode.pagesK = args.kv.k;
  decode.pagesV = args.kv.v;
  decode.qStride = args.qStride == 0 ? static_cast<int64_t>(args.heads) * HeadDim : args.qStride;
  decode.kvStride = args.kvStride;
  decode.pageStride = args.kv.pageStride;
  decode.tokenStride = args.kv.tokenStride;
  decode.headStride = args.kv.headStride;
  decode.pages = args.kv.indices;
  decode.cosSin = args.cosSin;
  decode.begins = reinterpret_cast<const int32_t*>(ints);
  decode.chunks = reinterpret_cast<const DecodeChunk*>(ints + tables.chunks);
  decode.arrived = reinterpret_cast<int32_t*>(ints + tables.arrived);
  decode.sums = static_cast<float*>(ws.floats);
  decode.scales =
      reinterpret_cast<float2*>(decode.sums + static_cast<size_t>(plan.values[3]) * args.heads * HeadDim);
  decode.workers = workers;
  decode.kvHeads = args.kv.kvHeads;
  decode.group = args.heads / args.kv.kvHeads;
  decode.tilesPerPage = args.kv.pageSize / kTile;
  decode.window = args.window;
  decode.scale = args.scale * kLog2e;
  const auto kernel =
      args.cosSin == nullptr ? decodeKernel<T, HeadDim, false> : decodeKernel<T, HeadDim, true>;
  const auto warps = static_cast<uint32_t>(plan.values[1]);
  return launchKernel(kernel, dim3(static_cast<uint32_t>(plan.values[0])), warps * kLanes,
                      warps * kWarpBytes<HeadDim>, args.overlap, stream, decode);
}

template struct Decode<DType::kBF16, 64>;
template struct Decode<DType::kBF16, 128>;
template struct Decode<DType::kF16, 64>;
template struct Decode<DType::kF16, 128>;

}  // namespace nt::kernels
