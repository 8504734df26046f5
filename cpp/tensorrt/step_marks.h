// Where a step's time on the device goes.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>
#include <vector>

#include "tensorrt/cuda.h"

namespace nt {

// Parts of a step, in the order of StepResult::partUs: the embedding; of each layer its attention (rotary
// embedding, append and attention) and the rest (linear layers, norms); the head; sampling.
struct StepPart {
  static constexpr int32_t kEmbedding = 0;
  static constexpr int32_t attention(int32_t layer) noexcept { return 1 + 2 * layer; }
  static constexpr int32_t linear(int32_t layer) noexcept { return 2 + 2 * layer; }
  static constexpr int32_t head(int32_t layers) noexcept { return 1 + 2 * layers; }
  static constexpr int32_t sampling(int32_t layers) noexcept { return 2 + 2 * layers; }
  static constexpr int32_t count(int32_t layers) noexcept { return 3 + 2 * layers; }
};

// Events of a stream, each of which ends a part that began with the one before it. A part may come more than
// once.
class StepMarks {
 public:
  void reset() noexcept { used_ = 0; }
  cudaError_t mark(int32_t part, cudaStream_t stream);
  // Microseconds of each part, once the step that began with `begun` is done.
  std::vector<float> microseconds(cudaEvent_t begun, int32_t parts) const;

 private:
  struct Mark {
    Event event;
    int32_t part = 0;
  };
  std::vector<Mark> marks_;
  size_t used_ = 0;
};

}  // namespace nt
