// Work on a thread of its own that settles a promise.
#pragma once

#include <napi.h>

#include <memory>

#include "core/status.h"

namespace nt::napi {

class AsyncJob;

class AsyncTask {
 public:
  virtual ~AsyncTask() = default;
  // On the task's thread, once.
  virtual void run() noexcept = 0;
  // On the event loop, after `run`: the value that the promise resolves with. Null rejects it, with `status`
  // or with the exception that is pending.
  virtual napi_value take(napi_env env, Status& status) noexcept = 0;
  // On the event loop, some time after `notify`; several calls of `notify` may end in one.
  virtual void onNotify(napi_env) noexcept {}
  // On the event loop, when nobody waits for the task any more.
  virtual void cancel() noexcept {}
  // Whether the environment's teardown waits for the thread. True for code that must not run while the
  // process exits.
  virtual bool joinsAtTeardown() const noexcept { return false; }

 protected:
  // Any thread, during `run`.
  void notify() noexcept;

 private:
  friend class AsyncJob;
  AsyncJob* job_ = nullptr;  // lives at least as long as `run`
};

// Starts the task and returns its promise; null, with an exception pending, on failure. The process stays
// alive meanwhile. If the environment ends first, the task is cancelled, and its thread goes on alone unless
// it is joined; the addon is linked so that it is never unloaded (-z nodelete).
napi_value startTask(napi_env env, const char* name, std::shared_ptr<AsyncTask> task) noexcept;

}  // namespace nt::napi
