// A block takes tiles of x's rows times the weights' rows. One thread of its first warpgroup has the bulk
// copy engine fill stages of shared memory with 64 elements of k; the other warpgroups multiply them (wgmma,
// both operands in shared memory, 128-byte swizzle) and keep the sums in registers. x is the operand of
// 64-row blocks, so that the number of weight rows a tile takes may be any multiple of 16: it is chosen such
// that the tiles fill all multiprocessors once, or an integral number of times.
//
// With a gate a tile takes as many rows of the gate as of the up projection: a thread has both factors of its
// outputs. Splits of k meet in shared memory, each block adding up a part of the columns in a fixed order.
#include <cuda.h>
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#define CUTE_SM90_EXTENDED_MMA_SHAPES_ENABLED
#include <algorithm>
#include <cute/arch/mma_sm90_gmma.hpp>
#include <type_traits>
#include <utility>

#include "tensorrt/kernels/element.cuh"
#include "tensorrt/kernels/mid_rows_sm90.h"

namespace nt::kernels::sm90 {

namespace {

using Element = NT_T;

constexpr int kDepth = 64;  // elements of k a stage: 128 bytes, the width of the swizzle
constexpr int kRowBytes = kDepth * 2;
constexpr int kSharedBytes = 227 * 1024;
constexpr int kBarrierBytes = 256;
constexpr int kMaxStages = 8;
constexpr int kGroup = 128;  // threads of a warpgroup

template <int Groups, int Blocks, int Columns>
struct Tile {
  static constexpr int kGroups = Groups;  // warpgroups that multiply
  static constexpr int kBlocks = Blocks;  // of 64 rows, each
  static constexpr int kRows = 64 * Groups * Blocks;
  static constexpr int kColumns = Columns;
  static constexpr int kThreads = kGroup * (Groups + 1);
  // Columns of the accumulators in units of 8, of which one thread holds two neighbours.
  static constexpr int kUnits = Columns / 8;

  // Results go through memory of their own, as the next tile is loaded meanwhile: of 64 rows a warpgroup, and
  // of a half of the columns where these are many.
  static constexpr int kChunks = Groups * Columns <= 288 ? 1 : 2;
  static constexpr int kChunkUnits = (kUnits / 2 + kChunks - 1) / kChunks * 2;
  // Units from one row to the next: an odd number, so that 8 rows lie in different banks.
  static constexpr int kStride = kChunkUnits | 1;
  static constexpr int kWarpStaging = 16 * kStride * 16;
  static constexpr int kStaging = kWarpStaging * 4 * Groups;

  static constexpr int kBytesX = kRows * kRowBytes;
  static constexpr int kBytesW = Columns * kRowBytes;
  static constexpr int kBytes = kBytesX + kBytesW;
  static constexpr int kFitting = (kSharedBytes - kBarrierBytes - kStaging) / kBytes;
  static constexpr int kStages = kFitting < kMaxStages ? kFitting : kMaxStages;
  static constexpr int kStagingAt = kStages * kBytes + kBarrierBytes;
  // Of a thread: what the copying warpgroup gives up the others get.
  static constexpr int kFewRegisters = Groups == 3 ? 32 : 40;
  static constexpr int kManyRegisters = Groups == 1 ? 240 : Groups == 2 ? 232 : 160;
  static_assert(Columns % 16 == 0 && kStages >= 3);
};

struct Params {
  CUtensorMap x;
  CUtensorMap weight;
  const Element* bias;
  const Element* residual;
  Element* y;
  int32_t rows;
  int32_t n;
  int32_t k;
  int32_t tiles;  // in columns
  FewRowsGate gate;
  int8_t sharingX;
  int8_t sharingW;
  int8_t splits;
};

// --- instructions

__device__ inline uint32_t sharedAddress(const void* p) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(p));
}

__device__ inline uint32_t addressIn(uint32_t address, uint32_t rank) {
  uint32_t out;
  asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(out) : "r"(address), "r"(rank));
  return out;
}

__device__ inline void syncCluster() {
  asm volatile("barrier.cluster.arrive.release.aligned;\nbarrier.cluster.wait.acquire.aligned;" ::: "memory");
}

__device__ inline void initBarrier(uint32_t barrier, uint32_t count) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(count) : "memory");
}

__device__ inline void expectBytes(uint32_t barrier, uint32_t bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes)
               : "memory");
}

__device__ inline void arriveAt(uint32_t clusterBarrier) {
  asm volatile("mbarrier.arrive.shared::cluster.b64 _, [%0];" ::"r"(clusterBarrier) : "memory");
}

__device__ inline void waitFor(uint32_t barrier, uint32_t phase) {
  asm volatile(
      "{\n"
      ".reg .pred done;\n"
      "again:\n"
      "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
      "@!done bra again;\n"
      "}\n" ::"r"(barrier),
      "r"(phase)
      : "memory");
}

// Weights are read once and leave the L2 first; x is read by every block.
constexpr uint64_t kEvictFirst = 0x12F0000000000000;
constexpr uint64_t kEvictLast = 0x14F0000000000000;

__device__ inline void copyTile(const CUtensorMap& map, uint32_t to, uint32_t barrier, int k, int row,
                                uint16_t mask, bool shared, uint64_t policy) {
  const auto address = reinterpret_cast<uint64_t>(&map);
  if (shared) {
    asm volatile(
        "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster.L2::"
        "cache_hint [%0], [%1, {%2, %3}], [%4], %5, %6;" ::"r"(to),
        "l"(address), "r"(k), "r"(row), "r"(barrier), "h"(mask), "l"(policy)
        : "memory");
  } else {
    asm volatile(
        "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint "
        "[%0], [%1, {%2, %3}], [%4], %5;" ::"r"(to),
        "l"(address), "r"(k), "r"(row), "r"(barrier), "l"(policy)
        : "memory");
  }
}

// Of rows of 128 bytes in the 128-byte swizzle: 8 rows are 1024 bytes.
__device__ inline uint64_t descriptor(uint32_t address) {
  constexpr uint64_t kSwizzle128 = uint64_t{1} << 62;
  constexpr uint64_t kStride = uint64_t{1024 >> 4} << 32;
  constexpr uint64_t kLeading = uint64_t{1} << 16;
  return kSwizzle128 | kStride | kLeading | ((address & 0x3FFFF) >> 4);
}

template <class T, int Columns>
struct Mma;
#define NT_MMA(columns)                                                                        \
  template <>                                                                                  \
  struct Mma<__nv_bfloat16, columns>                                                           \
      : cute::SM90::GMMA::MMA_64x##columns##x16_F32BF16BF16_SS<cute::SM90::GMMA::Major::K,     \
                                                               cute::SM90::GMMA::Major::K> {}; \
  template <>                                                                                  \
  struct Mma<__half, columns>                                                                  \
      : cute::SM90::GMMA::MMA_64x##columns##x16_F32F16F16_SS<cute::SM90::GMMA::Major::K,       \
                                                             cute::SM90::GMMA::Major::K> {};
NT_MMA(96)
NT_MMA(112)
NT_MMA(128)
NT_MMA(176)
NT_MMA(224)
#undef NT_MMA

template <class Mma, size_t N, size_t... I>
__device__ inline void multiply(uint64_t a, uint64_t b, float (&sums)[N], bool add,
                                std::index_sequence<I...>) {
  Mma::fma(a, b, sums[I]..., add ? cute::SM90::GMMA::ScaleOut::One : cute::SM90::GMMA::ScaleOut::Zero);
}

template <int Blocks, int N>
__device__ inline void pin(float (&sums)[Blocks][N]) {
#pragma unroll
  for (int b = 0; b < Blocks; ++b) {
#pragma unroll
    for (int i = 0; i < N; ++i) asm volatile("" : "+f"(sums[b][i])::"memory");
  }
}

// --- epilogue

__device__ inline float rounded(float x) {
  Element value;
  store(&value, x);
  return load(&value);
}

__device__ inline float activate(FewRowsGate gate, float value, float up) {
  const float f = rounded(value);
  float active;
  if (gate == FewRowsGate::kSilu) {
    active = f / (1.0F + __expf(-f));
  } else {
    constexpr float kSqrt2OverPi = 0.7978845608028654F;
    active = 0.5F * f * (1.0F + tanhf(kSqrt2OverPi * (f + 0.044715F * f * f * f)));
  }
  return rounded(active) * rounded(up);
}

__device__ inline uint32_t pack(float a, float b) {
  Element pair[2];
  store(pair, a);
  store(pair + 1, b);
  uint32_t word;
  memcpy(&word, pair, sizeof(word));
  return word;
}

__device__ inline float2 unpack(uint32_t word) {
  Element pair[2];
  memcpy(pair, &word, sizeof(word));
  return {load(pair), load(pair + 1)};
}

// Eight neighbours in a row.
struct Values {
  float v[8];
};

__device__ inline Values unpack(uint4 words) {
  const float2 a = unpack(words.x);
  const float2 b = unpack(words.y);
  const float2 c = unpack(words.z);
  const float2 d = unpack(words.w);
  return {a.x, a.y, b.x, b.y, c.x, c.y, d.x, d.y};
}

__device__ inline uint4 pack(const Values& x) {
  return {pack(x.v[0], x.v[1]), pack(x.v[2], x.v[3]), pack(x.v[4], x.v[5]), pack(x.v[6], x.v[7])};
}

// Rounded before and after.
__device__ inline uint4 addRounded(uint4 a, uint4 b) {
  Values x = unpack(a);
  const Values y = unpack(b);
#pragma unroll
  for (int i = 0; i < 8; ++i) x.v[i] += y.v[i];
  return pack(x);
}

__device__ inline uint4 biased(uint4 x, const Element* bias, int column) {
  return bias == nullptr ? x : addRounded(x, __ldg(reinterpret_cast<const uint4*>(bias + column)));
}

// Writes `units` x 8 columns from `first` on, by way of shared memory: what needs the accumulators' registers
// by name is unrolled, and must be short, as each launch fetches its instructions anew. Gated: unit u and
// unit u + kUnits / 2 are factors.
template <class Tile, bool Gated>
__device__ inline void writeTile(const Params& p, float (&sums)[Tile::kBlocks][Tile::kUnits * 4],
                                 char* memory, int row0, int first, int units) {
  constexpr int kMost = Gated ? Tile::kUnits / 2 : Tile::kUnits;
  constexpr int kChunk = Gated ? Tile::kChunkUnits / 2 : Tile::kChunkUnits;
  constexpr int kPieces = (16 * kChunk + 31) / 32;
  const int lane = threadIdx.x % 32;
  const int warp = (threadIdx.x - kGroup) / 32;
  char* staging = memory + Tile::kStagingAt + warp * Tile::kWarpStaging;
  const auto at = [&](int row, int unit) { return staging + (row * Tile::kStride + unit) * 16; };
  const int warpRow = row0 + warp % 4 * 16;
#pragma unroll
  for (int b = 0; b < Tile::kBlocks; ++b) {
#pragma unroll
    for (int chunk = 0; chunk < Tile::kChunks; ++chunk) {
      __syncwarp();
      const auto stage = [&](const float* v, int unit) {
        *reinterpret_cast<uint32_t*>(at(lane / 4, unit) + lane % 4 * 4) = pack(v[0], v[1]);
        *reinterpret_cast<uint32_t*>(at(lane / 4 + 8, unit) + lane % 4 * 4) = pack(v[2], v[3]);
      };
#pragma unroll
      for (int i = 0; i < kChunk; ++i) {
        const int u = chunk * kChunk + i;
        if (u >= kMost) continue;
        stage(sums[b] + u * 4, i);
        if constexpr (Gated) stage(sums[b] + (u + Tile::kUnits / 2) * 4, kChunk + i);
      }
      __syncwarp();
      const int rowsLeft = p.rows - warpRow - b * 64;
      const auto piece = [&](int i, int& row, int& unit, int& column) {
        row = (lane + i * 32) / kChunk;
        unit = (lane + i * 32) % kChunk;
        column = first + (chunk * kChunk + unit) * 8;
        return row < 16 && row < rowsLeft && chunk * kChunk + unit < units && column < p.n;
      };
      const int64_t from = static_cast<int64_t>(warpRow + b * 64) * p.n;
      int row, unit, column;
      if constexpr (Gated) {
#pragma unroll 1
        for (int i = 0; i < kPieces; ++i) {
          if (!piece(i, row, unit, column)) continue;
          Values x = unpack(biased(*reinterpret_cast<const uint4*>(at(row, unit)), p.bias, column));
          const Values up =
              unpack(biased(*reinterpret_cast<const uint4*>(at(row, kChunk + unit)), p.bias, p.n + column));
#pragma unroll
          for (int j = 0; j < 8; ++j) x.v[j] = activate(p.gate, x.v[j], up.v[j]);
          uint4 out = pack(x);
          const int64_t to = from + static_cast<int64_t>(row) * p.n + column;
          if (p.residual != nullptr)
            out = addRounded(out, __ldcg(reinterpret_cast<const uint4*>(p.residual + to)));
          *reinterpret_cast<uint4*>(p.y + to) = out;
        }
      } else {
        // All of them are under way before the first is wanted.
        uint4 residual[kPieces];
        if (p.residual != nullptr) {
#pragma unroll
          for (int i = 0; i < kPieces; ++i) {
            if (piece(i, row, unit, column))
              residual[i] = __ldcg(reinterpret_cast<const uint4*>(p.residual + from +
                                                                  static_cast<int64_t>(row) * p.n + column));
          }
        }
#pragma unroll
        for (int i = 0; i < kPieces; ++i) {
          if (!piece(i, row, unit, column)) continue;
          uint4 out = biased(*reinterpret_cast<const uint4*>(at(row, unit)), p.bias, column);
          if (p.residual != nullptr) out = addRounded(out, residual[i]);
          *reinterpret_cast<uint4*>(p.y + from + static_cast<int64_t>(row) * p.n + column) = out;
        }
      }
    }
  }
}

// Adds up the sums of the blocks that share k: block z gets units [z, z + 1) * kUnits / splits of all.
template <class Tile>
__device__ inline void addSplits(float (&sums)[Tile::kBlocks][Tile::kUnits * 4], uint32_t shared, int splits,
                                 int z, int rankOfFirst, int rankStep) {
  constexpr int kWriters = Tile::kGroups * kGroup;
  const int perSplit = Tile::kUnits / splits;
  const uint32_t thread = threadIdx.x - kGroup;
  const auto offset = [&](int from, int b, int u) {
    return static_cast<uint32_t>(((from * Tile::kBlocks + b) * perSplit + u) * kWriters + thread) * 16;
  };
#pragma unroll
  for (int u = 0; u < Tile::kUnits; ++u) {
    const int to = u / perSplit;
    const uint32_t base = addressIn(shared, static_cast<uint32_t>(rankOfFirst + to * rankStep));
#pragma unroll
    for (int b = 0; b < Tile::kBlocks; ++b) {
      const float* v = sums[b] + u * 4;
      asm volatile(
          "st.shared::cluster.v4.f32 [%0], {%1, %2, %3, %4};" ::"r"(base + offset(z, b, u - to * perSplit)),
          "f"(v[0]), "f"(v[1]), "f"(v[2]), "f"(v[3])
          : "memory");
    }
  }
  syncCluster();
#pragma unroll
  for (int u = 0; u < Tile::kUnits; ++u) {
    if (u >= perSplit) break;
#pragma unroll
    for (int b = 0; b < Tile::kBlocks; ++b) {
      float4 total{};
      for (int from = 0; from < splits; ++from) {
        float4 v;
        asm volatile("ld.shared.v4.f32 {%0, %1, %2, %3}, [%4];"
                     : "=f"(v.x), "=f"(v.y), "=f"(v.z), "=f"(v.w)
                     : "r"(shared + offset(from, b, u)));
        total.x += v.x;
        total.y += v.y;
        total.z += v.z;
        total.w += v.w;
      }
      sums[b][u * 4] = total.x;
      sums[b][u * 4 + 1] = total.y;
      sums[b][u * 4 + 2] = total.z;
      sums[b][u * 4 + 3] = total.w;
    }
  }
}

// --- the kernel

template <class Tile>
__global__ void __launch_bounds__(Tile::kThreads, 1) linearKernel(const __grid_constant__ Params p) {
  extern __shared__ __align__(1024) char memory[];
  const uint32_t shared = sharedAddress(memory);
  const uint32_t full = shared + Tile::kStages * Tile::kBytes;
  const uint32_t empty = full + Tile::kStages * 8;

  const int sharingX = p.sharingX;
  const int sharingW = p.sharingW;
  const int xi = static_cast<int>(blockIdx.x) % sharingX;
  const int yi = static_cast<int>(blockIdx.y) % sharingW;
  const int zi = static_cast<int>(blockIdx.z);
  const int rank0 = zi * sharingX * sharingW;  // of the blocks with the same part of k
  const int group = static_cast<int>(threadIdx.x) / kGroup;
  const int depths = (p.k + kDepth - 1) / kDepth;
  const int begin = depths * zi / p.splits;
  const int end = depths * (zi + 1) / p.splits;
  const int row0 = static_cast<int>(blockIdx.y) * Tile::kRows;

  if (threadIdx.x == 0) {
    asm volatile("prefetch.tensormap [%0];" ::"l"(&p.weight) : "memory");
    asm volatile("prefetch.tensormap [%0];" ::"l"(&p.x) : "memory");
    for (int s = 0; s < Tile::kStages; ++s) {
      initBarrier(full + s * 8, 1);
      initBarrier(empty + s * 8, static_cast<uint32_t>(Tile::kGroups * (sharingX + sharingW - 1)));
    }
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
  }
  syncCluster();
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");

  if (group == 0) {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(Tile::kFewRegisters));
    if (threadIdx.x == 0) {
      const bool gated = p.gate != FewRowsGate::kNone;
      const int partRows = gated ? Tile::kColumns / 2 : Tile::kColumns;
      const int boxW = partRows / sharingW;
      const int boxX = Tile::kRows / sharingX;
      uint16_t maskX = 0;
      for (int i = 0; i < sharingX; ++i) maskX |= static_cast<uint16_t>(1U << (rank0 + yi * sharingX + i));
      uint16_t maskW = 0;
      for (int i = 0; i < sharingW; ++i) maskW |= static_cast<uint16_t>(1U << (rank0 + i * sharingX + xi));
      const uint64_t policyW = gridDim.y == static_cast<unsigned>(sharingW) ? kEvictFirst : kEvictLast;
      const auto loadW = [&](int stage, int tile, int depth) {
        const uint32_t to =
            shared + stage * Tile::kBytes + Tile::kBytesX + static_cast<uint32_t>(yi * boxW) * kRowBytes;
        const int row = tile * partRows + yi * boxW;
        copyTile(p.weight, to, full + stage * 8, depth * kDepth, row, maskW, sharingW > 1, policyW);
        if (gated) {
          copyTile(p.weight, to + static_cast<uint32_t>(partRows) * kRowBytes, full + stage * 8,
                   depth * kDepth, row + p.n, maskW, sharingW > 1, policyW);
        }
      };
      const auto loadX = [&](int stage, int depth) {
        const uint32_t to = shared + stage * Tile::kBytes + static_cast<uint32_t>(xi * boxX) * kRowBytes;
        copyTile(p.x, to, full + stage * 8, depth * kDepth, row0 + xi * boxX, maskX, sharingX > 1,
                 kEvictLast);
      };
      const int firstTile = static_cast<int>(blockIdx.x);
      const int ahead = min(Tile::kStages, end - begin);
      // Nobody writes the weights: they need not wait for the kernel before.
      for (int s = 0; s < ahead; ++s) {
        expectBytes(full + s * 8, Tile::kBytes);
        loadW(s, firstTile, begin + s);
      }
      asm volatile("griddepcontrol.wait;" ::: "memory");
      for (int s = 0; s < ahead; ++s) loadX(s, begin + s);
      int stage = ahead % Tile::kStages;
      uint32_t phase = ahead == Tile::kStages ? 0 : 1;
      for (int tile = firstTile; tile - xi < p.tiles; tile += static_cast<int>(gridDim.x)) {
        for (int depth = tile == firstTile ? begin + ahead : begin; depth < end; ++depth) {
          waitFor(empty + stage * 8, phase);
          expectBytes(full + stage * 8, Tile::kBytes);
          loadW(stage, tile, depth);
          loadX(stage, depth);
          if (++stage == Tile::kStages) {
            stage = 0;
            phase ^= 1;
          }
        }
      }
    }
    __syncwarp();
    if (p.splits > 1) {
      syncCluster();
      syncCluster();
    }
  } else {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(Tile::kManyRegisters));
    using Multiply = Mma<Element, Tile::kColumns>;
    constexpr auto kSums = std::make_index_sequence<Tile::kUnits * 4>{};
    const int inGroup = static_cast<int>(threadIdx.x) % kGroup;
    const int firstBlock = (group - 1) * Tile::kBlocks;
    // Whom a thread tells that a stage may be filled again: all that fill a part of it.
    const int peers = sharingX + sharingW - 1;
    int peer = 0;
    if (inGroup < sharingX) {
      peer = rank0 + yi * sharingX + inGroup;
    } else {
      const int i = inGroup - sharingX;
      peer = rank0 + (i < yi ? i : i + 1) * sharingX + xi;
    }
    const uint32_t emptyThere = inGroup < peers ? addressIn(empty, static_cast<uint32_t>(peer)) : 0;

    float sums[Tile::kBlocks][Tile::kUnits * 4];
    int stage = 0;
    uint32_t phase = 0;
    for (int tile = static_cast<int>(blockIdx.x); tile - xi < p.tiles; tile += static_cast<int>(gridDim.x)) {
      int before = -1;
      for (int depth = begin; depth < end; ++depth) {
        waitFor(full + stage * 8, phase);
        const uint64_t x = descriptor(shared + stage * Tile::kBytes + firstBlock * 64 * kRowBytes);
        const uint64_t w = descriptor(shared + stage * Tile::kBytes + Tile::kBytesX);
        pin(sums);
        asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
#pragma unroll
        for (int step = 0; step < kDepth / 16; ++step) {
#pragma unroll
          for (int b = 0; b < Tile::kBlocks; ++b) {
            multiply<Multiply>(x + (b * 64 * kRowBytes >> 4) + step * 2, w + step * 2, sums[b],
                               depth > begin || step > 0, kSums);
          }
        }
        asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
        asm volatile("wgmma.wait_group.sync.aligned 1;" ::: "memory");
        pin(sums);
        if (before >= 0 && inGroup < peers) arriveAt(emptyThere + before * 8);
        before = stage;
        if (++stage == Tile::kStages) {
          stage = 0;
          phase ^= 1;
        }
      }
      asm volatile("wgmma.wait_group.sync.aligned 0;" ::: "memory");
      pin(sums);
      if (before >= 0 && inGroup < peers) arriveAt(emptyThere + before * 8);

      const int row = row0 + firstBlock * 64;
      if (p.gate != FewRowsGate::kNone) {
        writeTile<Tile, true>(p, sums, memory, row, tile * (Tile::kColumns / 2), Tile::kUnits / 2);
      } else if (p.splits == 1) {
        writeTile<Tile, false>(p, sums, memory, row, tile * Tile::kColumns, Tile::kUnits);
      } else {
        // A launch with splits has a tile for each block, no more.
        syncCluster();
        addSplits<Tile>(sums, shared, p.splits, zi, yi * sharingX + xi, sharingX * sharingW);
        const int units = Tile::kUnits / p.splits;
        writeTile<Tile, false>(p, sums, memory, row, tile * Tile::kColumns + zi * units * 8, units);
      }
    }
  }
  // Others may still copy to this block's memory, or arrive at its barriers.
  syncCluster();
}

// A block a row.
constexpr int kNormThreads = 512;
constexpr int kNormPieces = kMidRowsNormMax / 8 / kNormThreads;

__global__ void __launch_bounds__(kNormThreads) normKernel(MidRowsNormArgs args) {
  __shared__ float partial[kNormThreads / 32];
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
  const int pieces = args.k / 8;
  uint4 weights[kNormPieces];
#pragma unroll
  for (int i = 0; i < kNormPieces; ++i) {
    const int at = static_cast<int>(threadIdx.x) + i * kNormThreads;
    if (at < pieces) weights[i] = __ldg(static_cast<const uint4*>(args.weight) + at);
  }
  asm volatile("griddepcontrol.wait;" ::: "memory");
  const int64_t row = static_cast<int64_t>(blockIdx.x) * pieces;
  uint4 values[kNormPieces];
  float sum = 0;
#pragma unroll
  for (int i = 0; i < kNormPieces; ++i) {
    const int at = static_cast<int>(threadIdx.x) + i * kNormThreads;
    if (at >= pieces) continue;
    // Past L1: what the kernel before wrote may be there in an older state.
    values[i] = __ldcg(static_cast<const uint4*>(args.x) + row + at);
    for (const uint32_t word : {values[i].x, values[i].y, values[i].z, values[i].w}) {
      const float2 f = unpack(word);
      sum += f.x * f.x + f.y * f.y;
    }
  }
  for (int offset = 16; offset > 0; offset /= 2) sum += __shfl_xor_sync(0xffffffffU, sum, offset);
  if (threadIdx.x % 32 == 0) partial[threadIdx.x / 32] = sum;
  __syncthreads();
  float total = 0;
#pragma unroll
  for (int i = 0; i < kNormThreads / 32; ++i) total += partial[i];
  const float scale = rsqrtf(total / static_cast<float>(args.k) + args.eps);
  const auto normalise = [&](uint32_t x, uint32_t w) {
    const float2 f = unpack(x);
    const float2 g = unpack(w);
    return pack(rounded(f.x * scale) * g.x, rounded(f.y * scale) * g.y);
  };
#pragma unroll
  for (int i = 0; i < kNormPieces; ++i) {
    const int at = static_cast<int>(threadIdx.x) + i * kNormThreads;
    if (at >= pieces) continue;
    const uint4 v = values[i];
    const uint4 w = weights[i];
    static_cast<uint4*>(args.y)[row + at] = {normalise(v.x, w.x), normalise(v.y, w.y), normalise(v.z, w.z),
                                             normalise(v.w, w.w)};
  }
}

// --- launches

using Encode = CUresult (*)(CUtensorMap*, CUtensorMapDataType, cuuint32_t, void*, const cuuint64_t*,
                            const cuuint64_t*, const cuuint32_t*, const cuuint32_t*, CUtensorMapInterleave,
                            CUtensorMapSwizzle, CUtensorMapL2promotion, CUtensorMapFloatOOBfill);

Encode findEncode() noexcept {
  void* function = nullptr;
  cudaDriverEntryPointQueryResult found = cudaDriverEntryPointSymbolNotFound;
  const cudaError_t error =
      cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function, 12000, cudaEnableDefault, &found);
  return error == cudaSuccess && found == cudaDriverEntryPointSuccess ? reinterpret_cast<Encode>(function)
                                                                      : nullptr;
}

// A matrix [rows, k], read in boxes of boxRows x kDepth; what lies outside reads as zero.
cudaError_t describe(CUtensorMap* map, const void* data, int64_t rows, int32_t k, int32_t boxRows) noexcept {
  static const Encode encode = findEncode();
  if (encode == nullptr) return cudaErrorNotSupported;
  constexpr CUtensorMapDataType kType =
      std::is_same_v<Element, __half> ? CU_TENSOR_MAP_DATA_TYPE_FLOAT16 : CU_TENSOR_MAP_DATA_TYPE_BFLOAT16;
  const cuuint64_t dims[2] = {static_cast<cuuint64_t>(k), static_cast<cuuint64_t>(rows)};
  const cuuint64_t strides[1] = {static_cast<cuuint64_t>(k) * 2};
  const cuuint32_t box[2] = {kDepth, static_cast<cuuint32_t>(boxRows)};
  const cuuint32_t steps[2] = {1, 1};
  const CUresult result = encode(map, kType, 2, const_cast<void*>(data), dims, strides, box, steps,
                                 CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
                                 CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  return result == CUDA_SUCCESS ? cudaSuccess : cudaErrorInvalidValue;
}

struct Device {
  int id = -1;
  int processors = 0;
};

cudaError_t currentDevice(Device& device) noexcept {
  static thread_local Device known;
  int id = 0;
  cudaError_t error = cudaGetDevice(&id);
  if (error == cudaSuccess && id != known.id) {
    error = cudaDeviceGetAttribute(&known.processors, cudaDevAttrMultiProcessorCount, id);
    if (error == cudaSuccess) known.id = id;
  }
  device = known;
  return error;
}

template <class Tile>
cudaError_t launchTile(const MidRowsArgs& args, const MidRowsTiling& tiling, bool overlap,
                       cudaStream_t stream) noexcept {
  const bool gated = args.gate != FewRowsGate::kNone;
  const int partRows = gated ? Tile::kColumns / 2 : Tile::kColumns;
  Params p;
  cudaError_t error = describe(&p.x, args.x, args.rows, args.k, Tile::kRows / tiling.sharingX);
  if (error == cudaSuccess) {
    error =
        describe(&p.weight, args.weight, int64_t{gated ? 2 : 1} * args.n, args.k, partRows / tiling.sharingW);
  }
  Device device;
  if (error == cudaSuccess) error = currentDevice(device);
  // The attribute belongs to the device's context.
  static thread_local int preparedFor = -1;
  if (error == cudaSuccess && preparedFor != device.id) {
    error =
        cudaFuncSetAttribute(linearKernel<Tile>, cudaFuncAttributeMaxDynamicSharedMemorySize, kSharedBytes);
    if (error == cudaSuccess) preparedFor = device.id;
  }
  if (error != cudaSuccess) return error;

  p.bias = static_cast<const Element*>(args.bias);
  p.residual = static_cast<const Element*>(args.residual);
  p.y = static_cast<Element*>(args.y);
  p.rows = args.rows;
  p.n = args.n;
  p.k = args.k;
  p.tiles = (args.n + partRows - 1) / partRows;
  p.gate = args.gate;
  p.sharingX = tiling.sharingX;
  p.sharingW = tiling.sharingW;
  p.splits = tiling.splits;

  const auto upTo = [](int value, int multiple) { return (value + multiple - 1) / multiple * multiple; };
  const int y = upTo((args.rows + Tile::kRows - 1) / Tile::kRows, tiling.sharingW);
  int x = upTo(p.tiles, tiling.sharingX);
  // Blocks that stay for several tiles load the next one while they write.
  if (tiling.splits == 1) {
    const int fitting = std::max(device.processors / y / tiling.sharingX, 1) * tiling.sharingX;
    x = std::min(x, fitting);
  }
  cudaLaunchAttribute attributes[2] = {};
  attributes[0].id = cudaLaunchAttributeClusterDimension;
  attributes[0].val.clusterDim = {static_cast<unsigned>(tiling.sharingX),
                                  static_cast<unsigned>(tiling.sharingW),
                                  static_cast<unsigned>(tiling.splits)};
  attributes[1].id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attributes[1].val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config{};
  config.gridDim =
      dim3(static_cast<unsigned>(x), static_cast<unsigned>(y), static_cast<unsigned>(tiling.splits));
  config.blockDim = dim3(Tile::kThreads);
  config.dynamicSmemBytes = kSharedBytes;
  config.stream = stream;
  config.attrs = attributes;
  config.numAttrs = overlap ? 2 : 1;
  return cudaLaunchKernelEx(&config, linearKernel<Tile>, p);
}

// Calls fn with the tile that the tiling names, or returns `otherwise`.
template <class Result, class Fn>
Result withTile(const MidRowsTiling& tiling, Result otherwise, Fn&& fn) noexcept {
#define NT_TILE(groups, blocks, width) \
  if (tiling.rows == 64 * groups * blocks && tiling.columns == width) return fn(Tile<groups, blocks, width>{})
  NT_MID_ROWS_TILES(NT_TILE);
#undef NT_TILE
  return otherwise;
}

}  // namespace

template <DType Type>
bool MidRows<Type>::has(const MidRowsTiling& tiling, bool gated) noexcept {
  const auto powerOfTwo = [](int value) { return value == 1 || value == 2 || value == 4 || value == 8; };
  if (!powerOfTwo(tiling.sharingX) || !powerOfTwo(tiling.sharingW) || !powerOfTwo(tiling.splits))
    return false;
  if (tiling.sharingX * tiling.sharingW * tiling.splits > 8 || (gated && tiling.splits > 1)) return false;
  return withTile(tiling, false, [&](auto tile) {
    using T = decltype(tile);
    const int partRows = gated ? T::kColumns / 2 : T::kColumns;
    // Boxes of whole swizzle patterns (8 rows), at most 256 rows.
    return T::kRows / tiling.sharingX <= 256 && T::kRows % (8 * tiling.sharingX) == 0 &&
           partRows % (8 * tiling.sharingW) == 0 && T::kUnits % tiling.splits == 0;
  });
}

template <DType Type>
cudaError_t MidRows<Type>::linear(const MidRowsArgs& args, const MidRowsTiling& tiling, bool overlap,
                                  cudaStream_t stream) noexcept {
  if (!has(tiling, args.gate != FewRowsGate::kNone) || args.rows < 1 || args.n < 8 || args.n % 8 != 0 ||
      args.k < 8 || args.k % 8 != 0 || (args.k + kDepth - 1) / kDepth < tiling.splits) {
    return cudaErrorInvalidValue;
  }
  return withTile(tiling, cudaErrorInvalidValue,
                  [&](auto tile) { return launchTile<decltype(tile)>(args, tiling, overlap, stream); });
}

template <DType Type>
cudaError_t MidRows<Type>::norm(const MidRowsNormArgs& args, bool overlap, cudaStream_t stream) noexcept {
  if (args.rows < 1 || args.k < 8 || args.k % 8 != 0 || args.k > kMidRowsNormMax)
    return cudaErrorInvalidValue;
  cudaLaunchAttribute attribute{};
  attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attribute.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(args.rows));
  config.blockDim = dim3(kNormThreads);
  config.stream = stream;
  config.attrs = &attribute;
  config.numAttrs = overlap ? 1 : 0;
  return cudaLaunchKernelEx(&config, normKernel, args);
}

template struct MidRows<NT_DTYPE>;

}  // namespace nt::kernels::sm90
