// The fake TensorRT's objects, behind the interfaces of NvInferImpl.h.
#pragma once

#include <atomic>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "fake_gpu.h"
#include "plan.h"
#include "unsupported.h"

namespace nt::fake {

// What the factories hand out: it owns the implementation, as TensorRT's own objects do.
template <class Interface, class Implementation>
class Owner final : public Interface {
 public:
  explicit Owner(std::unique_ptr<Implementation> implementation)
      : implementation_(std::move(implementation)) {
    this->mImpl = implementation_.get();
  }
  Implementation& implementation() const { return *implementation_; }

 private:
  std::unique_ptr<Implementation> implementation_;
};

// Where an object's errors go: the log, and the recorder that was set.
class Reporter {
 public:
  explicit Reporter(ILogger& logger) : logger_(logger) {}
  Reporter(const Reporter&) = delete;
  Reporter& operator=(const Reporter&) = delete;
  ~Reporter() { set(nullptr); }
  void set(IErrorRecorder* recorder) {
    if (recorder != nullptr) recorder->incRefCount();
    if (recorder_ != nullptr) recorder_->decRefCount();
    recorder_ = recorder;
  }
  IErrorRecorder* get() const { return recorder_; }
  void log(ILogger::Severity severity, const std::string& text) const { logger_.log(severity, text.c_str()); }
  // Returns false.
  bool fail(ErrorCode code, const std::string& text) const;
  ILogger& logger() const { return logger_; }

 private:
  ILogger& logger_;
  IErrorRecorder* recorder_ = nullptr;
};

// Device memory, of the allocator where there is one.
class DeviceBlock {
 public:
  DeviceBlock() = default;
  DeviceBlock(const DeviceBlock&) = delete;
  DeviceBlock& operator=(const DeviceBlock&) = delete;
  ~DeviceBlock() { reset(); }
  bool allocate(IGpuAllocator* allocator, int64_t bytes);
  void reset();
  void* get() const { return memory_; }

 private:
  IGpuAllocator* allocator_ = nullptr;
  void* memory_ = nullptr;
};

class RuntimeImpl;

class EngineImpl final : public BareCudaEngine {
 public:
  EngineImpl(RuntimeImpl& runtime, ILogger& logger, Plan plan, int device);
  ~EngineImpl() noexcept override;
  // On the device. False = out of memory, which is reported.
  bool upload(IGpuAllocator* allocator);

  int32_t getNbLayers() const noexcept override { return static_cast<int32_t>(plan_.layers.size()); }
  IHostMemory* serialize() const noexcept override;
  IExecutionContext* createExecutionContext(ExecutionContextAllocationStrategy strategy) noexcept override;
  bool isRefittable() const noexcept override { return plan_.refittable; }
  char const* getName() const noexcept override { return plan_.name.c_str(); }
  int32_t getNbOptimizationProfiles() const noexcept override {
    return static_cast<int32_t>(plan_.profiles.size());
  }
  int32_t const* getProfileTensorValues(char const* name, int32_t profile,
                                        OptProfileSelector select) const noexcept override;
  EngineCapability getEngineCapability() const noexcept override { return EngineCapability::kSTANDARD; }
  void setErrorRecorder(IErrorRecorder* recorder) noexcept override { reporter_.set(recorder); }
  IErrorRecorder* getErrorRecorder() const noexcept override { return reporter_.get(); }
  ProfilingVerbosity getProfilingVerbosity() const noexcept override { return ProfilingVerbosity::kDETAILED; }
  IEngineInspector* createEngineInspector() const noexcept override;
  Dims getTensorShape(char const* name) const noexcept override;
  DataType getTensorDataType(char const* name) const noexcept override;
  TensorLocation getTensorLocation(char const* name) const noexcept override;
  bool isShapeInferenceIO(char const* name) const noexcept override;
  TensorIOMode getTensorIOMode(char const* name) const noexcept override;
  Dims getProfileShape(char const* name, int32_t profile, OptProfileSelector select) const noexcept override;
  int32_t getNbIOTensors() const noexcept override { return static_cast<int32_t>(plan_.tensors.size()); }
  char const* getIOTensorName(int32_t index) const noexcept override;
  HardwareCompatibilityLevel getHardwareCompatibilityLevel() const noexcept override {
    return HardwareCompatibilityLevel::kNONE;
  }
  int32_t getNbAuxStreams() const noexcept override { return 0; }
  int32_t getTensorBytesPerComponentV2(char const*, int32_t) const noexcept override { return -1; }
  int32_t getTensorComponentsPerElementV2(char const*, int32_t) const noexcept override { return -1; }
  TensorFormat getTensorFormatV2(char const*, int32_t) const noexcept override {
    return TensorFormat::kLINEAR;
  }
  char const* getTensorFormatDescV2(char const* name, int32_t profile) const noexcept override;
  int32_t getTensorVectorizedDimV2(char const*, int32_t) const noexcept override { return -1; }
  int64_t getStreamableWeightsSize() const noexcept override { return 0; }
  int64_t getDeviceMemorySizeV2() const noexcept override;
  int64_t getDeviceMemorySizeForProfileV2(int32_t profile) const noexcept override;

  const Plan& plan() const { return plan_; }
  int device() const { return device_; }
  const Reporter& reporter() const { return reporter_; }
  IGpuAllocator* allocator() const { return allocator_; }
  // Null = there is no such tensor, which is reported.
  const TensorSpec* tensor(char const* name) const;
  void* weights(size_t index) const { return weights_[index]->get(); }
  bool hasWeights(size_t index) const { return given_[index]; }
  void setGiven(size_t index) { given_[index] = true; }
  void addChild() { ++children_; }
  void removeChild() { --children_; }

 private:
  RuntimeImpl& runtime_;
  const Plan plan_;
  const int device_;
  Reporter reporter_;
  IGpuAllocator* allocator_ = nullptr;
  std::vector<std::unique_ptr<DeviceBlock>> weights_;
  DeviceBlock rest_;
  std::vector<std::atomic<bool>> given_;
  std::atomic<int32_t> children_ = 0;
};

class RuntimeImpl final : public BareRuntime {
 public:
  explicit RuntimeImpl(ILogger& logger) : reporter_(logger) {}
  ~RuntimeImpl() noexcept override;
  ICudaEngine* deserializeCudaEngine(void const* blob, std::size_t size) noexcept override;
  void setGpuAllocator(IGpuAllocator* allocator) noexcept override { allocator_ = allocator; }
  void setErrorRecorder(IErrorRecorder* recorder) noexcept override { reporter_.set(recorder); }
  IErrorRecorder* getErrorRecorder() const noexcept override { return reporter_.get(); }
  ILogger* getLogger() const noexcept override { return &reporter_.logger(); }
  void setEngineHostCodeAllowed(bool allowed) noexcept override { hostCode_ = allowed; }
  bool getEngineHostCodeAllowed() const noexcept override { return hostCode_; }
  void addChild() { ++children_; }
  void removeChild() { --children_; }

 private:
  Reporter reporter_;
  IGpuAllocator* allocator_ = nullptr;
  bool hostCode_ = false;
  std::atomic<int32_t> children_ = 0;
};

IExecutionContext* makeContext(EngineImpl& engine, ExecutionContextAllocationStrategy strategy);
IRefitter* makeRefitter(EngineImpl& engine, ILogger& logger);
// The engine behind an interface that this library has made.
EngineImpl& engineOf(ICudaEngine& engine);

}  // namespace nt::fake
