// The thread that hands a stream's commands to CUDA, in the order of the calls.
//
// After a command that fails the rest is skipped, up to the next synchronize, which reports the failure. What
// commands use is kept with a ticket: a synchronize puts it on the stream behind them, and so does a pause in
// the commands.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <thread>
#include <vector>

#include "core/runtime.h"
#include "tensorrt/cuda.h"
#include "tensorrt/runtime/commands.h"
#include "tensorrt/runtime/completion.h"
#include "tensorrt/runtime/device_state.h"
#include "tensorrt/runtime/work_queue.h"

namespace nt::runtime {

class CommandThread {
 public:
  CommandThread(DeviceState& device, nt::Stream stream, int32_t spinUs) noexcept
      : device_(device), spinUs_(spinUs), stream_(std::move(stream)), completion_(device, spinUs) {}
  ~CommandThread();

  // Throws std::system_error.
  void start();
  // Ends all that was pushed, on the device too.
  void stop() noexcept;
  // Throws std::bad_alloc, with the command untouched.
  void push(Command&& command) { queue_.push(std::move(command)); }
  StreamCounters counters() const noexcept;

 private:
  using Clock = std::chrono::steady_clock;
  struct Counts {
    std::atomic<uint64_t> commands = 0;
    std::atomic<uint64_t> enqueues = 0;
    std::atomic<uint64_t> graphLaunches = 0;
    std::atomic<uint64_t> reshapes = 0;
    std::atomic<uint64_t> enqueueNs = 0;
    std::atomic<uint64_t> queueNs = 0;
  };
  struct Capture : Captured {
    bool begun = false;         // CUDA captures
    bool failedBefore = false;  // a failure is not the capture's own
  };

  void run() noexcept;
  void execute(Command& command) noexcept;
  void execute(CopyCommand& command);
  void execute(FillCommand& command);
  void execute(EnqueueCommand& command);
  void execute(ResolveCommand& command);
  void execute(RecordCommand& command);
  void execute(WaitCommand& command);
  void execute(AwaitDrainedCommand& command);
  void execute(BeginCaptureCommand& command);
  void execute(EndCaptureCommand& command);
  void execute(LaunchCommand& command);
  void execute(SynchronizeCommand& command);
  void execute(NotifyCommand& command);

  // Whether a command must not run: one before has failed, or the device is dead.
  bool skips();
  void fail(Status status) noexcept;
  // Whether a command that uses the context may go on; else its changes are kept for the next one.
  bool admit(const std::shared_ptr<RunnableContext>& context, std::unique_ptr<ContextChanges>& changes);
  Status failure() const;
  bool capturing() const noexcept { return capture_ != nullptr && capture_->begun; }
  // Ends the capture, if one is under way, and makes a graph of it.
  Expected<std::shared_ptr<Graph>> finishCapture();

  // Keeps until the device is done with the command, or the captured graph is gone. To be called before the
  // device is given anything. Throws std::bad_alloc. False: has failed.
  template <class... T>
  bool hold(const std::shared_ptr<T>&... objects);
  // Likewise, for what earlier commands have given to the device.
  void holdDropped(References& dropped) noexcept;
  bool haveTicket();
  // Puts the ticket on the stream; `done`, if any, is told when the device has reached it.
  void submit(Done done, Status status) noexcept;
  void submitIdle() noexcept;

  DeviceState& device_;
  const int32_t spinUs_;
  nt::Stream stream_;
  Completion completion_;
  WorkQueue<Command> queue_;
  Counts counts_;
  SwitchCounter switches_;
  // Of the thread.
  Status failure_;
  std::unique_ptr<Ticket> ticket_;
  std::unique_ptr<Capture> capture_;
  std::thread thread_;
};

}  // namespace nt::runtime
