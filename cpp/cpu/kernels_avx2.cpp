#if defined(__x86_64__)
#include "cpu/simd_avx2.h"

#define NT_SIMD avx2
#include "cpu/kernels_impl.h"

namespace nt::cpu {

extern const Kernels kAvx2Kernels = avx2::makeKernels("avx2");

}  // namespace nt::cpu
#endif
