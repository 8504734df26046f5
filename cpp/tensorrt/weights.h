// Weights on the device: read from safetensors files, converted to the engine's type, fused as the networks
// want them.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "core/safetensors.h"
#include "tensorrt/cuda.h"
#include "tensorrt/segments.h"

namespace nt {

class DeviceWeights {
 public:
  // Reads everything that the partition needs. Blocks until it is on the device. ERR_OUT_OF_DEVICE_MEMORY
  // before anything is read, if it does not fit; WeightFiles' errors; ERR_CUDA.
  static Expected<DeviceWeights> load(const Graph& graph, const Partition& partition,
                                      const WeightFiles& files, DType dtype);

  const void* embedding() const noexcept { return embedding_; }
  // [segment][input], in the order of Segment::weights.
  const std::vector<std::vector<void*>>& segments() const noexcept { return segments_; }
  uint64_t bytes() const noexcept { return memory_.bytes(); }

 private:
  DeviceBuffer memory_;  // all of them, one after the other
  const void* embedding_ = nullptr;
  std::vector<std::vector<void*>> segments_;
};

}  // namespace nt
