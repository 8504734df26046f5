#include "napi/build_task.h"

#include <algorithm>
#include <cstring>

#include "napi/errors.h"
#include "napi/object_writer.h"
#include "napi/tensorrt_module.h"

namespace nt::napi {
namespace {

// A function that cancels the task; it may outlive the task's end.
napi_value makeCancel(napi_env env, std::shared_ptr<AsyncTask> task) {
  auto held = std::make_unique<std::shared_ptr<AsyncTask>>(std::move(task));
  const auto cancel = [](napi_env callEnv, napi_callback_info info) -> napi_value {
    void* data = nullptr;
    if (napi_get_cb_info(callEnv, info, nullptr, nullptr, nullptr, &data) == napi_ok) {
      (*static_cast<std::shared_ptr<AsyncTask>*>(data))->cancel();
    }
    return nullptr;
  };
  const auto finalize = [](napi_env, void* data, void*) {
    delete static_cast<std::shared_ptr<AsyncTask>*>(data);
  };
  napi_value function = nullptr;
  if (napi_create_function(env, "cancel", NAPI_AUTO_LENGTH, cancel, held.get(), &function) != napi_ok ||
      napi_add_finalizer(env, function, held.get(), finalize, nullptr, nullptr) != napi_ok) {
    return nullptr;
  }
  held.release();
  return function;
}

}  // namespace

void BuildTask::run() noexcept {
  Expected<TensorRtModule*> module = openTensorRtModule(modulePath_);
  status_ = module ? build(**module) : module.status();
}

void BuildTask::onProgress(int32_t part, int32_t parts, std::string_view phase, int32_t step,
                           int32_t steps) noexcept {
  {
    const std::lock_guard lock(mutex_);
    progress_.part = part;
    progress_.parts = parts;
    progress_.step = step;
    progress_.steps = steps;
    progress_.phaseLength = std::min(phase.size(), progress_.phase.size());
    std::memcpy(progress_.phase.data(), phase.data(), progress_.phaseLength);
  }
  notify();
}

void BuildTask::onNotify(napi_env env) noexcept {
  napi_value function = nullptr;
  if (listener_ == nullptr || cancelled_ || napi_get_reference_value(env, listener_, &function) != napi_ok)
    return;
  Progress progress;
  {
    const std::lock_guard lock(mutex_);
    progress = progress_;
  }
  ObjectWriter out(env);
  out.set("part", progress.part);
  out.set("parts", progress.parts);
  out.set("phase", std::string(progress.phase.data(), progress.phaseLength));
  out.set("step", progress.step);
  out.set("steps", progress.steps);
  napi_value argument = out.object();
  napi_value undefined = nullptr;
  if (argument == nullptr || napi_get_undefined(env, &undefined) != napi_ok ||
      napi_call_function(env, undefined, function, 1, &argument, nullptr) == napi_ok) {
    return;
  }
  // A listener that throws is a bug of the program's: report it as uncaught, the build goes on.
  bool pending = false;
  napi_value error = nullptr;
  if (napi_is_exception_pending(env, &pending) == napi_ok && pending &&
      napi_get_and_clear_last_exception(env, &error) == napi_ok) {
    napi_fatal_exception(env, error);
  }
}

napi_value BuildTask::take(napi_env env, Status& status) noexcept {
  if (listener_ != nullptr) napi_delete_reference(env, std::exchange(listener_, nullptr));
  status = status_;
  return status.isOk() ? makeResult(env) : nullptr;
}

napi_value startBuild(napi_env env, const char* name, std::shared_ptr<BuildTask> task,
                      napi_value onProgress) noexcept {
  napi_valuetype type = napi_undefined;
  if (napi_typeof(env, onProgress, &type) != napi_ok || (type != napi_function && type != napi_undefined)) {
    throwStatus(env, Status::invalid("onProgress must be a function"));
    return nullptr;
  }
  napi_ref listener = nullptr;
  if (type == napi_function && napi_create_reference(env, onProgress, 1, &listener) != napi_ok)
    return nullptr;
  task->setListener(listener);
  ObjectWriter handle(env);
  // Made first: what is started cannot be taken back.
  handle.set("cancel", makeCancel(env, task));
  if (handle.object() == nullptr) {
    throwStatus(env, {"ERR_INTERNAL", "Could not create the build's handle"});
    return nullptr;
  }
  handle.set("promise", startTask(env, name, std::move(task)));
  return handle.object();
}

}  // namespace nt::napi
