#include "tensorrt/kernels/mid_rows.h"

#include "tensorrt/kernels/mid_rows_sm90.h"

namespace nt::kernels {

#ifdef NT_SM90
namespace {

template <DType Type>
constexpr MidRowsKernels kKernels = {sm90::MidRows<Type>::has, sm90::MidRows<Type>::linear,
                                     sm90::MidRows<Type>::norm};

}  // namespace
#endif

const MidRowsKernels* findMidRows([[maybe_unused]] DType type) noexcept {
#ifdef NT_SM90
  if (type == DType::kBF16) return &kKernels<DType::kBF16>;
  if (type == DType::kF16) return &kKernels<DType::kF16>;
#endif
  return nullptr;
}

}  // namespace nt::kernels
