// Sums of a sequence whose keys are cut among warps: each writes its own, and the last one adds them up.
#pragma once

#include <type_traits>

#include "tensorrt/kernels/decode_tiles.cuh"

namespace nt::kernels::decode {

// Partial sums that one warp adds up in one go. Where a sequence has more, each so many are added up first,
// at the same time.
constexpr int32_t kSet = 8;
static_assert(kSet * kSet >= kMostPartials);

template <class T, uint32_t HeadDim>
__device__ inline T* outputOf(const DecodeArgs& args, uint32_t head, int32_t row) {
  return static_cast<T*>(args.out) + (static_cast<int64_t>(row) * args.kvHeads + head) * args.group * HeadDim;
}

// What a chunk of a cut sequence adds to its sums.
template <uint32_t HeadDim>
__device__ inline void writePartial(const DecodeArgs& args, uint32_t head, int32_t partial,
                                    const Sums<HeadDim>& sums) {
  const uint32_t lane = threadIdx.x % kLanes;
  const int64_t place = (static_cast<int64_t>(partial) * args.kvHeads + head) * args.group;
#pragma unroll
  for (uint32_t i = 0; i < 2; ++i) {
    const uint32_t mine = lane % 4 * 2 + i;
    if (mine >= args.group) continue;
    if (lane < 4) args.scales[place + mine] = {sums.maximum[i], sums.denominator[i]};
    float* to = args.sums + (place + mine) * HeadDim + lane / 4;
#pragma unroll
    for (uint32_t j = 0; j < HeadDim / 16; ++j) {
      to[16 * j] = sums.values[j][i];
      to[16 * j + 8] = sums.values[j][i + 2];
    }
  }
}

// HeadDim / 32 neighbours of a head's sums.
template <uint32_t HeadDim>
struct Piece {
  static constexpr uint32_t kValues = HeadDim / kLanes;
  using Vector = std::conditional_t<kValues == 4, float4, float2>;

  __device__ void load(const float* from) {
    const Vector vector = __ldcg(reinterpret_cast<const Vector*>(from));
    memcpy(values, &vector, sizeof(vector));
  }

  float values[kValues];
};

// Adds up `count` partial sums, `stride` apart from `from` on, always in the same order, into the first of
// them or, where `row` is not negative, to the row's output. It is the last that happens in a step's
// attention, in few warps, which have nothing but their own instructions to hide latencies: weights come
// first, by lane for all of them at once, then all heads' sums of several are in flight.
template <class T, uint32_t HeadDim>
__device__ inline void merge(const DecodeArgs& args, uint32_t head, int32_t from, int32_t count,
                             int32_t stride, int32_t row) {
  constexpr uint32_t kHeads = 4;    // in flight
  constexpr int32_t kPartials = 4;  // likewise
  constexpr uint32_t kValues = Piece<HeadDim>::kValues;
  const uint32_t lane = threadIdx.x % kLanes;
  const int64_t step = static_cast<int64_t>(stride) * args.kvHeads * args.group;
  const int64_t first = (static_cast<int64_t>(from) * args.kvHeads + head) * args.group;
  for (uint32_t begin = 0; begin < args.group; begin += kHeads) {
    float weights[kHeads];  // of partial `lane`
    float maxima[kHeads];
    float totals[kHeads];
#pragma unroll
    for (uint32_t h = 0; h < kHeads; ++h) {
      float2 scale = {kMinusInfinity, 0};
      if (static_cast<int32_t>(lane) < count && begin + h < args.group)
        scale = __ldcg(args.scales + first + lane * step + begin + h);
      maxima[h] = scale.x;
#pragma unroll
      for (uint32_t distance = 1; distance < kSet; distance *= 2)
        maxima[h] = fmaxf(maxima[h], __shfl_xor_sync(~0U, maxima[h], distance));
      weights[h] = exp2Fast(scale.x - maxima[h]);
      totals[h] = weights[h] * scale.y;
#pragma unroll
      for (uint32_t distance = 1; distance < kSet; distance *= 2)
        totals[h] += __shfl_xor_sync(~0U, totals[h], distance);
      // Of the lanes that have a partial.
      maxima[h] = __shfl_sync(~0U, maxima[h], 0);
      totals[h] = __shfl_sync(~0U, totals[h], 0);
    }
    float sums[kHeads][kValues] = {};
    float* const to = args.sums + (first + begin) * HeadDim + lane * kValues;
    const float* source = to;
    for (int32_t c = 0; c < count; c += kPartials) {
      Piece<HeadDim> pieces[kPartials][kHeads];
#pragma unroll
      for (int32_t i = 0; i < kPartials; ++i) {
#pragma unroll
        for (uint32_t h = 0; h < kHeads; ++h) {
          if (begin + h < args.group) pieces[i][h].load(source + h * HeadDim);
        }
        // Behind the last one it is read again, and weighs nothing.
        if (c + i + 1 < count) source += step * HeadDim;
      }
#pragma unroll
      for (int32_t i = 0; i < kPartials; ++i) {
#pragma unroll
        for (uint32_t h = 0; h < kHeads; ++h) {
          const float weight = __shfl_sync(~0U, weights[h], c + i);
          if (begin + h >= args.group) continue;
#pragma unroll
          for (uint32_t v = 0; v < kValues; ++v) sums[h][v] += weight * pieces[i][h].values[v];
        }
      }
    }
#pragma unroll
    for (uint32_t h = 0; h < kHeads; ++h) {
      if (begin + h >= args.group) break;
      if (row < 0) {
        if (lane == 0) args.scales[first + begin + h] = {maxima[h], totals[h]};
#pragma unroll
        for (uint32_t v = 0; v < kValues; ++v) to[h * HeadDim + v] = sums[h][v];
        continue;
      }
      T* out = outputOf<T, HeadDim>(args, head, row) + (begin + h) * HeadDim + lane * kValues;
#pragma unroll
      for (uint32_t v = 0; v < kValues; v += 2)
        *reinterpret_cast<uint32_t*>(out + v) = packed<T>(sums[h][v] / totals[h], sums[h][v + 1] / totals[h]);
    }
  }
}

// Whether the calling warp is the last of `count` that came with this counter. What the others wrote before
// is visible to it then, and the counter is as before.
__device__ inline bool isLast(const DecodeArgs& args, uint32_t head, int32_t counter, int32_t count) {
  int32_t* const arrived = args.arrived + static_cast<int64_t>(counter) * args.kvHeads + head;
  __threadfence();
  __syncwarp();
  int32_t before = 0;
  if (threadIdx.x % kLanes == 0) {
    before = atomicAdd(arrived, 1);
    if (before == count - 1) *arrived = 0;
  }
  if (__shfl_sync(~0U, before, 0) != count - 1) return false;
  __threadfence();
  return true;
}

// Puts a chunk's sums to those of the sequence's others, and writes the output where it is the last of them.
template <class T, uint32_t HeadDim>
__device__ inline void addPartial(const DecodeArgs& args, uint32_t head, const DecodeChunk& chunk,
                                  const Sums<HeadDim>& sums) {
  writePartial<HeadDim>(args, head, chunk.partial, sums);
  const int32_t sets = (chunk.partials + kSet - 1) / kSet;
  if (sets == 1) {
    if (isLast(args, head, chunk.firstPartial, chunk.partials))
      merge<T, HeadDim>(args, head, chunk.firstPartial, chunk.partials, 1, chunk.row);
    return;
  }
  const int32_t set = (chunk.partial - chunk.firstPartial) / kSet;
  const int32_t count = min(kSet, chunk.partials - set * kSet);
  if (!isLast(args, head, chunk.firstPartial + 1 + set, count)) return;
  merge<T, HeadDim>(args, head, chunk.firstPartial + set * kSet, count, 1, -1);
  if (isLast(args, head, chunk.firstPartial, sets))
    merge<T, HeadDim>(args, head, chunk.firstPartial, sets, kSet, chunk.row);
}

}  // namespace nt::kernels::decode
