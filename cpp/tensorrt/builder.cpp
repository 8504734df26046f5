#include "tensorrt/builder.h"

#include <NvInfer.h>
#include <cuda_runtime_api.h>

#include <algorithm>
#include <chrono>
#include <memory>

#include "core/graph.h"
#include "tensorrt/cuda.h"
#include "tensorrt/driver.h"
#include "tensorrt/error_recorder.h"
#include "tensorrt/kernels/attention.h"
#include "tensorrt/library.h"
#include "tensorrt/logger.h"
#include "tensorrt/network.h"
#include "tensorrt/plan_file.h"
#include "tensorrt/segments.h"

namespace nt {

namespace {

using namespace nvinfer1;

Status cancelled() {
  return {"ABORT_ERR", "The build was cancelled"};
}

class Progress final : public IProgressMonitor {
 public:
  Progress(BuildListener* listener, int32_t part, int32_t parts)
      : listener_(listener), part_(part), parts_(parts) {}

  void phaseStart(const char* name, const char*, int32_t steps) noexcept override { report(name, 0, steps); }
  bool stepComplete(const char* name, int32_t step) noexcept override {
    report(name, step + 1, 0);
    return listener_ == nullptr || !listener_->isCancelled();
  }
  void phaseFinish(const char*) noexcept override {}

 private:
  void report(const char* name, int32_t step, int32_t steps) noexcept {
    if (listener_ != nullptr) listener_->onProgress(part_, parts_, name == nullptr ? "" : name, step, steps);
  }

  BuildListener* listener_;
  int32_t part_;
  int32_t parts_;
};

Status addProfiles(IBuilder& builder, IBuilderConfig& config, const std::vector<RowProfile>& profiles,
                   int32_t width) {
  for (const RowProfile& rows : profiles) {
    IOptimizationProfile* profile = builder.createOptimizationProfile();
    if (profile == nullptr ||
        !profile->setDimensions(kInputName, OptProfileSelector::kMIN, Dims2{rows.min, width}) ||
        !profile->setDimensions(kInputName, OptProfileSelector::kOPT, Dims2{rows.opt, width}) ||
        !profile->setDimensions(kInputName, OptProfileSelector::kMAX, Dims2{rows.max, width}) ||
        config.addOptimizationProfile(profile) < 0) {
      return {"ERR_BUILD_FAILED", "TensorRT refused the profile of " + std::to_string(rows.max) + " rows"};
    }
  }
  return {};
}

class ModelBuilder {
 public:
  ModelBuilder(const BuildOptions& options, BuildListener* listener, IBuilder& builder)
      : options_(options), listener_(listener), builder_(builder), cache_(options.timingCache) {}

  Expected<PlanEngine> build(const SegmentShape& shape, int32_t part, int32_t parts) {
    const LogScope log;
    const auto fail = [&](Status status) { return withLog(std::move(status), log); };
    const auto flags = 1U << static_cast<uint32_t>(NetworkDefinitionCreationFlag::kSTRONGLY_TYPED);
    const std::unique_ptr<INetworkDefinition> network(builder_.createNetworkV2(flags));
    const std::unique_ptr<IBuilderConfig> config(builder_.createBuilderConfig());
    if (network == nullptr || config == nullptr) {
      return fail({"ERR_BUILD_FAILED", "TensorRT could not start a network"});
    }
    network->setName(shape.name.c_str());
    NetworkConstants constants;
    if (Status status = lowerSegment(shape, options_.dtype, *network, constants); !status)
      return fail(status);
    const auto& profiles = shape.attentions > 0 ? options_.layerProfiles : options_.headProfiles;
    if (Status status = addProfiles(builder_, *config, profiles, shape.inputWidth()); !status)
      return fail(status);

    // TensorRT does not see the plugin's writes to the cache, so nothing may run beside it.
    config->setMaxAuxStreams(0);
    // On by default, and float32 engines are there for verification.
    config->clearFlag(BuilderFlag::kTF32);
    if (options_.optimizationLevel >= 0) config->setBuilderOptimizationLevel(options_.optimizationLevel);
    if (options_.workspaceBytes > 0)
      config->setMemoryPoolLimit(MemoryPoolType::kWORKSPACE, options_.workspaceBytes);
    Progress progress(listener_, part, parts);
    config->setProgressMonitor(&progress);
    std::unique_ptr<ITimingCache> cache(config->createTimingCache(cache_.data(), cache_.size()));
    // A cache of another machine or version is refused: start afresh.
    if (cache == nullptr || !config->setTimingCache(*cache, false)) {
      cache.reset(config->createTimingCache(nullptr, 0));
      if (cache == nullptr || !config->setTimingCache(*cache, false)) {
        return fail({"ERR_BUILD_FAILED", "TensorRT refused an empty timing cache"});
      }
    }
    const std::unique_ptr<IHostMemory> plan(builder_.buildSerializedNetwork(*network, *config));
    if (listener_ != nullptr && listener_->isCancelled()) return cancelled();
    if (plan == nullptr)
      return failure("ERR_BUILD_FAILED", "TensorRT could not build '" + shape.name + "'", log);
    const std::unique_ptr<IHostMemory> timings(cache->serialize());
    if (timings != nullptr) {
      const auto* begin = static_cast<const char*>(timings->data());
      cache_.assign(begin, begin + timings->size());
    }
    const auto* begin = static_cast<const char*>(plan->data());
    return PlanEngine{shape.signature, {begin, begin + plan->size()}};
  }

  std::vector<char> takeTimingCache() { return std::move(cache_); }

 private:
  const BuildOptions& options_;
  BuildListener* listener_;
  IBuilder& builder_;
  std::vector<char> cache_;
};

Status checkOptions(const BuildOptions& options, const Graph& graph) {
  if (Status status = checkProfiles("layer", options.layerProfiles); !status) return status;
  if (Status status = checkProfiles("head", options.headProfiles); !status) return status;
  if (options.optimizationLevel < -1 || options.optimizationLevel > 5) {
    return Status::invalid("optimizationLevel must be in 0 ... 5, or -1 for TensorRT's default");
  }
  if (kernels::findAttentionKernels(options.dtype, static_cast<uint32_t>(graph.headDim)) == nullptr) {
    return {"ERR_MODEL_UNSUPPORTED", "No attention kernel has head size " + std::to_string(graph.headDim),
            "Head sizes are multiples of 32, up to 256"};
  }
  return {};
}

}  // namespace

Expected<BuildResult> buildModel(const BuildOptions& options, BuildListener* listener) {
  Expected<GpuFacts> gpu = requireDevice(options.device);
  if (!gpu) return gpu.status();
  Expected<const Library*> library = Library::open(options.libraryPath);
  if (!library) return library.status();
  Expected<Graph> graph = parseGraph(options.graph);
  if (!graph) return graph.status();
  if (Status status = checkOptions(options, *graph); !status) return status;
  Expected<Partition> parts = partition(*graph);
  if (!parts) return parts.status();

  if (Status status = toStatus(cudaSetDevice(options.device), "cudaSetDevice"); !status) return status;
  Expected<BuildScope> scope =
      BuildScope::enter([&] { return listener != nullptr && listener->isCancelled(); });
  if (!scope) return scope.status();
  ErrorRecorder recorder;  // outlives the builder
  Expected<std::unique_ptr<IBuilder>> builder = (*library)->createBuilder();
  if (!builder) return builder.status();
  (*builder)->setErrorRecorder(&recorder);

  BuildResult result;
  result.libraryVersion = (*library)->version();
  result.computeMajor = gpu->computeMajor;
  result.computeMinor = gpu->computeMinor;
  PlanFile file;
  file.header = {result.libraryVersion, gpu->computeMajor,     gpu->computeMinor,
                 options.dtype,         options.layerProfiles, options.headProfiles};
  ModelBuilder model(options, listener, **builder);
  const auto count = static_cast<int32_t>(parts->shapes.size());
  for (int32_t i = 0; i < count; ++i) {
    if (listener != nullptr && listener->isCancelled()) return cancelled();
    const auto start = std::chrono::steady_clock::now();
    const SegmentShape& shape = parts->shapes[static_cast<size_t>(i)];
    Expected<PlanEngine> engine = model.build(shape, i, count);
    if (!engine) return engine.status();
    const std::chrono::duration<float> seconds = std::chrono::steady_clock::now() - start;
    result.parts.push_back({shape.name, engine->plan.size(), seconds.count()});
    file.engines.push_back(*std::move(engine));
  }
  result.timingCache = model.takeTimingCache();
  result.plan = writePlanFile(file);
  return result;
}

}  // namespace nt
