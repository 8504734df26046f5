// Linear layers of some ten to some hundred rows, with what stands behind them in a decoder layer: bias,
// gated activation, residual. Warp-specialised kernels for Hopper (compute capability 9.0): the bulk copy
// engine fills shared memory several steps ahead, warpgroups multiply.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "core/dtype.h"
#include "tensorrt/kernels/few_rows.h"

namespace nt::kernels {

// y = residual + gate(x * weight^T + bias), each part where given, rounded to the type where Hugging Face's
// modules do. All pointers are aligned to 16 bytes.
struct MidRowsArgs {
  const void* x = nullptr;         // [rows, k]
  const void* weight = nullptr;    // [n, k]; with a gate [2n, k], the gate's rows first
  const void* bias = nullptr;      // [n] or [2n], or null
  const void* residual = nullptr;  // [rows, n], or null
  void* y = nullptr;               // [rows, n]; may be `residual`
  int32_t rows = 0;
  int32_t n = 0;  // a multiple of 8
  int32_t k = 0;  // a multiple of 8
  FewRowsGate gate = FewRowsGate::kNone;
};

// How a layer is cut. A block computes `rows` x `columns` (with a gate half of them are the gate's). Blocks
// of a cluster share what they load: `sharingX` neighbours in columns load the rows of x together,
// `sharingW` neighbours in rows those of the weights; `splits` blocks take a part of k each and add up in a
// fixed order. The cluster has the product of the three, at most 8.
struct MidRowsTiling {
  int16_t rows = 0;
  int16_t columns = 0;
  int8_t sharingX = 1;
  int8_t sharingW = 1;
  int8_t splits = 1;

  bool operator==(const MidRowsTiling&) const = default;
};

struct MidRowsNormArgs {
  const void* x = nullptr;       // [rows, k]
  const void* weight = nullptr;  // [k]
  void* y = nullptr;             // [rows, k]
  int32_t rows = 0;
  int32_t k = 0;  // a multiple of 8, at most kMidRowsNormMax
  float eps = 0;
};

inline constexpr int32_t kMidRowsNormMax = 16384;

// The kernels of one element type, or null: float32, or a module built without compute capability 9.0.
struct MidRowsKernels {
  bool (*has)(const MidRowsTiling&, bool gated) noexcept;
  cudaError_t (*linear)(const MidRowsArgs&, const MidRowsTiling&, bool overlap, cudaStream_t) noexcept;
  cudaError_t (*norm)(const MidRowsNormArgs&, bool overlap, cudaStream_t) noexcept;
};
const MidRowsKernels* findMidRows(DType type) noexcept;

}  // namespace nt::kernels
