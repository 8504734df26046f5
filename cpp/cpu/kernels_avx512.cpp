#if defined(__x86_64__)
#include "cpu/simd_avx512.h"

#define NT_SIMD avx512
#include "cpu/kernels_impl.h"

namespace nt::cpu {

extern const Kernels kAvx512Kernels = avx512::makeKernels("avx512");

}  // namespace nt::cpu
#endif
