// Loads and stores of the element types, through float.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "core/dtype.h"

namespace nt::kernels {

__device__ inline float load(const float* p) {
  return *p;
}
__device__ inline float load(const __half* p) {
  return __half2float(*p);
}
__device__ inline float load(const __nv_bfloat16* p) {
  return __bfloat162float(*p);
}
__device__ inline void store(float* p, float x) {
  *p = x;
}
__device__ inline void store(__half* p, float x) {
  *p = __float2half_rn(x);
}
__device__ inline void store(__nv_bfloat16* p, float x) {
  *p = __float2bfloat16_rn(x);
}

// Calls fn with a value of the element type.
template <class Fn>
auto withType(DType type, Fn&& fn) {
  switch (type) {
    case DType::kF32:
      return fn(float{});
    case DType::kF16:
      return fn(__half{});
    case DType::kBF16:
      break;
  }
  return fn(__nv_bfloat16{});
}

}  // namespace nt::kernels
