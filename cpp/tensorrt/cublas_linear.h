// Linear layers by cuBLASLt: part of the CUDA toolkit, opened at run time where it is installed.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>
#include <memory>
#include <string>

#include "core/dtype.h"
#include "core/status.h"
#include "tensorrt/cuda.h"

namespace nt {

// y = x * weight^T + bias + residual, summed in float32 and rounded once.
struct LinearArgs {
  const void* x = nullptr;         // [rows, k]
  const void* weight = nullptr;    // [n, k]
  const void* bias = nullptr;      // [n], or null
  const void* residual = nullptr;  // [rows, n], or null
  void* y = nullptr;               // [rows, n]; may be `residual`
  int32_t rows = 0;
  int32_t n = 0;
  int32_t k = 0;
};

// Of one device, that was the thread's at create(), and one stream. Addresses are aligned to 256 bytes, n and
// k multiples of 8.
class CublasLinear {
 public:
  // By NODE_TENSORRT_CUBLAS, where that is set: a folder that holds the library, or "off"; else the system's
  // search path, then /usr/local/cuda. `dtype` is a 16-bit type.
  static Expected<std::unique_ptr<CublasLinear>> create(DType dtype);
  // Whether NODE_TENSORRT_CUBLAS names a folder: who sets it counts on what is there.
  static bool isNamed();

  // "13.1.0"
  const std::string& version() const noexcept { return version_; }
  // Of device memory, whatever the shapes.
  uint64_t workspaceBytes() const noexcept { return workspace_.bytes(); }

  // Chooses the kernel for a shape: the first that the library's heuristics name, so that a shape runs the
  // same way in every process. enqueue() does so, too, where that has not been done.
  Status prepare(const LinearArgs& shape);
  Status enqueue(const LinearArgs& args, cudaStream_t stream);

 private:
  struct Api;
  struct Plan;
  struct Shared;

  CublasLinear() = default;

  std::shared_ptr<Shared> shared_;  // by all of its device and type in the process
  std::string version_;
  DeviceBuffer workspace_;
};

}  // namespace nt
