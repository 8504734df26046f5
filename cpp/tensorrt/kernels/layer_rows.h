// What stands between the linear layers of a decoder layer, where these are kernels of their own. Device
// pointers, aligned to 16 bytes; none of the functions synchronises or throws. `overlap` starts a kernel
// while the one before it in the stream ends (programmatic dependent launch, from compute capability 9.0).
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "core/dtype.h"
#include "tensorrt/kernels/linear_gate.h"

namespace nt::kernels {

// out[i] = rmsNorm(in[i]) * weight, `rows` of them, rounded where the engines' networks round.
cudaError_t rmsNorm(DType type, const void* in, const void* weight, float eps, int32_t rows, int32_t width,
                    void* out, bool overlap, cudaStream_t stream) noexcept;

// out[i] = gate(in[i][0 ... width]) * in[i][width ... 2 width], `rows` of them; width is a multiple of 8.
cudaError_t gatedActivation(DType type, LinearGate gate, const void* in, int32_t rows, int32_t width,
                            void* out, bool overlap, cudaStream_t stream) noexcept;

}  // namespace nt::kernels
