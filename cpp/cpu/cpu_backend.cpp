#include "cpu/cpu_backend.h"

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <deque>
#include <exception>
#include <mutex>
#include <new>
#include <optional>
#include <system_error>
#include <thread>
#include <utility>

#include "core/step_batch.h"
#include "cpu/model.h"
#include "cpu/processor.h"
#include "cpu/runner.h"
#include "cpu/sampler.h"
#include "cpu/step_sampler.h"
#include "cpu/thread_pool.h"

namespace nt::cpu {

namespace {

using Clock = std::chrono::steady_clock;

// How long the executor watches an empty queue before it sleeps: less than a wake-up costs, so that a
// scheduler that answers at once is not kept waiting.
constexpr auto kIdleSpin = std::chrono::microseconds(20);
constexpr int32_t kMaxThreads = 1024;

struct QueuedStep {
  QueuedStep(StepBatch batch, Clock::time_point now) : step(std::move(batch)), submitted(now) {}
  StepBatch step;
  Clock::time_point submitted;
};
// A step; or else the mask of a slot (empty = none); or else a slot to open with its state; or else a slot to
// close.
struct Command {
  std::unique_ptr<QueuedStep> step;
  int32_t slot = -1;
  std::unique_ptr<SlotState> open;
  std::optional<std::vector<int32_t>> mask = std::nullopt;
};

Status outOfMemory() {
  return {"ERR_OUT_OF_MEMORY", "No memory left."};
}

float microseconds(Clock::duration duration) {
  return std::chrono::duration<float, std::micro>(duration).count();
}

class CpuBackend final : public Backend {
 public:
  CpuBackend(BackendInfo info, std::unique_ptr<ThreadPool> pool, std::unique_ptr<Model> model,
             std::unique_ptr<Runner> runner, const Kernels& kernels)
      : info_(std::move(info)),
        pool_(std::move(pool)),
        model_(std::move(model)),
        runner_(std::move(runner)),
        sampler_(kernels, *pool_, size_t(info_.vocabSize), size_t(info_.hiddenSize)),
        openSlots_(info_.maxSlots),
        parser_(info_),
        slots_(size_t(info_.maxSlots)),
        tokens_(size_t(info_.maxStepTokens)) {}

  ~CpuBackend() override {
    requestStop();
    CpuBackend::join();
  }

  // Starts the thread that runs the steps; it waits until `start`.
  Status launch() {
    try {
      executor_ = std::thread([this] { execute(); });
    } catch (const std::system_error& error) {
      return {"ERR_OUT_OF_MEMORY", std::string("Could not start a thread: ") + error.what() + "."};
    }
    return Status::ok();
  }

  const BackendInfo& info() const noexcept override { return info_; }

  void start(ResultSink* sink) noexcept override {
    const std::lock_guard lock(mutex_);
    sink_ = sink;
    wake_.notify_one();
  }

  Status openSlot(SlotInit init) noexcept override {
    try {
      if (Status status = checkSlotInit(init, info_); !status) return status;
      if (stopped()) return disposed();
      const int32_t slot = init.slot;
      auto state = std::make_unique<SlotState>(std::move(init));
      if (Status status = openSlots_.open(slot); !status) return status;
      return enqueueSlot({nullptr, slot, std::move(state)}, [&] { (void)openSlots_.close(slot); });
    } catch (const std::bad_alloc&) {
      return outOfMemory();
    }
  }

  Status closeSlot(int32_t slot) noexcept override {
    if (stopped()) return disposed();
    try {
      if (Status status = openSlots_.close(slot); !status) return status;
      enqueue({nullptr, slot, nullptr});
      return Status::ok();
    } catch (const std::bad_alloc&) {
      return outOfMemory();
    }
  }

  Status setMask(int32_t slot, std::optional<std::vector<int32_t>> mask) noexcept override {
    if (stopped()) return disposed();
    if (Status status = openSlots_.requireOpen(slot); !status) return status;
    if (mask) {
      if (Status status = checkMask(*mask, info_.vocabSize); !status) return status;
    } else {
      mask.emplace();
    }
    try {
      enqueue({nullptr, slot, nullptr, std::move(mask)});
      return Status::ok();
    } catch (const std::bad_alloc&) {
      return outOfMemory();
    }
  }

  Status submit(std::vector<int32_t> packed) noexcept override {
    if (stopped()) return disposed();
    try {
      auto step = parser_.parse(std::move(packed), openSlots_);
      if (!step) return step.status();
      enqueue({std::make_unique<QueuedStep>(std::move(*step), Clock::now()), -1, nullptr});
      return Status::ok();
    } catch (const std::bad_alloc&) {
      return outOfMemory();
    }
  }

  void requestStop() noexcept override {
    const std::lock_guard lock(mutex_);
    stop_.store(true, std::memory_order_release);
    wake_.notify_one();
  }

  void join() noexcept override {
    if (executor_.joinable()) executor_.join();
  }

 private:
  bool stopped() const noexcept { return stop_.load(std::memory_order_acquire); }
  static Status disposed() { return {"ERR_DISPOSED", "The backend is closed."}; }

  void enqueue(Command command) {
    const std::lock_guard lock(mutex_);
    queue_.push_back(std::move(command));
    queued_.store(queue_.size(), std::memory_order_release);
    if (sleeping_) wake_.notify_one();
  }

  template <typename Undo>
  Status enqueueSlot(Command command, Undo undo) {
    try {
      enqueue(std::move(command));
      return Status::ok();
    } catch (const std::bad_alloc&) {
      undo();
      return outOfMemory();
    }
  }

  // Waits for the next command. False once a stop is asked for and the queue is empty.
  bool next(Command& command) {
    for (uint32_t spins = 1; queued_.load(std::memory_order_acquire) == 0 && !stopped(); ++spins) {
      if (spins == 1) idleSince_ = Clock::now();
      spinPause(spins);
      if (spins % 16 == 0 && Clock::now() - idleSince_ >= kIdleSpin) break;
    }
    std::unique_lock lock(mutex_);
    sleeping_ = true;
    wake_.wait(lock, [this] { return stopped() || (sink_ != nullptr && !queue_.empty()); });
    sleeping_ = false;
    if (queue_.empty()) return false;
    command = std::move(queue_.front());
    queue_.pop_front();
    queued_.store(queue_.size(), std::memory_order_release);
    return true;
  }

  void execute() {
    prepareBackendThread("nt-cpu-0");
    for (Command command; next(command);) {
      if (command.step != nullptr) {
        finishStep(*command.step);
      } else if (command.mask) {
        slots_[size_t(command.slot)]->mask = *std::move(command.mask);
      } else {
        slots_[size_t(command.slot)] = std::move(command.open);
      }
    }
  }

  void finishStep(const QueuedStep& command) noexcept {
    StepResult result;
    result.stepId = command.step.stepId;
    const auto begin = Clock::now();
    result.queueUs = microseconds(begin - command.submitted);
    if (stopped()) {
      result.status = disposed();
    } else {
      try {
        result.status = runStep(command.step, result);
      } catch (const std::bad_alloc&) {
        result.status = outOfMemory();
        result.retryable = true;
      } catch (const std::exception& error) {
        result.status = Status("ERR_INTERNAL", std::string("The step failed: ") + error.what() + ".");
      }
      if (!result.status) {
        StepResult failed;
        failed.stepId = result.stepId;
        failed.status = std::move(result.status);
        failed.retryable = result.retryable;
        failed.queueUs = result.queueUs;
        result = std::move(failed);
      }
    }
    result.runUs = microseconds(Clock::now() - begin);
    if (sink_ != nullptr) sink_->onStep(std::move(result));
  }

  Status runStep(const StepBatch& step, StepResult& result) {
    states_.clear();
    for (const StepSequence& sequence : step.sequences)
      states_.push_back(slots_[size_t(sequence.slot)].get());
    for (size_t s = 0; s < step.sequences.size(); ++s) {
      const StepSequence& sequence = step.sequences[s];
      for (int32_t i = 0; i < sequence.tokens; ++i) {
        const auto row = size_t(sequence.firstRow + i);
        tokens_[row] = step.tokens[row] == kLastSampledToken ? states_[s]->lastToken : step.tokens[row];
        if (tokens_[row] < 0) {
          return {"ERR_STEP_FAILED",
                  "Sequence " + std::to_string(s) + " (slot " + std::to_string(sequence.slot) +
                      ") asks for its last sampled token, but the step that was to sample one failed."};
        }
      }
    }
    const auto gathered = sampler_.begin(step, states_);
    runner_->forward(step, {tokens_.data(), step.tokens.size()}, gathered, sampler_);
    return sampler_.finish(result);
  }

  const BackendInfo info_;
  const std::unique_ptr<ThreadPool> pool_;
  const std::unique_ptr<Model> model_;
  const std::unique_ptr<Runner> runner_;
  StepSampler sampler_;

  // Of the caller's thread.
  SlotSet openSlots_;
  StepParser parser_;

  // Of the executor's thread.
  std::vector<std::unique_ptr<SlotState>> slots_;
  std::vector<SlotState*> states_;  // by sequence of the running step
  std::vector<int32_t> tokens_;     // by row of the running step
  Clock::time_point idleSince_;

  std::mutex mutex_;
  std::condition_variable wake_;
  std::deque<Command> queue_;
  bool sleeping_ = false;
  ResultSink* sink_ = nullptr;
  std::atomic<size_t> queued_{0};
  std::atomic<bool> stop_{false};
  std::thread executor_;
};

Status checkOptions(const CpuOptions& options) {
  const auto positive = [](const char* name, int32_t value) {
    return value >= 1 ? Status::ok()
                      : Status::invalid(std::string(name) + " is " + std::to_string(value) +
                                        "; it must be at least 1.");
  };
  for (const Status& status :
       {positive("pageSize", options.pageSize), positive("numPages", options.numPages),
        positive("maxSlots", options.maxSlots), positive("maxStepTokens", options.maxStepTokens)}) {
    if (!status) return status;
  }
  if (options.threads < 0 || options.threads > kMaxThreads) {
    return Status::invalid("threads is " + std::to_string(options.threads) +
                           "; it must be 0 (all cores) to " + std::to_string(kMaxThreads) + ".");
  }
  return Status::ok();
}

std::string deviceName(const Processor& processor, const Kernels& kernels, int threads) {
  const std::string_view name = kernels.name;
  const char* simd = name == "avx512" ? "AVX-512" : name == "avx2" ? "AVX2" : "portable";
  return processor.model + ", " + simd + ", " + std::to_string(threads) +
         (threads == 1 ? " thread" : " threads");
}

Expected<std::unique_ptr<Backend>> create(const CpuOptions& options) {
  if (Status status = checkOptions(options); !status) return status;
  const Processor processor = detectProcessor();
  const auto kernels = kernelsFor(options.simd, processor);
  if (!kernels) return kernels.status();
  auto pool = ThreadPool::create(options.threads > 0 ? options.threads : processor.cores);
  if (!pool) return pool.status();
  auto model = loadModel(options.graph, options.files, size_t(options.maxStepTokens), **pool);
  if (!model) return model.status();
  auto runner =
      Runner::create(**model, **kernels, **pool, options.pageSize, options.numPages, options.maxStepTokens);
  if (!runner) return runner.status();
  addRopeTables(**model, size_t(options.pageSize) * size_t(options.numPages), **pool);

  BackendInfo info;
  info.name = "cpu";
  info.device = deviceName(processor, **kernels, (*pool)->threads());
  info.batchInvariant = true;
  info.vocabSize = (*model)->graph.vocabSize;
  info.hiddenSize = (*model)->graph.hiddenSize();
  info.hiddenRows = info.hiddenSize > 0;
  info.maxPositions = (*model)->graph.maxPositions;
  info.pageSize = options.pageSize;
  info.numPages = options.numPages;
  info.maxSlots = options.maxSlots;
  info.maxStepTokens = options.maxStepTokens;
  info.kvCacheBytes = (*runner)->kvCacheBytes();
  info.weightBytes = (*model)->weightBytes;
  info.workspaceBytes = (*runner)->workspaceBytes();
  auto backend = std::make_unique<CpuBackend>(std::move(info), std::move(*pool), std::move(*model),
                                              std::move(*runner), **kernels);
  if (Status status = backend->launch(); !status) return status;
  return std::unique_ptr<Backend>(std::move(backend));
}

}  // namespace
}  // namespace nt::cpu

namespace nt {

CpuFeatures cpuFeatures() {
  const cpu::Processor processor = cpu::detectProcessor();
  CpuFeatures features{processor.model, processor.cores, {}};
  if (processor.avx512) features.simd.emplace_back("avx512");
  if (processor.avx2) features.simd.emplace_back("avx2");
  features.simd.emplace_back("portable");
  return features;
}

Expected<std::unique_ptr<Backend>> createCpuBackend(const CpuOptions& options) noexcept {
  try {
    return cpu::create(options);
  } catch (const std::bad_alloc&) {
    return cpu::outOfMemory();
  } catch (const std::exception& error) {
    return Status("ERR_INTERNAL", std::string("Could not create the CPU backend: ") + error.what() + ".");
  }
}

}  // namespace nt
