// A segment on linear kernels of our own instead of its TensorRT engine, where they are the faster ones: up
// to 8 rows (few_rows.h), and on Hopper up to some hundred (mid_rows.h). Each linear layer has the activation
// or the addition behind it in its kernel; of few rows the norm before it as well, of more a kernel of its
// own.
#pragma once

#include <memory>
#include <vector>

#include "tensorrt/kernels/few_rows.h"
#include "tensorrt/kernels/mid_rows.h"
#include "tensorrt/plugin/paged_attention.h"
#include "tensorrt/segments.h"

namespace nt {

// None where last is less than first.
struct RowRange {
  int32_t first = 1;
  int32_t last = 0;
};

class KernelSegment {
 public:
  // Null where the kernels lack something that the segment holds (float32, norms of heads, odd widths).
  // `mid`: the steps that mid_rows.h is for, if any; its kernels want compute capability 9.0.
  static std::unique_ptr<KernelSegment> create(const SegmentShape& shape, DType dtype, RowRange mid);

  // Whether a step of so many rows runs here.
  bool runs(int32_t rows) const noexcept {
    return rows <= fewRows_ || (rows >= mid_.first && rows <= mid_.last);
  }
  // Of device memory, aligned to 256; may be shared by segments that never run at the same time.
  uint64_t scratchBytes() const noexcept { return scratchBytes_; }
  void setScratch(void* scratch) noexcept { scratch_ = static_cast<char*>(scratch); }

  // Computes y [rows, outputWidth] from x [rows, inputWidth], as SegmentEngine::enqueue does, for rows that
  // run here. After setScratch.
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
  struct Pointers;

  KernelSegment() = default;

  cudaError_t runFew(const Linear& linear, const Pointers& at, int32_t rows, bool overlap,
                     cudaStream_t stream) const;
  cudaError_t runMid(const Linear& linear, const Pointers& at, int32_t rows, bool overlap,
                     cudaStream_t stream) const;

  DType dtype_ = DType::kBF16;
  int32_t fewRows_ = 0;  // most rows of few_rows.h; 0 = none
  RowRange mid_;
  const kernels::MidRowsKernels* midKernels_ = nullptr;
  std::vector<Step> steps_;
  std::vector<int64_t> offsets_;  // of each value in the scratch; -1 where it has no place there
  int64_t rotatedOffset_ = 0;
  int64_t normedOffset_ = 0;
  uint64_t scratchBytes_ = 0;
  char* scratch_ = nullptr;
};

}  // namespace nt
