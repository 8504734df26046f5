// What a warp of the decode kernel reads: tiles of the cache, and what belongs to a chunk beside them.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "tensorrt/kernels/decode_plan.h"
#include "tensorrt/kernels/tensor_core.cuh"

namespace nt::kernels::decode {

constexpr uint32_t kLanes = 32;
constexpr uint32_t kTile = kDecodeTile;
constexpr float kLog2e = 1.4426950408889634F;
constexpr float kMinusInfinity = -INFINITY;

// Tiles of a warp in shared memory, of which one is being read.
template <uint32_t HeadDim>
constexpr uint32_t kStages = HeadDim > 64 ? 3 : 4;
template <uint32_t HeadDim>
constexpr uint32_t kTileBytes = 2 * kTile * HeadDim * 2;  // of keys and values
template <uint32_t HeadDim>
constexpr uint32_t kWarpBytes = kStages<HeadDim> * kTileBytes<HeadDim>;
// Of a block, of which a multiprocessor has one: as many as Hopper's shared memory has room for.
template <uint32_t HeadDim>
constexpr uint32_t kMostWarps = (192 << 10) / kWarpBytes<HeadDim>;

struct DecodeArgs {
  const void* q;
  const void* k;  // of the step's rows, with v and cosSin: null where they are in the cache already
  const void* v;
  void* out;
  void* pagesK;
  void* pagesV;
  int64_t qStride;   // elements, as all strides here
  int64_t kvStride;  // of k and v
  int64_t pageStride;
  int64_t tokenStride;
  int64_t headStride;
  const int32_t* pages;
  const float* cosSin;
  const int32_t* begins;
  const DecodeChunk* chunks;
  int32_t*
      arrived;     // [partials, kvHeads] counts of what is done, of which isLast tells; zero between launches
  float* sums;     // [partials, kvHeads, group, HeadDim], not yet divided
  float2* scales;  // [partials, kvHeads, group] maximum (of logits in base 2) and denominator
  int32_t workers;
  uint32_t kvHeads;
  uint32_t group;
  uint32_t tilesPerPage;
  int32_t window;
  float scale;  // of logits in base 2
};

// Past L1: what the kernel before wrote may be there in an older state.
__device__ inline uint32_t loadFresh(const void* p) {
  uint32_t v;
  asm volatile("ld.global.cg.u32 %0, [%1];" : "=r"(v) : "l"(p) : "memory");
  return v;
}

// Pairs of neighbours of a head's first half and their partners of the second. Sums of products are fused as
// in ropeAppend.
template <class T>
__device__ inline void rotate(uint32_t& low, uint32_t& high, float2 cosine, float2 sine) {
  const float2 a = unpacked<T>(low);
  const float2 b = unpacked<T>(high);
  low = packed<T>(__fmaf_rn(a.x, cosine.x, -__fmul_rn(b.x, sine.x)),
                  __fmaf_rn(a.y, cosine.y, -__fmul_rn(b.y, sine.y)));
  high = packed<T>(__fmaf_rn(b.x, cosine.x, __fmul_rn(a.x, sine.x)),
                   __fmaf_rn(b.y, cosine.y, __fmul_rn(a.y, sine.y)));
}

__device__ inline float2 loadPair(const float* p) {
  return __ldg(reinterpret_cast<const float2*>(p));
}

// All of the kernels before are done and their writes visible from here on.
__device__ inline void waitForPredecessors() {
#if __CUDA_ARCH__ >= 900
  cudaGridDependencySynchronize();
#endif
}

__device__ inline DecodeChunk loadChunk(const DecodeChunk* from) {
  const int4* words = reinterpret_cast<const int4*>(from);
  const int4 a = __ldg(words);
  const int4 b = __ldg(words + 1);
  DecodeChunk chunk;
  memcpy(&chunk, &a, sizeof(a));
  memcpy(reinterpret_cast<char*>(&chunk) + sizeof(a), &b, sizeof(b));
  return chunk;
}

// Where 16 bytes of a token lie in a tile: rows of HeadDim elements, pieces exchanged so that eight tokens'
// same piece lie in different banks.
template <uint32_t HeadDim>
__device__ inline uint32_t placeInTile(uint32_t token, uint32_t piece) {
  return token * HeadDim * 2 + (piece ^ (token & 7)) * 16;
}

// Enqueues the copies of a warp's tiles, one after another, chunk after chunk.
template <class T, uint32_t HeadDim, bool Rotate>
class Copies {
 public:
  __device__ Copies(const DecodeArgs& args, uint32_t head, uint32_t shared, int32_t chunk, int32_t end)
      : args_(args), shared_(shared), next_(chunk), end_(end) {
    keys_ = static_cast<const T*>(args.pagesK) + head * args.headStride;
    values_ = static_cast<const T*>(args.pagesV) + head * args.headStride;
  }

  // One group, which is empty where no tile is left.
  __device__ void next() {
    const uint32_t lane = threadIdx.x % kLanes;
    bool some = true;
    if (tile_ == tileEnd_) {
      some = next_ < end_;
      if (some) {
        const DecodeChunk chunk = loadChunk(args_.chunks + next_++);
        tile_ = chunk.begin;
        tileEnd_ = chunk.end;
        // The token that is appended here comes from elsewhere.
        cached_ = chunk.length - (Rotate ? 1 : 0);
        firstPage_ = chunk.firstPage;
        idsBegin_ = tile_ - static_cast<int32_t>(kLanes);
      }
    }
    if (some) {
      if (tile_ - idsBegin_ == static_cast<int32_t>(kLanes)) {
        idsBegin_ = tile_;
        const int32_t mine = tile_ + static_cast<int32_t>(lane);
        if (mine < tileEnd_)
          ids_ = __ldg(args_.pages + firstPage_ + static_cast<uint32_t>(mine) / args_.tilesPerPage);
      }
      const int32_t page = __shfl_sync(~0U, ids_, tile_ - idsBegin_);
      const uint32_t token = static_cast<uint32_t>(tile_) % args_.tilesPerPage * kTile;
      const int32_t left = cached_ - tile_ * static_cast<int32_t>(kTile);
      if (left > static_cast<int32_t>(kTile)) {
        copy<false>(page, token, lane, kTile);
      } else {
        // The only tile in which the kernel before has written.
        if (waits_) waitForPredecessors();
        waits_ = false;
        copy<true>(page, token, lane, static_cast<uint32_t>(max(left, 0)));
      }
      ++tile_;
    }
    commitCopies();
    stage_ = stage_ + 1 == kStages<HeadDim> ? 0 : stage_ + 1;
  }

 private:
  // Zeros in place of what lies behind the first `tokens`.
  template <bool Cut>
  __device__ void copy(int32_t page, uint32_t token, uint32_t lane, uint32_t tokens) {
    constexpr uint32_t kPieces = HeadDim / 8;       // of 16 bytes, of a token
    constexpr uint32_t kTokens = kLanes / kPieces;  // at a time
    const uint32_t piece = lane % kPieces;
    const uint32_t first = lane / kPieces;
    const int64_t offset = page * args_.pageStride + (token + first) * args_.tokenStride + piece * 8;
    const T* key = keys_ + offset;
    const T* value = values_ + offset;
    const int64_t step = kTokens * args_.tokenStride;
    const uint32_t to = shared_ + stage_ * kTileBytes<HeadDim>;
#pragma unroll
    for (uint32_t i = 0; i < kTile / kTokens; ++i) {
      const uint32_t mine = first + i * kTokens;
      const uint32_t place = placeInTile<HeadDim>(mine, piece);
      const uint32_t bytes = Cut && mine >= tokens ? 0 : 16;
      copyAsync(to + place, key + i * step, bytes);
      copyAsync(to + kTileBytes<HeadDim> / 2 + place, value + i * step, bytes);
    }
  }

  const DecodeArgs& args_;
  const T* keys_;
  const T* values_;
  uint32_t shared_;
  uint32_t stage_ = 0;
  int32_t next_;
  int32_t end_;
  int32_t tile_ = 0;
  int32_t tileEnd_ = 0;
  int32_t cached_ = 0;  // tokens that are in the cache
  int32_t firstPage_ = 0;
  int32_t idsBegin_ = 0;
  int32_t ids_ = 0;  // page of tile idsBegin_ + lane
  // Where the rows are appended here, nobody else writes to the tile of the last token.
  bool waits_ = !Rotate;
};

// Columns of mma's results that a thread holds: heads 2 * (lane % 4) and the one behind it.
template <uint32_t HeadDim>
struct Sums {
  float values[HeadDim / 16][4];  // dimensions 16 i + lane / 4, and 8 more, of both heads
  float maximum[2];
  float denominator[2];  // of the thread's own tokens
};

// What a chunk needs beside its tiles. Loaded while the chunk before is computed, so that nothing waits for
// it.
template <class T, uint32_t HeadDim, bool Rotate>
struct Inputs {
  DecodeChunk chunk;
  // The group's heads as mma's right operand: dimensions 16 j + 2 * (lane % 4), and 8 more, of head lane / 4.
  uint32_t q[HeadDim / 16][2];
  // The step's own k and v of the KV head, where the chunk has the last token: elements 2 * lane and the
  // next, and their partners of the second half.
  uint32_t key[2];
  uint32_t value[2];
  int32_t page;  // of the last token

  __device__ bool appends() const {
    return Rotate && chunk.end == (chunk.length - 1) / static_cast<int32_t>(kTile) + 1 &&
           threadIdx.x % kLanes < HeadDim / 4;
  }

  __device__ void load(const DecodeArgs& args, uint32_t head, int32_t index) {
    const uint32_t lane = threadIdx.x % kLanes;
    chunk = loadChunk(args.chunks + index);
    const uint32_t mine = lane / 4;
    const uint32_t d = lane % 4 * 2;
    const T* from =
        static_cast<const T*>(args.q) + chunk.row * args.qStride + (head * args.group + mine) * HeadDim + d;
#pragma unroll
    for (uint32_t j = 0; j < HeadDim / 16; ++j) {
#pragma unroll
      for (uint32_t i = 0; i < 2; ++i) q[j][i] = mine < args.group ? loadFresh(from + 16 * j + 8 * i) : 0;
    }
    if constexpr (Rotate) {
      const float* angles = args.cosSin + static_cast<int64_t>(chunk.length - 1) * HeadDim;
#pragma unroll
      for (uint32_t j = 0; j < HeadDim / 32; ++j) {
#pragma unroll
        for (uint32_t i = 0; i < 2; ++i) {
          cosines[j][i] = loadPair(angles + d + 16 * j + 8 * i);
          sines[j][i] = loadPair(angles + HeadDim / 2 + d + 16 * j + 8 * i);
        }
      }
      if (!appends()) return;
      const int64_t row = chunk.row * args.kvStride + head * HeadDim + 2 * lane;
      const T* k = static_cast<const T*>(args.k) + row;
      const T* v = static_cast<const T*>(args.v) + row;
      key[0] = loadFresh(k);
      key[1] = loadFresh(k + HeadDim / 2);
      value[0] = loadFresh(v);
      value[1] = loadFresh(v + HeadDim / 2);
      keyCosine = loadPair(angles + 2 * lane);
      keySine = loadPair(angles + HeadDim / 2 + 2 * lane);
      page = __ldg(args.pages + chunk.firstPage +
                   static_cast<uint32_t>(chunk.length - 1) / kTile / args.tilesPerPage);
    }
  }

  // Rotates, and appends k and v to their page.
  __device__ void finish(const DecodeArgs& args, uint32_t head) {
    if constexpr (Rotate) {
#pragma unroll
      for (uint32_t j = 0; j < HeadDim / 32; ++j) {
#pragma unroll
        for (uint32_t i = 0; i < 2; ++i)
          rotate<T>(q[j][i], q[j + HeadDim / 32][i], cosines[j][i], sines[j][i]);
      }
      if (!appends()) return;
      rotate<T>(key[0], key[1], keyCosine, keySine);
      const uint32_t token = static_cast<uint32_t>(chunk.length - 1) % (kTile * args.tilesPerPage);
      const int64_t place = page * args.pageStride + token * args.tokenStride + head * args.headStride +
                            threadIdx.x % kLanes * 2;
      write(static_cast<T*>(args.pagesK) + place, key);
      write(static_cast<T*>(args.pagesV) + place, value);
    }
  }

  // Puts the last token's k and v where the copy of the tile left zeros.
  __device__ void writeToTile(char* tile) const {
    if (!appends()) return;
    const uint32_t lane = threadIdx.x % kLanes;
    const uint32_t token = static_cast<uint32_t>(chunk.length - 1) % kTile;
#pragma unroll
    for (uint32_t half = 0; half < 2; ++half) {
      const uint32_t element = 2 * lane + half * (HeadDim / 2);
      const uint32_t place = placeInTile<HeadDim>(token, element / 8) + element % 8 * 2;
      *reinterpret_cast<uint32_t*>(tile + place) = key[half];
      *reinterpret_cast<uint32_t*>(tile + kTileBytes<HeadDim> / 2 + place) = value[half];
    }
  }

 private:
  __device__ static void write(T* to, const uint32_t (&pairs)[2]) {
    *reinterpret_cast<uint32_t*>(to) = pairs[0];
    *reinterpret_cast<uint32_t*>(to + HeadDim / 2) = pairs[1];
  }

  float2 cosines[HeadDim / 32][2];
  float2 sines[HeadDim / 32][2];
  float2 keyCosine;
  float2 keySine;
};

}  // namespace nt::kernels::decode
