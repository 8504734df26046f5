#include "engine.h"

#include <cstdlib>
#include <cstring>
#include <new>

namespace nt::fake {

namespace {

constexpr std::string_view kVersion = "10.6.0";
constexpr std::string_view kCompute = "9.0";

class HostMemoryImpl final : public apiv::VHostMemory {
 public:
  explicit HostMemoryImpl(std::string bytes) : bytes_(std::move(bytes)) {}
  void* data() const noexcept override { return const_cast<char*>(bytes_.data()); }
  std::size_t size() const noexcept override { return bytes_.size(); }
  DataType type() const noexcept override { return DataType::kINT8; }

 private:
  std::string bytes_;
};

class InspectorImpl final : public BareEngineInspector {
 public:
  explicit InspectorImpl(const EngineImpl& engine) : engine_(engine) {}
  bool setExecutionContext(IExecutionContext const* context) noexcept override {
    context_ = context;
    return true;
  }
  IExecutionContext const* getExecutionContext() const noexcept override { return context_; }
  char const* getEngineInformation(LayerInformationFormat format) const noexcept override {
    if (format != LayerInformationFormat::kJSON) return nullptr;
    text_ = "{\"Layers\": [";
    for (const LayerSpec& layer : engine_.plan().layers) {
      if (text_.back() == '}') text_ += ", ";
      text_ += "{\"Name\": \"" + layer.name + "\", \"LayerType\": \"" + layer.op + "\"}";
    }
    text_ += "], \"Bindings\": [";
    for (const TensorSpec& tensor : engine_.plan().tensors)
      text_ += (text_.back() == '[' ? "\"" : ", \"") + tensor.name + "\"";
    text_ += "]}";
    return text_.c_str();
  }
  void setErrorRecorder(IErrorRecorder*) noexcept override {}

 private:
  const EngineImpl& engine_;
  IExecutionContext const* context_ = nullptr;
  mutable std::string text_;
};

}  // namespace

bool Reporter::fail(ErrorCode code, const std::string& text) const {
  log(ILogger::Severity::kERROR, text);
  if (recorder_ != nullptr) recorder_->reportError(code, text.c_str());
  return false;
}

bool DeviceBlock::allocate(IGpuAllocator* allocator, int64_t bytes) {
  reset();
  if (bytes <= 0) return true;
  allocator_ = allocator;
  if (allocator != nullptr) {
    memory_ = allocator->allocateAsync(static_cast<uint64_t>(bytes), 256, 0, nullptr);
  } else if (cudaMalloc(&memory_, static_cast<size_t>(bytes)) != cudaSuccess) {
    memory_ = nullptr;
  }
  return memory_ != nullptr;
}

void DeviceBlock::reset() {
  if (memory_ == nullptr) return;
  if (allocator_ != nullptr) {
    allocator_->deallocateAsync(memory_, nullptr);
  } else {
    cudaFree(memory_);
  }
  memory_ = nullptr;
}

EngineImpl::EngineImpl(RuntimeImpl& runtime, ILogger& logger, Plan plan, int device)
    : runtime_(runtime),
      plan_(std::move(plan)),
      device_(device),
      reporter_(logger),
      given_(plan_.weights.size()) {
  runtime_.addChild();
}

EngineImpl::~EngineImpl() noexcept {
  if (children_ > 0) violation("an engine is destroyed before its contexts or refitters");
  runtime_.removeChild();
}

bool EngineImpl::upload(IGpuAllocator* allocator) {
  allocator_ = allocator;
  const auto outOfMemory = [&] {
    return reporter_.fail(ErrorCode::kFAILED_ALLOCATION,
                          "IRuntime::deserializeCudaEngine: Error Code 2: OutOfMemory (Requested size was " +
                              std::to_string(plan_.weightBytes) + " bytes.)");
  };
  for (size_t i = 0; i < plan_.weights.size(); ++i) {
    const WeightsSpec& spec = plan_.weights[i];
    const auto count = static_cast<int64_t>(spec.values.size());
    weights_.push_back(std::make_unique<DeviceBlock>());
    if (!weights_[i]->allocate(allocator, bytesOf(spec.type, count))) return outOfMemory();
    if (plan_.stripped) continue;
    std::vector<char> packed(static_cast<size_t>(bytesOf(spec.type, count)));
    for (int64_t k = 0; k < count; ++k)
      storeValue(spec.type, packed.data(), k, spec.values[static_cast<size_t>(k)]);
    if (cudaMemcpy(weights_[i]->get(), packed.data(), packed.size(), cudaMemcpyHostToDevice) != cudaSuccess)
      return reporter_.fail(ErrorCode::kFAILED_EXECUTION, "Error Code 1: Cuda Runtime (copy of weights)");
    given_[i] = true;
  }
  return rest_.allocate(allocator, plan_.weightBytes) || outOfMemory();
}

IHostMemory* EngineImpl::serialize() const noexcept {
  // As it was read: a refit is not part of it.
  return new Owner<IHostMemory, HostMemoryImpl>(std::make_unique<HostMemoryImpl>(plan_.bytes));
}

IExecutionContext* EngineImpl::createExecutionContext(ExecutionContextAllocationStrategy strategy) noexcept {
  return makeContext(*this, strategy);
}

IEngineInspector* EngineImpl::createEngineInspector() const noexcept {
  return new Owner<IEngineInspector, InspectorImpl>(std::make_unique<InspectorImpl>(*this));
}

const TensorSpec* EngineImpl::tensor(char const* name) const {
  const int32_t index = name == nullptr ? -1 : tensorIndex(plan_, name);
  if (index >= 0) return &plan_.tensors[static_cast<size_t>(index)];
  reporter_.fail(ErrorCode::kINVALID_ARGUMENT,
                 "ICudaEngine: Error Code 3: API Usage Error (Given invalid tensor name: " +
                     std::string(name == nullptr ? "(null)" : name) + ".)");
  return nullptr;
}

int32_t const* EngineImpl::getProfileTensorValues(char const* name, int32_t profile,
                                                  OptProfileSelector select) const noexcept {
  const TensorSpec* spec = tensor(name);
  if (spec == nullptr || !spec->shapeTensor) return nullptr;
  const auto& bounds = plan_.profiles[static_cast<size_t>(profile)];
  const auto found = bounds.find(static_cast<size_t>(spec - plan_.tensors.data()));
  if (found == bounds.end()) return nullptr;
  const auto& values = found->second.values[static_cast<size_t>(select)];
  return values.empty() ? nullptr : values.data();
}

Dims EngineImpl::getTensorShape(char const* name) const noexcept {
  const TensorSpec* spec = tensor(name);
  return spec == nullptr ? Dims{-1, {}} : spec->shape;
}
DataType EngineImpl::getTensorDataType(char const* name) const noexcept {
  const TensorSpec* spec = tensor(name);
  return spec == nullptr ? DataType::kFLOAT : spec->type;
}
TensorLocation EngineImpl::getTensorLocation(char const* name) const noexcept {
  const TensorSpec* spec = tensor(name);
  return spec != nullptr && spec->onHost ? TensorLocation::kHOST : TensorLocation::kDEVICE;
}
bool EngineImpl::isShapeInferenceIO(char const* name) const noexcept {
  const TensorSpec* spec = tensor(name);
  return spec != nullptr && spec->shapeTensor;
}
TensorIOMode EngineImpl::getTensorIOMode(char const* name) const noexcept {
  const TensorSpec* spec = tensor(name);
  if (spec == nullptr) return TensorIOMode::kNONE;
  return spec->input ? TensorIOMode::kINPUT : TensorIOMode::kOUTPUT;
}
Dims EngineImpl::getProfileShape(char const* name, int32_t profile,
                                 OptProfileSelector select) const noexcept {
  const TensorSpec* spec = tensor(name);
  if (spec == nullptr || !spec->input || profile < 0 || profile >= getNbOptimizationProfiles())
    return Dims{-1, {}};
  const auto& bounds = plan_.profiles[static_cast<size_t>(profile)];
  const auto found = bounds.find(static_cast<size_t>(spec - plan_.tensors.data()));
  return found == bounds.end() ? spec->shape : found->second.shapes[static_cast<size_t>(select)];
}
char const* EngineImpl::getIOTensorName(int32_t index) const noexcept {
  if (index < 0 || index >= getNbIOTensors()) return nullptr;
  return plan_.tensors[static_cast<size_t>(index)].name.c_str();
}
char const* EngineImpl::getTensorFormatDescV2(char const* name, int32_t) const noexcept {
  const TensorSpec* spec = tensor(name);
  return spec == nullptr ? "" : "Row-major linear format (kLINEAR)";
}
int64_t EngineImpl::getDeviceMemorySizeV2() const noexcept {
  int64_t most = 0;
  for (const int64_t bytes : plan_.activationBytes) most = std::max(most, bytes);
  return most;
}
int64_t EngineImpl::getDeviceMemorySizeForProfileV2(int32_t profile) const noexcept {
  if (profile < 0 || profile >= getNbOptimizationProfiles()) return 0;
  return plan_.activationBytes[static_cast<size_t>(profile)];
}

RuntimeImpl::~RuntimeImpl() noexcept {
  if (children_ > 0) violation("a runtime is destroyed before its engines");
}

ICudaEngine* RuntimeImpl::deserializeCudaEngine(void const* blob, std::size_t size) noexcept {
  try {
    Expected<Plan> plan = parsePlan({static_cast<const char*>(blob), size});
    const auto refuse = [&](const std::string& why) -> ICudaEngine* {
      reporter_.fail(ErrorCode::kINTERNAL_ERROR, why);
      return nullptr;
    };
    if (!plan) return refuse(plan.status().message());
    if (plan->tensorrt != kVersion) {
      return refuse(
          "IRuntime::deserializeCudaEngine: Error Code 6: API Usage Error (The engine plan file is not "
          "compatible with this version of TensorRT, expecting library version " +
          std::string(kVersion) + " got " + plan->tensorrt + ", please rebuild.)");
    }
    if (plan->compute != kCompute) {
      return refuse(
          "IRuntime::deserializeCudaEngine: Error Code 6: API Usage Error (The engine plan file is generated "
          "on "
          "an incompatible device, expecting compute " +
          std::string(kCompute) + " got compute " + plan->compute + ", please rebuild.)");
    }
    if (plan->hostCode && !hostCode_) {
      return refuse(
          "IRuntime::deserializeCudaEngine: Error Code 9: API Usage Error (The engine contains host code, "
          "and "
          "getEngineHostCodeAllowed() is false)");
    }
    for (const LogSpec& line : plan->log) reporter_.log(line.severity, line.text);
    int device = 0;
    if (const cudaError_t error = cudaGetDevice(&device); error != cudaSuccess)
      return refuse(std::string("Error Code 1: Cuda Runtime (") + cudaGetErrorString(error) + ")");
    auto engine = std::make_unique<EngineImpl>(*this, reporter_.logger(), *std::move(plan), device);
    engine->setErrorRecorder(reporter_.get());
    if (!engine->upload(allocator_)) return nullptr;
    return new Owner<ICudaEngine, EngineImpl>(std::move(engine));
  } catch (const std::bad_alloc&) {
    reporter_.log(ILogger::Severity::kERROR, "Error Code 2: OutOfMemory (host)");
    return nullptr;
  }
}

EngineImpl& engineOf(ICudaEngine& engine) {
  return static_cast<Owner<ICudaEngine, EngineImpl>&>(engine).implementation();
}

}  // namespace nt::fake
