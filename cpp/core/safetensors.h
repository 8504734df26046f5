// Reads safetensors files. Data is read with pread into memory of ours, never mapped: a file that shrinks
// under a mapping would end the process with SIGBUS.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "core/dtype.h"
#include "core/status.h"

namespace nt {

struct TensorInfo {
  DType dtype = DType::kF32;
  // The file's name for a type that is none of DType's ("I64"); empty for all others. `dtype` says nothing
  // then.
  std::string unsupportedType;
  std::vector<int64_t> shape;
  uint64_t offset = 0;  // absolute, in the file
  uint64_t bytes = 0;
  size_t file = 0;  // index of the file
};

class WeightFiles {
 public:
  // Opens all files and checks their headers: size within the file and the format's limit (100 MB), JSON,
  // known types, begin <= end, length = product of the shape (overflow checked), no overlap, no hole, no name
  // twice (also across files). ERR_WEIGHTS_INVALID / ERR_IO name file and tensor; ERR_INVALID_ARGUMENT
  // without a path; ERR_OUT_OF_MEMORY. Tensors of the format's types that this library does not read are
  // listed, and only an error when asked for.
  static Expected<std::unique_ptr<WeightFiles>> open(const std::vector<std::string>& paths);
  virtual ~WeightFiles() = default;

  virtual const std::map<std::string, TensorInfo>& tensors() const noexcept = 0;
  // ERR_WEIGHTS_MISSING (with the nearest names as a hint), ERR_MODEL_INVALID (shape differs, both given) or
  // ERR_MODEL_UNSUPPORTED (a type that is none of DType's).
  virtual Expected<TensorInfo> find(const std::string& name, const std::vector<int64_t>& shape) const = 0;
  // Reads `bytes` from `begin` bytes into the tensor. ERR_IO when the file has become shorter,
  // ERR_INVALID_ARGUMENT for a range that is not within the tensor. Thread-safe.
  virtual Status read(const TensorInfo& tensor, uint64_t begin, uint64_t bytes, void* to) const = 0;
};

}  // namespace nt
