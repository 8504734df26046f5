// One engine of a plan with an execution context per profile, all on one stream and one block of activation
// memory.
#pragma once

#include <NvInferRuntime.h>

#include <memory>
#include <string>
#include <vector>

#include "core/module.h"
#include "tensorrt/plugin/step_state.h"
#include "tensorrt/segments.h"

namespace nt {

class SegmentEngine {
 public:
  // Deserialises the plan and checks that it is the network that `shape` asks for. ERR_ENGINE_INVALID,
  // ERR_CUDA, ERR_OUT_OF_DEVICE_MEMORY. The state must outlive the engine.
  static Expected<std::unique_ptr<SegmentEngine>> create(nvinfer1::IRuntime& runtime,
                                                         const std::vector<char>& plan,
                                                         const SegmentShape& shape, DType dtype,
                                                         const std::vector<RowProfile>& profiles,
                                                         StepState& state, cudaStream_t stream);

  // Bytes that the neediest profile wants for activations.
  int64_t activationBytes() const;
  // Before the first enqueue; it may be shared by engines that never run at the same time.
  void setActivationMemory(void* memory, int64_t bytes);

  // Most rows of one enqueue.
  int32_t maxRows() const noexcept { return profiles_.back().max; }

  // Computes y [rows, outputWidth] from x [rows, inputWidth] with these weights, in the order of
  // Segment::weights. A change of `rows` costs the host some time; under a capture the rows must be those of
  // the call before.
  Status enqueue(int32_t rows, const void* x, void* y, const std::vector<void*>& weights,
                 cudaStream_t stream);

 private:
  SegmentEngine() = default;
  Status check(const SegmentShape& shape, DType dtype) const;

  std::string name_;
  int32_t inputWidth_ = 0;
  std::vector<RowProfile> profiles_;
  std::vector<std::string> weightNames_;
  std::unique_ptr<nvinfer1::ICudaEngine> engine_;
  struct Context {
    std::unique_ptr<nvinfer1::IExecutionContext> context;
    int32_t rows = -1;
  };
  std::vector<Context> contexts_;
};

}  // namespace nt
