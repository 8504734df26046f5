// Threads of an environment for calls that block: never libuv's.
#pragma once

#include <condition_variable>
#include <deque>
#include <exception>
#include <memory>
#include <mutex>
#include <new>
#include <optional>
#include <thread>
#include <utility>
#include <vector>

#include "napi/errors.h"
#include "napi/runtime_completions.h"

namespace nt::napi {

// Work that settles a promise.
class Job : public Completion {
 public:
  // On a thread of the pool, once.
  virtual void run() noexcept = 0;
};

// Jobs of one strand run one at a time, in the order of their starts.
struct Strand {
  bool busy = false;  // under the pool's mutex
};

class Pool {
 public:
  ~Pool() { stop(); }

  // Event loop. The job's promise. `strand` may be null.
  Expected<napi_value> start(CompletionChannel& completions, std::unique_ptr<Job> job,
                             std::shared_ptr<Strand> strand);
  // Jobs that have not begun are dropped, others waited for: TensorRT and CUDA must not be at work while the
  // process exits.
  void stop() noexcept;

 private:
  struct Entry {
    Job* job;  // its ticket's
    std::shared_ptr<Ticket> ticket;
    std::shared_ptr<Strand> strand;
  };

  Status addThread();
  void work() noexcept;
  std::deque<Entry>::iterator findRunnable() noexcept;

  std::mutex mutex_;  // guards all
  std::condition_variable changed_;
  std::deque<Entry> queue_;
  std::vector<std::thread> threads_;
  size_t idle_ = 0;
  bool stopped_ = false;
};

// A job of two functions: `work() -> Expected<T>` off the event loop, `take(env, T&) -> napi_value` on it.
// What `work` holds is freed where it ran.
template <class Work, class Take>
class FunctionJob final : public Job {
 public:
  FunctionJob(Work work, Take take) : work_(std::move(work)), take_(std::move(take)) {}

  void run() noexcept override {
    try {
      result_.emplace((*work_)());
    } catch (const std::bad_alloc&) {
      result_.emplace(Status("ERR_OUT_OF_MEMORY", "Out of memory in the native addon"));
    } catch (const std::exception& error) {
      result_.emplace(Status("ERR_INTERNAL", error.what()));
    }
    work_.reset();
  }

  napi_value settle(napi_env env, Status& status) noexcept override {
    status = result_->status();
    return status.isOk() ? guarded(env, [&] { return take_(env, **result_); }) : nullptr;
  }

 private:
  std::optional<Work> work_;
  Take take_;
  std::optional<decltype(std::declval<Work&>()())> result_;
};

template <class Work, class Take>
std::unique_ptr<Job> makeJob(Work work, Take take) {
  return std::make_unique<FunctionJob<Work, Take>>(std::move(work), std::move(take));
}

}  // namespace nt::napi
