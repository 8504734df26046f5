// Weights of a linear layer (or an embedding) as the kernels want them: panels of 32 outputs, k-major, in the
// checkpoint's type.
#pragma once

#include <cstddef>
#include <string>
#include <vector>

#include "core/dtype.h"
#include "core/safetensors.h"
#include "core/status.h"
#include "cpu/kernels.h"
#include "cpu/memory.h"
#include "cpu/thread_pool.h"

namespace nt::cpu {

class PackedMatrix {
 public:
  // Reads and packs tensors of shape [rows_i, columns], concatenated along the rows (the outputs). Tensors of
  // differing types become F32. Errors are those of WeightFiles and MappedMemory.
  static Expected<PackedMatrix> load(const WeightFiles& files, const std::vector<TensorInfo>& tensors,
                                     ThreadPool& pool);

  DType dtype() const noexcept { return dtype_; }
  size_t rows() const noexcept { return rows_; }        // outputs
  size_t columns() const noexcept { return columns_; }  // k
  size_t panels() const noexcept { return (rows_ + kPanelWidth - 1) / kPanelWidth; }
  size_t bytes() const noexcept { return memory_.bytes(); }
  const void* panel(size_t index) const noexcept {
    return memory_.as<const char>() + index * columns_ * kPanelWidth * sizeOf(dtype_);
  }
  // out[k] = weight of output `row` and input k, in float32: the row of an embedding.
  void readRow(size_t row, float* out) const noexcept;

 private:
  DType dtype_ = DType::kF32;
  size_t rows_ = 0;
  size_t columns_ = 0;
  MappedMemory memory_;  // [panels][columns][32]; outputs past the last are zero
};

// A small tensor (a norm's weight, a bias) in float32.
Status readFloats(const WeightFiles& files, const TensorInfo& tensor, float* out);

}  // namespace nt::cpu
