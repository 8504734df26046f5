// Times of an execution context's layers, as TensorRT reports them.
#pragma once

#include <NvInferRuntime.h>

#include <cstdint>
#include <mutex>
#include <string>
#include <unordered_map>
#include <vector>

namespace nt::runtime {

// Any thread.
class Profiler final : public nvinfer1::IProfiler {
 public:
  void reportLayerTime(const char* layer, float ms) noexcept override;
  // JSON, see Context::takeProfile: `ms` is the sum over `runs`. Starts anew.
  std::string take();

 private:
  struct Layer {
    std::string name;
    double ms = 0;
    uint64_t runs = 0;
  };

  std::mutex mutex_;
  std::vector<Layer> layers_;  // in order of execution
  std::unordered_map<std::string, size_t> indices_;
};

}  // namespace nt::runtime
