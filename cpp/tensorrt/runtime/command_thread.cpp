#include "tensorrt/runtime/command_thread.h"

#include <pthread.h>

#include <algorithm>
#include <new>
#include <string>
#include <utility>

#include "tensorrt/runtime/faults.h"
#include "tensorrt/runtime/process_exit.h"
#include "tensorrt/runtime/reaper.h"

namespace nt::runtime {

namespace {

// A pause this long ends a run of commands: what they used goes once the device is done, also where nobody
// synchronizes.
constexpr int32_t kPauseUs = 100;

uint64_t nanoseconds(std::chrono::steady_clock::duration duration) noexcept {
  return static_cast<uint64_t>(std::chrono::nanoseconds(duration).count());
}

void add(std::atomic<uint64_t>& counter, uint64_t value) noexcept {
  counter.fetch_add(value, std::memory_order_relaxed);
}

// Where even the text's memory is not there: a code alone.
Status outOfMemory() noexcept {
  try {
    return {"ERR_OUT_OF_MEMORY", "Out of memory"};
  } catch (const std::bad_alloc&) {
    return {"ERR_CUDA", ""};  // short enough to need none
  }
}

Status onDemand(const char* code, const char* what) {
  return {code, std::string(what) + " failed on demand", "A fault was injected, for verification"};
}

}  // namespace

CommandThread::~CommandThread() {
  stop();
}

void CommandThread::start() {
  completion_.start();
  thread_ = std::thread([this] { run(); });
}

void CommandThread::stop() noexcept {
  queue_.stop();
  if (thread_.joinable()) thread_.join();
  completion_.stop();
}

StreamCounters CommandThread::counters() const noexcept {
  StreamCounters counters;
  counters.commands = counts_.commands;
  counters.enqueues = counts_.enqueues;
  counters.graphLaunches = counts_.graphLaunches;
  counters.reshapes = counts_.reshapes;
  counters.enqueueUs = static_cast<double>(counts_.enqueueNs) / 1e3;
  counters.queueUs = static_cast<double>(counts_.queueNs) / 1e3;
  counters.voluntarySwitches = switches_.voluntary() + completion_.switches().voluntary();
  counters.involuntarySwitches = switches_.involuntary() + completion_.switches().involuntary();
  return counters;
}

void CommandThread::run() noexcept {
  pthread_setname_np(pthread_self(), "nt-trt-stream");
  cudaSetDevice(device_.device());
  std::vector<Command> commands;
  const auto next = [&] {
    const int32_t pauseUs = std::min(spinUs_, kPauseUs);
    if (queue_.poll(commands, pauseUs)) return true;
    submitIdle();
    if (queue_.poll(commands, spinUs_ - pauseUs)) return true;
    switches_.sample();
    const bool some = queue_.wait(commands);
    switches_.sample();
    return some;
  };
  while (next()) {
    for (Command& command : commands) {
      const WorkSection section;
      add(counts_.commands, 1);
      add(counts_.queueNs, nanoseconds(Clock::now() - command.called));
      execute(command);
      command.what.emplace<NotifyCommand>();  // lets go now: the next command may have to wait
    }
    commands.clear();
  }
  const WorkSection section;
  if (capture_ != nullptr) {
    try {
      (void)finishCapture();
    } catch (const std::bad_alloc&) {
      capture_.reset();
    }
  }
  submitIdle();
}

void CommandThread::execute(Command& command) noexcept {
  try {
    std::visit([this](auto& what) { execute(what); }, command.what);
  } catch (const std::bad_alloc&) {
    fail(outOfMemory());
  }
}

bool CommandThread::skips() {
  if (device_.isDead() && failure_.code() != "ERR_BACKEND_DEAD") failure_ = device_.alive();
  return !failure_;
}

void CommandThread::fail(Status status) noexcept {
  if (!failure_) return;
  failure_ = std::move(status);
  // TensorRT reports CUDA's errors in words of its own: see whether the device is still usable. A stream that
  // captures must not be asked.
  if (capturing()) return;
  const cudaError_t state = cudaStreamQuery(stream_.get());
  if (state == cudaSuccess || state == cudaErrorNotReady) return;
  Status checked = device_.check(state, "Work on the GPU");
  if (device_.isDead()) failure_ = std::move(checked);
}

Status CommandThread::failure() const {
  return failure_;
}

template <class... T>
bool CommandThread::hold(const std::shared_ptr<T>&... objects) {
  if (!capturing() && !haveTicket()) return false;
  References& held = capturing() ? capture_->held : ticket_->held;
  const size_t before = held.size();
  try {
    (held.push_back(objects), ...);
  } catch (const std::bad_alloc&) {
    held.resize(before);
    throw;
  }
  return true;
}

bool CommandThread::haveTicket() {
  if (ticket_ != nullptr) return true;
  Expected<std::unique_ptr<Ticket>> ticket = completion_.takeTicket();
  if (!ticket) {
    fail(ticket.status());
    return false;
  }
  ticket_ = std::move(*ticket);
  return true;
}

void CommandThread::holdDropped(References& dropped) noexcept {
  if (dropped.empty()) return;
  try {
    if (haveTicket()) {
      ticket_->held.insert(ticket_->held.end(), dropped.begin(), dropped.end());
      return;
    }
  } catch (const std::bad_alloc&) {
    // Below.
  }
  // Nowhere to keep them: the device must be done before they go.
  if (!capturing()) (void)device_.check(cudaStreamSynchronize(stream_.get()), "Work on the GPU");
}

void CommandThread::submitIdle() noexcept {
  if (ticket_ != nullptr && !ticket_->held.empty() && !capturing()) submit(nullptr, {});
}

void CommandThread::submit(Done done, Status status) noexcept {
  Completed completed;
  completed.done = std::move(done);
  completed.status = std::move(status);
  try {
    if (haveTicket()) completed.ticket = std::move(ticket_);
  } catch (const std::bad_alloc&) {
    // The wait below does without one.
  }
  const cudaError_t error = completed.ticket == nullptr
                                ? cudaErrorMemoryAllocation
                                : cudaEventRecord(completed.ticket->event.get(), stream_.get());
  completed.recorded = error == cudaSuccess;
  if (!completed.recorded) {
    if (completed.ticket != nullptr) (void)device_.check(error, "Recording an event");
    Status onDevice = device_.check(cudaStreamSynchronize(stream_.get()), "Work on the GPU");
    if (!onDevice && (completed.status || device_.isDead())) completed.status = std::move(onDevice);
  }
  completion_.push(std::move(completed));
}

void CommandThread::execute(CopyCommand& command) {
  if (skips()) return;
  if (failsCopy()) return fail(onDemand("ERR_CUDA", "A copy"));
  if (!hold(command.to, command.from)) return;
  const cudaError_t error =
      command.rows == 1
          ? cudaMemcpyAsync(command.target, command.source, command.bytes, command.kind, stream_.get())
          : cudaMemcpy2DAsync(command.target, command.toPitch, command.source, command.fromPitch,
                              command.bytes, command.rows, command.kind, stream_.get());
  if (Status status = device_.check(error, "A copy"); !status) fail(std::move(status));
}

void CommandThread::execute(FillCommand& command) {
  if (skips()) return;
  if (!hold(command.memory)) return;
  const cudaError_t error = cudaMemsetAsync(command.target, command.value, command.bytes, stream_.get());
  if (Status status = device_.check(error, "Filling memory"); !status) fail(std::move(status));
}

bool CommandThread::admit(const std::shared_ptr<RunnableContext>& context,
                          std::unique_ptr<ContextChanges>& changes) {
  try {
    if (!skips() && hold(context)) return true;
  } catch (const std::bad_alloc&) {
    context->keepChanges(std::move(changes));
    throw;
  }
  context->keepChanges(std::move(changes));
  return false;
}

void CommandThread::execute(EnqueueCommand& command) {
  RunnableContext& context = *command.context;
  if (!skips() && failsEnqueue()) fail(onDemand("ERR_EXECUTION_FAILED", "A run"));
  if (!admit(command.context, command.changes)) return;
  RunEffects effects;
  effects.capturing = capturing();
  Status status = context.apply(std::move(command.changes), stream_.get(), effects);
  if (status) {
    const Clock::time_point start = Clock::now();
    status = context.enqueueOn(stream_.get(), effects);
    add(counts_.enqueueNs, nanoseconds(Clock::now() - start));
    add(counts_.enqueues, 1);
  }
  add(counts_.reshapes, effects.reshapes);
  holdDropped(effects.dropped);
  if (status && capturing()) {
    status = context.uses(capture_->held);
    auto& contexts = capture_->contexts;
    if (std::find(contexts.begin(), contexts.end(), command.context) == contexts.end()) {
      contexts.push_back(command.context);
    }
  }
  if (!status) fail(std::move(status));
}

void CommandThread::execute(ResolveCommand& command) {
  const auto resolve = [&]() -> Expected<std::vector<Shape>> {
    if (!admit(command.context, command.changes)) return failure();
    RunEffects effects;
    Status status = command.context->apply(std::move(command.changes), stream_.get(), effects);
    add(counts_.reshapes, effects.reshapes);
    holdDropped(effects.dropped);
    if (!status) return status;
    return command.context->shapes();
  };
  try {
    command.done(resolve());
  } catch (const std::bad_alloc&) {
    command.done(outOfMemory());
  }
}

void CommandThread::execute(RecordCommand& command) {
  Status status;
  try {
    // A context on its way to another stream must take what it has run here behind it.
    if (!command.handover && skips()) status = failure();
    if (!hold(command.event)) status = failure();
  } catch (const std::bad_alloc&) {
    status = outOfMemory();
  }
  // Others may wait for it: issued in any case.
  const bool recorded = status.isOk();
  status = command.event->issueRecord(command.number, stream_.get(), std::move(status));
  if (recorded && !status) fail(std::move(status));
}

void CommandThread::execute(WaitCommand& command) {
  const Status issued = command.event->awaitIssue(command.number);
  // A context's way here is open for all of its later uses, so what has failed before does not matter.
  if (command.forHostOnly || (!command.handover && skips())) return;
  if (!issued && !command.handover) {
    return fail({issued.code(),
                 "An event that this stream waits for was not recorded, as its own stream had failed: " +
                     issued.message(),
                 issued.hint()});
  }
  if (!issued || !hold(command.event)) return;
  if (Status status = command.event->waitOn(stream_.get()); !status) fail(std::move(status));
}

void CommandThread::execute(AwaitDrainedCommand& command) {
  std::unique_lock lock(command.stream->mutex);
  command.stream->isDrained.wait(lock, [&] { return command.stream->drained; });
}

void CommandThread::execute(BeginCaptureCommand&) {
  auto capture = std::make_unique<Capture>();
  capture->failedBefore = skips();
  capture_ = std::move(capture);
  if (capture_->failedBefore) return;
  submitIdle();  // events cannot be recorded in between
  // Relaxed: threads of TensorRT's and other streams may allocate meanwhile.
  const cudaError_t error = cudaStreamBeginCapture(stream_.get(), cudaStreamCaptureModeRelaxed);
  if (Status status = device_.check(error, "Beginning a capture"); !status) return fail(std::move(status));
  capture_->begun = true;
}

Expected<std::shared_ptr<Graph>> CommandThread::finishCapture() {
  const std::unique_ptr<Capture> capture = std::move(capture_);
  if (capture == nullptr) return outOfMemory();
  CapturedGraph graph;
  Status ended;
  if (capture->begun) {
    ended = device_.check(cudaStreamEndCapture(stream_.get(), graph.put()), "The capture");
  }
  if (capture->failedBefore || device_.isDead()) {
    (void)skips();
    return failure();
  }
  if (!failure_) return std::exchange(failure_, {});
  if (!ended) {
    return Status(
        ended.code(), ended.message(),
        "A command cannot be captured: run the context once with the same shapes before, and use no "
        "outputs whose size depends on the data");
  }
  GraphExec exec;
  Status status = device_.check(cudaGraphInstantiate(exec.put(), graph.get(), 0), "Instantiating a graph");
  if (status) status = device_.check(cudaGraphUpload(exec.get(), stream_.get()), "Uploading a graph");
  if (!status) return status;
  return std::shared_ptr<Graph>(
      makeReaped<GraphObject>(device_, std::move(exec), Captured(std::move(*capture))));
}

void CommandThread::execute(EndCaptureCommand& command) {
  const auto finish = [&]() -> Expected<std::shared_ptr<Graph>> {
    try {
      return finishCapture();
    } catch (const std::bad_alloc&) {
      return outOfMemory();
    }
  };
  Expected<std::shared_ptr<Graph>> graph = finish();
  for (WaitCommand& wait : command.waits) execute(wait);
  command.done(std::move(graph));
}

void CommandThread::execute(LaunchCommand& command) {
  if (skips()) return;
  if (failsEnqueue()) return fail(onDemand("ERR_EXECUTION_FAILED", "A graph's launch"));
  if (!hold(command.graph)) return;
  const Clock::time_point start = Clock::now();
  const cudaError_t error = cudaGraphLaunch(command.graph->exec(), stream_.get());
  add(counts_.enqueueNs, nanoseconds(Clock::now() - start));
  add(counts_.graphLaunches, 1);
  if (Status status = device_.check(error, "Launching a graph"); !status) fail(std::move(status));
}

void CommandThread::execute(SynchronizeCommand& command) {
  Status status;
  try {
    (void)skips();
  } catch (const std::bad_alloc&) {
    // Reported below by the completion thread, which asks the device.
  }
  status = std::exchange(failure_, {});
  submit(std::move(command.done), std::move(status));
}

void CommandThread::execute(NotifyCommand& command) {
  command.notify();
}

}  // namespace nt::runtime
