// What the processor can do, and the kernels that fit it.
#pragma once

#include <string>
#include <string_view>

#include "core/status.h"
#include "cpu/kernels.h"

namespace nt::cpu {

struct Processor {
  bool avx2 = false;    // AVX2, FMA and F16C, enabled by the system
  bool avx512 = false;  // AVX-512 F, BW, VL and DQ, enabled by the system
  int cores = 1;        // that this process may run on
  std::string model;    // "AMD EPYC"
};

Processor detectProcessor();

// "" = the best; "avx512", "avx2", "portable". ERR_INVALID_ARGUMENT where the name is unknown or the
// processor lacks it.
Expected<const Kernels*> kernelsFor(std::string_view simd, const Processor& processor);

}  // namespace nt::cpu
