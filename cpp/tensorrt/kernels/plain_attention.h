// Plain CUDA kernels for rotary embedding + append and for paged attention: float32, or any head size
// FlashInfer lacks.
#pragma once

#include "tensorrt/kernels/attention.h"

namespace nt::kernels {

// Head sizes that are multiples of 32, up to 256; nullptr otherwise.
const AttentionKernels* findPlainAttention(DType type, uint32_t headDim) noexcept;

}  // namespace nt::kernels
