#include "tensorrt/module.h"

#include <utility>

#include "tensorrt/backend.h"
#include "tensorrt/builder.h"
#include "tensorrt/driver.h"
#include "tensorrt/guarded.h"
#include "tensorrt/library.h"
#include "tensorrt/logger.h"
#include "tensorrt/onnx/onnx_builder.h"
#include "tensorrt/onnx/onnx_inspector.h"
#include "tensorrt/runtime/faults.h"
#include "tensorrt/runtime/reaper.h"
#include "tensorrt/runtime/runtime.h"

namespace nt {

namespace {

class Module final : public TensorRtModule {
 public:
  ModuleFacts probe(const std::string& libraryPath) noexcept override {
    ModuleFacts facts;
    const Status status = guarded([&]() -> Status {
      probeDriver(facts);
      facts.library = Library::open(libraryPath, &facts).status();
      if (!facts.library) facts.builderResource = facts.library;
      return {};
    });
    if (!status && facts.driver) facts.driver = status;
    return facts;
  }

  Expected<BuildResult> build(const BuildOptions& options, BuildListener* listener) noexcept override {
    return guarded([&] { return buildModel(options, listener); });
  }

  Expected<std::unique_ptr<Backend>> createBackend(const TensorRtOptions& options) noexcept override {
    return guarded([&] { return createTensorRtBackend(options); });
  }

  Expected<std::shared_ptr<runtime::Runtime>> createRuntime(
      const runtime::RuntimeOptions& options) noexcept override {
    return guarded([&] { return runtime::createRuntime(options); });
  }

  void release(std::shared_ptr<runtime::Object> object, std::function<void()> done) noexcept override {
    runtime::releaseLater(std::move(object), std::move(done));
  }

  void addLogSink(runtime::LogSink* sink) noexcept override { nt::addLogSink(sink); }
  void removeLogSink(runtime::LogSink* sink) noexcept override { nt::removeLogSink(sink); }

  void injectFaults(const runtime::Faults& faults) noexcept override { runtime::injectFaults(faults); }

  Expected<OnnxBuildResult> buildOnnx(const OnnxBuildOptions& options,
                                      BuildListener* listener) noexcept override {
    return guarded([&] { return buildOnnxEngine(options, listener); });
  }

  Expected<OnnxReport> inspectOnnx(const OnnxInspectOptions& options) noexcept override {
    return guarded([&] { return inspectOnnxModel(options); });
  }
};

}  // namespace

TensorRtModule& tensorRtModule() noexcept {
  static Module module;
  return module;
}

}  // namespace nt
