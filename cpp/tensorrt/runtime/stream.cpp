#include "tensorrt/runtime/stream.h"

#include <algorithm>
#include <atomic>
#include <memory>
#include <new>
#include <string>
#include <system_error>
#include <utility>
#include <vector>

#include "tensorrt/cuda.h"
#include "tensorrt/guarded.h"
#include "tensorrt/runtime/command_thread.h"
#include "tensorrt/runtime/commands.h"
#include "tensorrt/runtime/memory.h"
#include "tensorrt/runtime/ranges.h"
#include "tensorrt/runtime/reaper.h"

namespace nt::runtime {

namespace {

constexpr int32_t kMaxSpinUs = 1'000'000;

Status outOfMemory() {
  return {"ERR_OUT_OF_MEMORY", "Out of memory"};
}

cudaMemcpyKind copyKind(const Memory& to, const Memory& from) noexcept {
  const bool toDevice = to.kind() == MemoryKind::kDevice;
  if (from.kind() == MemoryKind::kDevice) return toDevice ? cudaMemcpyDeviceToDevice : cudaMemcpyDeviceToHost;
  return toDevice ? cudaMemcpyHostToDevice : cudaMemcpyHostToHost;
}

std::byte* at(const Memory& memory, uint64_t offset) noexcept {
  return static_cast<std::byte*>(memory.address()) + offset;
}

}  // namespace

// The callers' side: checks arguments, and puts contexts that come from other streams behind their runs
// there. All objects given are the module's own.
class StreamObject final : public Stream {
 public:
  StreamObject(DeviceState& device, std::unique_ptr<CommandThread> thread, std::shared_ptr<StreamLink> link)
      : device_(device), thread_(std::move(thread)), link_(std::move(link)) {
    link_->stream = this;
  }
  ~StreamObject() override;

  Status copy(std::shared_ptr<Memory> to, uint64_t toOffset, std::shared_ptr<Memory> from,
              uint64_t fromOffset, uint64_t bytes) noexcept override {
    return copyRows(std::move(to), toOffset, bytes, std::move(from), fromOffset, bytes, bytes, 1);
  }
  Status copyRows(std::shared_ptr<Memory> to, uint64_t toOffset, uint64_t toPitch,
                  std::shared_ptr<Memory> from, uint64_t fromOffset, uint64_t fromPitch, uint64_t bytes,
                  uint64_t rows) noexcept override;
  Status fill(std::shared_ptr<Memory> memory, uint64_t offset, uint64_t bytes,
              uint8_t value) noexcept override;
  Status enqueue(std::shared_ptr<Context> context) noexcept override;
  void resolve(std::shared_ptr<Context> context,
               std::function<void(Expected<std::vector<Shape>>)> done) noexcept override;
  Status record(std::shared_ptr<Event> event) noexcept override;
  Status wait(std::shared_ptr<Event> event) noexcept override;
  Status beginCapture() noexcept override;
  Status endCapture(std::function<void(Expected<std::shared_ptr<Graph>>)> done) noexcept override;
  Status launch(std::shared_ptr<Graph> graph) noexcept override;
  void synchronize(Done done) noexcept override;
  StreamCounters counters() const noexcept override { return thread_->counters(); }

  bool isCapturing() const noexcept { return capturing_.load(std::memory_order_acquire); }

 private:
  // Throws std::bad_alloc, with the command untouched.
  template <class T>
  void push(T&& command) {
    Command queued{std::move(command), std::chrono::steady_clock::now()};
    try {
      thread_->push(std::move(queued));
    } catch (const std::bad_alloc&) {
      command = std::move(std::get<std::remove_cvref_t<T>>(queued.what));
      throw;
    }
  }
  // `done` gets `status` on the stream's thread, after what was called for before.
  template <class Fn>
  void refuse(Fn& done, const Status& status) noexcept;
  void pushRecord(const std::shared_ptr<EventObject>& event, bool handover);
  // Puts the context's next use here behind its last one.
  Status takeOver(RunnableContext& context);
  Status checkDevice(const DeviceState& device, const char* what) const;
  Status checkRange(const std::shared_ptr<Memory>& memory, const char* role, uint64_t offset,
                    uint64_t bytes) const;

  DeviceState& device_;
  std::unique_ptr<CommandThread> thread_;
  std::shared_ptr<StreamLink> link_;
  std::atomic<bool> capturing_ = false;
  std::vector<WaitCommand> afterCapture_;  // see EndCaptureCommand
};

StreamObject::~StreamObject() {
  {
    const std::lock_guard lock(link_->mutex);
    link_->stream = nullptr;
  }
  const DeviceScope scope(device_.device());
  thread_->stop();
  {
    const std::lock_guard lock(link_->mutex);
    link_->drained = true;
    link_->isDrained.notify_all();
  }
  thread_.reset();
}

Status StreamObject::checkDevice(const DeviceState& device, const char* what) const {
  if (&device == &device_) return {};
  return Status::invalid(std::string(what) + " is of GPU " + std::to_string(device.device()) +
                             ", the stream of GPU " + std::to_string(device_.device()),
                         "Create both with the same runtime");
}

Status StreamObject::checkRange(const std::shared_ptr<Memory>& memory, const char* role, uint64_t offset,
                                uint64_t bytes) const {
  if (memory == nullptr) return Status::invalid(std::string(role) + " is missing");
  // Pinned memory is every GPU's.
  if (memory->kind() == MemoryKind::kDevice) {
    const auto& object = static_cast<const MemoryObject&>(*memory);
    if (Status status = checkDevice(object.deviceState(), role); !status) return status;
  }
  if (offset <= memory->bytes() && bytes <= memory->bytes() - offset) return {};
  return Status::invalid(std::string(role) + " has " + std::to_string(memory->bytes()) + " bytes, " +
                         std::to_string(bytes) + " at offset " + std::to_string(offset) + " were asked for");
}

Status StreamObject::copyRows(std::shared_ptr<Memory> to, uint64_t toOffset, uint64_t toPitch,
                              std::shared_ptr<Memory> from, uint64_t fromOffset, uint64_t fromPitch,
                              uint64_t bytes, uint64_t rows) noexcept {
  return guarded([&]() -> Status {
    if (Status status = device_.alive(); !status) return status;
    Rows target{toOffset, toPitch, bytes, rows};
    Rows source{fromOffset, fromPitch, bytes, rows};
    if (Status status = checkRows(target, "the target"); !status) return status;
    if (Status status = checkRows(source, "the source"); !status) return status;
    if (Status status = checkRange(to, "The target", toOffset, target.extent()); !status) return status;
    if (Status status = checkRange(from, "The source", fromOffset, source.extent()); !status) return status;
    if (bytes == 0 || rows == 0) return {};
    if (to == from && overlap(target, source)) {
      return Status::invalid(
          "Source and target of a copy overlap: " + target.text() + " and " + source.text(),
          "Copy by way of other memory");
    }
    if (toPitch == bytes && fromPitch == bytes) {
      bytes *= rows;
      rows = 1;
    }
    void* const targetAt = at(*to, toOffset);
    const void* const sourceAt = at(*from, fromOffset);
    const cudaMemcpyKind kind = copyKind(*to, *from);
    push(CopyCommand{std::move(to), std::move(from), targetAt, sourceAt, bytes, rows, toPitch, fromPitch,
                     kind});
    return {};
  });
}

Status StreamObject::fill(std::shared_ptr<Memory> memory, uint64_t offset, uint64_t bytes,
                          uint8_t value) noexcept {
  return guarded([&]() -> Status {
    if (Status status = device_.alive(); !status) return status;
    if (Status status = checkRange(memory, "The memory", offset, bytes); !status) return status;
    if (bytes == 0) return {};
    void* const target = at(*memory, offset);
    push(FillCommand{std::move(memory), target, bytes, value});
    return {};
  });
}

void StreamObject::pushRecord(const std::shared_ptr<EventObject>& event, bool handover) {
  const uint64_t number = event->callRecord();
  try {
    push(RecordCommand{event, number, handover});
  } catch (const std::bad_alloc&) {
    event->cancelRecord();
    throw;
  }
}

Status StreamObject::takeOver(RunnableContext& context) {
  if (Status status = checkDevice(context.deviceState(), "The context"); !status) return status;
  auto& last = context.lastUse;
  if (last.stream == link_) return {};
  if (last.stream != nullptr) {
    const std::lock_guard lock(last.stream->mutex);
    StreamObject* const before = last.stream->stream;
    if (before != nullptr) {
      if (before->isCapturing()) {
        return Status::invalid("The context is in a capture of another stream", "End that capture first");
      }
      if (last.done == nullptr) {
        Expected<std::shared_ptr<Event>> event = createEvent(device_, false);
        if (!event) return event.status();
        last.done = std::static_pointer_cast<EventObject>(*std::move(event));
      }
      if (capturing_) afterCapture_.reserve(afterCapture_.size() + 1);
      before->pushRecord(last.done, true);
      const uint64_t number = last.done->called();
      push(WaitCommand{last.done, number, true, capturing_});
      if (capturing_) afterCapture_.push_back({last.done, number, true, false});
    } else if (!last.stream->drained) {
      push(AwaitDrainedCommand{last.stream});
    }
  }
  last.stream = link_;
  return {};
}

Status StreamObject::enqueue(std::shared_ptr<Context> context) noexcept {
  return guarded([&]() -> Status {
    if (Status status = device_.alive(); !status) return status;
    if (context == nullptr) return Status::invalid("The context is missing");
    auto runnable = std::static_pointer_cast<RunnableContext>(std::move(context));
    if (Status status = takeOver(*runnable); !status) return status;
    EnqueueCommand command{runnable, runnable->takeChanges()};
    try {
      push(command);
    } catch (const std::bad_alloc&) {
      runnable->keepChanges(std::move(command.changes));
      throw;
    }
    return {};
  });
}

template <class Fn>
void StreamObject::refuse(Fn& done, const Status& status) noexcept {
  try {
    push(NotifyCommand{[done, status] { done(status); }});
  } catch (const std::bad_alloc&) {
    done(outOfMemory());
  }
}

void StreamObject::resolve(std::shared_ptr<Context> context,
                           std::function<void(Expected<std::vector<Shape>>)> done) noexcept {
  const Status status = guarded([&]() -> Status {
    if (Status dead = device_.alive(); !dead) return dead;
    if (context == nullptr) return Status::invalid("The context is missing");
    if (capturing_) {
      return Status::invalid("Shapes cannot be resolved during a capture", "Resolve them before it");
    }
    auto runnable = std::static_pointer_cast<RunnableContext>(std::move(context));
    if (Status moved = takeOver(*runnable); !moved) return moved;
    ResolveCommand command{runnable, runnable->takeChanges(), std::move(done)};
    try {
      push(command);
    } catch (const std::bad_alloc&) {
      runnable->keepChanges(std::move(command.changes));
      done = std::move(command.done);
      throw;
    }
    return {};
  });
  if (!status) refuse(done, status);
}

Status StreamObject::record(std::shared_ptr<Event> event) noexcept {
  return guarded([&]() -> Status {
    if (Status status = device_.alive(); !status) return status;
    if (event == nullptr) return Status::invalid("The event is missing");
    const auto object = std::static_pointer_cast<EventObject>(std::move(event));
    if (Status status = checkDevice(object->deviceState(), "The event"); !status) return status;
    if (capturing_)
      return Status::invalid("Events cannot be recorded during a capture", "Record after the launch");
    pushRecord(object, false);
    return {};
  });
}

Status StreamObject::wait(std::shared_ptr<Event> event) noexcept {
  return guarded([&]() -> Status {
    if (Status status = device_.alive(); !status) return status;
    if (event == nullptr) return Status::invalid("The event is missing");
    auto object = std::static_pointer_cast<EventObject>(std::move(event));
    if (Status status = checkDevice(object->deviceState(), "The event"); !status) return status;
    if (capturing_) return Status::invalid("A capture cannot wait for events", "Wait before the launch");
    const uint64_t number = object->called();
    // As with CUDA, an event that was never recorded is no reason to wait.
    if (number > 0) push(WaitCommand{std::move(object), number, false, false});
    return {};
  });
}

Status StreamObject::beginCapture() noexcept {
  return guarded([&]() -> Status {
    if (Status status = device_.alive(); !status) return status;
    if (capturing_) return Status::invalid("The stream is in a capture already", "End it first");
    push(BeginCaptureCommand{});
    capturing_ = true;
    return {};
  });
}

Status StreamObject::endCapture(std::function<void(Expected<std::shared_ptr<Graph>>)> done) noexcept {
  return guarded([&]() -> Status {
    if (!capturing_) return Status::invalid("The stream is in no capture", "Begin one first");
    EndCaptureCommand command{std::move(done), std::move(afterCapture_)};
    try {
      push(command);
    } catch (const std::bad_alloc&) {
      afterCapture_ = std::move(command.waits);
      throw;
    }
    afterCapture_.clear();
    capturing_ = false;
    return {};
  });
}

Status StreamObject::launch(std::shared_ptr<Graph> graph) noexcept {
  return guarded([&]() -> Status {
    if (Status status = device_.alive(); !status) return status;
    if (graph == nullptr) return Status::invalid("The graph is missing");
    auto object = std::static_pointer_cast<GraphObject>(std::move(graph));
    if (Status status = checkDevice(object->deviceState(), "The graph"); !status) return status;
    if (capturing_)
      return Status::invalid("A graph cannot be launched during a capture", "End the capture first");
    for (const std::shared_ptr<RunnableContext>& context : object->contexts()) {
      if (Status status = takeOver(*context); !status) return status;
    }
    push(LaunchCommand{std::move(object)});
    return {};
  });
}

void StreamObject::synchronize(Done done) noexcept {
  if (capturing_) {
    return refuse(done, Status::invalid("A stream cannot be synchronized during a capture", "End it first"));
  }
  SynchronizeCommand command{std::move(done)};
  try {
    push(command);
  } catch (const std::bad_alloc&) {
    command.done(outOfMemory());
  }
}

Expected<std::shared_ptr<Stream>> createStream(DeviceState& device, const StreamOptions& options) noexcept {
  try {
    if (Status status = device.alive(); !status) return status;
    if (options.priority < 0) {
      return Status::invalid("priority is " + std::to_string(options.priority) + ", expected 0 or more");
    }
    if (options.spinUs < 0 || options.spinUs > kMaxSpinUs) {
      return Status::invalid("spinUs is " + std::to_string(options.spinUs) + ", expected 0 to " +
                             std::to_string(kMaxSpinUs));
    }
    const DeviceScope scope(device.device());
    int lowest = 0;
    int highest = 0;  // smaller numbers run first
    cudaError_t error = cudaDeviceGetStreamPriorityRange(&lowest, &highest);
    nt::Stream stream;
    if (error == cudaSuccess) {
      const int levels = std::max(lowest - highest, 0);
      error = cudaStreamCreateWithPriority(stream.put(), cudaStreamNonBlocking,
                                           lowest - std::min(options.priority, levels));
    }
    if (Status status = device.check(error, "Creating a stream"); !status) return status;
    auto thread = std::make_unique<CommandThread>(device, std::move(stream), options.spinUs);
    thread->start();
    return std::shared_ptr<Stream>(
        makeReaped<StreamObject>(device, std::move(thread), std::make_shared<StreamLink>()));
  } catch (const std::bad_alloc&) {
    return outOfMemory();
  } catch (const std::system_error& error) {
    return Status("ERR_OUT_OF_MEMORY", std::string("Could not start a stream's thread: ") + error.what());
  }
}

}  // namespace nt::runtime
