#include "napi/tensorrt_exports.h"

#include <array>
#include <memory>
#include <utility>

#include "core/module.h"
#include "napi/async_task.h"
#include "napi/build_task.h"
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

class GraphBuildTask final : public BuildTask {
 public:
  explicit GraphBuildTask(ForModule<BuildOptions> target)
      : BuildTask(std::move(target.modulePath)), options_(std::move(target.options)) {}

 private:
  Status build(TensorRtModule& module) noexcept override {
    built_ = module.build(options_, this);
    return built_.status();
  }

  napi_value makeResult(napi_env env) noexcept override {
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

  BuildOptions options_;
  Expected<BuildResult> built_ = Status{"ERR_INTERNAL", "The build has not ended"};
};

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
    if (!target) {
      throwStatus(env, target.status());
      return nullptr;
    }
    auto task = std::make_shared<GraphBuildTask>(*std::move(target));
    return startBuild(env, "node-tensorrt:build", std::move(task), arguments[1]);
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
