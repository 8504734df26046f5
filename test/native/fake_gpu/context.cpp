// The fake's execution context: shapes and addresses as TensorRT checks them, and layers as work of a stream.
#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstring>
#include <thread>

#include "engine.h"

namespace nt::fake {

namespace {

using Severity = ILogger::Severity;

// What one run uses, as it was when it was enqueued.
struct Run {
  const Plan& plan;
  std::vector<Dims> shapes;
  std::vector<void*> addresses;
  std::vector<void*> weights;
  void* activation = nullptr;
  int64_t activationBytes = 0;
  int64_t rows = 1;
  int64_t found = 0;                               // values that are not zero
  std::vector<std::pair<int64_t, int64_t>> times;  // ns, begin and end, by layer
  std::shared_ptr<void> inFlight;
};

constexpr int64_t kNothing = -1;

// A tensor of a run, where the host reaches it.
struct View {
  DataType type;
  const Dims* shape;
  void* data;

  int64_t count() const { return volume(*shape); }
  double load(int64_t i) const { return loadValue(type, data, i); }
  void store(int64_t i, double value) const { storeValue(type, data, i, value); }
};

// Throws the text of the violation.
View view(const Run& run, size_t tensor) {
  const TensorSpec& spec = run.plan.tensors[tensor];
  const Dims& shape = run.shapes[tensor];
  const auto bytes = static_cast<size_t>(bytesOf(spec.type, volume(shape)));
  void* data = spec.onHost && !isDeviceAddress(run.addresses[tensor]) ? run.addresses[tensor]
                                                                      : reach(run.addresses[tensor], bytes);
  if (data == nullptr && bytes > 0) {
    throw std::runtime_error("tensor '" + spec.name + "' of " + std::to_string(bytes) +
                             " bytes is not within an allocation while a run uses it");
  }
  return {spec.type, &shape, data};
}

cudaError_t compute(Run& run, const LayerSpec& layer) {
  if (layer.op == "sleep") {
    std::this_thread::sleep_for(std::chrono::microseconds(layer.us + layer.usPerRow * run.rows));
    return cudaSuccess;
  }
  if (layer.op == "die") return cudaErrorIllegalAddress;
  if (layer.op == "log" || layer.op == "refuse") return cudaSuccess;
  const View in = view(run, layer.inputs[0]);
  const int64_t count = in.count();
  if (layer.op == "assert") {
    for (int64_t i = 0; i < count; ++i) {
      if (in.load(i) > layer.max) return cudaErrorAssert;
    }
    return cudaSuccess;
  }
  const View out = view(run, layer.output);
  if (layer.op == "identity") {
    std::memcpy(out.data, in.data, static_cast<size_t>(bytesOf(in.type, count)));
  } else if (layer.op == "scale") {
    double a = layer.a;
    if (layer.weight >= 0) {
      const auto index = static_cast<size_t>(layer.weight);
      const WeightsSpec& spec = run.plan.weights[index];
      const void* weights =
          reach(run.weights[index],
                static_cast<size_t>(bytesOf(spec.type, static_cast<int64_t>(spec.values.size()))));
      if (weights == nullptr)
        throw std::runtime_error("weights '" + spec.name + "' were freed before a run that uses them");
      a = loadValue(spec.type, weights, 0);
    }
    for (int64_t i = 0; i < count; ++i) out.store(i, a * in.load(i) + layer.b);
  } else if (layer.op == "add") {
    const View other = view(run, layer.inputs[1]);
    for (int64_t i = 0; i < count; ++i) out.store(i, in.load(i) + other.load(i));
  } else if (layer.op == "rowsum") {
    const int64_t width = in.shape->nbDims == 0 ? 1 : in.shape->d[in.shape->nbDims - 1];
    for (int64_t row = 0; row * width < count; ++row) {
      double sum = 0;
      for (int64_t i = 0; i < width; ++i) sum += in.load(row * width + i);
      out.store(row, sum);
    }
  } else if (layer.op == "fill") {
    for (int64_t i = 0; i < out.count(); ++i) out.store(i, layer.a);
  } else if (layer.op == "nonzero") {
    int64_t column = 0;
    for (int64_t i = 0; i < count; ++i) {
      if (in.load(i) == 0) continue;
      int64_t rest = i;
      for (int32_t d = in.shape->nbDims - 1; d >= 0; --d) {
        out.store(d * run.found + column, static_cast<double>(rest % in.shape->d[d]));
        rest /= in.shape->d[d];
      }
      ++column;
    }
  }
  return cudaSuccess;
}

cudaError_t guarded(const std::function<cudaError_t()>& work) {
  try {
    return work();
  } catch (const std::exception& error) {
    violation(error.what());
    return cudaErrorIllegalAddress;
  }
}

cudaError_t runLayer(Run& run, size_t index) {
  const auto now = [] {
    return std::chrono::steady_clock::now().time_since_epoch() / std::chrono::nanoseconds(1);
  };
  const int64_t begin = now();
  const cudaError_t error = guarded([&] { return compute(run, run.plan.layers[index]); });
  run.times[index] = {begin, now()};
  return error;
}

class ContextImpl final : public BareExecutionContext {
 public:
  ContextImpl(EngineImpl& engine, ExecutionContextAllocationStrategy strategy)
      : engine_(engine),
        plan_(engine.plan()),
        strategy_(strategy),
        reporter_(engine.reporter().logger()),
        inFlight_(std::make_shared<char>()),
        shapes_(plan_.tensors.size()),
        addresses_(plan_.tensors.size()),
        allocators_(plan_.tensors.size()) {
    engine_.addChild();
    reporter_.set(engine.getErrorRecorder());
    resetShapes();
  }
  ~ContextImpl() noexcept override {
    // Where the device has died what was queued is about to be dropped.
    if (deathOf(engine_.device()) == cudaSuccess && inFlight_.use_count() > 1)
      violation("a context is destroyed while a run of it is in flight or captured");
    engine_.removeChild();
  }

  bool allocateActivation() {
    using Strategy = ExecutionContextAllocationStrategy;
    if (strategy_ == Strategy::kUSER_MANAGED) return true;
    const int64_t bytes = strategy_ == Strategy::kSTATIC ? engine_.getDeviceMemorySizeV2() : needed();
    if (bytes == ownBytes_) return true;
    ownBytes_ = own_.allocate(engine_.allocator(), bytes) ? bytes : kNothing;
    if (ownBytes_ == bytes) return true;
    return reporter_.fail(ErrorCode::kFAILED_ALLOCATION,
                          "IExecutionContext: Error Code 2: OutOfMemory (Requested size was " +
                              std::to_string(bytes) + " bytes.)");
  }

  void setProfiler(IProfiler* profiler) noexcept override { profiler_ = profiler; }
  IProfiler* getProfiler() const noexcept override { return profiler_; }
  void setErrorRecorder(IErrorRecorder* recorder) noexcept override { reporter_.set(recorder); }
  IErrorRecorder* getErrorRecorder() const noexcept override { return reporter_.get(); }
  int32_t getOptimizationProfile() const noexcept override { return profile_; }

  bool setOptimizationProfileAsync(int32_t profile, cudaStream_t) noexcept override {
    const Use use(*this);
    if (profile < 0 || profile >= engine_.getNbOptimizationProfiles()) {
      return usage("setOptimizationProfileAsync",
                   "profile index " + std::to_string(profile) + " is out of range");
    }
    if (profile != profile_) {
      profile_ = profile;
      resetShapes();
    }
    return allocateActivation();
  }

  bool setInputShape(char const* name, Dims const& dims) noexcept override {
    const Use use(*this);
    const TensorSpec* spec = engine_.tensor(name);
    if (spec == nullptr || !spec->input) return usage("setInputShape", "no such input");
    const size_t index = indexOf(*spec);
    const Dims min = engine_.getProfileShape(name, profile_, OptProfileSelector::kMIN);
    const Dims max = engine_.getProfileShape(name, profile_, OptProfileSelector::kMAX);
    bool fits = dims.nbDims == spec->shape.nbDims;
    for (int32_t i = 0; fits && i < dims.nbDims; ++i) {
      fits = spec->shape.d[i] >= 0 ? dims.d[i] == spec->shape.d[i]
                                   : dims.d[i] >= min.d[i] && dims.d[i] <= max.d[i];
    }
    if (!fits) {
      return usage("setInputShape",
                   "Set dimension " + dimsText(dims) + " for tensor " + spec->name +
                       " does not satisfy any optimization profiles. Valid range for profile " +
                       std::to_string(profile_) + ": " + dimsText(min) + ".." + dimsText(max));
    }
    shapes_[index] = dims;
    return true;
  }

  Dims getTensorShape(char const* name) const noexcept override {
    const TensorSpec* spec = engine_.tensor(name);
    if (spec == nullptr) return Dims{-1, {}};
    if (spec->input) return shapes_[indexOf(*spec)];
    std::vector<Dims> shapes = shapes_;
    infer(shapes);
    return shapes[indexOf(*spec)];
  }

  bool setTensorAddress(char const* name, void* data) noexcept override {
    const Use use(*this);
    const TensorSpec* spec = engine_.tensor(name);
    if (spec == nullptr) return false;
    if (reinterpret_cast<uintptr_t>(data) % 256 != 0 && !spec->onHost)
      return usage("setTensorAddress", "the address of " + spec->name + " is not aligned to 256 bytes");
    addresses_[indexOf(*spec)] = data;
    return true;
  }
  bool setInputTensorAddress(char const* name, void const* data) noexcept override {
    return setTensorAddress(name, const_cast<void*>(data));
  }
  void const* getTensorAddress(char const* name) const noexcept override {
    const TensorSpec* spec = engine_.tensor(name);
    return spec == nullptr ? nullptr : addresses_[indexOf(*spec)];
  }
  bool setOutputAllocator(char const* name, IOutputAllocator* allocator) noexcept override {
    const TensorSpec* spec = engine_.tensor(name);
    if (spec == nullptr || spec->input) return usage("setOutputAllocator", "no such output");
    allocators_[indexOf(*spec)] = allocator;
    return true;
  }
  IOutputAllocator* getOutputAllocator(char const* name) noexcept override {
    const TensorSpec* spec = engine_.tensor(name);
    return spec == nullptr ? nullptr : allocators_[indexOf(*spec)];
  }
  bool setTemporaryStorageAllocator(IGpuAllocator* allocator) noexcept override {
    temporary_ = allocator;
    return true;
  }
  IGpuAllocator* getTemporaryStorageAllocator() const noexcept override { return temporary_; }

  int32_t inferShapes(int32_t most, char const** names) noexcept override {
    const Use use(*this);
    int32_t missing = 0;
    for (size_t i = 0; i < plan_.tensors.size(); ++i) {
      if (!plan_.tensors[i].input || isGiven(i)) continue;
      if (missing < most && names != nullptr) names[missing] = plan_.tensors[i].name.c_str();
      ++missing;
    }
    if (missing > 0) return missing;
    std::vector<Dims> shapes = shapes_;
    return checkValues() && infer(shapes) ? 0 : -1;
  }

  void setDeviceMemoryV2(void* memory, int64_t size) noexcept override {
    const Use use(*this);
    if (size < needed() || reinterpret_cast<uintptr_t>(memory) % 256 != 0) {
      usage("setDeviceMemoryV2", "the memory has " + std::to_string(size) +
                                     " bytes or is not aligned, the context needs " +
                                     std::to_string(needed()) + ", aligned to 256");
      return;
    }
    user_ = memory;
    userBytes_ = size;
  }

  bool enqueueV3(cudaStream_t stream) noexcept override;

 private:
  // TensorRT's contexts are used by one thread at a time.
  class Use {
   public:
    explicit Use(ContextImpl& context) : context_(context) {
      if (context_.users_.fetch_add(1) > 0) violation("two threads use a context at once");
    }
    Use(const Use&) = delete;
    Use& operator=(const Use&) = delete;
    ~Use() { --context_.users_; }

   private:
    ContextImpl& context_;
  };

  bool usage(const char* method, const std::string& why) const {
    return reporter_.fail(ErrorCode::kINVALID_ARGUMENT,
                          std::string("IExecutionContext::") + method +
                              ": Error Code 3: API Usage Error (Parameter check failed: " + why + ")");
  }
  size_t indexOf(const TensorSpec& spec) const { return static_cast<size_t>(&spec - plan_.tensors.data()); }
  int64_t needed() const { return engine_.getDeviceMemorySizeForProfileV2(profile_); }

  // Inputs whose profile leaves no choice have their shape already.
  void resetShapes() {
    for (size_t i = 0; i < shapes_.size(); ++i) {
      const TensorSpec& spec = plan_.tensors[i];
      shapes_[i] = spec.shape;
      if (!spec.input) continue;
      const Dims min = engine_.getProfileShape(spec.name.c_str(), profile_, OptProfileSelector::kMIN);
      const Dims max = engine_.getProfileShape(spec.name.c_str(), profile_, OptProfileSelector::kMAX);
      if (min.nbDims == max.nbDims && std::equal(min.d, min.d + min.nbDims, max.d)) shapes_[i] = min;
    }
  }
  bool isGiven(size_t tensor) const {
    return isKnown(shapes_[tensor]) && (!plan_.tensors[tensor].shapeTensor || addresses_[tensor] != nullptr);
  }
  std::vector<int64_t> valuesOf(size_t tensor) const {
    std::vector<int64_t> values;
    for (int64_t i = 0; i < volume(shapes_[tensor]); ++i)
      values.push_back(static_cast<int64_t>(loadValue(plan_.tensors[tensor].type, addresses_[tensor], i)));
    return values;
  }
  bool checkValues() const {
    for (const auto& [tensor, bounds] : plan_.profiles[static_cast<size_t>(profile_)]) {
      if (!plan_.tensors[tensor].shapeTensor || bounds.values[0].empty()) continue;
      const std::vector<int64_t> values = valuesOf(tensor);
      for (size_t i = 0; i < values.size() && i < bounds.values[0].size(); ++i) {
        if (values[i] < bounds.values[0][i] || values[i] > bounds.values[2][i]) {
          return usage("inferShapes", "value " + std::to_string(values[i]) + " of " +
                                          plan_.tensors[tensor].name + " is outside of profile " +
                                          std::to_string(profile_));
        }
      }
    }
    return true;
  }
  // Fills the shapes of outputs as far as the inputs are known. False = they contradict each other.
  bool infer(std::vector<Dims>& shapes) const;
  bool ready(cudaStream_t stream, std::vector<Dims>& shapes) const;
  bool provide(size_t tensor, const Dims& shape, cudaStream_t stream);
  bool findSizes(const std::shared_ptr<Run>& run, size_t layer, cudaStream_t stream);
  bool put(cudaStream_t stream, Work work) const;
  bool report(const Run& run, cudaStream_t stream);

  EngineImpl& engine_;
  const Plan& plan_;
  const ExecutionContextAllocationStrategy strategy_;
  Reporter reporter_;
  std::shared_ptr<void> inFlight_;
  int32_t profile_ = 0;
  std::vector<Dims> shapes_;
  std::vector<void*> addresses_;
  std::vector<IOutputAllocator*> allocators_;
  IGpuAllocator* temporary_ = nullptr;
  IProfiler* profiler_ = nullptr;
  DeviceBlock own_;
  int64_t ownBytes_ = kNothing;
  void* user_ = nullptr;
  int64_t userBytes_ = kNothing;
  std::atomic<int32_t> users_ = 0;
};

bool ContextImpl::infer(std::vector<Dims>& shapes) const {
  for (const LayerSpec& layer : plan_.layers) {
    if (!layer.hasOutput) continue;
    const Dims& in = shapes[layer.inputs[0]];
    Dims& out = shapes[layer.output];
    if (layer.op == "fill") {
      if (!isGiven(layer.inputs[0])) continue;
      const std::vector<int64_t> values = valuesOf(layer.inputs[0]);
      out.nbDims = static_cast<int32_t>(values.size());
      std::copy(values.begin(), values.end(), out.d);
    } else if (layer.op == "nonzero") {
      out.nbDims = 2;
      out.d[0] = in.nbDims;
      out.d[1] = -1;
    } else {
      out = in;
      if (layer.op == "rowsum" && out.nbDims > 0) --out.nbDims;
    }
    if (layer.op != "add" || !isKnown(in) || !isKnown(shapes[layer.inputs[1]])) continue;
    const Dims& other = shapes[layer.inputs[1]];
    if (dimsText(in) != dimsText(other))
      return usage("inferShapes",
                   layer.name + ": " + dimsText(in) + " and " + dimsText(other) + " do not match");
  }
  return true;
}

bool ContextImpl::ready(cudaStream_t stream, std::vector<Dims>& shapes) const {
  int device = 0;
  if (const cudaError_t error = cudaGetDevice(&device); error != cudaSuccess || device != engine_.device())
    return usage("enqueueV3", "the engine's device is not the current one");
  if (stream != nullptr && !isStream(stream)) {
    violation("a context is enqueued on a stream that does not exist");
    return false;
  }
  for (size_t i = 0; i < plan_.tensors.size(); ++i) {
    const TensorSpec& spec = plan_.tensors[i];
    if (spec.input && !isGiven(i))
      return usage("enqueueV3", "the shape or values of input " + spec.name + " are not specified");
  }
  if (!checkValues() || !infer(shapes)) return false;
  for (size_t i = 0; i < plan_.tensors.size(); ++i) {
    const TensorSpec& spec = plan_.tensors[i];
    const bool allocates = !spec.input && allocators_[i] != nullptr;
    if (!spec.input && !isKnown(shapes[i]) && !allocates)
      return usage("enqueueV3",
                   "output " + spec.name + " has a data-dependent shape and no output allocator");
    if (addresses_[i] == nullptr && !allocates && (!isKnown(shapes[i]) || volume(shapes[i]) > 0))
      return usage("enqueueV3", "Neither address or allocator is set for tensor " + spec.name);
  }
  for (size_t i = 0; i < plan_.weights.size(); ++i) {
    if (!engine_.hasWeights(i))
      return usage("enqueueV3", "weights " + plan_.weights[i].name + " were never set");
  }
  if (needed() > 0 && strategy_ == ExecutionContextAllocationStrategy::kUSER_MANAGED &&
      (user_ == nullptr || userBytes_ < needed()))
    return usage("enqueueV3", "the context's device memory is not set");
  return true;
}

bool ContextImpl::put(cudaStream_t stream, Work work) const {
  const cudaError_t error = submit(stream, std::move(work));
  if (error == cudaSuccess) return true;
  return reporter_.fail(ErrorCode::kFAILED_EXECUTION,
                        std::string("IExecutionContext::enqueueV3: Error Code 1: Cuda Runtime (") +
                            cudaGetErrorString(error) + ")");
}

bool ContextImpl::provide(size_t tensor, const Dims& shape, cudaStream_t stream) {
  IOutputAllocator* allocator = allocators_[tensor];
  if (allocator == nullptr) return true;
  const TensorSpec& spec = plan_.tensors[tensor];
  const auto bytes = static_cast<uint64_t>(std::max<int64_t>(bytesOf(spec.type, volume(shape)), 1));
  void* memory = allocator->reallocateOutputAsync(spec.name.c_str(), addresses_[tensor], bytes, 256, stream);
  if (memory == nullptr) {
    return reporter_.fail(
        ErrorCode::kFAILED_ALLOCATION,
        "IExecutionContext::enqueueV3: Error Code 2: OutOfMemory (the output allocator of " + spec.name +
            " gave no " + std::to_string(bytes) + " bytes)");
  }
  addresses_[tensor] = memory;
  allocator->notifyShape(spec.name.c_str(), shape);
  return true;
}

// The host must know how much the data gives before the layer can write it.
bool ContextImpl::findSizes(const std::shared_ptr<Run>& run, size_t index, cudaStream_t stream) {
  const LayerSpec& layer = plan_.layers[index];
  if (isCapturing(stream)) {
    invalidateCapture(stream);
    return reporter_.fail(
        ErrorCode::kFAILED_EXECUTION,
        "IExecutionContext::enqueueV3: Error Code 1: Cuda Runtime (operation not permitted when stream "
        "is capturing)");
  }
  const size_t input = layer.inputs[0];
  if (!put(stream, [run, input] {
        return guarded([&] {
          const View in = view(*run, input);
          run->found = 0;
          for (int64_t i = 0; i < in.count(); ++i) run->found += in.load(i) != 0 ? 1 : 0;
          return cudaSuccess;
        });
      })) {
    return false;
  }
  if (const cudaError_t error = cudaStreamSynchronize(stream); error != cudaSuccess) {
    return reporter_.fail(ErrorCode::kFAILED_EXECUTION,
                          std::string("IExecutionContext::enqueueV3: Error Code 1: Cuda Runtime (") +
                              cudaGetErrorString(error) + ")");
  }
  run->shapes[layer.output].d[1] = run->found;
  if (!provide(layer.output, run->shapes[layer.output], stream)) return false;
  run->addresses[layer.output] = addresses_[layer.output];
  return true;
}

bool ContextImpl::report(const Run& run, cudaStream_t stream) {
  if (const cudaError_t error = cudaStreamSynchronize(stream); error != cudaSuccess) {
    return reporter_.fail(ErrorCode::kFAILED_EXECUTION,
                          std::string("IExecutionContext::enqueueV3: Error Code 1: Cuda Runtime (") +
                              cudaGetErrorString(error) + ")");
  }
  for (size_t i = 0; i < plan_.layers.size(); ++i) {
    profiler_->reportLayerTime(plan_.layers[i].name.c_str(),
                               static_cast<float>(run.times[i].second - run.times[i].first) * 1e-6F);
  }
  return true;
}

bool ContextImpl::enqueueV3(cudaStream_t stream) noexcept {
  const Use use(*this);
  std::vector<Dims> shapes = shapes_;
  if (!ready(stream, shapes)) return false;
  int64_t rows = 1;
  for (size_t i = 0; i < plan_.tensors.size(); ++i) {
    if (plan_.tensors[i].input && shapes[i].nbDims > 0) {
      rows = shapes[i].d[0];
      break;
    }
  }
  for (const LayerSpec& layer : plan_.layers) {
    if (layer.op == "log") reporter_.log(layer.severity, layer.text);
    if (layer.op != "refuse" || layer.rows != rows) continue;
    return reporter_.fail(ErrorCode::kINTERNAL_ERROR,
                          "IExecutionContext::enqueueV3: Error Code 2: Internal Error (" + layer.name +
                              " refuses " + std::to_string(rows) + " rows)");
  }
  for (size_t i = 0; i < plan_.tensors.size(); ++i) {
    if (!plan_.tensors[i].input && isKnown(shapes[i]) && !provide(i, shapes[i], stream)) return false;
  }
  const auto run = std::make_shared<Run>(
      Run{plan_, std::move(shapes), addresses_, {}, nullptr, 0, rows, 0, {}, inFlight_});
  for (size_t i = 0; i < plan_.weights.size(); ++i) run->weights.push_back(engine_.weights(i));
  run->activation = strategy_ == ExecutionContextAllocationStrategy::kUSER_MANAGED ? user_ : own_.get();
  run->activationBytes = needed();
  run->times.resize(plan_.layers.size());

  void* scratch = nullptr;
  if (plan_.scratchBytes > 0 && temporary_ != nullptr) {
    scratch = temporary_->allocateAsync(static_cast<uint64_t>(plan_.scratchBytes), 256, 0, stream);
    if (scratch == nullptr) {
      return reporter_.fail(ErrorCode::kFAILED_ALLOCATION,
                            "IExecutionContext::enqueueV3: Error Code 2: OutOfMemory (no scratch memory of " +
                                std::to_string(plan_.scratchBytes) + " bytes)");
    }
  }
  // Activations and scratch are written whole, so that memory which is too small or freed shows.
  bool done = put(stream, [run, scratch, bytes = plan_.scratchBytes] {
    return guarded([&] {
      for (const auto& [memory, size] :
           {std::pair{run->activation, run->activationBytes}, std::pair{scratch, bytes}}) {
        if (memory == nullptr || size == 0) continue;
        void* host = reach(memory, static_cast<size_t>(size));
        if (host == nullptr)
          throw std::runtime_error("a run's activation or scratch memory is too small or was freed");
        std::memset(host, 0xA5, static_cast<size_t>(size));
      }
      return cudaSuccess;
    });
  });
  for (size_t i = 0; done && i < plan_.layers.size(); ++i) {
    if (plan_.layers[i].op == "nonzero") done = findSizes(run, i, stream);
    if (done) done = put(stream, [run, i] { return runLayer(*run, i); });
  }
  if (scratch != nullptr) temporary_->deallocateAsync(scratch, stream);
  if (!done) return false;
  return profiler_ == nullptr || isCapturing(stream) || report(*run, stream);
}

}  // namespace

IExecutionContext* makeContext(EngineImpl& engine, ExecutionContextAllocationStrategy strategy) {
  auto context = std::make_unique<ContextImpl>(engine, strategy);
  if (!context->allocateActivation()) return nullptr;
  return new Owner<IExecutionContext, ContextImpl>(std::move(context));
}

}  // namespace nt::fake
