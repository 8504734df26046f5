#include "tensorrt/kernels/attention.h"

#include "tensorrt/kernels/decode.h"
#include "tensorrt/kernels/fi_units.h"
#include "tensorrt/kernels/plain_attention.h"
#include "tensorrt/kernels/rope_append.h"

namespace nt::kernels {

namespace {

template <class Kernels>
constexpr AttentionKernels::Path kPath = {Kernels::plan, Kernels::run};
template <class Kernels>
#ifdef NT_WIDE_PREFILL
constexpr AttentionKernels::Path kHopperPath = kPath<Kernels>;
#else
constexpr AttentionKernels::Path kHopperPath;
#endif

// In the order of AttentionPath.
template <DType Type, uint32_t HeadDim>
constexpr AttentionKernels kSixteenBit = {
    ropeAppend<Type, HeadDim>,
    {kPath<fi::Prefill<Type, HeadDim>>, kHopperPath<fi::WidePrefill<Type, HeadDim>>,
     kHopperPath<fi::FreshPrefill<Type, HeadDim>>, kPath<Decode<Type, HeadDim>>},
    /*plans=*/true,
};

template <DType Type>
const AttentionKernels* findSixteenBit(uint32_t headDim) noexcept {
  switch (headDim) {
    case 64:
      return &kSixteenBit<Type, 64>;
    case 128:
      return &kSixteenBit<Type, 128>;
    default:
      return nullptr;
  }
}

}  // namespace

const AttentionKernels* findAttentionKernels(DType type, uint32_t headDim, bool plain) noexcept {
  if (!plain) {
    const AttentionKernels* kernels = type == DType::kBF16  ? findSixteenBit<DType::kBF16>(headDim)
                                      : type == DType::kF16 ? findSixteenBit<DType::kF16>(headDim)
                                                            : nullptr;
    if (kernels != nullptr) return kernels;
  }
  return findPlainAttention(type, headDim);
}

}  // namespace nt::kernels
