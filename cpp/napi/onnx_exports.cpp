#include "napi/onnx_exports.h"

#include <array>
#include <memory>
#include <utility>

#include "core/module.h"
#include "napi/async_task.h"
#include "napi/build_task.h"
#include "napi/errors.h"
#include "napi/object_writer.h"
#include "napi/onnx_arguments.h"
#include "napi/tensorrt_module.h"

namespace nt::napi {
namespace {

napi_value makeText(napi_env env, const std::string& text) noexcept {
  napi_value value = nullptr;
  napi_create_string_utf8(env, text.data(), text.size(), &value);
  return value;
}

class OnnxBuildTask final : public BuildTask {
 public:
  explicit OnnxBuildTask(ForModule<OnnxBuildOptions> target)
      : BuildTask(std::move(target.modulePath)), options_(std::move(target.options)) {}

 private:
  Status build(TensorRtModule& module) noexcept override {
    built_ = module.buildOnnx(options_, this);
    return built_.status();
  }

  napi_value makeResult(napi_env env) noexcept override {
    const OnnxBuildResult& result = *built_;
    ObjectWriter out(env);
    out.set("planBytes", static_cast<double>(result.planBytes));
    out.set("libraryVersion", result.libraryVersion);
    out.set("parserVersion", result.parserVersion);
    out.set("computeMajor", result.computeMajor);
    out.set("computeMinor", result.computeMinor);
    out.set("layers", result.layers);
    out.set("constrainedLayers", result.constrainedLayers);
    out.set("timingCacheUsed", result.timingCacheUsed);
    out.set("parseSeconds", static_cast<double>(result.parseSeconds));
    out.set("buildSeconds", static_cast<double>(result.buildSeconds));
    out.setList("log", result.log, [&](const std::string& line) { return makeText(env, line); });
    return out.object();
  }

  OnnxBuildOptions options_;
  Expected<OnnxBuildResult> built_ = Status{"ERR_INTERNAL", "The build has not ended"};
};

class InspectTask final : public AsyncTask {
 public:
  explicit InspectTask(ForModule<OnnxInspectOptions> target) : target_(std::move(target)) {}

  void run() noexcept override {
    Expected<TensorRtModule*> module = openTensorRtModule(target_.modulePath);
    if (!module) {
      report_ = module.status();
    } else {
      report_ = (*module)->inspectOnnx(target_.options);
    }
  }

  napi_value take(napi_env env, Status& status) noexcept override {
    status = report_.status();
    if (!status) return nullptr;
    const OnnxReport& report = *report_;
    ObjectWriter out(env);
    out.set("supported", report.supported);
    out.set("libraryVersion", report.libraryVersion);
    out.setList("problems", report.problems, [&](const OnnxProblem& problem) {
      ObjectWriter object(env);
      object.set("code", problem.code);
      object.set("message", problem.message);
      object.set("node", problem.node);
      object.set("nodeName", problem.nodeName);
      object.set("op", problem.op);
      object.set("function", problem.function);
      object.set("line", problem.line);
      return object.object();
    });
    out.setList("unsupportedNodes", report.unsupportedNodes, [&](int64_t node) {
      napi_value number = nullptr;
      napi_create_int64(env, node, &number);
      return number;
    });
    return out.object();
  }

  bool joinsAtTeardown() const noexcept override { return true; }

 private:
  ForModule<OnnxInspectOptions> target_;
  Expected<OnnxReport> report_ = Status{"ERR_INTERNAL", "The inspection has not ended"};
};

template <size_t N>
bool readArguments(napi_env env, napi_callback_info info, std::array<napi_value, N>& values) noexcept {
  size_t count = N;
  return napi_get_cb_info(env, info, &count, values.data(), nullptr, nullptr) == napi_ok;
}

}  // namespace

napi_value buildOnnxEngine(napi_env env, napi_callback_info info) noexcept {
  return guarded(env, [&]() -> napi_value {
    std::array<napi_value, 2> arguments{};
    if (!readArguments(env, info, arguments)) return nullptr;
    Expected<ForModule<OnnxBuildOptions>> target = readOnnxBuildOptions(env, arguments[0]);
    if (!target) {
      throwStatus(env, target.status());
      return nullptr;
    }
    auto task = std::make_shared<OnnxBuildTask>(*std::move(target));
    return startBuild(env, "node-tensorrt:build", std::move(task), arguments[1]);
  });
}

napi_value inspectOnnx(napi_env env, napi_callback_info info) noexcept {
  return guarded(env, [&]() -> napi_value {
    std::array<napi_value, 1> arguments{};
    if (!readArguments(env, info, arguments)) return nullptr;
    Expected<ForModule<OnnxInspectOptions>> target = readOnnxInspectOptions(env, arguments[0]);
    if (!target) return makeRejected(env, target.status());
    return startTask(env, "node-tensorrt:inspect", std::make_shared<InspectTask>(*std::move(target)));
  });
}

}  // namespace nt::napi
