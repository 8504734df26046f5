// One engine of a plan with an execution context per profile, all on one stream and one block of activation
// memory.
#pragma once

#include <NvInferRuntime.h>

#include <map>
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
  const std::vector<RowProfile>& profiles() const noexcept { return profiles_; }

  // Makes a context for captures of steps of this many rows. A captured graph holds on to the state of its
  // context, which must not run another shape afterwards. After setActivationMemory.
  Status dedicate(int32_t rows, cudaStream_t stream);

  // Computes y [rows, outputWidth] from x [rows, inputWidth] with these weights, in the order of
  // Segment::weights. A change of `rows` costs the host some time. `dedicated`: on the context that
  // `dedicate` made for these rows, whose first enqueue must not be captured.
  Status enqueue(int32_t rows, const void* x, void* y, const std::vector<void*>& weights, cudaStream_t stream,
                 bool dedicated);

 private:
  struct Context {
    std::unique_ptr<nvinfer1::IExecutionContext> context;
    int32_t rows = -1;
  };

  SegmentEngine() = default;
  Status check(const SegmentShape& shape, DType dtype) const;
  // The first profile that holds `rows`, or the number of profiles.
  size_t profileOf(int32_t rows) const noexcept;
  Expected<Context> createContext(size_t profile, cudaStream_t stream);

  std::string name_;
  int32_t inputWidth_ = 0;
  int32_t attentions_ = 0;
  std::vector<RowProfile> profiles_;
  std::vector<std::string> weightNames_;
  StepState* state_ = nullptr;
  void* activations_ = nullptr;
  int64_t activationBytes_ = 0;
  std::unique_ptr<nvinfer1::ICudaEngine> engine_;
  std::vector<Context> contexts_;         // by profile
  std::map<int32_t, Context> dedicated_;  // by rows
};

}  // namespace nt
