// A deserialised engine.
#pragma once

#include <NvInferRuntime.h>

#include <array>
#include <atomic>
#include <memory>
#include <mutex>
#include <shared_mutex>
#include <string>
#include <vector>

#include "core/runtime.h"
#include "tensorrt/error_recorder.h"
#include "tensorrt/library.h"
#include "tensorrt/runtime/device_state.h"
#include "tensorrt/runtime/engine_info.h"
#include "tensorrt/runtime/gpu_allocator.h"

namespace nt::runtime {

// What the objects of one runtime share; it outlives them.
class RuntimeCore {
 public:
  RuntimeCore(DeviceState& device, const Library& library) noexcept
      : device(device), library(library), allocator_(device) {}
  ~RuntimeCore();

  // Starts TensorRT. The device is current, here and in the next.
  Status start();
  // Null where TensorRT does not take the plan; its log says why. One at a time.
  Expected<std::unique_ptr<nvinfer1::ICudaEngine>> deserialize(const void* plan, uint64_t bytes,
                                                               bool hostCode);

  DeviceState& device;
  const Library& library;

 private:
  Expected<nvinfer1::IRuntime*> get(bool hostCode);

  std::mutex mutex_;
  GpuAllocator allocator_;
  ErrorRecorder recorder_;
  std::array<std::unique_ptr<nvinfer1::IRuntime>, 2> runtimes_;  // by hostCode
};

class EngineObject final : public Engine, public std::enable_shared_from_this<EngineObject> {
 public:
  // See Runtime::deserialize. ERR_ENGINE_INVALID, ERR_ENGINE_INCOMPATIBLE, ERR_OUT_OF_DEVICE_MEMORY,
  // ERR_MODEL_UNSUPPORTED, ERR_BACKEND_DEAD.
  static Expected<std::shared_ptr<Engine>> create(std::shared_ptr<RuntimeCore> core, const void* plan,
                                                  uint64_t bytes, bool hostCode);
  // For `create`.
  explicit EngineObject(std::shared_ptr<RuntimeCore> core) noexcept : core_(std::move(core)) {}
  ~EngineObject() override;

  const std::string& info() const noexcept override { return info_; }
  Expected<std::string> layers(int32_t profile) noexcept override;
  Expected<std::shared_ptr<Context>> createContext(const ContextOptions& options) noexcept override;
  Expected<std::vector<std::string>> refittableWeights() noexcept override;
  Status refit(const std::vector<NamedWeights>& weights) noexcept override;
  Expected<std::vector<char>> serialize() noexcept override;

  const EngineFacts& facts() const noexcept { return facts_; }
  DeviceState& device() const noexcept { return core_->device; }
  // Held shared while a run is put on a stream, so that no refit changes the weights meanwhile.
  std::shared_mutex& weightsMutex() noexcept { return weightsMutex_; }
  // ERR_WEIGHTS_MISSING where a stripped plan has not got its weights yet, or a refit broke off.
  Status runnable() const;

 private:
  Expected<std::unique_ptr<nvinfer1::IExecutionContext>> makeContext(ContextMemory memory, int32_t profile);
  Expected<std::unique_ptr<nvinfer1::IRefitter>> makeRefitter();
  Status refitWith(nvinfer1::IRefitter& refitter, const std::vector<NamedWeights>& weights);

  enum class Weights : uint8_t { kComplete, kStripped, kBroken };

  const std::shared_ptr<RuntimeCore> core_;
  EngineFacts facts_;
  std::string info_;
  std::shared_mutex weightsMutex_;
  std::atomic<Weights> weights_ = Weights::kComplete;
  std::mutex mutex_;  // TensorRT's engine, for all but runs
  ErrorRecorder recorder_;
  std::unique_ptr<nvinfer1::ICudaEngine> engine_;
};

}  // namespace nt::runtime
