// Attention of generated tokens, one query row a sequence, for up to kMostDecodeGroup query heads a KV head.
#pragma once

#include "tensorrt/kernels/attention.h"

namespace nt::kernels {

// Page sizes are multiples of kDecodeTile. With AttentionArgs::cosSin it rotates q and k and appends k and v
// itself.
template <DType Type, uint32_t HeadDim>
struct Decode {
  static cudaError_t plan(const Workspace&, const PlanArgs&, Plan*, cudaStream_t) noexcept;
  static cudaError_t run(const Workspace&, const Plan&, const AttentionArgs&, cudaStream_t) noexcept;
};

}  // namespace nt::kernels
