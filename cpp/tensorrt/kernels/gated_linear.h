// The gate and up projections of a decoder layer's MLP with their activation, in one kernel: the product
// [rows, 2n] is never written to memory. For many rows, on Hopper alone (compute capability 9.0).
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "core/dtype.h"
#include "tensorrt/kernels/linear_gate.h"

namespace nt::kernels {

// y = silu(x * gate^T) * (x * up^T), summed in float32, each part rounded to the type where Hugging Face's
// modules do. All packed, device pointers aligned to 16 bytes.
struct GatedLinearArgs {
  const void* x = nullptr;       // [rows, k]
  const void* weight = nullptr;  // [2n, k], the gate's rows first
  void* y = nullptr;             // [rows, n]; none of x or weight
  int32_t rows = 0;
  int32_t n = 0;
  int32_t k = 0;
};

// Whether a layer of so many rows is faster than a product of cuBLASLt's and an activation: tiles come in
// pairs of 128 rows, and those beyond the last one take as long as others. Bounds as measured on an H200
// (docs/performance.md).
constexpr bool gatedLinearPays(int32_t rows) noexcept {
  constexpr int32_t kPair = 256;
  const int32_t idle = kPair - 1 - (rows - 1) % kPair;
  return rows > 0 && idle * (rows <= 512 ? 8 : 20) <= rows + idle;
}

// Whether the layer can be computed, of any number of rows, on a device of compute capability 9.0: silu,
// 16-bit types, n and k multiples of 8. False where the module holds no kernels for that one.
bool gatedLinearFits(DType type, LinearGate gate, int32_t n, int32_t k) noexcept;

// On the thread's device; may be captured, and neither allocates nor synchronises. `overlap` starts it while
// the kernel before it in the stream ends (programmatic dependent launch). cudaErrorInvalidValue
// where the layer does not fit or an address is not aligned, cudaErrorNoKernelImageForDevice where nothing
// was compiled for it; else what the launch returns.
cudaError_t gatedLinear(DType type, const GatedLinearArgs& args, bool overlap, cudaStream_t stream) noexcept;

}  // namespace nt::kernels
