// Gated activations, rounded where Hugging Face's modules round.
#pragma once

#include "tensorrt/kernels/element.cuh"
#include "tensorrt/kernels/linear_gate.h"

namespace nt::kernels {

template <class T>
__device__ inline float rounded(float x) {
  T value;
  store(&value, x);
  return load(&value);
}

template <class T, LinearGate Gate>
__device__ inline float activate(float gate, float up) {
  const float f = rounded<T>(gate);
  float active;
  if constexpr (Gate == LinearGate::kSilu) {
    active = f / (1.0F + __expf(-f));
  } else {
    constexpr float kSqrt2OverPi = 0.7978845608028654F;
    active = 0.5F * f * (1.0F + tanhf(kSqrt2OverPi * (f + 0.044715F * f * f * f)));
  }
  return rounded<T>(active) * rounded<T>(up);
}

}  // namespace nt::kernels
