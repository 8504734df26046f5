#include "cpu/thread_pool.h"

#include <pthread.h>
#include <sched.h>
#include <signal.h>

#include <algorithm>
#include <chrono>
#include <string>
#include <system_error>

namespace nt::cpu {

namespace {

using Clock = std::chrono::steady_clock;

// Longer than the pauses between the jobs of one step, shorter than what an idle core costs anyone.
constexpr auto kSpinTime = std::chrono::microseconds(30);
constexpr size_t kMaxShares = 0xFFFF;

constexpr uint64_t makeTicket(uint32_t epoch, size_t shares) {
  return uint64_t(epoch) << 32 | uint64_t(shares) << 16;
}
constexpr uint32_t epochOf(uint64_t ticket) {
  return uint32_t(ticket >> 32);
}
constexpr size_t sharesOf(uint64_t ticket) {
  return size_t(ticket >> 16 & 0xFFFF);
}
constexpr size_t claimedOf(uint64_t ticket) {
  return size_t(ticket & 0xFFFF);
}
constexpr bool hasShare(uint64_t ticket) {
  return claimedOf(ticket) < sharesOf(ticket);
}

}  // namespace

void prepareBackendThread(const char* name) noexcept {
  sigset_t all;
  sigfillset(&all);
  pthread_sigmask(SIG_BLOCK, &all, nullptr);
  pthread_setname_np(pthread_self(), name);
}

void spinPause(uint32_t spins) noexcept {
  if (spins % 64 == 63) {
    sched_yield();
    return;
  }
#ifdef __x86_64__
  __builtin_ia32_pause();
#endif
}

Expected<std::unique_ptr<ThreadPool>> ThreadPool::create(int threads) {
  std::unique_ptr<ThreadPool> pool(new ThreadPool());
  try {
    pool->helpers_.reserve(size_t(std::max(0, threads - 1)));
    for (int i = 1; i < threads; ++i) pool->helpers_.emplace_back([p = pool.get(), i] { p->help(i); });
  } catch (const std::system_error& error) {
    return Status("ERR_OUT_OF_MEMORY",
                  "Could not start " + std::to_string(threads) + " threads: " + error.what() + ".");
  }
  return pool;
}

ThreadPool::~ThreadPool() {
  {
    const std::lock_guard lock(mutex_);
    stop_.store(true);
  }
  wake_.notify_all();
  for (auto& helper : helpers_) helper.join();
}

void ThreadPool::runJob(size_t tasks, Task task, void* context) {
  task_ = task;
  context_ = context;
  tasks_ = tasks;
  tasksPerShare_ = (tasks + kMaxShares - 1) / kMaxShares;
  const auto shares = uint32_t((tasks + tasksPerShare_ - 1) / tasksPerShare_);
  done_.store(0, std::memory_order_relaxed);
  // Sequentially consistent against a helper's "I sleep" followed by its look at the ticket: one of the two
  // sees the other.
  ticket_.store(makeTicket(epochOf(ticket_.load(std::memory_order_relaxed)) + 1, shares));
  if (sleepers_.load() > 0) {
    const std::lock_guard lock(mutex_);
    wake_.notify_all();
  }
  while (workOnce(0)) {
  }
  for (uint32_t spins = 0; done_.load(std::memory_order_acquire) != shares; ++spins) spinPause(spins);
}

bool ThreadPool::workOnce(int thread) {
  uint64_t ticket = ticket_.load(std::memory_order_acquire);
  do {
    if (!hasShare(ticket)) return false;
  } while (!ticket_.compare_exchange_weak(ticket, ticket + 1, std::memory_order_acq_rel,
                                          std::memory_order_acquire));
  const size_t begin = claimedOf(ticket) * tasksPerShare_;
  const size_t end = std::min(tasks_, begin + tasksPerShare_);
  for (size_t i = begin; i < end; ++i) task_(context_, i, thread);
  done_.fetch_add(1, std::memory_order_release);
  return true;
}

void ThreadPool::help(int thread) {
  prepareBackendThread(("nt-cpu-" + std::to_string(thread)).c_str());
  auto deadline = Clock::now() + kSpinTime;
  for (uint32_t spins = 1;; ++spins) {
    if (workOnce(thread)) {
      while (workOnce(thread)) {
      }
      spins = 0;
      deadline = Clock::now() + kSpinTime;
    }
    if (stop_.load(std::memory_order_relaxed)) return;
    spinPause(spins);
    if (spins % 32 != 0 || Clock::now() < deadline) continue;
    std::unique_lock lock(mutex_);
    sleepers_.fetch_add(1);
    wake_.wait(lock, [this] { return stop_.load() || hasShare(ticket_.load()); });
    sleepers_.fetch_sub(1);
    deadline = Clock::now() + kSpinTime;
  }
}

}  // namespace nt::cpu
