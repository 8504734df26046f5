// A segment of very few rows on kernels of our own instead of its TensorRT engine: each linear layer with the
// norm before it and the activation or the addition behind it in one kernel, which is bound by reading the
// weights.
#pragma once

#include <memory>
#include <vector>

#include "tensorrt/kernels/few_rows.h"
#include "tensorrt/plugin/paged_attention.h"
#include "tensorrt/segments.h"

namespace nt {

class FewRowsSegment {
 public:
  // Null where the kernels lack something that the segment holds (float32, norms of heads, odd widths).
  static std::unique_ptr<FewRowsSegment> create(const SegmentShape& shape, DType dtype);

  // Most rows of one enqueue, 1 ... kernels::kFewRowsMax.
  int32_t maxRows() const noexcept { return maxRows_; }
  // Of device memory, aligned to 256; may be shared by segments that never run at the same time.
  uint64_t scratchBytes() const noexcept { return scratchBytes_; }
  void setScratch(void* scratch) noexcept { scratch_ = static_cast<char*>(scratch); }

  // Computes y [rows, outputWidth] from x [rows, inputWidth], as SegmentEngine::enqueue does. After
  // setScratch.
  Status enqueue(int32_t rows, const void* x, void* y, const std::vector<void*>& weights,
                 const StepState& state, cudaStream_t stream) const;

 private:
  struct Linear {
    ValueId input = 0;
    ValueId output = 0;
    ValueId residual = -1;  // -1 = none; likewise the weights
    int32_t norm = -1;
    int32_t weight = -1;
    int32_t bias = -1;
    int32_t n = 0;
    int32_t k = 0;
    float eps = 0;
    kernels::FewRowsGate gate = kernels::FewRowsGate::kNone;
  };
  struct Attention {
    ValueId input = 0;
    ValueId output = 0;
    PagedAttentionParams params;
  };
  struct Step {
    bool isAttention = false;
    Linear linear;
    Attention attention;
  };
  class Compiler;

  FewRowsSegment() = default;

  DType dtype_ = DType::kBF16;
  int32_t maxRows_ = 0;
  std::vector<Step> steps_;
  std::vector<int64_t> offsets_;  // of each value in the scratch; -1 where it has no place there
  int64_t rotatedOffset_ = 0;
  uint64_t scratchBytes_ = 0;
  char* scratch_ = nullptr;
};

}  // namespace nt
