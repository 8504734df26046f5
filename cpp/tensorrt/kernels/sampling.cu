// One block works on one row. A greedy row is read once; the rest of the steps read it again where a slot
// asks for them.
#include <cmath>

#include "core/random.h"
#include "tensorrt/kernels/element.cuh"
#include "tensorrt/kernels/sampling.h"

namespace nt::kernels {

namespace {

constexpr int kThreads = 1024;
constexpr int kOpenThreads = 256;
constexpr int kWarp = 32;
constexpr int kWarps = kThreads / kWarp;
constexpr uint32_t kAll = 0xffffffffU;
constexpr uint32_t kInPrompt = 1U << 31;
constexpr float kGreedyTemperature = 1e-5F;  // as in the CPU backend
constexpr float kOne = 1099511627776.0F;     // 2^40: the weight of the most probable token
constexpr int kDigits = 256;

// Order of the floats as unsigned integers; 0 is below all of them.
__device__ uint32_t orderOf(float x) {
  const uint32_t bits = __float_as_uint(x);
  return (bits & 0x80000000U) != 0 ? ~bits : bits | 0x80000000U;
}

static_assert(sizeof(SlotParams) % 4 == 0);  // it is copied by words

struct Best {
  float value;
  int32_t id;
};
__device__ Best better(Best a, Best b) {
  return b.value > a.value || (b.value == a.value && b.id < a.id) ? b : a;
}

__device__ bool isBanned(const SlotParams& params, int32_t id) {
  int32_t low = 0;
  int32_t high = params.bannedCount;
  while (low < high) {
    const int32_t middle = (low + high) / 2;
    if (params.banned[middle] < id) {
      low = middle + 1;
    } else {
      high = middle;
    }
  }
  return low < params.bannedCount && params.banned[low] == id;
}

struct Shared {
  Best best[kWarps];
  unsigned long long sums[kWarps];
  float floats[kWarps];
  unsigned long long digits[kDigits];
  unsigned long long remaining;
  unsigned long long ties;
  uint32_t prefix;
  int32_t found;
  int32_t unusable;
};

// Of a slot, in shared memory.
struct Bias {
  int32_t ids[kMaxBias];
  float values[kMaxBias];

  // Intrinsics, as below.
  __device__ float addTo(float x, int32_t id, int32_t count) const {
    int32_t low = 0;
    int32_t high = count;
    while (low < high) {
      const int32_t middle = (low + high) / 2;
      if (ids[middle] < id) {
        low = middle + 1;
      } else {
        high = middle;
      }
    }
    return low < count && ids[low] == id ? __fadd_rn(x, values[low]) : x;
  }
};

template <class T>
struct Row {
  const T* logits;
  const uint32_t* mask;    // nullptr: all tokens are allowed
  const uint32_t* counts;  // nullptr: no penalties
  const SlotParams* params;
  const Bias* bias;
  int32_t vocab;
  int32_t biasCount;
  bool banned;

  __device__ float raw(int32_t i) const { return load(logits + i); }
  // Whether `at` gives what `raw` does.
  __device__ bool isRaw() const { return mask == nullptr && biasCount == 0 && counts == nullptr && !banned; }

  // After mask, bias, penalties and bans. Intrinsics, since contraction would round differently from the CPU
  // backend.
  __device__ float at(int32_t i) const {
    if (mask != nullptr && (mask[i / 32] >> (i % 32) & 1U) == 0) return -INFINITY;
    float x = raw(i);
    if (biasCount > 0) x = bias->addTo(x, i, biasCount);
    if (counts != nullptr) {
      const uint32_t seen = counts[i];
      if (seen != 0) {
        x = x > 0 ? x / params->repetitionPenalty : x * params->repetitionPenalty;
        const uint32_t outputs = seen & ~kInPrompt;
        if (outputs != 0) {
          x = __fsub_rn(x, __fmul_rn(params->frequencyPenalty, static_cast<float>(outputs)));
          x = __fsub_rn(x, params->presencePenalty);
        }
      }
    }
    return banned && isBanned(*params, i) ? -INFINITY : x;
  }
};

__device__ uint64_t blockSum(uint64_t x, Shared& shared) {
  unsigned long long sum = x;
  for (int step = kWarp / 2; step > 0; step /= 2) sum += __shfl_xor_sync(kAll, sum, step);
  __syncthreads();
  if (threadIdx.x % kWarp == 0) shared.sums[threadIdx.x / kWarp] = sum;
  __syncthreads();
  unsigned long long total = 0;
  for (int w = 0; w < kWarps; ++w) total += shared.sums[w];
  return total;
}

// Always adds in the same order.
__device__ float blockSum(float x, Shared& shared) {
  for (int step = kWarp / 2; step > 0; step /= 2) x += __shfl_xor_sync(kAll, x, step);
  __syncthreads();
  if (threadIdx.x % kWarp == 0) shared.floats[threadIdx.x / kWarp] = x;
  __syncthreads();
  float total = 0;
  for (int w = 0; w < kWarps; ++w) total += shared.floats[w];
  return total;
}

__device__ Best blockBest(Best best, Shared& shared) {
  for (int step = kWarp / 2; step > 0; step /= 2) {
    best = better(best, {__shfl_xor_sync(kAll, best.value, step), __shfl_xor_sync(kAll, best.id, step)});
  }
  __syncthreads();
  if (threadIdx.x % kWarp == 0) shared.best[threadIdx.x / kWarp] = best;
  __syncthreads();
  best = shared.best[0];
  for (int w = 1; w < kWarps; ++w) best = better(best, shared.best[w]);
  return best;
}

// The first id at which the running sum of f(0), f(1), ... exceeds `target`, which is below the sum of all.
// Each warp owns a contiguous range.
template <class F>
__device__ int32_t locate(int32_t vocab, uint64_t target, Shared& shared, F&& f) {
  const int32_t warp = static_cast<int32_t>(threadIdx.x) / kWarp;
  const int32_t lane = static_cast<int32_t>(threadIdx.x) % kWarp;
  const int32_t perWarp = (vocab + kThreads - 1) / kThreads * kWarp;
  const int32_t begin = min(warp * perWarp, vocab);
  const int32_t end = min(begin + perWarp, vocab);
  unsigned long long sum = 0;
  for (int32_t i = begin + lane; i < end; i += kWarp) sum += f(i);
  for (int step = kWarp / 2; step > 0; step /= 2) sum += __shfl_xor_sync(kAll, sum, step);
  __syncthreads();
  if (lane == 0) shared.sums[warp] = sum;
  if (threadIdx.x == 0) shared.found = vocab - 1;
  __syncthreads();
  unsigned long long before = 0;
  int32_t owner = 0;
  while (owner < kWarps && before + shared.sums[owner] <= target) before += shared.sums[owner++];
  if (warp == owner) {
    for (int32_t base = begin; base < end; base += kWarp) {
      const int32_t i = base + lane;
      unsigned long long running = i < end ? f(i) : 0;
      for (int step = 1; step < kWarp; step *= 2) {
        const unsigned long long left = __shfl_up_sync(kAll, running, step);
        if (lane >= step) running += left;
      }
      const uint32_t past = __ballot_sync(kAll, before + running > target);
      if (past != 0) {
        if (lane == 0) shared.found = base + __ffs(static_cast<int>(past)) - 1;
        break;
      }
      before += __shfl_sync(kAll, running, kWarp - 1);
    }
  }
  __syncthreads();
  return shared.found;
}

// The tokens that may still be drawn: those above `key` in order, and those at it up to `cutoff` by id.
struct Kept {
  uint32_t key = 0;
  int32_t cutoff = INT32_MAX;

  __device__ bool has(uint32_t order, int32_t id) const {
    return order > key || (order == key && id <= cutoff);
  }
};

// Narrows `kept` to its largest tokens that together have `target` of the measure f: all above some key, and
// as many at it as are needed, by id. Nothing happens where all together have less.
template <class T, class F>
__device__ void narrow(const Row<T>& row, Kept& kept, uint64_t target, Shared& shared, F&& f) {
  uint32_t mask = 0;
  uint32_t prefix = 0;
  if (threadIdx.x == 0) {
    shared.remaining = target;
    shared.prefix = 0;
  }
  for (int shift = 24; shift >= 0; shift -= 8) {
    for (int d = static_cast<int>(threadIdx.x); d < kDigits; d += kThreads) shared.digits[d] = 0;
    __syncthreads();
    for (int32_t i = static_cast<int32_t>(threadIdx.x); i < row.vocab; i += kThreads) {
      const float x = row.at(i);
      const uint32_t order = orderOf(x);
      if ((order & mask) == prefix && kept.has(order, i)) {
        const unsigned long long amount = f(x);
        if (amount != 0) atomicAdd(&shared.digits[(order >> shift) & 0xffU], amount);
      }
    }
    __syncthreads();
    if (threadIdx.x == 0) {
      unsigned long long remaining = shared.remaining;
      int d = kDigits - 1;
      for (; d >= 0 && shared.digits[d] < remaining; --d) remaining -= shared.digits[d];
      shared.found = d;  // -1, possible at the first digit only: all together have less
      if (d >= 0) {
        shared.remaining = remaining;
        shared.ties = shared.digits[d];
        shared.prefix = prefix | static_cast<uint32_t>(d) << shift;
      }
    }
    __syncthreads();
    const int32_t digit = shared.found;
    prefix = shared.prefix;
    __syncthreads();
    if (digit < 0) return;
    mask |= 0xffU << shift;
  }
  const unsigned long long remaining = shared.remaining;
  const unsigned long long ties = shared.ties;
  __syncthreads();
  const Kept before = kept;
  kept = {prefix, prefix == before.key ? before.cutoff : INT32_MAX};
  if (remaining == ties) return;
  // All ties have the same measure; the running sum passes `remaining - 1` at the last one that is needed.
  kept.cutoff = locate(row.vocab, remaining - 1, shared, [&](int32_t i) -> unsigned long long {
    const float x = row.at(i);
    return orderOf(x) == prefix && before.has(prefix, i) ? f(x) : 0;
  });
}

template <class T>
__device__ int32_t draw(const Row<T>& row, const SlotParams& params, float max, int32_t outputs,
                        Shared& shared) {
  const float inverse = 1.0F / params.temperature;
  const auto weight = [=](float x) -> unsigned long long {
    return __float2ull_rn(expf((x - max) * inverse) * kOne);
  };
  Kept kept;
  if (params.minP > 0) kept.key = orderOf(max + params.temperature * logf(params.minP));
  if (params.topK > 0 && params.topK < row.vocab) {
    narrow(row, kept, static_cast<uint64_t>(params.topK), shared, [](float) { return 1ULL; });
  }
  const auto keptWeight = [&](int32_t i) -> unsigned long long {
    const float x = row.at(i);
    return kept.has(orderOf(x), i) ? weight(x) : 0;
  };
  const auto total = [&] {
    uint64_t sum = 0;
    for (int32_t i = static_cast<int32_t>(threadIdx.x); i < row.vocab; i += kThreads) sum += keptWeight(i);
    return blockSum(sum, shared);
  };
  uint64_t mass = total();
  if (params.topP < 1.0F) {
    const double wanted = ceil(static_cast<double>(params.topP) * static_cast<double>(mass));
    narrow(row, kept, static_cast<uint64_t>(fmax(wanted, 1.0)), shared, weight);
    mass = total();
  }
  const double uniform = nt::uniform(params.seed, static_cast<uint64_t>(outputs));
  const uint64_t at = min(static_cast<unsigned long long>(uniform * static_cast<double>(mass)),
                          static_cast<unsigned long long>(mass - 1));
  return locate(row.vocab, at, shared, keptWeight);
}

template <class T>
__device__ Best largest(const Row<T>& row, Shared& shared) {
  Best best{-INFINITY, INT32_MAX};
  bool unusable = false;
  constexpr int32_t kPiece = 16 / sizeof(T);
  int32_t begin = static_cast<int32_t>(threadIdx.x);
  // Most rows are nothing but read, so in pieces, several of them on their way at a time.
  if (row.isRaw() && reinterpret_cast<uintptr_t>(row.logits) % 16 == 0) {
    const int32_t pieces = row.vocab / kPiece;
#pragma unroll 4
    for (int32_t p = begin; p < pieces; p += kThreads) {
      const uint4 piece = reinterpret_cast<const uint4*>(row.logits)[p];
      T values[kPiece];
      memcpy(values, &piece, sizeof(piece));
#pragma unroll
      for (int32_t j = 0; j < kPiece; ++j) {
        const float x = load(values + j);
        unusable |= isnan(x);
        best = better(best, {x, p * kPiece + j});
      }
    }
    begin += pieces * kPiece;
  }
  for (int32_t i = begin; i < row.vocab; i += kThreads) {
    const float x = row.at(i);
    unusable |= isnan(x);
    // What the mask hides must be good, too: whether a row fails is no matter of its mask.
    if (row.mask != nullptr) unusable |= !(row.raw(i) < INFINITY);
    best = better(best, {x, i});
  }
  if (unusable) shared.unusable = 1;
  return blockBest(best, shared);
}

// Of the raw logits.
template <class T>
__device__ void reportLogprob(const Row<T>& row, int32_t token, int32_t top, int32_t entry,
                              const SampleArgs& args, Shared& shared) {
  Best best{-INFINITY, INT32_MAX};
  for (int32_t i = static_cast<int32_t>(threadIdx.x); i < row.vocab; i += kThreads)
    best = better(best, {row.raw(i), i});
  const float max = blockBest(best, shared).value;
  const float own = row.raw(token);
  float sum = 0;
  uint64_t before = 0;
  for (int32_t i = static_cast<int32_t>(threadIdx.x); i < row.vocab; i += kThreads) {
    const float x = row.raw(i);
    sum += expf(x - max);
    before += x > own || (x == own && i < token) ? 1 : 0;
  }
  const float logTotal = logf(blockSum(sum, shared));
  const uint64_t rank = 1 + blockSum(before, shared);
  if (threadIdx.x == 0) {
    args.logprobs[entry] = own - max - logTotal;
    args.ranks[entry] = static_cast<int32_t>(rank);
  }
  Best last{INFINITY, -1};
  for (int32_t k = 0; k < top && k < row.vocab; ++k) {
    best = {-INFINITY, INT32_MAX};
    for (int32_t i = static_cast<int32_t>(threadIdx.x); i < row.vocab; i += kThreads) {
      const float x = row.raw(i);
      if (x < last.value || (x == last.value && i > last.id)) best = better(best, {x, i});
    }
    last = blockBest(best, shared);
    if (threadIdx.x == 0) {
      args.topIds[static_cast<int64_t>(entry) * kMaxTopLogprobs + k] = last.id;
      args.topLogprobs[static_cast<int64_t>(entry) * kMaxTopLogprobs + k] = last.value - max - logTotal;
    }
  }
}

template <class T>
__global__ void __launch_bounds__(kThreads) sampleKernel(SampleArgs args) {
  __shared__ Shared shared;
  __shared__ SlotParams params;
  __shared__ Bias bias;
  const auto entry = static_cast<int32_t>(blockIdx.x);
  const int32_t slot = args.slots[entry];
  if (slot < 0) return;
  const SlotTable& table = args.table;
  for (size_t i = threadIdx.x; i < sizeof(SlotParams) / 4; i += kThreads) {
    reinterpret_cast<uint32_t*>(&params)[i] = reinterpret_cast<const uint32_t*>(table.params + slot)[i];
  }
  if (threadIdx.x == 0) shared.unusable = 0;
  __syncthreads();

  const int32_t outputs = table.outputCounts[slot];
  const int32_t target = args.targets[entry];
  uint32_t* counts =
      params.penalised != 0 ? table.tokenCounts + static_cast<int64_t>(slot) * table.vocab : nullptr;
  const bool sampling = target < 0;
  const int32_t biasCount = sampling ? params.biasCount : 0;
  for (int32_t i = static_cast<int32_t>(threadIdx.x); i < biasCount; i += kThreads) {
    bias.ids[i] = table.biases[slot].ids[i];
    bias.values[i] = table.biases[slot].values[i];
  }
  const int32_t maskRow = sampling ? args.maskRows[entry] : -1;
  const int64_t maskWords = (table.vocab + 31) / 32;
  if (biasCount > 0) __syncthreads();
  Row<T> row{static_cast<const T*>(args.logits) + static_cast<int64_t>(entry) * table.vocab,
             maskRow < 0 ? nullptr : args.masks + maskRow * maskWords,
             sampling ? counts : nullptr,
             &params,
             &bias,
             table.vocab,
             biasCount,
             sampling && outputs < params.minTokens};

  Best best = largest(row, shared);
  if (row.mask != nullptr && row.banned && best.value == -INFINITY) {
    // The ban gives way to the mask.
    row.banned = false;
    best = largest(row, shared);
  }
  int32_t token = sampling ? best.id : target;
  if (shared.unusable != 0 || !isfinite(best.value)) {
    if (threadIdx.x != 0) return;
    const bool none = row.mask != nullptr && shared.unusable == 0;
    args.tokens[entry] = none ? kNoneAllowed : kUnusableLogits;
    if (none) table.lastTokens[slot] = -1;
    return;
  }
  if (sampling && params.temperature >= kGreedyTemperature)
    token = draw(row, params, best.value, outputs, shared);
  const int32_t top = sampling ? params.logprobs : params.promptLogprobs;
  if (top >= 0) reportLogprob(row, token, top, entry, args, shared);
  if (threadIdx.x != 0) return;
  args.tokens[entry] = token;
  if (!sampling) return;
  table.lastTokens[slot] = token;
  table.outputCounts[slot] = outputs + 1;
  if (counts != nullptr) ++counts[token];
}

__global__ void openKernel(SlotTable table, int32_t slot, const __grid_constant__ SlotParams params,
                           int32_t lastToken, int32_t outputCount) {
  const auto* from = reinterpret_cast<const uint32_t*>(&params);
  auto* to = reinterpret_cast<uint32_t*>(table.params + slot);
  for (size_t i = threadIdx.x; i < sizeof(SlotParams) / 4; i += blockDim.x) to[i] = from[i];
  if (threadIdx.x != 0) return;
  table.lastTokens[slot] = lastToken;
  table.outputCounts[slot] = outputCount;
}

__global__ void biasKernel(SlotBias* to, const __grid_constant__ SlotBias from) {
  for (int32_t i = static_cast<int32_t>(threadIdx.x); i < kMaxBias; i += kOpenThreads) {
    to->ids[i] = from.ids[i];
    to->values[i] = from.values[i];
  }
}

__global__ void countKernel(uint32_t* counts, const int32_t* tokens, int32_t prompt, int32_t outputs) {
  for (int32_t i = static_cast<int32_t>(threadIdx.x); i < prompt + outputs; i += kThreads) {
    if (i < prompt) {
      atomicOr(counts + tokens[i], kInPrompt);
    } else {
      atomicAdd(counts + tokens[i], 1U);
    }
  }
}

}  // namespace

cudaError_t openSlot(const SlotTable& table, int32_t slot, const SlotParams& params, int32_t lastToken,
                     int32_t outputCount, cudaStream_t stream) noexcept {
  openKernel<<<1, kOpenThreads, 0, stream>>>(table, slot, params, lastToken, outputCount);
  return cudaGetLastError();
}

cudaError_t setBias(const SlotTable& table, int32_t slot, const SlotBias& bias,
                    cudaStream_t stream) noexcept {
  biasKernel<<<1, kOpenThreads, 0, stream>>>(table.biases + slot, bias);
  return cudaGetLastError();
}

cudaError_t countTokens(const SlotTable& table, int32_t slot, const int32_t* tokens, int32_t prompt,
                        int32_t outputs, cudaStream_t stream) noexcept {
  uint32_t* counts = table.tokenCounts + static_cast<int64_t>(slot) * table.vocab;
  const cudaError_t error =
      cudaMemsetAsync(counts, 0, static_cast<size_t>(table.vocab) * sizeof *counts, stream);
  if (error != cudaSuccess) return error;
  countKernel<<<1, kThreads, 0, stream>>>(counts, tokens, prompt, outputs);
  return cudaGetLastError();
}

cudaError_t sample(DType type, const SampleArgs& args, cudaStream_t stream) noexcept {
  if (args.entries == 0) return cudaSuccess;
  withType(type, [&](auto element) {
    sampleKernel<decltype(element)><<<static_cast<unsigned>(args.entries), kThreads, 0, stream>>>(args);
  });
  return cudaGetLastError();
}

}  // namespace nt::kernels
