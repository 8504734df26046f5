#include "tensorrt/runtime/reaper.h"

#include <pthread.h>

#include <condition_variable>
#include <mutex>
#include <system_error>
#include <thread>
#include <vector>

#include "tensorrt/runtime/process_exit.h"

namespace nt::runtime {

namespace {

thread_local bool isReaper = false;

class Reaper {
 public:
  // False: no thread or no memory for it.
  bool add(std::function<void()>&& job) noexcept {
    try {
      const std::lock_guard lock(mutex_);
      if (!started_) {
        std::thread([this] { work(); }).detach();
        started_ = true;
      }
      jobs_.push_back(std::move(job));
    } catch (...) {
      return false;
    }
    wake_.notify_one();
    return true;
  }

 private:
  void work() noexcept {
    pthread_setname_np(pthread_self(), "nt-trt-reaper");
    isReaper = true;
    std::vector<std::function<void()>> jobs;
    while (true) {
      {
        std::unique_lock lock(mutex_);
        wake_.wait(lock, [this] { return !jobs_.empty(); });
        jobs.swap(jobs_);
      }
      for (std::function<void()>& job : jobs) {
        const WorkSection section;
        job();
        job = nullptr;  // what it holds goes now
      }
      jobs.clear();
    }
  }

  std::mutex mutex_;
  std::condition_variable wake_;
  std::vector<std::function<void()>> jobs_;
  bool started_ = false;
};

// Never destroyed: its thread outlives main().
Reaper* reaper() noexcept {
  static Reaper* const one = new (std::nothrow) Reaper;
  return one;
}

}  // namespace

void reap(std::function<void()> job) noexcept {
  if (!isReaper && reaper() != nullptr && reaper()->add(std::move(job))) return;
  job();
}

void deleteLater(Object* object) noexcept {
  reap([object] { delete object; });
}

void releaseLater(std::shared_ptr<Object> object, std::function<void()> done) noexcept {
  if (object == nullptr) {
    done();
    return;
  }
  object->onGone(std::move(done));
  // Not on the caller's thread, even where the object is one that nobody reaps.
  auto* held = new (std::nothrow) std::shared_ptr<Object>(std::move(object));
  if (held != nullptr) reap([held] { delete held; });
}

}  // namespace nt::runtime
