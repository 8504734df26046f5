// Two threads. The worker takes commands in order and enqueues their work on the GPU, so it runs ahead of it;
// the reporter waits for each step's event and hands over its result. Steps in flight each own a StepBuffers;
// the worker waits for a free one.
#include "tensorrt/backend.h"

#include <pthread.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cmath>
#include <condition_variable>
#include <deque>
#include <exception>
#include <mutex>
#include <new>
#include <optional>
#include <system_error>
#include <thread>
#include <variant>

#include "core/convert.h"
#include "core/step_batch.h"
#include "tensorrt/runner.h"

namespace nt {

namespace {

using Clock = std::chrono::steady_clock;

// One step runs, the next waits on the device behind it, a third is being prepared.
constexpr size_t kStepsInFlight = 3;

struct OpenCommand {
  explicit OpenCommand(SlotInit slot) : init(std::move(slot)) {}
  SlotInit init;
};
struct CloseCommand {
  int32_t slot;
};
struct MaskCommand {
  int32_t slot;
  std::vector<int32_t> mask;  // empty: all tokens are allowed
};
struct StepCommand {
  StepCommand(StepBatch batch, Clock::time_point now) : step(std::move(batch)), submitted(now) {}
  StepBatch step;
  Clock::time_point submitted;
};
using Command =
    std::variant<std::unique_ptr<OpenCommand>, CloseCommand, MaskCommand, std::unique_ptr<StepCommand>>;

// A step on its way to the sink. Without `buffers` it failed before it reached the device.
struct Flight {
  int32_t stepId = 0;
  Clock::time_point submitted;
  Clock::time_point started;
  StepBuffers* buffers = nullptr;
  Status status;
  bool retryable = false;
};

Status disposed() {
  return {"ERR_DISPOSED", "The backend is closed."};
}
Status outOfMemory() {
  return {"ERR_OUT_OF_MEMORY", "No memory left."};
}

float microseconds(Clock::duration duration) {
  return std::chrono::duration<float, std::micro>(duration).count();
}

class TensorRtBackend final : public Backend {
 public:
  TensorRtBackend(std::unique_ptr<Runner> runner, std::vector<StepBuffers> buffers)
      : runner_(std::move(runner)),
        info_(runner_->info()),
        openSlots_(info_.maxSlots),
        parser_(info_),
        slots_(static_cast<size_t>(info_.maxSlots)),
        buffers_(std::move(buffers)) {
    for (StepBuffers& one : buffers_) free_.push_back(&one);
  }

  ~TensorRtBackend() override {
    requestStop();
    TensorRtBackend::join();
    // Buffers and runner free device memory.
    cudaSetDevice(runner_->device());
  }

  Status launch() {
    try {
      worker_ = std::thread([this] { work(); });
      reporter_ = std::thread([this] { report(); });
    } catch (const std::system_error& error) {
      requestStop();
      return {"ERR_OUT_OF_MEMORY", std::string("Could not start a thread: ") + error.what() + "."};
    }
    return {};
  }

  const BackendInfo& info() const noexcept override { return info_; }

  void start(ResultSink* sink) noexcept override {
    const std::lock_guard lock(mutex_);
    sink_ = sink;
    wake_.notify_all();
  }

  Status openSlot(SlotInit init) noexcept override {
    try {
      if (Status status = checkSlotInit(init, info_); !status) return status;
      if (Status status = checkLimits(init.sampling); !status) return status;
      if (stopped()) return disposed();
      const int32_t slot = init.slot;
      auto command = std::make_unique<OpenCommand>(std::move(init));
      if (Status status = openSlots_.open(slot); !status) return status;
      return enqueue(std::move(command), [&] { (void)openSlots_.close(slot); });
    } catch (const std::bad_alloc&) {
      return outOfMemory();
    }
  }

  Status closeSlot(int32_t slot) noexcept override {
    try {
      if (stopped()) return disposed();
      if (Status status = openSlots_.close(slot); !status) return status;
      return enqueue(CloseCommand{slot}, [] {});
    } catch (const std::bad_alloc&) {
      return outOfMemory();
    }
  }

  Status setMask(int32_t slot, std::optional<std::vector<int32_t>> mask) noexcept override {
    try {
      if (stopped()) return disposed();
      if (Status status = openSlots_.requireOpen(slot); !status) return status;
      MaskCommand command{slot, {}};
      if (mask) {
        if (Status status = checkMask(*mask, info_.vocabSize); !status) return status;
        command.mask = *std::move(mask);
      }
      return enqueue(std::move(command), [] {});
    } catch (const std::bad_alloc&) {
      return outOfMemory();
    }
  }

  Status submit(std::vector<int32_t> packed) noexcept override {
    try {
      if (stopped()) return disposed();
      Expected<StepBatch> step = parser_.parse(std::move(packed), openSlots_);
      if (!step) return step.status();
      return enqueue(std::make_unique<StepCommand>(*std::move(step), Clock::now()), [] {});
    } catch (const std::bad_alloc&) {
      return outOfMemory();
    }
  }

  void requestStop() noexcept override {
    const std::lock_guard lock(mutex_);
    stop_.store(true, std::memory_order_release);
    wake_.notify_all();
  }

  void join() noexcept override {
    if (worker_.joinable()) worker_.join();
    {
      const std::lock_guard lock(mutex_);
      workerEnded_ = true;
      wake_.notify_all();
    }
    if (reporter_.joinable()) reporter_.join();
  }

 private:
  // What results need of a slot, and prompt log-probabilities of its prompt.
  struct Slot {
    int32_t logprobs = -1;
    int32_t promptLogprobs = -1;
    std::vector<int32_t> prompt;
    std::vector<int32_t> mask;  // empty: all tokens are allowed
  };

  bool stopped() const noexcept { return stop_.load(std::memory_order_acquire); }

  static Status checkLimits(const SamplingParams& sampling) {
    if (sampling.bannedTokens.size() > static_cast<size_t>(kernels::kMaxBannedTokens)) {
      return Status::invalid("bannedTokens has " + std::to_string(sampling.bannedTokens.size()) +
                             " tokens, the TensorRT backend takes " +
                             std::to_string(kernels::kMaxBannedTokens));
    }
    if (std::max(sampling.logprobs, sampling.promptLogprobs) > kernels::kMaxTopLogprobs) {
      return Status::invalid("the TensorRT backend gives at most the top " +
                             std::to_string(kernels::kMaxTopLogprobs) + " log-probabilities");
    }
    return {};
  }

  template <class Undo>
  Status enqueue(Command command, Undo undo) {
    try {
      const std::lock_guard lock(mutex_);
      queue_.push_back(std::move(command));
      wake_.notify_all();
      return {};
    } catch (const std::bad_alloc&) {
      undo();
      return outOfMemory();
    }
  }

  // The next command; none once a stop is asked for and the queue is empty.
  std::optional<Command> next() {
    std::unique_lock lock(mutex_);
    wake_.wait(lock, [this] { return stopped() || (sink_ != nullptr && !queue_.empty()); });
    if (queue_.empty()) return std::nullopt;
    Command command = std::move(queue_.front());
    queue_.pop_front();
    return command;
  }

  StepBuffers* takeBuffers() {
    std::unique_lock lock(mutex_);
    wake_.wait(lock, [this] { return !free_.empty(); });
    StepBuffers* buffers = free_.back();
    free_.pop_back();
    return buffers;
  }

  void work() noexcept {
    pthread_setname_np(pthread_self(), "nt-trt-worker");
    note(toStatus(cudaSetDevice(runner_->device()), "cudaSetDevice"));
    while (auto command = next()) {
      if (auto* open = std::get_if<std::unique_ptr<OpenCommand>>(&*command)) {
        openNow(std::move((*open)->init));
      } else if (const auto* close = std::get_if<CloseCommand>(&*command)) {
        slots_[static_cast<size_t>(close->slot)] = {};
      } else if (auto* mask = std::get_if<MaskCommand>(&*command)) {
        slots_[static_cast<size_t>(mask->slot)].mask = std::move(mask->mask);
      } else {
        runStep(*std::get<std::unique_ptr<StepCommand>>(*command));
      }
    }
  }

  void openNow(SlotInit init) {
    note(runner_->openSlot(init));
    Slot& slot = slots_[static_cast<size_t>(init.slot)];
    slot.logprobs = init.sampling.logprobs;
    slot.promptLogprobs = init.sampling.promptLogprobs;
    if (slot.promptLogprobs >= 0) slot.prompt = std::move(init.prompt);
  }

  // Nothing runs after a CUDA error: the context is lost, or its state unknown.
  void note(Status status) {
    if (status) return;
    const std::lock_guard lock(mutex_);
    if (dead_) dead_ = std::move(status);
  }
  Status death() {
    const std::lock_guard lock(mutex_);
    if (dead_) return {};
    return {"ERR_BACKEND_DEAD", "The GPU backend ended with an earlier error: " + dead_.message(),
            "Load the model again; after a device fault the process must be started anew"};
  }

  void runStep(StepCommand& command) noexcept {
    Flight flight;
    flight.stepId = command.step.stepId;
    flight.submitted = command.submitted;
    flight.started = Clock::now();
    flight.status = stopped() ? disposed() : death();
    if (flight.status) {
      StepBuffers* buffers = takeBuffers();
      try {
        collectEntries(command.step, *buffers);
        flight.status = runner_->run(command.step, *buffers);
      } catch (const std::bad_alloc&) {
        flight.status = outOfMemory();
      } catch (const std::exception& error) {
        flight.status = {"ERR_INTERNAL", std::string("The step failed: ") + error.what() + "."};
      }
      if (flight.status) {
        flight.buffers = buffers;
      } else {
        // Part of the step may be on its way: its buffers are not free before that is done.
        Status drained = runner_->drain();
        // Whatever stopped the step, a lost device is what its sequences must hear of: they can move
        // elsewhere.
        if (!drained) flight.status = std::move(drained);
        if (flight.status.code() == "ERR_CUDA") note(flight.status);
        flight.retryable = flight.status.code() == "ERR_OUT_OF_MEMORY";
        release(buffers);
      }
    }
    const std::lock_guard lock(mutex_);
    flights_.push_back(std::move(flight));
    wake_.notify_all();
  }

  void collectEntries(const StepBatch& step, StepBuffers& buffers) {
    std::vector<StepEntry>& entries = buffers.entries;
    entries.clear();
    buffers.entryMasks.clear();
    for (size_t s = 0; s < step.sequences.size(); ++s) {
      const StepSequence& sequence = step.sequences[s];
      const Slot& slot = slots_[static_cast<size_t>(sequence.slot)];
      const bool prompt = (sequence.flags & kPromptLogprobs) != 0 && slot.promptLogprobs >= 0;
      const bool hiddenRows = (sequence.flags & kHiddenRows) != 0;
      StepEntry entry;
      entry.sequence = static_cast<int32_t>(s);
      for (int32_t i = 0; (prompt || hiddenRows) && i < sequence.tokens; ++i) {
        const int32_t position = sequence.cached + i + 1;
        const bool targeted = prompt && static_cast<size_t>(position) < slot.prompt.size();
        entry.hidden = hiddenRows && i + 1 < sequence.tokens;
        if (!targeted && !entry.hidden) continue;
        entry.row = sequence.firstRow + i;
        entry.slot = targeted ? sequence.slot : -1;
        entry.target = targeted ? slot.prompt[static_cast<size_t>(position)] : -1;
        entry.position = position;
        entry.top = targeted ? slot.promptLogprobs : -1;
        entries.push_back(entry);
      }
      const bool logits = (sequence.flags & kLogits) != 0;
      const bool hidden = hiddenRows || (sequence.flags & kHidden) != 0;
      if (!sequence.sample() && !logits && !hidden) continue;
      entry.row = sequence.firstRow + sequence.tokens - 1;
      entry.slot = sequence.sample() ? sequence.slot : -1;
      entry.target = -1;
      entry.position = sequence.length();
      entry.sample = sequence.sample();
      entry.logits = logits;
      entry.hidden = hidden;
      if (sequence.sample() && !slot.mask.empty()) {
        entry.mask = static_cast<int32_t>(buffers.entryMasks.size());
        buffers.entryMasks.push_back(slot.mask.data());
      }
      entry.top = sequence.sample() ? slot.logprobs : -1;
      entries.push_back(entry);
    }
  }

  void release(StepBuffers* buffers) {
    const std::lock_guard lock(mutex_);
    free_.push_back(buffers);
    wake_.notify_all();
  }

  void report() noexcept {
    pthread_setname_np(pthread_self(), "nt-trt-report");
    note(toStatus(cudaSetDevice(runner_->device()), "cudaSetDevice"));
    while (true) {
      Flight flight;
      {
        std::unique_lock lock(mutex_);
        wake_.wait(lock, [this] { return workerEnded_ || !flights_.empty(); });
        if (flights_.empty()) return;
        flight = std::move(flights_.front());
        flights_.pop_front();
      }
      StepResult result;
      result.stepId = flight.stepId;
      result.status = std::move(flight.status);
      result.retryable = flight.retryable;
      // The device begins with a step when the one before it is done.
      const Clock::time_point began = std::max(flight.started, lastDone_);
      if (flight.buffers != nullptr) {
        finish(*flight.buffers, result);
        release(flight.buffers);
      }
      lastDone_ = Clock::now();
      result.queueUs = microseconds(began - flight.submitted);
      result.runUs = microseconds(lastDone_ - began);
      if (sink_ != nullptr) sink_->onStep(std::move(result));
    }
  }

  void finish(StepBuffers& buffers, StepResult& result) noexcept {
    result.status = toStatus(cudaEventSynchronize(buffers.done.get()), "The step");
    if (!result.status) {
      note(result.status);
      return;
    }
    float ms = 0;
    if (cudaEventElapsedTime(&ms, buffers.begun.get(), buffers.done.get()) == cudaSuccess)
      result.deviceUs = ms * 1000;
    try {
      if (buffers.timed) {
        result.partUs = buffers.marks.microseconds(buffers.begun.get(), StepPart::count(runner_->layers()));
      }
      result.status = fill(buffers, result);
    } catch (const std::bad_alloc&) {
      result.status = outOfMemory();
      result.retryable = true;
    }
    if (result.status) return;
    result.tokens.clear();
    result.logprobs.clear();
    result.topIds.clear();
    result.topLogprobs.clear();
    result.logits.clear();
    result.hidden.clear();
  }

  Status fill(const StepBuffers& buffers, StepResult& result) const {
    const StepResults results = Runner::resultsOf(buffers);
    for (size_t e = 0; e < buffers.entries.size(); ++e) {
      const StepEntry& entry = buffers.entries[e];
      if (entry.slot < 0) continue;
      const int32_t token = results.tokens[e];
      if (token == kernels::kNoneAllowed) {
        result.tokens.push_back(kNothingAllowed);
        continue;
      }
      if (token < 0) {
        return {"ERR_STEP_FAILED",
                "The logits of sequence " + std::to_string(entry.sequence) + " (row " +
                    std::to_string(entry.row) + ") are not finite.",
                "the weights may be damaged, or overflow the engine's type"};
      }
      if (entry.sample) result.tokens.push_back(token);
      if (entry.top < 0) continue;
      LogprobRow row;
      row.sequence = entry.sequence;
      row.position = entry.position;
      row.token = token;
      row.rank = results.ranks[e];
      row.topCount = std::min(entry.top, info_.vocabSize);
      row.logprob = results.logprobs[e];
      result.logprobs.push_back(row);
      const size_t top = e * static_cast<size_t>(kernels::kMaxTopLogprobs);
      result.topIds.insert(result.topIds.end(), results.topIds + top, results.topIds + top + row.topCount);
      result.topLogprobs.insert(result.topLogprobs.end(), results.topLogprobs + top,
                                results.topLogprobs + top + row.topCount);
    }
    const auto floats = [&](const PinnedBuffer& raw, int32_t rows, int32_t width) {
      std::vector<float> values(static_cast<size_t>(rows) * static_cast<size_t>(width));
      for (size_t i = 0; i < values.size(); ++i) {
        switch (runner_->dtype()) {
          case DType::kF32:
            values[i] = raw.as<float>()[i];
            break;
          case DType::kF16:
            values[i] = f16ToFloat(raw.as<uint16_t>()[i]);
            break;
          case DType::kBF16:
            values[i] = bf16ToFloat(raw.as<uint16_t>()[i]);
            break;
        }
      }
      return values;
    };
    result.logits = floats(buffers.logits, buffers.logitRows, info_.vocabSize);
    result.hidden = floats(buffers.hidden, buffers.hiddenRows, info_.hiddenSize);
    if (!std::all_of(result.hidden.begin(), result.hidden.end(), [](float x) { return std::isfinite(x); })) {
      return {"ERR_STEP_FAILED", "The numbers of a hidden state are not finite.",
              "the weights may be damaged, or overflow the engine's type"};
    }
    return {};
  }

  const std::unique_ptr<Runner> runner_;
  const BackendInfo info_;

  // Of the caller's thread.
  SlotSet openSlots_;
  StepParser parser_;

  std::vector<Slot> slots_;     // of the worker
  Clock::time_point lastDone_;  // of the reporter
  std::vector<StepBuffers> buffers_;

  std::mutex mutex_;
  std::condition_variable wake_;
  std::deque<Command> queue_;
  std::deque<Flight> flights_;
  std::vector<StepBuffers*> free_;
  ResultSink* sink_ = nullptr;
  Status dead_;  // ok while the device lives
  bool workerEnded_ = false;
  std::atomic<bool> stop_{false};
  std::thread worker_;
  std::thread reporter_;
};

}  // namespace

Expected<std::unique_ptr<Backend>> createTensorRtBackend(const TensorRtOptions& options) {
  Expected<std::unique_ptr<Runner>> runner = Runner::create(options);
  if (!runner) return runner.status();
  std::vector<StepBuffers> buffers;
  for (size_t i = 0; i < kStepsInFlight; ++i) {
    Expected<StepBuffers> one = (*runner)->createBuffers();
    if (!one) return one.status();
    buffers.push_back(*std::move(one));
  }
  auto backend = std::make_unique<TensorRtBackend>(*std::move(runner), std::move(buffers));
  if (Status status = backend->launch(); !status) return status;
  return std::unique_ptr<Backend>(std::move(backend));
}

}  // namespace nt
