#include "tensorrt/kernels/attention.h"

#include <cstdlib>
#include <string_view>

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

// What is measured against: FlashInfer's rotation and append, every prompt over pages
// (NODE_TENSORRT_ATTENTION_BASELINE=1), or the latter alone (=2).
template <DType Type, uint32_t HeadDim, bool Rotation>
constexpr AttentionKernels kBaseline = {
    Rotation ? fi::RopeAppend<Type, HeadDim>::run : ropeAppend<Type, HeadDim>,
    fi::Decode<Type, HeadDim>::plan,
    fi::Decode<Type, HeadDim>::run,
    fi::Prefill<Type, HeadDim>::plan,
    fi::Prefill<Type, HeadDim>::run,
    /*needsPlan=*/true,
#ifdef NT_WIDE_PREFILL
    fi::WidePrefill<Type, HeadDim>::plan,
    fi::WidePrefill<Type, HeadDim>::run,
#endif
};

std::string_view baseline() noexcept {
  static const char* const value = std::getenv("NODE_TENSORRT_ATTENTION_BASELINE");
  return value == nullptr ? "" : value;
}

template <DType Type, uint32_t HeadDim>
const AttentionKernels* flashInfer() noexcept {
  return baseline() == "1"   ? &kBaseline<Type, HeadDim, true>
         : baseline() == "2" ? &kBaseline<Type, HeadDim, false>
                             : &kFlashInfer<Type, HeadDim>;
}

template <DType Type>
const AttentionKernels* findFlashInfer(uint32_t headDim) noexcept {
  switch (headDim) {
    case 64:
      return flashInfer<Type, 64>();
    case 128:
      return flashInfer<Type, 128>();
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
