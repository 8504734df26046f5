// A segment on separate kernels instead of its TensorRT engine, where they are the faster ones: up to 8 rows
// on kernels of our own (kernels/few_rows.h), each linear layer with the norm before it and the activation or
// the addition behind it in one; of more on cuBLASLt's, if it is there, with norms and activations between
// them, and with gate and up in a kernel of our own where that is the faster one (kernels/gated_linear.h).
#pragma once

#include <memory>
#include <vector>

#include "tensorrt/cublas_linear.h"
#include "tensorrt/kernels/few_rows.h"
#include "tensorrt/plugin/paged_attention.h"
#include "tensorrt/segments.h"

namespace nt {

// None where last is less than first.
struct RowRange {
  int32_t first = 1;
  int32_t last = 0;

  bool holds(int32_t rows) const noexcept { return rows >= first && rows <= last; }
};

// Rows of a step that something behind a segment reads.
struct KeptRows {
  const int32_t* rows = nullptr;  // of device memory, [count]
  int32_t count = 0;
};

class KernelSegment {
 public:
  // The rows that cuBLASLt computes for a step of `rows`: more, so that few shapes are prepared and warmed
  // up. The memory of every row tensor must hold them.
  static int32_t paddedRows(int32_t rows) noexcept;

  // Null where the kernels lack something that the segment holds (float32, norms of heads, odd widths).
  // `cublas` may be null; else it runs the steps of `cublasRows`, and must outlive this. `mostKept`: rows
  // that enqueue() may be told to keep; 0 = always all.
  static std::unique_ptr<KernelSegment> create(const SegmentShape& shape, DType dtype, CublasLinear* cublas,
                                               RowRange cublasRows, int32_t mostKept = 0);

  // Whether a step of so many rows runs here.
  bool runs(int32_t rows) const noexcept { return rows <= fewRows_ || cublasRows_.holds(rows); }
  // Whether cuBLASLt runs any step.
  bool usesCublas() const noexcept { return cublasRows_.last >= cublasRows_.first; }
  // Whether a step of `rows` gains by keeping `count` of them alone.
  bool keeps(int32_t rows, int32_t count) const noexcept;
  // Of device memory, aligned to 256; may be shared by whatever never runs at the same time.
  uint64_t scratchBytes() const noexcept { return scratchBytes_; }
  void setScratch(void* scratch) noexcept { scratch_ = static_cast<char*>(scratch); }

  // Runs the linear layers alone for every step that cuBLASLt may get, so that its kernels are loaded. What x
  // and y hold does not matter.
  Status warmUp(const void* x, void* y, const std::vector<void*>& weights, cudaStream_t stream) const;

  // Computes y [rows, outputWidth] from x [rows, inputWidth], as SegmentEngine::enqueue does, for rows that
  // run here. After setScratch. With `kept`, which keeps() must allow, what follows the last attention is
  // computed for those rows alone, and y is [kept->count, outputWidth], in their order: only keys and values
  // need all rows of a model's last layer.
  Status enqueue(int32_t rows, const void* x, void* y, const std::vector<void*>& weights,
                 const StepState& state, cudaStream_t stream, const KeptRows* kept = nullptr) const;

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
    kernels::LinearGate gate = kernels::LinearGate::kNone;
    bool together = false;  // the device can run it in gatedLinear
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
  // With attention where there is a `state`.
  Status run(int32_t rows, const void* x, void* y, const std::vector<void*>& weights, const StepState* state,
             const KeptRows* kept, cudaStream_t stream) const;
  // Whether cuBLASLt has kernels for a step of so many rows, which it chooses now.
  bool prepare(int32_t rows) const;
  Status runCublas(const Linear& linear, const Pointers& at, int32_t rows, bool overlap,
                   cudaStream_t stream) const;
  // Whether a gated layer runs in gatedLinear, not as cuBLASLt's product and an activation: the same for all
  // rows that are padded to the same number.
  static bool isTogether(const Linear& linear, int32_t rows) noexcept;
  // Without addresses.
  static LinearArgs cublasShape(const Linear& linear, int32_t rows);

  DType dtype_ = DType::kBF16;
  int32_t fewRows_ = 0;  // most rows of few_rows.h; 0 = none
  CublasLinear* cublas_ = nullptr;
  RowRange cublasRows_;
  std::vector<Step> steps_;
  size_t behindAttention_ = 0;  // the first step behind the last attention
  int32_t mostKept_ = 0;
  std::vector<int64_t> offsets_;  // of each value in the scratch; -1 where it has no place there
  // Likewise of the kept rows of what was made before that step and is read from there on.
  std::vector<int64_t> keptOffsets_;
  std::vector<int32_t> widths_;  // by value
  int64_t rotatedOffset_ = 0;
  int64_t normedOffset_ = 0;
  int64_t gatedOffset_ = 0;  // what a gated activation takes, in steps that need one
  uint64_t scratchBytes_ = 0;
  char* scratch_ = nullptr;
};

}  // namespace nt
