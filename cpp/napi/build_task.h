// A build of engines on a thread of its own: progress for a listener of JavaScript's, and cancelling.
#pragma once

#include <napi.h>

#include <array>
#include <atomic>
#include <memory>
#include <mutex>
#include <string>
#include <string_view>
#include <utility>

#include "core/module.h"
#include "napi/async_task.h"

namespace nt::napi {

class BuildTask : public AsyncTask, public BuildListener {
 public:
  explicit BuildTask(std::string modulePath) : modulePath_(std::move(modulePath)) {}

  // Takes over a reference to a function, or null.
  void setListener(napi_ref listener) noexcept { listener_ = listener; }

  void run() noexcept final;
  void onProgress(int32_t part, int32_t parts, std::string_view phase, int32_t step,
                  int32_t steps) noexcept final;
  bool isCancelled() noexcept final { return cancelled_; }
  void cancel() noexcept final { cancelled_ = true; }
  bool joinsAtTeardown() const noexcept final { return true; }
  void onNotify(napi_env env) noexcept final;
  napi_value take(napi_env env, Status& status) noexcept final;

 protected:
  // On the task's thread.
  virtual Status build(TensorRtModule& module) noexcept = 0;
  // On the event loop, after a build that succeeded.
  virtual napi_value makeResult(napi_env env) noexcept = 0;

 private:
  struct Progress {
    int32_t part = 0;
    int32_t parts = 0;
    int32_t step = 0;
    int32_t steps = 0;
    // Cut where it is longer; no allocation, for TensorRT must not see an exception.
    std::array<char, 128> phase{};
    size_t phaseLength = 0;
  };

  const std::string modulePath_;
  napi_ref listener_ = nullptr;
  Status status_{"ERR_INTERNAL", "The build has not ended"};
  std::atomic<bool> cancelled_ = false;
  std::mutex mutex_;  // guards `progress_`
  Progress progress_;
};

// `{ promise, cancel }` of a build that has been started; `onProgress` is a function or undefined, else
// ERR_INVALID_ARGUMENT is thrown. Null with an exception pending on failure.
napi_value startBuild(napi_env env, const char* name, std::shared_ptr<BuildTask> task,
                      napi_value onProgress) noexcept;

}  // namespace nt::napi
