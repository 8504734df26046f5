// What the FlashInfer units define: each .cu instantiates its template for the (type, head size) it is
// compiled for.
#pragma once

#include "tensorrt/kernels/attention.h"

namespace nt::kernels::fi {

template <DType Type, uint32_t HeadDim>
struct Prefill {
  static cudaError_t plan(const Workspace&, const PlanArgs&, Plan*, cudaStream_t) noexcept;
  static cudaError_t run(const Workspace&, const Plan&, const AttentionArgs&, cudaStream_t) noexcept;
};

// Hopper alone (compute capability 9.0).
template <DType Type, uint32_t HeadDim>
struct WidePrefill {
  static cudaError_t plan(const Workspace&, const PlanArgs&, Plan*, cudaStream_t) noexcept;
  static cudaError_t run(const Workspace&, const Plan&, const AttentionArgs&, cudaStream_t) noexcept;
};

// Likewise.
template <DType Type, uint32_t HeadDim>
struct FreshPrefill {
  static cudaError_t plan(const Workspace&, const PlanArgs&, Plan*, cudaStream_t) noexcept;
  static cudaError_t run(const Workspace&, const Plan&, const AttentionArgs&, cudaStream_t) noexcept;
};

}  // namespace nt::kernels::fi
