// Linear layers of very few rows, with what stands before and behind them in a decoder layer: RMS norm, bias,
// gated activation, residual. Such a step is bound by reading the weights once; these kernels do nothing
// else for long.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "core/dtype.h"
#include "tensorrt/kernels/linear_gate.h"

namespace nt::kernels {

inline constexpr int32_t kFewRowsMax = 8;

// y = residual + gate(norm(x) * weight^T + bias), each part where given, rounded to the type where Hugging
// Face's modules do.
struct FewRowsArgs {
  const void* x = nullptr;         // [rows, k]
  const void* weight = nullptr;    // [n, k]; with a gate [2n, k], the gate's rows first
  const void* bias = nullptr;      // [n] or [2n], or null
  const void* norm = nullptr;      // [k] of the RMS norm, or null
  const void* residual = nullptr;  // [rows, n], or null
  void* y = nullptr;               // [rows, n]; may be `residual`
  int32_t rows = 0;                // 1 ... kFewRowsMax
  int32_t n = 0;
  int32_t k = 0;  // a multiple of 32
  float eps = 0;  // of the norm
  LinearGate gate = LinearGate::kNone;
};

// Whether a call can be made on the thread's device: 16-bit types, k a multiple of 32, the rows of x in one
// block's shared memory (227 KiB on Hopper, 163 and 99 on compute capability 8.0 and 8.9).
bool fewRowsFits(DType type, int32_t rows, int32_t k) noexcept;

// `overlap` starts the kernel while the one before it in the stream ends (programmatic dependent launch, from
// compute capability 9.0): it fetches its first weights then, and waits before it reads anything else.
cudaError_t fewRowsLinear(DType type, const FewRowsArgs& args, bool overlap, cudaStream_t stream) noexcept;

}  // namespace nt::kernels
