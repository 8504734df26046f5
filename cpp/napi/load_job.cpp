#include "napi/load_job.h"

#include <mutex>
#include <system_error>
#include <thread>
#include <utility>

#include "napi/backend_object.h"
#include "napi/errors.h"

namespace nt::napi {
namespace {

class LoadJob {
 public:
  static napi_value begin(napi_env env, BackendFactory make);
  // Ends a backend that nobody took over, because the environment ended first.
  ~LoadJob();

 private:
  explicit LoadJob(BackendFactory make) : make_(std::move(make)) {}

  void run() noexcept;
  static void callJs(napi_env env, napi_value callback, void* context, void* data) noexcept;
  static void onEnvironmentTeardown(void* data) noexcept;
  void settle(napi_env env) noexcept;

  BackendFactory make_;
  Expected<std::unique_ptr<Backend>> made_ = Status{"ERR_INTERNAL", "The load has not ended"};
  napi_deferred deferred_ = nullptr;

  std::mutex mutex_;  // guards `function_` against the environment's teardown
  napi_threadsafe_function function_ = nullptr;
};

napi_value LoadJob::begin(napi_env env, BackendFactory make) {
  std::shared_ptr<LoadJob> job(new LoadJob(std::move(make)));
  auto keepAlive = std::make_unique<std::shared_ptr<LoadJob>>(job);
  const auto finalize = [](napi_env, void* data, void*) { delete static_cast<std::shared_ptr<LoadJob>*>(data); };
  napi_value promise = nullptr;
  napi_value name = nullptr;
  if (napi_create_promise(env, &job->deferred_, &promise) != napi_ok ||
      napi_create_string_utf8(env, "node-tensorrt:load", NAPI_AUTO_LENGTH, &name) != napi_ok ||
      napi_create_threadsafe_function(env, nullptr, nullptr, name, 0, 1, keepAlive.get(), finalize, job.get(),
                                      &LoadJob::callJs, &job->function_) != napi_ok) {
    throwStatus(env, {"ERR_INTERNAL", "Could not create a thread-safe function"});
    return nullptr;
  }
  keepAlive.release();
  napi_add_env_cleanup_hook(env, &LoadJob::onEnvironmentTeardown, job.get());
  try {
    std::thread([job] { job->run(); }).detach();
  } catch (const std::system_error& error) {
    job->made_ = Status{"ERR_INTERNAL", std::string("Could not start a thread: ") + error.what()};
    job->settle(env);
  }
  return promise;
}

LoadJob::~LoadJob() {
  if (!made_ || *made_ == nullptr) return;
  (*made_)->requestStop();
  (*made_)->join();
}

void LoadJob::run() noexcept {
  made_ = make_();
  const std::lock_guard lock(mutex_);
  if (function_ != nullptr) napi_call_threadsafe_function(function_, nullptr, napi_tsfn_nonblocking);
}

void LoadJob::callJs(napi_env env, napi_value, void* context, void*) noexcept {
  // Without an environment the call is one that Node discards during teardown, and the job may be gone.
  if (env != nullptr) static_cast<LoadJob*>(context)->settle(env);
}

void LoadJob::settle(napi_env env) noexcept {
  napi_remove_env_cleanup_hook(env, &LoadJob::onEnvironmentTeardown, this);
  napi_value value = nullptr;
  Status status = made_.status();
  if (status.isOk()) value = BackendObject::create(env, *std::move(made_));
  if (value != nullptr) {
    napi_resolve_deferred(env, deferred_, value);
  } else {
    napi_value error = nullptr;
    bool pending = false;
    if (napi_is_exception_pending(env, &pending) == napi_ok && pending) {
      napi_get_and_clear_last_exception(env, &error);
    } else {
      error = makeError(env, status);
    }
    if (error != nullptr) napi_reject_deferred(env, deferred_, error);
  }
  // Last: the finalizer may free this job once the function is released.
  napi_release_threadsafe_function(std::exchange(function_, nullptr), napi_tsfn_release);
}

void LoadJob::onEnvironmentTeardown(void* data) noexcept {
  auto* job = static_cast<LoadJob*>(data);
  const std::lock_guard lock(job->mutex_);
  napi_release_threadsafe_function(std::exchange(job->function_, nullptr), napi_tsfn_release);
}

}  // namespace

napi_value loadBackend(napi_env env, BackendFactory make) { return LoadJob::begin(env, std::move(make)); }

napi_value makeRejected(napi_env env, const Status& status) noexcept {
  napi_deferred deferred = nullptr;
  napi_value promise = nullptr;
  napi_value error = nullptr;
  bool pending = false;
  if (napi_is_exception_pending(env, &pending) == napi_ok && pending) {
    napi_get_and_clear_last_exception(env, &error);
  } else {
    error = makeError(env, status);
  }
  if (error == nullptr || napi_create_promise(env, &deferred, &promise) != napi_ok) return nullptr;
  napi_reject_deferred(env, deferred, error);
  return promise;
}

}  // namespace nt::napi
