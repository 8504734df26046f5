// A queue with one consumer, which spins a while before it sleeps; who pushes wakes it only if it sleeps.
#pragma once

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <type_traits>
#include <utility>
#include <vector>

#include "tensorrt/spin.h"

namespace nt::runtime {

template <class T>
class WorkQueue {
  static_assert(std::is_nothrow_move_constructible_v<T>);

 public:
  // Throws std::bad_alloc, with `item` untouched.
  void push(T&& item) {
    bool wake = false;
    {
      const std::lock_guard lock(mutex_);
      items_.push_back(std::move(item));
      ready_.store(true, std::memory_order_release);
      wake = std::exchange(sleeping_, false);
    }
    if (wake) wake_.notify_one();
  }

  // Whoever waits returns; what is queued is still handed out.
  void stop() noexcept {
    const std::lock_guard lock(mutex_);
    stopped_ = true;
    ready_.store(true, std::memory_order_release);
    wake_.notify_one();
  }

  // Moves all items into `items`, which is empty. Spins for `us` microseconds; false: nothing came.
  bool poll(std::vector<T>& items, int32_t us) noexcept {
    using Clock = std::chrono::steady_clock;
    if (!ready_.load(std::memory_order_acquire)) {
      if (us <= 0) return false;
      const Clock::time_point end = Clock::now() + std::chrono::microseconds(us);
      while (!ready_.load(std::memory_order_acquire)) {
        if (Clock::now() >= end) return false;
        spinPause(kPausesPerLook);
      }
    }
    const std::lock_guard lock(mutex_);
    return take(items);
  }

  // Sleeps until something comes. False: stopped, and nothing is left.
  bool wait(std::vector<T>& items) noexcept {
    std::unique_lock lock(mutex_);
    while (items_.empty() && !stopped_) {
      sleeping_ = true;
      wake_.wait(lock);
    }
    sleeping_ = false;
    return take(items);
  }

 private:
  static constexpr int kPausesPerLook = 4;

  bool take(std::vector<T>& items) noexcept {
    items.swap(items_);
    ready_.store(stopped_, std::memory_order_release);
    return !items.empty();
  }

  std::mutex mutex_;
  std::condition_variable wake_;
  std::vector<T> items_;
  std::atomic<bool> ready_ = false;  // something is queued, or the queue is stopped
  bool sleeping_ = false;
  bool stopped_ = false;
};

}  // namespace nt::runtime
