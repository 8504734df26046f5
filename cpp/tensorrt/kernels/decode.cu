// A warp reads the keys and values of one KV head in tiles of 16 tokens through a ring of shared memory of
// its own, and multiplies them with all query heads of the group at once: the tokens are the rows of mma's 16
// x 8 tiles, the heads its columns. Warps share nothing, so none waits for another; what one copies runs
// ahead of what it computes across the ends of its chunks.
#include <algorithm>
#include <cstring>
#include <exception>
#include <type_traits>

#include "tensorrt/kernels/decode.h"
#include "tensorrt/kernels/decode_plan.h"
#include "tensorrt/kernels/element.cuh"
#include "tensorrt/kernels/launch.cuh"

namespace nt::kernels {

namespace {

constexpr uint32_t kLanes = 32;
constexpr uint32_t kTile = kDecodeTile;
// Partial sums that one warp adds up in one go. Where a sequence has more, each so many are added up first,
// at the same time.
constexpr int32_t kSet = 8;
static_assert(kSet * kSet >= kMostPartials);
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

__device__ inline void mma(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, __half) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
__device__ inline void mma(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, __nv_bfloat16) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

__device__ inline void loadMatrices(uint32_t (&a)[4], uint32_t address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(a[0]), "=r"(a[1]), "=r"(a[2]), "=r"(a[3])
               : "r"(address)
               : "memory");
}
__device__ inline void loadTransposed(uint32_t (&a)[4], uint32_t address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(a[0]), "=r"(a[1]), "=r"(a[2]), "=r"(a[3])
               : "r"(address)
               : "memory");
}
__device__ inline uint32_t transposed(uint32_t matrix) {
  uint32_t result;
  asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(result) : "r"(matrix));
  return result;
}

// `bytes`: 16, or 0 for zeros that are read from nowhere.
__device__ inline void copyAsync(uint32_t to, const void* from, uint32_t bytes) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(bytes) : "memory");
}
__device__ inline void commitCopies() {
  asm volatile("cp.async.commit_group;" ::: "memory");
}
template <uint32_t Pending>
__device__ inline void waitCopies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(Pending) : "memory");
}

// Past L1: what the kernel before wrote may be there in an older state.
__device__ inline uint32_t loadFresh(const void* p) {
  uint32_t v;
  asm volatile("ld.global.cg.u32 %0, [%1];" : "=r"(v) : "l"(p) : "memory");
  return v;
}

__device__ inline float exp2Fast(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

template <class T>
__device__ inline uint32_t packed(float low, float high) {
  T pair[2];
  store(pair, low);
  store(pair + 1, high);
  uint32_t result;
  memcpy(&result, pair, sizeof(result));
  return result;
}
template <class T>
__device__ inline float2 unpacked(uint32_t pair) {
  T values[2];
  memcpy(values, &pair, sizeof(pair));
  return {load(values), load(values + 1)};
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
__device__ inline T* outputOf(const DecodeArgs& args, uint32_t head, int32_t row) {
  return static_cast<T*>(args.out) + (static_cast<int64_t>(row) * args.kvHeads + head) * args.group * HeadDim;
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
  cudaError_t error = cudaGetDevice(&device);
  if (error == cudaSuccess)
    error = cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device);
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
