// Small kernels around the engines: embedding, gathering of rows, conversion of weights, rotary tables.
// All pointers are device pointers; none of the functions synchronises or throws.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "core/dtype.h"

namespace nt::kernels {

struct EmbedArgs {
  const void* table = nullptr;      // [vocab, width]
  void* out = nullptr;              // [rows, width]
  const int32_t* tokens = nullptr;  // [rows]; -1 = the last token that the row's slot sampled
  const int32_t* batchIndices =
      nullptr;  // [rows] sequence of the row, negative for padding (which gets zeros)
  const int32_t* sequenceSlots = nullptr;  // [batch] slot of each sequence
  const int32_t* lastTokens = nullptr;     // [slots]
  int32_t rows = 0;
  int32_t width = 0;
  int32_t vocab = 0;
  float scale = 1;
};
cudaError_t embed(DType type, const EmbedArgs& args, cudaStream_t stream) noexcept;

// out[i] = in[rows[i]], rows of `bytes` bytes.
cudaError_t gatherRows(const void* in, const int32_t* rows, int32_t count, int64_t bytes, void* out,
                       cudaStream_t stream) noexcept;

// out[i] = in[i] rounded to nearest, `count` elements.
cudaError_t convert(DType from, const void* in, DType to, void* out, int64_t count,
                    cudaStream_t stream) noexcept;

// out [positions, 2 * half] float32: scale * cos(position * invFreq[i]), then the sines. The angle is a
// float32 product, as in Hugging Face's implementation.
cudaError_t ropeTable(const float* invFreq, float scale, int32_t positions, int32_t half, float* out,
                      cudaStream_t stream) noexcept;

// Ends the process's CUDA context with an illegal instruction. For tests of what comes after a device fault.
cudaError_t fault(cudaStream_t stream) noexcept;

}  // namespace nt::kernels
