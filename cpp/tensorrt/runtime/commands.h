// Commands of a stream, on their way from the caller to the stream's thread. Arguments have been checked.
#pragma once

#include <cuda_runtime_api.h>

#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <variant>
#include <vector>

#include "core/runtime.h"
#include "tensorrt/runtime/context_run.h"
#include "tensorrt/runtime/event.h"
#include "tensorrt/runtime/graph.h"

namespace nt::runtime {

class StreamObject;

// How a context finds the stream that it was last used on, also when that is being closed.
struct StreamLink {
  std::mutex mutex;
  StreamObject* stream = nullptr;  // null once it takes no more commands
  bool drained = false;            // nothing of its work is left, on the host or on the device
  std::condition_variable isDrained;
};

struct CopyCommand {
  std::shared_ptr<Memory> to;
  std::shared_ptr<Memory> from;
  void* target;
  const void* source;
  uint64_t bytes;  // of a row
  uint64_t rows;
  uint64_t toPitch;  // with several rows
  uint64_t fromPitch;
  cudaMemcpyKind kind;
};

struct FillCommand {
  std::shared_ptr<Memory> memory;
  void* target;
  uint64_t bytes;
  uint8_t value;
};

struct EnqueueCommand {
  std::shared_ptr<RunnableContext> context;
  std::unique_ptr<ContextChanges> changes;
};

struct ResolveCommand {
  std::shared_ptr<RunnableContext> context;
  std::unique_ptr<ContextChanges> changes;
  std::function<void(Expected<std::vector<Shape>>)> done;
};

struct RecordCommand {
  std::shared_ptr<EventObject> event;
  uint64_t number;
  bool handover;  // of a context to another stream: recorded whatever has failed here
};

struct WaitCommand {
  std::shared_ptr<EventObject> event;
  uint64_t number;
  bool handover;     // what failed on the other stream is not this one's matter
  bool forHostOnly;  // until it is issued
};

// Until a stream that is being closed has ended its work.
struct AwaitDrainedCommand {
  std::shared_ptr<StreamLink> stream;
};

struct BeginCaptureCommand {};

struct EndCaptureCommand {
  std::function<void(Expected<std::shared_ptr<Graph>>)> done;
  // For runs on other streams of contexts that came during the capture: nothing runs in it, but a launch
  // does.
  std::vector<WaitCommand> waits;
};

struct LaunchCommand {
  std::shared_ptr<GraphObject> graph;
};

struct SynchronizeCommand {
  Done done;
};

// Something to be told from the stream's thread, after what was called for before.
struct NotifyCommand {
  std::function<void()> notify;
};

struct Command {
  std::variant<CopyCommand, FillCommand, EnqueueCommand, ResolveCommand, RecordCommand, WaitCommand,
               AwaitDrainedCommand, BeginCaptureCommand, EndCaptureCommand, LaunchCommand, SynchronizeCommand,
               NotifyCommand>
      what;
  std::chrono::steady_clock::time_point called;
};

}  // namespace nt::runtime
