// Carries step results from a backend's thread to the event loop: one thread-safe function, whose calls are
// coalesced.
#pragma once

#include <napi.h>

#include <list>
#include <memory>
#include <mutex>

#include "core/backend.h"

namespace nt::napi {

// Receives on the event loop.
class ResultListener {
 public:
  virtual ~ResultListener() = default;
  // `ended`: nothing follows. `results` may be empty then.
  virtual void onResults(std::list<StepResult>&& results, bool ended) noexcept = 0;
};

// The thread-safe function owns a reference to the channel until its finalizer has run, so a call that is
// still queued when the listener goes away meets a live channel. Node frees a thread-safe function during the
// teardown of its environment even if threads still hold it: `drop` must be called before, from an
// environment cleanup hook.
class ResultChannel final : public ResultSink, public std::enable_shared_from_this<ResultChannel> {
 public:
  // Event loop. Starts unref'd. `listener` must stay until `drop`.
  Status open(napi_env env, ResultListener* listener);
  // Event loop, before each submit: allocates what onStep will need, so that onStep cannot fail.
  void reserve();
  // Event loop, when the submit was refused.
  void unreserve() noexcept;
  void ref() noexcept;
  void unref() noexcept;
  // Event loop. Results that are queued or still to come are dropped from here on.
  void drop() noexcept;
  // Event loop, after `drop`, once.
  void release() noexcept;

  // Any thread.
  void onStep(StepResult&& result) noexcept override;
  void end() noexcept;

 private:
  static void callJs(napi_env env, napi_value callback, void* context, void* data) noexcept;
  void signal() noexcept;

  napi_env env_ = nullptr;
  napi_threadsafe_function function_ = nullptr;

  std::mutex mutex_;  // guards what follows
  ResultListener* listener_ = nullptr;
  std::list<StepResult> spare_;
  std::list<StepResult> queue_;
  bool signalled_ = false;
  bool ended_ = false;
};

}  // namespace nt::napi
