#include "tensorrt/kernels/gated_linear.h"

#include "tensorrt/kernels/gated_linear_sm90.h"

namespace nt::kernels {

bool gatedLinearFits(DType type, LinearGate gate, int32_t n, int32_t k) noexcept {
#ifdef NT_GATED_LINEAR
  return (type == DType::kBF16 || type == DType::kF16) && gate == LinearGate::kSilu && n > 0 && k > 0 &&
         n <= INT32_MAX / 2 && n % 8 == 0 && k % 8 == 0;
#else
  static_cast<void>(type), static_cast<void>(gate), static_cast<void>(n), static_cast<void>(k);
  return false;
#endif
}

cudaError_t gatedLinear(DType type, const GatedLinearArgs& args, bool overlap, cudaStream_t stream) noexcept {
#ifdef NT_GATED_LINEAR
  const auto addresses = reinterpret_cast<uintptr_t>(args.x) | reinterpret_cast<uintptr_t>(args.weight) |
                         reinterpret_cast<uintptr_t>(args.y);
  if (!gatedLinearFits(type, LinearGate::kSilu, args.n, args.k) || args.rows < 0 || addresses % 16 != 0)
    return cudaErrorInvalidValue;
  if (args.rows == 0) return cudaSuccess;
  return type == DType::kBF16 ? gatedLinearSm90<DType::kBF16>(args, overlap, stream)
                              : gatedLinearSm90<DType::kF16>(args, overlap, stream);
#else
  static_cast<void>(type), static_cast<void>(args), static_cast<void>(overlap), static_cast<void>(stream);
  return cudaErrorNoKernelImageForDevice;
#endif
}

}  // namespace nt::kernels
