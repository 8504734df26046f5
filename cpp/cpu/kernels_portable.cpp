#include "cpu/simd_portable.h"

#define NT_SIMD portable
#include "cpu/kernels_impl.h"

namespace nt::cpu {

extern const Kernels kPortableKernels = portable::makeKernels("portable");

}  // namespace nt::cpu
