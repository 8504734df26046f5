// The backend's own threads. One thread (the executor) hands out jobs and works on them too; the others help
// while there are tasks left to claim. A helper that sleeps or has lost its core delays nothing: what it has
// not claimed, others do.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <thread>
#include <type_traits>
#include <utility>
#include <vector>

#include "core/status.h"

namespace nt::cpu {

class ThreadPool {
 public:
  // `threads` >= 1 counts the calling thread. ERR_OUT_OF_MEMORY where the system gives no thread.
  static Expected<std::unique_ptr<ThreadPool>> create(int threads);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int threads() const noexcept { return int(helpers_.size()) + 1; }

  // Calls f(task, thread) for each task in [0, tasks), on any thread in [0, threads()), and returns when all
  // are done. Which thread runs a task must not matter to its result. f must not throw. One caller at a time,
  // not from within a task.
  template <typename F>
  void run(size_t tasks, F&& f) {
    using Function = std::remove_reference_t<F>;
    if (tasks <= 1 || helpers_.empty()) {
      for (size_t i = 0; i < tasks; ++i) f(i, 0);
      return;
    }
    runJob(
        tasks,
        [](void* context, size_t task, int thread) { (*static_cast<Function*>(context))(task, thread); },
        const_cast<void*>(static_cast<const void*>(&f)));
  }

 private:
  using Task = void (*)(void* context, size_t task, int thread);

  ThreadPool() = default;
  void runJob(size_t tasks, Task task, void* context);
  // Claims one share of the job and works on it. False when none is left.
  bool workOnce(int thread);
  void help(int thread);

  // Epoch (32 bits), shares of the job (16), shares claimed (16): one word, so that a claim is for the job it
  // has seen.
  std::atomic<uint64_t> ticket_{0};
  // Of the current job; written while no share is claimed and unfinished, read after a claim.
  Task task_ = nullptr;
  void* context_ = nullptr;
  size_t tasks_ = 0;
  size_t tasksPerShare_ = 1;
  alignas(64) std::atomic<uint32_t> done_{0};

  alignas(64) std::atomic<uint32_t> sleepers_{0};
  std::atomic<bool> stop_{false};
  std::mutex mutex_;
  std::condition_variable wake_;
  std::vector<std::thread> helpers_;
};

// Blocks all signals in the calling thread (they are for the host's own threads) and names it.
void prepareBackendThread(const char* name) noexcept;

// A polite pause of a spinning thread; gives the core away every now and then.
void spinPause(uint32_t spins) noexcept;

}  // namespace nt::cpu
