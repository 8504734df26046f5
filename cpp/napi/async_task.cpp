#include "napi/async_task.h"

#include <atomic>
#include <exception>
#include <mutex>
#include <string>
#include <system_error>
#include <thread>
#include <utility>

#include "napi/errors.h"

namespace nt::napi {

class AsyncJob {
 public:
  static napi_value begin(napi_env env, const char* name, std::shared_ptr<AsyncTask> task);
  void notify() noexcept;

 private:
  explicit AsyncJob(std::shared_ptr<AsyncTask> task) : task_(std::move(task)) {}

  void run() noexcept;
  void signal() noexcept;
  static void callJs(napi_env env, napi_value callback, void* context, void* data) noexcept;
  static void onEnvironmentTeardown(void* data) noexcept;
  void settle(napi_env env, Status status) noexcept;

  std::shared_ptr<AsyncTask> task_;
  napi_deferred deferred_ = nullptr;
  std::thread thread_;
  std::atomic<bool> notified_ = false;
  std::atomic<bool> done_ = false;
  bool settled_ = false;

  std::mutex mutex_;  // guards `function_` against the environment's teardown
  napi_threadsafe_function function_ = nullptr;
};

void AsyncTask::notify() noexcept {
  job_->notify();
}

napi_value AsyncJob::begin(napi_env env, const char* name, std::shared_ptr<AsyncTask> task) {
  const std::shared_ptr<AsyncJob> job(new AsyncJob(std::move(task)));
  auto keepAlive = std::make_unique<std::shared_ptr<AsyncJob>>(job);
  const auto finalize = [](napi_env, void* data, void*) {
    delete static_cast<std::shared_ptr<AsyncJob>*>(data);
  };
  napi_value promise = nullptr;
  napi_value label = nullptr;
  if (napi_create_promise(env, &job->deferred_, &promise) != napi_ok ||
      napi_create_string_utf8(env, name, NAPI_AUTO_LENGTH, &label) != napi_ok ||
      napi_create_threadsafe_function(env, nullptr, nullptr, label, 0, 1, keepAlive.get(), finalize,
                                      job.get(), &AsyncJob::callJs, &job->function_) != napi_ok) {
    throwStatus(env, {"ERR_INTERNAL", "Could not create a thread-safe function"});
    return nullptr;
  }
  keepAlive.release();
  // Cleanup hooks run last come first served: this one runs before that of the thread-safe function.
  napi_add_env_cleanup_hook(env, &AsyncJob::onEnvironmentTeardown, job.get());
  job->task_->job_ = job.get();
  try {
    job->thread_ = std::thread([job] { job->run(); });
    if (!job->task_->joinsAtTeardown()) job->thread_.detach();
  } catch (const std::system_error& error) {
    job->settle(env, {"ERR_INTERNAL", std::string("Could not start a thread: ") + error.what()});
  }
  return promise;
}

void AsyncJob::run() noexcept {
  task_->run();
  done_ = true;
  signal();
}

void AsyncJob::notify() noexcept {
  if (!notified_.exchange(true)) signal();
}

void AsyncJob::signal() noexcept {
  const std::lock_guard lock(mutex_);
  if (function_ != nullptr) napi_call_threadsafe_function(function_, nullptr, napi_tsfn_nonblocking);
}

void AsyncJob::callJs(napi_env env, napi_value, void* context, void*) noexcept {
  // Without an environment the call is one that Node discards during teardown, and the job may be gone.
  if (env == nullptr) return;
  auto* job = static_cast<AsyncJob*>(context);
  if (job->settled_) return;
  if (job->notified_.exchange(false)) job->task_->onNotify(env);
  if (job->done_) job->settle(env, Status::ok());
}

void AsyncJob::settle(napi_env env, Status status) noexcept {
  settled_ = true;
  napi_remove_env_cleanup_hook(env, &AsyncJob::onEnvironmentTeardown, this);
  if (thread_.joinable()) thread_.join();
  napi_value value = status.isOk() ? task_->take(env, status) : nullptr;
  if (value != nullptr) {
    napi_resolve_deferred(env, deferred_, value);
  } else if (napi_value error = takeError(env, status); error != nullptr) {
    napi_reject_deferred(env, deferred_, error);
  }
  // Last: the finalizer may free this job once the function is released.
  napi_release_threadsafe_function(std::exchange(function_, nullptr), napi_tsfn_release);
}

void AsyncJob::onEnvironmentTeardown(void* data) noexcept {
  auto* job = static_cast<AsyncJob*>(data);
  job->task_->cancel();
  if (job->thread_.joinable()) job->thread_.join();
  const std::lock_guard lock(job->mutex_);
  napi_release_threadsafe_function(std::exchange(job->function_, nullptr), napi_tsfn_release);
}

napi_value startTask(napi_env env, const char* name, std::shared_ptr<AsyncTask> task) noexcept {
  return guarded(env, [&] { return AsyncJob::begin(env, name, std::move(task)); });
}

}  // namespace nt::napi
