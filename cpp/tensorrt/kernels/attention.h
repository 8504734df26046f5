// Attention over a paged KV cache: rotary embedding + append, and attention of query rows over pages.
//
// Two families sit behind one table. FlashInfer's prefill kernels and a decode kernel of ours (16-bit types;
// head size 64 or 128) plan a step on the host and run it on each layer. The plain kernels (any head size
// that is a multiple of 32, up to 256; float32 too) need no plan: they are the verification path and the
// fallback for head sizes that those do not have.
//
// Layout of the cache (NHD): element (page, token, head, d) of K lies at page * pageStride + token *
// tokenStride
// + head * headStride + d from `k`, and likewise for V. K and V may share a page: `v` then starts half a page
// after `k`.
//
// The pool must never hold NaN or infinity where pages are in use, their unwritten tails included: FlashInfer
// reads whole pages and gives what lies beyond the length a weight of zero. Clearing the pool once, when it
// is allocated, is enough.
//
// No function here throws, and none synchronises. Every pointer is a device pointer unless its comment says
// "host".
#pragma once

#include <cuda_runtime_api.h>

#include <array>
#include <cstddef>
#include <cstdint>

#include "core/dtype.h"

namespace nt {

// What the sequences of a step, or of a part of it, go through.
enum class AttentionPath : uint8_t {
  kPrefill,       // any number of rows a sequence, on tensor cores, in tiles of at least 16 query rows
  kWidePrefill,   // on Hopper, many rows a sequence: faster, without a window and outside graphs
  kFreshPrefill,  // likewise, for sequences that have nothing in the cache but the step's own rows: faster
                  // still, as rows that follow one another need no look-up of pages
  kDecode,        // one row a sequence: row i is sequence i; see decode_plan.h for what it takes
};
inline constexpr size_t kAttentionPaths = 4;

}  // namespace nt

namespace nt::kernels {

struct PagedKv {
  void* k = nullptr;
  void* v = nullptr;
  int64_t pageStride = 0;                // elements
  int64_t tokenStride = 0;               // elements
  int64_t headStride = 0;                // elements
  const int32_t* indices = nullptr;      // [indptr[batch]] page numbers, a sequence's pages in order
  const int32_t* indptr = nullptr;       // [batch + 1] into indices
  const int32_t* lastPageLen = nullptr;  // [batch] 1..pageSize; ignored where a sequence has no page
  uint32_t batch = 0;
  uint32_t kvHeads = 0;
  uint32_t pageSize = 0;
};

// Scratch of sequences whose keys are split among blocks. One set serves all layers of a step: they run one
// after another on one stream.
struct Workspace {
  void* floats = nullptr;  // partial outputs and their log-sum-exps
  size_t floatBytes = 0;
  void* ints = nullptr;      // the plan's tables; `plan` enqueues one copy from intsHost to here
  void* intsHost = nullptr;  // host, pinned, intBytes long; not to be rewritten before that copy has run
  size_t intBytes = 0;
};

// A step's schedule: offsets into the workspace and the launch shape. Plain data; what it holds is the
// kernel's affair.
struct Plan {
  std::array<int64_t, 16> values{};
  int32_t count = 0;
};

struct PlanArgs {
  const int32_t* qIndptr = nullptr;      // host, [batch + 1] rows of each sequence
  const int32_t* kvIndptr = nullptr;     // host, [batch + 1] pages of each sequence
  const int32_t* lastPageLen = nullptr;  // host, [batch], as in PagedKv; wide prefill's and decode's
  uint32_t rows = 0;                     // rows of the graph, padding included; >= qIndptr[batch], >= batch
  uint32_t batch = 0;
  uint32_t heads = 0;
  uint32_t kvHeads = 0;
  uint32_t pageSize = 0;
  int32_t window = 0;  // as in AttentionArgs
  // Shapes the launch by (rows, batch) alone, so that one captured graph serves every later plan of the same
  // pair.
  bool cudaGraph = false;
};

struct RopeAppendArgs {
  const void* q = nullptr;  // [rows, heads, headDim], rows `rowStride` apart
  const void* k = nullptr;  // [rows, kvHeads, headDim], likewise
  const void* v = nullptr;  // [rows, kvHeads, headDim], likewise
  int64_t rowStride = 0;    // elements
  // [rows, heads, headDim], rows `qOutStride` apart (0: packed); may be `q` with its stride. Rows that are
  // padding are left as they were.
  void* qOut = nullptr;
  int64_t qOutStride = 0;  // elements
  // Takes the rotated k a second time, for attention over the step's own rows: [rows, kvHeads, headDim], rows
  // `rowStride` apart; may be `k`. Null where that is not wanted; the plain kernels do not have it.
  void* kOut = nullptr;
  PagedKv kv;                             // written at (batchIndices[row], positions[row])
  const int32_t* batchIndices = nullptr;  // [rows] sequence of the row, negative for padding
  const int32_t* positions = nullptr;     // [rows] 0-based position in the sequence
  const float* cosSin = nullptr;  // [maxPosition, headDim]: headDim / 2 cosines, then headDim / 2 sines
  uint32_t rows = 0;
  uint32_t heads = 0;
  // Starts while the kernel before it in the stream ends (programmatic dependent launch; compute capability
  // 9.0 and later). The kernels wait before they read what that one wrote, but not for the tables and cosSin,
  // which must be older; the plain ones ignore it.
  bool overlap = false;
};

struct AttentionArgs {
  const void* q = nullptr;  // [rows, heads, headDim], rotated, rows `qStride` apart
  int64_t qStride = 0;      // elements; 0: packed
  // The sequences' own rows: [rows, kvHeads, headDim], rows `kvStride` apart. Fresh prefill's, which reads no
  // page, with k rotated; decode's where `cosSin` is set.
  const void* k = nullptr;
  const void* v = nullptr;
  int64_t kvStride = 0;  // elements
  // As in RopeAppendArgs: decode rotates q and k and appends k and v itself. Null where ropeAppend ran
  // before.
  const float* cosSin = nullptr;
  // [rows, heads, headDim] packed. Rows of padding: FlashInfer's prefill leaves them as they were, the others
  // write finite values.
  void* out = nullptr;
  // Attention is causal: a sequence's rows are its last tokens, and all their keys are in the cache already.
  const int32_t* qIndptr = nullptr;       // [batch + 1] rows of each sequence
  const int32_t* batchIndices = nullptr;  // [rows], negative for padding
  const int32_t* positions = nullptr;     // [rows]
  PagedKv kv;
  uint32_t rows = 0;
  uint32_t heads = 0;
  float scale = 0;       // multiplies q.k before the softmax
  int32_t window = 0;    // a row sees its own position and the window - 1 before it; 0 = all
  bool overlap = false;  // as in RopeAppendArgs
};

// The kernels for one element type and head size. All functions return the first CUDA error,
// cudaErrorInvalidConfiguration where FlashInfer refuses the shape, or cudaErrorInvalidValue for arguments
// outside what is documented above.
struct AttentionKernels {
  using PlanFn = cudaError_t (*)(const Workspace&, const PlanArgs&, Plan*, cudaStream_t) noexcept;
  using RunFn = cudaError_t (*)(const Workspace&, const Plan&, const AttentionArgs&, cudaStream_t) noexcept;

  struct Path {
    PlanFn plan = nullptr;  // null where it was not compiled, or the family does not have it
    RunFn run = nullptr;
  };

  cudaError_t (*ropeAppend)(const RopeAppendArgs&, cudaStream_t) noexcept;
  std::array<Path, kAttentionPaths> paths;  // by AttentionPath
  // Whether what it runs was planned. Decode of those that plan can rotate and append, too.
  bool plans;

  const Path& operator[](AttentionPath path) const noexcept { return paths[static_cast<size_t>(path)]; }
};

// The kernels for a type and head size, or nullptr where no family covers the pair. Those that plan come
// first; `plain` asks for the plain family regardless.
const AttentionKernels* findAttentionKernels(DType type, uint32_t headDim, bool plain = false) noexcept;

}  // namespace nt::kernels
