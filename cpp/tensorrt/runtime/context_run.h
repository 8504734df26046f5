// What a stream needs of an execution context to run it.
//
// Setters of a context collect changes. A command that is queued takes them along (`takeChanges`), and the
// stream's thread applies them just before the run, so the caller may go on setting the next run's meanwhile.
// Memory that a run uses is kept by the context, which the command holds; what a change replaces is handed to
// the stream, which keeps it until the device is done.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>
#include <memory>
#include <vector>

#include "core/runtime.h"
#include "tensorrt/runtime/device_state.h"

namespace nt::runtime {

class EventObject;
struct StreamLink;

using References = std::vector<std::shared_ptr<const void>>;

// Of one context's, taken by one command. A context derives its own.
class ContextChanges {
 public:
  ContextChanges() = default;
  ContextChanges(const ContextChanges&) = delete;
  ContextChanges& operator=(const ContextChanges&) = delete;
  virtual ~ContextChanges() = default;
};

// What a command does on the side.
struct RunEffects {
  // The run is captured into a graph: nothing runs now.
  bool capturing = false;
  // Memory that the context lets go of and that earlier runs may still use.
  References dropped;
  // Changes of shape or profile that TensorRT took in.
  uint64_t reshapes = 0;
};

class RunnableContext : public Context {
 public:
  explicit RunnableContext(DeviceState& device) noexcept : device_(device) {}
  DeviceState& deviceState() const noexcept { return device_; }

  // On the thread that calls the setters: all changes since the last take; null = none.
  virtual std::unique_ptr<ContextChanges> takeChanges() noexcept = 0;
  // The command that took these is not run (null = it took none): they take effect with the next one that is,
  // before its own. Any thread, also during `apply`.
  virtual void keepChanges(std::unique_ptr<ContextChanges> changes) noexcept = 0;

  // On a stream's thread, one at a time, in the order of the calls. Work that earlier runs of this context
  // have put on other streams comes before what is put on `stream` now.
  //
  // Takes in what was kept, then `changes` (may be null). Byte counts are checked here.
  virtual Status apply(std::unique_ptr<ContextChanges> changes, cudaStream_t stream,
                       RunEffects& effects) noexcept = 0;
  // Puts a run on the stream. ERR_EXECUTION_FAILED with TensorRT's lines where it refuses.
  virtual Status enqueueOn(cudaStream_t stream, RunEffects& effects) noexcept = 0;
  // Of all tensors, by index, as applied.
  virtual Expected<std::vector<Shape>> shapes() noexcept = 0;
  // Appends all memory that a run uses as applied (and the engine): a captured graph keeps it.
  virtual Status uses(References& references) noexcept = 0;

  // Where the context was last used; for streams alone, on the callers' thread.
  struct LastUse {
    std::shared_ptr<StreamLink> stream;
    std::shared_ptr<EventObject> done;  // recorded when the context moves to another stream
  };
  LastUse lastUse;

 private:
  DeviceState& device_;
};

}  // namespace nt::runtime
