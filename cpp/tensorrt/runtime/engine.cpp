#include "tensorrt/runtime/engine.h"

#include <string_view>
#include <utility>

#include "tensorrt/cuda.h"
#include "tensorrt/guarded.h"
#include "tensorrt/runtime/context.h"
#include "tensorrt/runtime/failure.h"
#include "tensorrt/runtime/reaper.h"
#include "tensorrt/runtime/refit.h"

namespace nt::runtime {

namespace {

using nvinfer1::ExecutionContextAllocationStrategy;

ExecutionContextAllocationStrategy strategyOf(ContextMemory memory) noexcept {
  switch (memory) {
    case ContextMemory::kOnProfileChange:
      return ExecutionContextAllocationStrategy::kON_PROFILE_CHANGE;
    case ContextMemory::kUser:
      return ExecutionContextAllocationStrategy::kUSER_MANAGED;
    default:
      return ExecutionContextAllocationStrategy::kSTATIC;
  }
}

// TensorRT has no codes for why it refuses a plan, only words.
Status refused(DeviceState& device, const Library& library, bool hostCode, const LogScope& log) {
  const std::string said = log.text();
  const auto says = [&](std::string_view words) { return said.find(words) != std::string::npos; };
  const std::string what = "TensorRT " + library.versionText() + " does not take the plan";
  if (!hostCode && (says("host code") || says("HostCode") || says("host executable"))) {
    return withLog({"ERR_ENGINE_INCOMPATIBLE", what,
                    "It holds host code: allow that where you know where the plan comes from"},
                   log);
  }
  for (const char* words : {"ncompatible", "not compatible", "expecting library version", "expecting compute",
                            "version tag", "ersion mismatch", "please rebuild", "current version"}) {
    if (says(words)) {
      return withLog({"ERR_ENGINE_INCOMPATIBLE", what,
                      "Build the engine with this TensorRT for this GPU, or install what it was built for"},
                     log);
    }
  }
  return failureOn(device, "ERR_ENGINE_INVALID", what, log);
}

}  // namespace

RuntimeCore::~RuntimeCore() {
  const DeviceScope scope(device.device());
  for (auto& runtime : runtimes_) runtime.reset();
}

Status RuntimeCore::start() {
  const std::lock_guard lock(mutex_);
  return get(false).status();
}

Expected<std::unique_ptr<nvinfer1::ICudaEngine>> RuntimeCore::deserialize(const void* plan, uint64_t bytes,
                                                                          bool hostCode) {
  const std::lock_guard lock(mutex_);
  const Expected<nvinfer1::IRuntime*> runtime = get(hostCode);
  if (!runtime) return runtime.status();
  return std::unique_ptr<nvinfer1::ICudaEngine>((*runtime)->deserializeCudaEngine(plan, bytes));
}

// Under the lock.
Expected<nvinfer1::IRuntime*> RuntimeCore::get(bool hostCode) {
  auto& runtime = runtimes_[hostCode ? 1 : 0];
  if (runtime == nullptr) {
    auto made = library.createRuntime();
    if (!made) return made.status();
    runtime = *std::move(made);
    runtime->setErrorRecorder(&recorder_);
    runtime->setGpuAllocator(&allocator_);
    runtime->setEngineHostCodeAllowed(hostCode);
  }
  return runtime.get();
}

Expected<std::shared_ptr<Engine>> EngineObject::create(std::shared_ptr<RuntimeCore> core, const void* plan,
                                                       uint64_t bytes, bool hostCode) {
  DeviceState& device = core->device;
  if (Status status = device.alive(); !status) return status;
  if (plan == nullptr || bytes == 0) return Status("ERR_ENGINE_INVALID", "The plan is empty");
  const DeviceScope scope(device.device());
  const auto engine = makeReaped<EngineObject>(std::move(core));
  const LogScope log;
  auto made = engine->core_->deserialize(plan, bytes, hostCode);
  if (!made) return made.status();
  engine->engine_ = *std::move(made);
  if (engine->engine_ == nullptr) return refused(device, engine->core_->library, hostCode, log);
  engine->engine_->setErrorRecorder(&engine->recorder_);
  Expected<EngineFacts> facts = readEngine(*engine->engine_);
  if (!facts) return facts.status();
  engine->facts_ = *std::move(facts);
  engine->info_ = infoJson(engine->facts_);
  if (engine->facts_.refittable) {
    const auto refitter = engine->makeRefitter();
    if (!refitter) return refitter.status();
    if ((*refitter)->getMissingWeights(0, nullptr) > 0) engine->weights_ = Weights::kStripped;
  }
  return std::shared_ptr<Engine>(engine);
}

EngineObject::~EngineObject() {
  const DeviceScope scope(device().device());
  engine_.reset();
}

Status EngineObject::runnable() const {
  switch (weights_.load(std::memory_order_acquire)) {
    case Weights::kStripped:
      return {"ERR_WEIGHTS_MISSING", "The engine was built without its weights", "Call refit() first"};
    case Weights::kBroken:
      return {"ERR_WEIGHTS_MISSING", "The engine's last refit broke off",
              "Call refit() with all weights again"};
    default:
      return {};
  }
}

Expected<std::unique_ptr<nvinfer1::IExecutionContext>> EngineObject::makeContext(ContextMemory memory,
                                                                                 int32_t profile) {
  if (Status status = device().alive(); !status) return status;
  if (profile < 0 || profile >= facts_.profiles) {
    return Status::invalid("profile is " + std::to_string(profile) + "; the engine has the profiles 0 ... " +
                           std::to_string(facts_.profiles - 1));
  }
  const LogScope log;
  nt::Stream stream;
  if (Status status =
          device().check(cudaStreamCreateWithFlags(stream.put(), cudaStreamNonBlocking), "cudaStreamCreate");
      !status) {
    return status;
  }
  std::unique_ptr<nvinfer1::IExecutionContext> context(engine_->createExecutionContext(strategyOf(memory)));
  const std::string what = "TensorRT could not make an execution context";
  if (context == nullptr || !context->setOptimizationProfileAsync(profile, stream.get()))
    return failureOn(device(), "ERR_EXECUTION_FAILED", what, log, stream.get());
  if (Status status = device().check(cudaStreamSynchronize(stream.get()), what.c_str()); !status)
    return status;
  return context;
}

Expected<std::string> EngineObject::layers(int32_t profile) noexcept {
  return guarded([&]() -> Expected<std::string> {
    const std::lock_guard lock(mutex_);
    const DeviceScope scope(device().device());
    if (Status status = device().alive(); !status) return status;
    const LogScope log;
    // The inspector comes after the context, and goes before it.
    std::unique_ptr<nvinfer1::IExecutionContext> context;
    if (profile != -1) {
      auto made = makeContext(ContextMemory::kUser, profile);
      if (!made) return made.status();
      context = *std::move(made);
    }
    const std::unique_ptr<nvinfer1::IEngineInspector> inspector(engine_->createEngineInspector());
    if (inspector == nullptr || (context != nullptr && !inspector->setExecutionContext(context.get())))
      return failureOn(device(), "ERR_EXECUTION_FAILED", "TensorRT could not inspect the engine", log);
    const char* json = inspector->getEngineInformation(nvinfer1::LayerInformationFormat::kJSON);
    if (json == nullptr)
      return failureOn(device(), "ERR_EXECUTION_FAILED", "TensorRT tells nothing of the engine's layers",
                       log);
    return std::string(json);
  });
}

Expected<std::shared_ptr<Context>> EngineObject::createContext(const ContextOptions& options) noexcept {
  return guarded([&]() -> Expected<std::shared_ptr<Context>> {
    const std::lock_guard lock(mutex_);
    const DeviceScope scope(device().device());
    auto made = makeContext(options.memory, options.profile);
    if (!made) return made.status();
    return ContextObject::create(shared_from_this(), *std::move(made), options);
  });
}

Expected<std::unique_ptr<nvinfer1::IRefitter>> EngineObject::makeRefitter() {
  if (Status status = device().alive(); !status) return status;
  if (!facts_.refittable) {
    return Status::invalid("The engine is not refittable", "Build it with refit, or stripped of its weights");
  }
  auto refitter = core_->library.createRefitter(*engine_);
  if (refitter) (*refitter)->setErrorRecorder(&recorder_);
  return refitter;
}

Expected<std::vector<std::string>> EngineObject::refittableWeights() noexcept {
  return guarded([&]() -> Expected<std::vector<std::string>> {
    const std::lock_guard lock(mutex_);
    const DeviceScope scope(device().device());
    const auto refitter = makeRefitter();
    if (!refitter) return refitter.status();
    return refittableNames(**refitter);
  });
}

Status EngineObject::refit(const std::vector<NamedWeights>& weights) noexcept {
  return guarded([&]() -> Status {
    const std::lock_guard lock(mutex_);
    const DeviceScope scope(device().device());
    const auto refitter = makeRefitter();
    if (!refitter) return refitter.status();
    return refitWith(**refitter, weights);
  });
}

Status EngineObject::refitWith(nvinfer1::IRefitter& refitter, const std::vector<NamedWeights>& weights) {
  const LogScope log;
  if (Status status = giveWeights(refitter, weights); !status) return withLog(std::move(status), log);
  if (weights.empty()) return runnable();
  // A stream of its own: the default one would wait for all others, and end their captures.
  nt::Stream stream;
  if (Status status =
          device().check(cudaStreamCreateWithFlags(stream.put(), cudaStreamNonBlocking), "cudaStreamCreate");
      !status) {
    return status;
  }
  const std::unique_lock running(weightsMutex_);
  const std::string what = "TensorRT could not refit the engine";
  Status status;
  if (!refitter.refitCudaEngineAsync(stream.get()))
    status = failureOn(device(), "ERR_WEIGHTS_INVALID", what, log, stream.get());
  const cudaError_t error = cudaStreamSynchronize(stream.get());
  if (status) status = device().check(error, what.c_str());
  weights_.store(status ? Weights::kComplete : Weights::kBroken, std::memory_order_release);
  return status;
}

Expected<std::vector<char>> EngineObject::serialize() noexcept {
  return guarded([&]() -> Expected<std::vector<char>> {
    const std::lock_guard lock(mutex_);
    const DeviceScope scope(device().device());
    if (Status status = device().alive(); !status) return status;
    const LogScope log;
    const std::unique_ptr<nvinfer1::IHostMemory> plan(engine_->serialize());
    if (plan == nullptr)
      return failureOn(device(), "ERR_EXECUTION_FAILED", "TensorRT could not serialise the engine", log);
    const auto* begin = static_cast<const char*>(plan->data());
    return std::vector<char>(begin, begin + plan->size());
  });
}

}  // namespace nt::runtime
