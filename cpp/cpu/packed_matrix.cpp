#include "cpu/packed_matrix.h"

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <mutex>
#include <new>

#include "core/convert.h"

namespace nt::cpu {

namespace {

// Bytes of source rows that a packing task holds at a time.
constexpr size_t kStagingBytes = size_t{1} << 20;

float toFloat(DType dtype, const void* data, size_t index) {
  switch (dtype) {
    case DType::kF32:
      return static_cast<const float*>(data)[index];
    case DType::kF16:
      return f16ToFloat(static_cast<const uint16_t*>(data)[index]);
    case DType::kBF16:
      return bf16ToFloat(static_cast<const uint16_t*>(data)[index]);
  }
  return 0;
}

template <typename T>
void packRows(const T* source, size_t rows, size_t columns, size_t firstLane, T* panel) {
  for (size_t k = 0; k < columns; ++k) {
    T* lanes = panel + k * kPanelWidth + firstLane;
    for (size_t r = 0; r < rows; ++r) lanes[r] = source[r * columns + k];
  }
}

// `rows` consecutive rows of one tensor, from `firstLane` of a panel on.
void pack(DType from, const char* source, size_t rows, size_t columns, size_t firstLane, DType to,
          void* panel) {
  if (from != to) {
    auto* out = static_cast<float*>(panel);
    for (size_t k = 0; k < columns; ++k) {
      for (size_t r = 0; r < rows; ++r)
        out[k * kPanelWidth + firstLane + r] = toFloat(from, source, r * columns + k);
    }
  } else if (to == DType::kF32) {
    packRows(reinterpret_cast<const float*>(source), rows, columns, firstLane, static_cast<float*>(panel));
  } else {
    packRows(reinterpret_cast<const uint16_t*>(source), rows, columns, firstLane,
             static_cast<uint16_t*>(panel));
  }
}

struct Rows {
  const TensorInfo* tensor;
  size_t begin;  // of this tensor's rows in the whole matrix
  size_t end;
};

}  // namespace

Expected<PackedMatrix> PackedMatrix::load(const WeightFiles& files, const std::vector<TensorInfo>& tensors,
                                          ThreadPool& pool) {
  PackedMatrix matrix;
  matrix.columns_ = size_t(tensors.front().shape.at(1));
  matrix.dtype_ = tensors.front().dtype;
  std::vector<Rows> parts;
  for (const TensorInfo& tensor : tensors) {
    const size_t begin = matrix.rows_;
    matrix.rows_ += size_t(tensor.shape.at(0));
    parts.push_back({&tensor, begin, matrix.rows_});
    if (tensor.dtype != matrix.dtype_) matrix.dtype_ = DType::kF32;
  }
  const size_t panelBytes = matrix.columns_ * kPanelWidth * sizeOf(matrix.dtype_);
  auto memory = MappedMemory::allocate(matrix.panels() * panelBytes, "weights", true);
  if (!memory) return memory.status();
  matrix.memory_ = std::move(*memory);

  std::mutex mutex;
  Status failure;
  const size_t panelsPerTask = std::max<size_t>(1, kStagingBytes / std::max<size_t>(1, panelBytes));
  const size_t tasks = (matrix.panels() + panelsPerTask - 1) / panelsPerTask;
  pool.run(tasks, [&](size_t task, int) {
    Status status;
    try {
      const size_t taskEnd = std::min(matrix.rows_, (task + 1) * panelsPerTask * kPanelWidth);
      std::vector<char> staging;
      for (const Rows& part : parts) {
        const size_t begin = std::max(part.begin, task * panelsPerTask * kPanelWidth);
        const size_t end = std::min(part.end, taskEnd);
        if (begin >= end) continue;
        const size_t rowBytes = matrix.columns_ * sizeOf(part.tensor->dtype);
        staging.resize((end - begin) * rowBytes);
        status = files.read(*part.tensor, (begin - part.begin) * rowBytes, staging.size(), staging.data());
        if (!status) break;
        for (size_t row = begin; row < end;) {
          const size_t count = std::min(end, (row / kPanelWidth + 1) * kPanelWidth) - row;
          void* panel = matrix.memory_.as<char>() + row / kPanelWidth * panelBytes;
          pack(part.tensor->dtype, staging.data() + (row - begin) * rowBytes, count, matrix.columns_,
               row % kPanelWidth, matrix.dtype_, panel);
          row += count;
        }
      }
    } catch (const std::bad_alloc&) {
      status = Status("ERR_OUT_OF_MEMORY", "No memory left to read weights into.");
    }
    if (!status) {
      const std::lock_guard lock(mutex);
      failure = status;
    }
  });
  if (!failure) return failure;
  return matrix;
}

void PackedMatrix::readRow(size_t row, float* out) const noexcept {
  const void* source = panel(row / kPanelWidth);
  const size_t lane = row % kPanelWidth;
  for (size_t k = 0; k < columns_; ++k) out[k] = toFloat(dtype_, source, k * kPanelWidth + lane);
}

Status readFloats(const WeightFiles& files, const TensorInfo& tensor, float* out) {
  std::vector<char> raw(tensor.bytes);
  if (Status status = files.read(tensor, 0, tensor.bytes, raw.data()); !status) return status;
  const size_t count = tensor.bytes / sizeOf(tensor.dtype);
  for (size_t i = 0; i < count; ++i) out[i] = toFloat(tensor.dtype, raw.data(), i);
  return Status::ok();
}

}  // namespace nt::cpu
