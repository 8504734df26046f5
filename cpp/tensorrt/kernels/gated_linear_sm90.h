// What gated_linear_sm90.cu defines, for the type that it is compiled for.
#pragma once

#include "tensorrt/kernels/gated_linear.h"

namespace nt::kernels {

// As gatedLinear(), of a layer that fits.
template <DType Type>
cudaError_t gatedLinearSm90(const GatedLinearArgs& args, bool overlap, cudaStream_t stream) noexcept;

}  // namespace nt::kernels
