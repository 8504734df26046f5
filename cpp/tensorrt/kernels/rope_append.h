// Rotary embedding + append for 16-bit types and head sizes 64 and 128: bound by the bytes it moves.
#pragma once

#include "tensorrt/kernels/attention.h"

namespace nt::kernels {

// See RopeAppendArgs. Pointers must be multiples of 16 bytes, strides of 8 elements; cudaErrorInvalidValue
// otherwise.
template <DType Type, uint32_t HeadDim>
cudaError_t ropeAppend(const RopeAppendArgs& args, cudaStream_t stream) noexcept;

}  // namespace nt::kernels
