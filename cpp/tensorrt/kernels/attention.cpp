#include "tensorrt/kernels/attention.h"

#include "tensorrt/kernels/fi_units.h"
#include "tensorrt/kernels/plain_attention.h"
#include "tensorrt/kernels/rope_append.h"

namespace nt::kernels {

namespace {

template <DType Type, uint32_t HeadDim>
constexpr AttentionKernels kFlashInfer = {
    ropeAppend<Type, HeadDim>,
    fi::Decode<Type, HeadDim>::plan,
    fi::Decode<Type, HeadDim>::run,
    fi::Prefill<Type, HeadDim>::plan,
    fi::Prefill<Type, HeadDim>::run,
    /*needsPlan=*/true,
#ifdef NT_WIDE_PREFILL
    fi::WidePrefill<Type, HeadDim>::plan,
    fi::WidePrefill<Type, HeadDim>::run,
    fi::FreshPrefill<Type, HeadDim>::plan,
    fi::FreshPrefill<Type, HeadDim>::run,
#endif
};

template <DType Type>
const AttentionKernels* findFlashInfer(uint32_t headDim) noexcept {
  switch (headDim) {
    case 64:
      return &kFlashInfer<Type, 64>;
    case 128:
      return &kFlashInfer<Type, 128>;
    default:
      return nullptr;
  }
}

}  // namespace

const AttentionKernels* findAttentionKernels(DType type, uint32_t headDim, bool plain) noexcept {
  if (!plain) {
    const AttentionKernels* kernels = type == DType::kBF16  ? findFlashInfer<DType::kBF16>(headDim)
                                      : type == DType::kF16 ? findFlashInfer<DType::kF16>(headDim)
                                                            : nullptr;
    if (kernels != nullptr) return kernels;
  }
  return findPlainAttention(type, headDim);
}

}  // namespace nt::kernels
