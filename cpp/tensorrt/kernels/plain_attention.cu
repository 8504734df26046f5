// One block of four warps serves one (row, query head). Each warp walks every fourth key of the row with a
// running softmax; the four partial results are merged in shared memory. Arithmetic is float32 whatever the
// storage type. It reads K and V once per query head rather than once per group: simple and exact, not fast.
#include "tensorrt/kernels/element.cuh"
#include "tensorrt/kernels/plain_attention.h"

namespace nt::kernels {

namespace {

constexpr uint32_t kWarp = 32;
constexpr uint32_t kWarps = 4;
constexpr uint32_t kMaxHeadDim = 256;
constexpr uint32_t kMaxPerLane = kMaxHeadDim / kWarp;
constexpr uint32_t kFull = 0xffffffffU;

// Offset of (position, head) of one sequence from the pool's first element.
__device__ int64_t cacheOffset(const PagedKv& kv, int32_t sequence, uint32_t position, uint32_t head) {
  const int32_t page = kv.indices[kv.indptr[sequence] + position / kv.pageSize];
  return page * kv.pageStride + (position % kv.pageSize) * kv.tokenStride + head * kv.headStride;
}

// grid (rows, heads + 2 * kvHeads), block headDim / 2: a thread owns the pair (d, d + headDim / 2).
template <class T>
__global__ void ropeAppendKernel(RopeAppendArgs args) {
  const uint32_t row = blockIdx.x;
  const int32_t sequence = args.batchIndices[row];
  if (sequence < 0) return;
  const auto position = static_cast<uint32_t>(args.positions[row]);
  const uint32_t half = blockDim.x;
  const uint32_t headDim = 2 * half;
  const uint32_t d = threadIdx.x;
  const uint32_t heads = args.heads;
  const uint32_t kvHeads = args.kv.kvHeads;
  uint32_t head = blockIdx.y;

  const T* in;
  T* out;
  bool rotate = true;
  if (head < heads) {
    in = static_cast<const T*>(args.q);
    out = static_cast<T*>(args.qOut) + row * args.qOutStride + static_cast<int64_t>(head) * headDim;
  } else if (head < heads + kvHeads) {
    head -= heads;
    in = static_cast<const T*>(args.k);
    out = static_cast<T*>(args.kv.k) + cacheOffset(args.kv, sequence, position, head);
  } else {
    head -= heads + kvHeads;
    in = static_cast<const T*>(args.v);
    out = static_cast<T*>(args.kv.v) + cacheOffset(args.kv, sequence, position, head);
    rotate = false;
  }
  in += row * args.rowStride + static_cast<int64_t>(head) * headDim;
  const float a = load(in + d);
  const float b = load(in + d + half);
  if (!rotate) {
    store(out + d, a);
    store(out + d + half, b);
    return;
  }
  const float* table = args.cosSin + static_cast<int64_t>(position) * headDim;
  const float cosine = table[d];
  const float sine = table[d + half];
  store(out + d, a * cosine - b * sine);
  store(out + d + half, b * cosine + a * sine);
}

// grid (rows, heads), block kWarps * 32.
template <class T>
__global__ void attentionKernel(AttentionArgs args, uint32_t headDim) {
  const uint32_t row = blockIdx.x;
  const uint32_t head = blockIdx.y;
  const uint32_t lane = threadIdx.x % kWarp;
  const uint32_t warp = threadIdx.x / kWarp;
  const uint32_t perLane = headDim / kWarp;
  const int64_t rowOffset = (static_cast<int64_t>(row) * args.heads + head) * headDim;
  T* out = static_cast<T*>(args.out) + rowOffset;

  const int32_t sequence = args.batchIndices[row];
  if (sequence < 0) {
    for (uint32_t d = threadIdx.x; d < headDim; d += blockDim.x) store(out + d, 0.0F);
    return;
  }

  const T* queryRow = static_cast<const T*>(args.q) + row * args.qStride + head * headDim;
  float query[kMaxPerLane];
  float sum[kMaxPerLane];
#pragma unroll
  for (uint32_t i = 0; i < kMaxPerLane; ++i) {
    query[i] = i < perLane ? load(queryRow + lane + i * kWarp) * args.scale : 0.0F;
    sum[i] = 0.0F;
  }
  float maximum = -INFINITY;
  float denominator = 0.0F;

  const auto last = static_cast<uint32_t>(args.positions[row]);
  const uint32_t window = static_cast<uint32_t>(args.window);
  const uint32_t first = window > 0 && last + 1 > window ? last + 1 - window : 0;
  const uint32_t kvHead = head / (args.heads / args.kv.kvHeads);
  for (uint32_t position = first + warp; position <= last; position += kWarps) {
    const int64_t offset = cacheOffset(args.kv, sequence, position, kvHead);
    const T* key = static_cast<const T*>(args.kv.k) + offset;
    const T* value = static_cast<const T*>(args.kv.v) + offset;
    float score = 0.0F;
#pragma unroll
    for (uint32_t i = 0; i < kMaxPerLane; ++i)
      if (i < perLane) score += query[i] * load(key + lane + i * kWarp);
    for (uint32_t step = kWarp / 2; step > 0; step /= 2) score += __shfl_xor_sync(kFull, score, step);
    const float newMaximum = fmaxf(maximum, score);
    const float rescale = expf(maximum - newMaximum);
    const float weight = expf(score - newMaximum);
    maximum = newMaximum;
    denominator = denominator * rescale + weight;
#pragma unroll
    for (uint32_t i = 0; i < kMaxPerLane; ++i)
      if (i < perLane) sum[i] = sum[i] * rescale + weight * load(value + lane + i * kWarp);
  }

  __shared__ float partial[kWarps][kMaxHeadDim];
  __shared__ float maxima[kWarps];
  __shared__ float denominators[kWarps];
#pragma unroll
  for (uint32_t i = 0; i < kMaxPerLane; ++i)
    if (i < perLane) partial[warp][lane + i * kWarp] = sum[i];
  if (lane == 0) {
    maxima[warp] = maximum;
    denominators[warp] = denominator;
  }
  __syncthreads();
  // Warp 0 has at least one key (the row's own position or an earlier one), so the overall maximum is finite.
  float overall = maxima[0];
  for (uint32_t w = 1; w < kWarps; ++w) overall = fmaxf(overall, maxima[w]);
  float total = 0.0F;
  float weights[kWarps];
  for (uint32_t w = 0; w < kWarps; ++w) {
    weights[w] = expf(maxima[w] - overall);
    total += denominators[w] * weights[w];
  }
  for (uint32_t d = threadIdx.x; d < headDim; d += blockDim.x) {
    float value = 0.0F;
    for (uint32_t w = 0; w < kWarps; ++w) value += partial[w][d] * weights[w];
    store(out + d, value / total);
  }
}

cudaError_t plan(const Workspace&, const PlanArgs&, Plan*, cudaStream_t) noexcept {
  return cudaSuccess;
}

template <class T, uint32_t HeadDim>
cudaError_t ropeAppend(const RopeAppendArgs& args, cudaStream_t stream) noexcept {
  if (args.rows == 0) return cudaSuccess;
  if (args.kOut != nullptr) return cudaErrorInvalidValue;
  const dim3 grid(args.rows, args.heads + 2 * args.kv.kvHeads);
  RopeAppendArgs filled = args;
  if (filled.qOutStride == 0) filled.qOutStride = static_cast<int64_t>(args.heads) * HeadDim;
  ropeAppendKernel<T><<<grid, HeadDim / 2, 0, stream>>>(filled);
  return cudaGetLastError();
}

template <class T, uint32_t HeadDim>
cudaError_t run(const Workspace&, const Plan&, const AttentionArgs& args, cudaStream_t stream) noexcept {
  if (args.rows == 0) return cudaSuccess;
  if (args.kv.kvHeads == 0 || args.heads % args.kv.kvHeads != 0) return cudaErrorInvalidValue;
  AttentionArgs filled = args;
  if (filled.qStride == 0) filled.qStride = static_cast<int64_t>(args.heads) * HeadDim;
  attentionKernel<T><<<dim3(args.rows, args.heads), kWarps * kWarp, 0, stream>>>(filled, HeadDim);
  return cudaGetLastError();
}

template <class T, uint32_t HeadDim>
constexpr AttentionKernels kPlain = {
    ropeAppend<T, HeadDim>,
    // In the order of AttentionPath.
    {{{plan, run<T, HeadDim>}, {}, {}, {plan, run<T, HeadDim>}}},
    /*plans=*/false,
};

template <class T>
const AttentionKernels* find(uint32_t headDim) noexcept {
  switch (headDim) {
    case 32:
      return &kPlain<T, 32>;
    case 64:
      return &kPlain<T, 64>;
    case 96:
      return &kPlain<T, 96>;
    case 128:
      return &kPlain<T, 128>;
    case 160:
      return &kPlain<T, 160>;
    case 192:
      return &kPlain<T, 192>;
    case 224:
      return &kPlain<T, 224>;
    case 256:
      return &kPlain<T, 256>;
    default:
      return nullptr;
  }
}

}  // namespace

const AttentionKernels* findPlainAttention(DType type, uint32_t headDim) noexcept {
  switch (type) {
    case DType::kF32:
      return find<float>(headDim);
    case DType::kF16:
      return find<__half>(headDim);
    case DType::kBF16:
      return find<__nv_bfloat16>(headDim);
  }
  return nullptr;
}

}  // namespace nt::kernels
