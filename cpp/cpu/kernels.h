// The arithmetic of the CPU backend, one table of functions per instruction set. All tables give the same
// bits: they are compiled from one source (kernels_impl.h) over sixteen lanes, and each result is a chain of
// correctly rounded operations whose order depends on nothing but the operands' own shape.
#pragma once

#include <cstddef>
#include <cstdint>

#include "core/dtype.h"

namespace nt::cpu {

// Outputs per panel of a packed matrix.
inline constexpr size_t kPanelWidth = 32;

// c[rows, panelCount * 32] = a[rows, k] W^T + bias. Every element is one chain of fused multiply-adds over k
// = 0, 1, ...
struct GemmArgs {
  const float* a;
  size_t lda;
  size_t rows;
  size_t k;
  const void* panels;  // [panelCount][k][32] of `dtype`
  DType dtype;
  size_t panelCount;
  const float* bias;  // [panelCount * 32] or null
  float* c;           // padding columns are written too
  size_t ldc;
};

// Keys and values of one head of one layer, by page.
struct KvView {
  const float* keys;    // + page * pageStride: [headDim][pageSize]
  const float* values;  // + page * pageStride: [pageSize][headDim]
  size_t pageStride;
  int32_t pageSize;
  const int32_t* pages;  // block table
};

// Attention of `rows` consecutive tokens of one sequence, for the `heads` query heads that share one head of
// keys.
struct AttendArgs {
  const float* q;  // [rows][heads][headDim], rows qStride apart
  size_t qStride;
  float* out;  // the same shape, rows outStride apart
  size_t outStride;
  int32_t rows;
  int32_t heads;
  int32_t headDim;  // a multiple of 8
  float scale;
  int32_t firstPosition;
  int32_t window;  // 0 = none
  KvView kv;
  float* scratch;  // attendScratch() floats
};

// Floats of scratch that an attend of `rows` rows up to and including `lastPosition` needs.
constexpr size_t attendScratch(size_t rows, size_t heads, size_t headDim, size_t lastPosition,
                               size_t pageSize) {
  return rows * heads * ((lastPosition + pageSize) / 16 * 16 + 48 + (headDim + 15) / 16 * 16);
}

// A query tile holds at most this many (row, head) pairs, or one row.
inline constexpr int32_t kAttendTile = 8;

struct Kernels {
  const char* name;  // "avx512", "avx2", "portable"

  void (*gemm)(const GemmArgs& args);
  void (*attend)(const AttendArgs& args);

  // out = x / sqrt(mean(x^2) + eps) * weight. `out` may be `x`.
  void (*rmsNorm)(const float* x, const float* weight, float eps, size_t width, float* out);
  void (*add)(const float* a, const float* b, size_t width, float* out);
  // out[i] = act(gate[i]) * up[i]; silu(x) = x / (1 + e^-x); gelu is the tanh approximation that Gemma uses
  // ("gelu_pytorch_tanh"), 0.5 x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))).
  void (*siluMul)(const float* gate, const float* up, size_t width, float* out);
  void (*geluMul)(const float* gate, const float* up, size_t width, float* out);
  // In place; pairs (i, i + headDim / 2); cos and sin hold headDim / 2 values. headDim / 2 need not fill a
  // vector.
  void (*rope)(float* head, const float* cos, const float* sin, size_t headDim);
  void (*exp)(const float* x, size_t n, float* out);

  // Largest element; *hasNan tells if there is a NaN (then the result means nothing). n >= 1.
  float (*max)(const float* x, size_t n, bool* hasNan);
  // Lowest index whose element is >= bound, n if there is none.
  size_t (*firstAtLeast)(const float* x, size_t n, float bound);
  // Sum of exp((x - max) * scale), in a fixed order.
  float (*sumExp)(const float* x, size_t n, float max, float scale);
  // out[i] = exp((x[i] - max) * scale), 0 where x[i] < bound; sums[b] = sum over the 256 elements of block b.
  void (*expBlocks)(const float* x, size_t n, float max, float scale, float bound, float* out, float* sums);
  // Maxima of blocks of 16 elements, ceil(n / 16) of them.
  void (*blockMax)(const float* x, size_t n, float* out);
  // Indices of elements >= bound, ascending; returns how many. `out` has room for n.
  size_t (*collectAtLeast)(const float* x, size_t n, float bound, int32_t* out);
};

extern const Kernels kPortableKernels;
extern const Kernels kAvx2Kernels;    // x86-64 with AVX2, FMA and F16C only
extern const Kernels kAvx512Kernels;  // x86-64 with AVX-512 F, BW, VL, DQ only

}  // namespace nt::cpu
