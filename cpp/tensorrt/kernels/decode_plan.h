// Shares the keys of a decode step out among the warps of Decode: which warp reads which tiles of
// which sequence. Host code, the same for each KV head of a layer.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace nt::kernels {

// Keys that a warp takes at a time.
inline constexpr int32_t kDecodeTile = 16;
// Query heads of a KV head that it takes together.
inline constexpr uint32_t kMostDecodeGroup = 8;
// Chunks that a sequence is cut into at most.
inline constexpr int32_t kMostPartials = 64;

// What one warp does in one go: tiles [begin, end) of a sequence. 32 bytes, as the device reads it.
struct alignas(16) DecodeChunk {
  int32_t row = 0;
  int32_t begin = 0;
  int32_t end = 0;
  int32_t partial = -1;   // where its sums go; negative: the chunk is the whole sequence
  int32_t length = 0;     // of the sequence, in tokens
  int32_t firstPage = 0;  // of the sequence in PagedKv::indices
  int32_t firstPartial = 0;
  int32_t partials = 0;  // chunks of the sequence
};

struct DecodePlanArgs {
  const int32_t* kvIndptr = nullptr;     // [rows + 1] pages of each sequence; one without pages is padding
  const int32_t* lastPageLen = nullptr;  // [rows]
  int32_t rows = 0;
  int32_t pageSize = 0;  // a multiple of kDecodeTile
  int32_t window = 0;    // as in AttentionArgs
  int32_t workers = 0;   // warps that share the sequences of one KV head out
  int32_t mostPartials = 0;
};

// Chunks by worker, in the order in which it takes them: of worker w from begins[w] to begins[w + 1].
struct DecodePlan {
  std::vector<int32_t> begins;  // [workers + 1]
  std::vector<DecodeChunk> chunks;
  int32_t partials = 0;
};

// No more chunks come of a plan than this.
int32_t mostDecodeChunks(int32_t rows, int32_t workers) noexcept;

// Keeps the vectors' memory from step to step.
void planDecodeChunks(const DecodePlanArgs& args, DecodePlan* plan);

}  // namespace nt::kernels
