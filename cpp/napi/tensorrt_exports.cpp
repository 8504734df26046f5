#include "napi/tensorrt_exports.h"

#include <array>
#include <atomic>
#include <cstring>
#include <memory>
#include <mutex>
#include <string_view>
#include <utility>

#include "core/module.h"
#include "napi/async_task.h"
#include "napi/errors.h"
#include "napi/load_job.h"
#include "napi/object_writer.h"
#include "napi/tensorrt_arguments.h"
#include "napi/tensorrt_module.h"

namespace nt::napi {
namespace {

void setStatus(napi_env env, ObjectWriter& out, const char* name, const Status& status) noexcept {
  if (status.isOk()) {
    out.setNull(name);
    return;
  }
  ObjectWriter problem(env);
  problem.set("code", status.code());
  problem.set("message", status.message());
  problem.set("hint", status.hint());
  out.set(name, problem.object());
}

napi_value makeFacts(napi_env env, const ModuleFacts& facts) noexcept {
  ObjectWriter out(env);
  setStatus(env, out, "driver", facts.driver);
  out.set("driverPath", facts.driverPath);
  out.set("driverCuda", facts.driverCuda);
  out.set("requiredCuda", facts.requiredCuda);
  out.setList("gpus", facts.gpus, [&](const GpuFacts& gpu) {
    ObjectWriter object(env);
    object.set("name", gpu.name);
    object.set("computeMajor", gpu.computeMajor);
    object.set("computeMinor", gpu.computeMinor);
    object.set("memoryBytes", static_cast<double>(gpu.memoryBytes));
    return object.object();
  });
  setStatus(env, out, "library", facts.library);
  out.set("libraryPath", facts.libraryPath);
  out.set("libraryVersion", facts.libraryVersion);
  out.setList("placesLooked", facts.placesLooked, [&](const std::string& place) {
    napi_value text = nullptr;
    napi_create_string_utf8(env, place.data(), place.size(), &text);
    return text;
  });
  setStatus(env, out, "builderResource", facts.builderResource);
  out.set("builderResourcePath", facts.builderResourcePath);
  return out.object();
}

class ProbeTask final : public AsyncTask {
 public:
  explicit ProbeTask(ForModule<ProbeOptions> target) : target_(std::move(target)) {}

  void run() noexcept override {
    Expected<TensorRtModule*> module = openTensorRtModule(target_.modulePath);
    if (!module) {
      status_ = module.status();
    } else {
      facts_ = (*module)->probe(target_.options.libraryPath);
    }
  }

  napi_value take(napi_env env, Status& status) noexcept override {
    status = status_;
    return status.isOk() ? makeFacts(env, facts_) : nullptr;
  }

  bool joinsAtTeardown() const noexcept override { return true; }

 private:
  ForModule<ProbeOptions> target_;
  Status status_;
  ModuleFacts facts_;
};

struct BuildProgress {
  int32_t part = 0;
  int32_t parts = 0;
  int32_t step = 0;
  int32_t steps = 0;
  std::array<char, 128>
      phase{};  // cut where it is longer; no allocation, for TensorRT must not see an exception
  size_t phaseLength = 0;
};

class BuildTask final : public AsyncTask, public BuildListener {
 public:
  // `listener` is a reference to a function, or null.
  BuildTask(ForModule<BuildOptions> target, napi_ref listener)
      : target_(std::move(target)), listener_(listener) {}

  void run() noexcept override {
    Expected<TensorRtModule*> module = openTensorRtModule(target_.modulePath);
    if (!module) {
      built_ = module.status();
    } else {
      built_ = (*module)->build(target_.options, this);
    }
  }

  void onProgress(int32_t part, int32_t parts, std::string_view phase, int32_t step,
                  int32_t steps) noexcept override {
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

  bool isCancelled() noexcept override { return cancelled_; }
  void cancel() noexcept override { cancelled_ = true; }
  bool joinsAtTeardown() const noexcept override { return true; }

  void onNotify(napi_env env) noexcept override {
    napi_value function = nullptr;
    if (listener_ == nullptr || cancelled_ || napi_get_reference_value(env, listener_, &function) != napi_ok)
      return;
    BuildProgress progress;
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

  napi_value take(napi_env env, Status& status) noexcept override {
    if (listener_ != nullptr) napi_delete_reference(env, std::exchange(listener_, nullptr));
    status = built_.status();
    if (!status) return nullptr;
    const BuildResult& result = *built_;
    ObjectWriter out(env);
    out.setBuffer("plan", result.plan);
    out.setBuffer("timingCache", result.timingCache);
    out.set("libraryVersion", result.libraryVersion);
    out.set("computeMajor", result.computeMajor);
    out.set("computeMinor", result.computeMinor);
    out.setList("parts", result.parts, [&](const BuildResult::Part& part) {
      ObjectWriter object(env);
      object.set("name", part.name);
      object.set("planBytes", static_cast<double>(part.planBytes));
      object.set("seconds", static_cast<double>(part.seconds));
      return object.object();
    });
    return out.object();
  }

 private:
  ForModule<BuildOptions> target_;
  napi_ref listener_;
  Expected<BuildResult> built_ = Status{"ERR_INTERNAL", "The build has not ended"};
  std::atomic<bool> cancelled_ = false;
  std::mutex mutex_;  // guards `progress_`
  BuildProgress progress_;
};

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

template <size_t N>
bool readArguments(napi_env env, napi_callback_info info, std::array<napi_value, N>& values) noexcept {
  size_t count = N;
  return napi_get_cb_info(env, info, &count, values.data(), nullptr, nullptr) == napi_ok;
}

}  // namespace

napi_value probeTensorRt(napi_env env, napi_callback_info info) noexcept {
  return guarded(env, [&]() -> napi_value {
    std::array<napi_value, 1> arguments{};
    if (!readArguments(env, info, arguments)) return nullptr;
    Expected<ForModule<ProbeOptions>> target = readProbeOptions(env, arguments[0]);
    if (!target) return makeRejected(env, target.status());
    return startTask(env, "node-tensorrt:probe", std::make_shared<ProbeTask>(*std::move(target)));
  });
}

napi_value buildEngine(napi_env env, napi_callback_info info) noexcept {
  return guarded(env, [&]() -> napi_value {
    std::array<napi_value, 2> arguments{};
    if (!readArguments(env, info, arguments)) return nullptr;
    Expected<ForModule<BuildOptions>> target = readBuildOptions(env, arguments[0]);
    napi_valuetype type = napi_undefined;
    Status status = target.status();
    if (status.isOk() && (napi_typeof(env, arguments[1], &type) != napi_ok ||
                          (type != napi_function && type != napi_undefined))) {
      status = Status::invalid("onProgress must be a function");
    }
    if (!status) {
      throwStatus(env, status);
      return nullptr;
    }
    napi_ref listener = nullptr;
    if (type == napi_function && napi_create_reference(env, arguments[1], 1, &listener) != napi_ok)
      return nullptr;
    auto task = std::make_shared<BuildTask>(*std::move(target), listener);
    ObjectWriter handle(env);
    // Made first: what is started cannot be taken back.
    handle.set("cancel", makeCancel(env, task));
    if (handle.object() == nullptr) {
      throwStatus(env, {"ERR_INTERNAL", "Could not create the build's handle"});
      return nullptr;
    }
    handle.set("promise", startTask(env, "node-tensorrt:build", task));
    return handle.object();
  });
}

napi_value createTensorRtBackend(napi_env env, napi_callback_info info) noexcept {
  return guarded(env, [&]() -> napi_value {
    std::array<napi_value, 1> arguments{};
    if (!readArguments(env, info, arguments)) return nullptr;
    Expected<ForModule<TensorRtOptions>> target = readTensorRtOptions(env, arguments[0]);
    if (!target) return makeRejected(env, target.status());
    // Shared, because a std::function copies what it holds, and the plan is large.
    const auto load = [shared = std::make_shared<ForModule<TensorRtOptions>>(*std::move(target))] {
      Expected<TensorRtModule*> module = openTensorRtModule(shared->modulePath);
      return module ? (*module)->createBackend(shared->options)
                    : Expected<std::unique_ptr<Backend>>(module.status());
    };
    // Joined: TensorRT and CUDA must not be at work while the process exits.
    return loadBackend(env, load, AtTeardown::kJoin);
  });
}

}  // namespace nt::napi
