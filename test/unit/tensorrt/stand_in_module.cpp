// Stands in for nt-tensorrt.so where there is no GPU: says that there is one, "builds" in small steps until
// it is cancelled or has done as many as its environment says, and refuses to run engines, naming what it was
// asked.
#include <chrono>
#include <csignal>
#include <cstdlib>
#include <fstream>
#include <sstream>
#include <thread>

#include "core/module.h"

namespace {

using nt::Status;

int stepsToBuild() {
  const char* text = std::getenv("STAND_IN_STEPS");
  return text == nullptr ? 3 : std::atoi(text);
}

class StandIn final : public nt::TensorRtModule {
 public:
  nt::ModuleFacts probe(const std::string& libraryPath) noexcept override {
    nt::ModuleFacts facts;
    facts.driverPath = "/stand-in/libcuda.so.1";
    facts.driverCuda = facts.requiredCuda = 13000;
    facts.gpus.push_back({"Stand-in GPU", 9, 0, uint64_t{100} << 30});
    facts.libraryPath = libraryPath.empty() ? "/stand-in/libnvinfer.so.10" : libraryPath;
    facts.libraryVersion = 100600;
    facts.placesLooked = {"the stand-in: here"};
    facts.builderResourcePath = "/stand-in/resource";
    return facts;
  }

  nt::Expected<nt::BuildResult> build(const nt::BuildOptions& options,
                                      nt::BuildListener* listener) noexcept override {
    const int steps = stepsToBuild();
    if (const char* started = std::getenv("STAND_IN_STARTED"); started != nullptr)
      std::ofstream(started) << steps;
    for (int step = 0; step < steps; ++step) {
      listener->onProgress(step % 2, 2, "stand-in phase", step, steps);
      std::this_thread::sleep_for(std::chrono::milliseconds(5));
      if (listener->isCancelled()) return Status("ABORT_ERR", "The build was cancelled");
    }
    if (options.optimizationLevel == 5) return Status("ERR_BUILD_FAILED", "the stand-in cannot do level 5");
    nt::BuildResult result;
    std::ostringstream plan;
    plan << "plan of type " << static_cast<int>(options.dtype) << " for " << options.graph.size()
         << " bytes of graph";
    for (const auto& p : options.layerProfiles) plan << " " << p.min << "-" << p.opt << "-" << p.max;
    const std::string text = plan.str();
    result.plan.assign(text.begin(), text.end());
    result.timingCache = options.timingCache;
    result.timingCache.push_back('.');
    result.libraryVersion = 100600;
    result.computeMajor = 9;
    result.parts = {{"layer", 3, 0.5F}, {"head", 4, 0.25F}};
    return result;
  }

  nt::Expected<std::unique_ptr<nt::Backend>> createBackend(
      const nt::TensorRtOptions& options) noexcept override {
    std::ostringstream asked;
    asked << "plan=" << std::string(options.plan.begin(), options.plan.end())
          << "; files=" << options.files.size() << "; pages=" << options.numPages << "x" << options.pageSize
          << "; fraction=" << options.kvCacheFraction << "; slots=" << options.maxSlots
          << "; tokens=" << options.maxStepTokens << "; graphs=" << options.cudaGraphs;
    return Status("ERR_CUDA", asked.str());
  }

  nt::Expected<std::shared_ptr<nt::runtime::Runtime>> createRuntime(
      const nt::runtime::RuntimeOptions&) noexcept override {
    const char* behaviour = std::getenv("STAND_IN_RUNTIME");
    if (behaviour != nullptr && std::string(behaviour) == "crash") std::raise(SIGSEGV);
    if (behaviour != nullptr && std::string(behaviour) == "hang")
      std::this_thread::sleep_for(std::chrono::hours(1));
    return Status("ERR_NO_GPU", "the stand-in runs nothing");
  }
  void release(std::shared_ptr<nt::runtime::Object>, std::function<void()> done) noexcept override { done(); }
  void addLogSink(nt::runtime::LogSink*) noexcept override {}
  void removeLogSink(nt::runtime::LogSink*) noexcept override {}
  void injectFaults(const nt::runtime::Faults&) noexcept override {}

  nt::Expected<nt::OnnxBuildResult> buildOnnx(const nt::OnnxBuildOptions& options,
                                              nt::BuildListener* listener) noexcept override {
    const int steps = stepsToBuild();
    if (const char* started = std::getenv("STAND_IN_STARTED"); started != nullptr)
      std::ofstream(started) << steps;
    for (int step = 0; step < steps; ++step) {
      listener->onProgress(0, 1, "stand-in phase", 1000 * step / steps, 1000);
      std::this_thread::sleep_for(std::chrono::milliseconds(5));
      if (listener->isCancelled()) return Status("ABORT_ERR", "The build was cancelled");
    }
    if (options.optimizationLevel == 5) return Status("ERR_BUILD_FAILED", "the stand-in cannot do level 5");
    std::ostringstream text;
    text << "plan of " << (options.model.path.empty() ? "bytes" : options.model.path) << " in precision "
         << static_cast<int>(options.precision);
    for (const auto& rule : options.layers)
      text << " " << rule.pattern << "=" << static_cast<int>(rule.precision);
    for (const auto& profile : options.profiles) {
      text << " profile";
      for (const auto& range : profile) {
        text << " " << range.input << (range.values ? " values" : "");
        for (const auto* side : {&range.min, &range.opt, &range.max}) {
          text << ":";
          for (const int64_t extent : *side) text << extent << ",";
        }
      }
    }
    const std::string plan = text.str();
    std::ofstream(options.planPath) << plan;
    if (!options.timingCachePath.empty()) std::ofstream(options.timingCachePath, std::ios::app) << '.';
    nt::OnnxBuildResult result;
    result.planBytes = plan.size();
    result.libraryVersion = 100600;
    result.parserVersion = 100;
    result.computeMajor = 9;
    result.layers = 3;
    result.log = {"a line of the stand-in"};
    return result;
  }

  nt::Expected<nt::OnnxReport> inspectOnnx(const nt::OnnxInspectOptions&) noexcept override {
    nt::OnnxReport report;
    report.libraryVersion = 100600;
    report.problems = {
        {"ERR_ONNX_UNSUPPORTED", "the stand-in knows no such op", 1, "", "Frobnicate", "parse", 7},
        {"ERR_ONNX_UNSUPPORTED", "of the first node of a branch", 0, "then/Exp", "Exp", "parse", 8}};
    report.unsupportedNodes = {0, 1};
    return report;
  }
};

}  // namespace

extern "C" __attribute__((visibility("default"))) nt::TensorRtModule* nt_tensorrt_module(uint32_t abi) {
  static StandIn module;
  return abi == nt::kModuleAbi ? &module : nullptr;
}
