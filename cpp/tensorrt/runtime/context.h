// An execution context. The caller's thread checks what it is given against the engine and collects changes
// (context.cpp); a stream's thread takes them to TensorRT and runs (context_apply.cpp).
#pragma once

#include <NvInferRuntime.h>

#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "tensorrt/error_recorder.h"
#include "tensorrt/logger.h"
#include "tensorrt/runtime/context_run.h"
#include "tensorrt/runtime/engine.h"
#include "tensorrt/runtime/gpu_allocator.h"
#include "tensorrt/runtime/output_allocator.h"
#include "tensorrt/runtime/profiler.h"

namespace nt::runtime {

struct Place {
  std::shared_ptr<Memory> memory;
  uint64_t offset = 0;

  void* address() const noexcept {
    return memory == nullptr ? nullptr : static_cast<char*>(memory->address()) + offset;
  }
  uint64_t bytes() const noexcept { return memory == nullptr ? 0 : memory->bytes() - offset; }
  bool operator==(const Place&) const = default;
};

// In the order in which they take effect: a profile resets the shapes and values before it.
struct PendingChanges final : ContextChanges {
  std::optional<int32_t> profile;
  std::vector<std::pair<size_t, Shape>> shapes;
  std::vector<std::pair<size_t, std::vector<int64_t>>> values;
  std::vector<std::pair<size_t, Place>> places;
  std::optional<Place> deviceMemory;
  std::optional<bool> profiling;
};

class ContextObject final : public RunnableContext, public std::enable_shared_from_this<ContextObject> {
 public:
  static Expected<std::shared_ptr<Context>> create(std::shared_ptr<EngineObject> engine,
                                                   std::unique_ptr<nvinfer1::IExecutionContext> context,
                                                   const ContextOptions& options);
  // For `create`.
  ContextObject(std::shared_ptr<EngineObject> engine, std::unique_ptr<nvinfer1::IExecutionContext> context,
                const ContextOptions& options);
  ~ContextObject() override;

  Status setProfile(int32_t profile) noexcept override;
  Status setInputShape(int32_t tensor, Shape shape) noexcept override;
  Status setShapeValues(int32_t tensor, std::vector<int64_t> values) noexcept override;
  Status setAddress(int32_t tensor, std::shared_ptr<Memory> memory, uint64_t offset) noexcept override;
  Status setDeviceMemory(std::shared_ptr<Memory> memory, uint64_t offset) noexcept override;
  Status setProfiling(bool on) noexcept override;
  Expected<OutputView> output(int32_t tensor) noexcept override;
  std::string takeProfile() noexcept override;

  std::unique_ptr<ContextChanges> takeChanges() noexcept override;
  void keepChanges(std::unique_ptr<ContextChanges> changes) noexcept override;
  Status apply(std::unique_ptr<ContextChanges> changes, cudaStream_t stream,
               RunEffects& effects) noexcept override;
  Status enqueueOn(cudaStream_t stream, RunEffects& effects) noexcept override;
  Expected<std::vector<Shape>> shapes() noexcept override;
  Status uses(References& references) noexcept override;

 private:
  // A tensor as TensorRT has it.
  struct Bound {
    Place place;                       // the caller's memory
    std::vector<int64_t> values;       // of an input on the host, packed in its own type
    uint64_t valueBytes = 0;           // 0 = none were given
    std::optional<Shape> given;        // of an input
    Shape shape;                       // of the next run; -1 where the data decides
    uint64_t bytes = 0;                // of the next run, where no data decides
    std::unique_ptr<OutputSlot> slot;  // of an output
  };

  // On the callers' thread.
  PendingChanges& pending();
  Expected<const TensorFacts*> tensorAt(int32_t tensor) const;
  Expected<const TensorFacts*> inputAt(int32_t tensor) const;
  Status checkPlace(const Memory& memory, uint64_t offset, const std::string& what) const;

  // On the stream's thread.
  Status applyOne(PendingChanges& changes, cudaStream_t stream, RunEffects& effects);
  Status applyProfile(int32_t profile, cudaStream_t stream, RunEffects& effects);
  Status applyShape(size_t tensor, Shape shape, RunEffects& effects);
  Status applyValues(size_t tensor, const std::vector<int64_t>& values, RunEffects& effects);
  Status applyPlace(size_t tensor, Place place, RunEffects& effects);
  Status takeValues(size_t tensor, std::vector<int64_t> packed, uint64_t bytes, RunEffects& effects);
  Status readHostInputs(RunEffects& effects);
  Status applyDeviceMemory(Place place, RunEffects& effects);
  // Before TensorRT's state changes: whether it may. What was known of the next run is not any more.
  Status beginReshape(RunEffects& effects);
  // Shapes and byte counts of the next run, once after each change of them.
  Status settle();
  Status settleShapes();
  Status checkBytes(size_t tensor) const;
  Status bindOutputs(RunEffects& effects);
  Status runFailure(const LogScope& log, cudaStream_t stream, const RunEffects& effects) const;

  const std::shared_ptr<EngineObject> engine_;
  const std::vector<TensorFacts>& tensors_;
  const ContextMemory memory_;

  // The callers' thread alone.
  std::unique_ptr<PendingChanges> pending_;
  int32_t calledProfile_;
  std::vector<Shape> calledShapes_;

  std::mutex keptMutex_;
  std::vector<std::unique_ptr<PendingChanges>> kept_;

  // The streams' threads alone.
  int32_t profile_;
  std::vector<Bound> bound_;
  Place deviceMemory_;
  bool profiling_ = false;
  bool shapesKnown_ = false;  // of all tensors, as far as no data decides
  bool settled_ = false;      // and the memory suffices
  bool ran_ = false;          // with these shapes: a run may be captured
  bool shapesTold_ = false;   // to the output slots
  // Lives as long as a graph that was captured from this context.
  std::weak_ptr<const void> captured_;

  Profiler profiler_;
  TemporaryAllocator temporary_;
  ErrorRecorder recorder_;
  std::unique_ptr<nvinfer1::IExecutionContext> context_;
};

}  // namespace nt::runtime
