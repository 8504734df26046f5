// The factories of libnvinfer.so.10 that the module looks up, a refitter and a registry of plugins.
#include <cstring>
#include <vector>

#include "engine.h"

namespace nt::fake {

namespace {

constexpr int32_t kVersion = 100600;

class RefitterImpl final : public BareRefitter {
 public:
  RefitterImpl(EngineImpl& engine, ILogger& logger)
      : engine_(engine), reporter_(logger), set_(engine.plan().weights.size()) {
    engine_.addChild();
  }
  ~RefitterImpl() noexcept override { engine_.removeChild(); }

  void setErrorRecorder(IErrorRecorder* recorder) noexcept override { reporter_.set(recorder); }
  IErrorRecorder* getErrorRecorder() const noexcept override { return reporter_.get(); }
  ILogger* getLogger() const noexcept override { return &reporter_.logger(); }

  int32_t getAllWeights(int32_t size, char const** names) noexcept override {
    return tell(size, names, [](size_t) { return true; });
  }
  int32_t getMissingWeights(int32_t size, char const** names) noexcept override {
    return tell(size, names, [&](size_t i) { return isMissing(i); });
  }
  Weights getWeightsPrototype(char const* name) const noexcept override {
    const int32_t index = indexOf(name);
    if (index < 0) return {DataType::kFLOAT, nullptr, -1};
    const WeightsSpec& spec = engine_.plan().weights[static_cast<size_t>(index)];
    return {spec.type, nullptr, static_cast<int64_t>(spec.values.size())};
  }
  bool setNamedWeights(char const* name, Weights weights) noexcept override {
    const int32_t index = indexOf(name);
    if (index < 0) return usage("setNamedWeights", "no weights of the name " + std::string(name));
    const Weights wanted = getWeightsPrototype(name);
    if (wanted.type != weights.type || wanted.count != weights.count || weights.values == nullptr)
      return usage("setNamedWeights", "type or count of " + std::string(name) + " is wrong");
    set_[static_cast<size_t>(index)] = weights.values;
    return true;
  }
  bool refitCudaEngineAsync(cudaStream_t stream) noexcept override {
    if (getMissingWeights(0, nullptr) > 0) return usage("refitCudaEngineAsync", "weights are missing");
    for (size_t i = 0; i < set_.size(); ++i) {
      if (set_[i] == nullptr) continue;
      const WeightsSpec& spec = engine_.plan().weights[i];
      const auto bytes = static_cast<size_t>(bytesOf(spec.type, static_cast<int64_t>(spec.values.size())));
      if (const cudaError_t error =
              cudaMemcpyAsync(engine_.weights(i), set_[i], bytes, cudaMemcpyHostToDevice, stream);
          error != cudaSuccess) {
        return reporter_.fail(ErrorCode::kFAILED_EXECUTION,
                              std::string("IRefitter::refitCudaEngineAsync: Error Code 1: Cuda Runtime (") +
                                  cudaGetErrorString(error) + ")");
      }
      engine_.setGiven(i);
    }
    return true;
  }

 private:
  bool usage(const char* method, const std::string& why) const {
    return reporter_.fail(ErrorCode::kINVALID_ARGUMENT, std::string("IRefitter::") + method +
                                                            ": Error Code 3: API Usage Error (" + why + ")");
  }
  int32_t indexOf(char const* name) const {
    const auto& weights = engine_.plan().weights;
    for (size_t i = 0; i < weights.size(); ++i) {
      if (weights[i].name == name) return static_cast<int32_t>(i);
    }
    return -1;
  }
  bool isMissing(size_t index) const {
    if (set_[index] != nullptr) return false;
    if (!engine_.hasWeights(index)) return true;
    for (const auto& group : engine_.plan().coupled) {
      bool in = false;
      bool touched = false;
      for (const size_t i : group) {
        in = in || i == index;
        touched = touched || set_[i] != nullptr;
      }
      if (in && touched) return true;
    }
    return false;
  }
  template <class Is>
  int32_t tell(int32_t size, char const** names, Is is) const {
    int32_t count = 0;
    for (size_t i = 0; i < set_.size(); ++i) {
      if (!is(i)) continue;
      if (count < size && names != nullptr) names[count] = engine_.plan().weights[i].name.c_str();
      ++count;
    }
    return count;
  }

  EngineImpl& engine_;
  Reporter reporter_;
  std::vector<const void*> set_;
};

// Takes any plugin and makes none.
class Registry final : public BarePluginRegistry {
 public:
  bool registerCreator(IPluginCreatorInterface&, AsciiChar const*) noexcept override { return true; }
  void setErrorRecorder(IErrorRecorder*) noexcept override {}
};

}  // namespace

IRefitter* makeRefitter(EngineImpl& engine, ILogger& logger) {
  return new Owner<IRefitter, RefitterImpl>(std::make_unique<RefitterImpl>(engine, logger));
}

}  // namespace nt::fake

#define EXPORT extern "C" NT_FAKE_EXPORT

EXPORT int32_t getInferLibVersion() noexcept {
  return nt::fake::kVersion;
}
EXPORT nvinfer1::IPluginRegistry* getPluginRegistry() noexcept {
  static nt::fake::Registry registry;
  return &registry;
}
EXPORT void* createInferRuntime_INTERNAL(void* logger, int32_t version) noexcept {
  auto& log = *static_cast<nvinfer1::ILogger*>(logger);
  if (version != nt::fake::kVersion) {
    log.log(nvinfer1::ILogger::Severity::kERROR, "createInferRuntime: the version is not the library's");
    return nullptr;
  }
  return new nt::fake::Owner<nvinfer1::IRuntime, nt::fake::RuntimeImpl>(
      std::make_unique<nt::fake::RuntimeImpl>(log));
}
EXPORT void* createInferRefitter_INTERNAL(void* engine, void* logger, int32_t) noexcept {
  return nt::fake::makeRefitter(nt::fake::engineOf(*static_cast<nvinfer1::ICudaEngine*>(engine)),
                                *static_cast<nvinfer1::ILogger*>(logger));
}
// By it the library is told from a lean one. Engines are not built on the fake.
EXPORT void* createInferBuilder_INTERNAL(void* logger, int32_t) noexcept {
  static_cast<nvinfer1::ILogger*>(logger)->log(nvinfer1::ILogger::Severity::kERROR,
                                               "createInferBuilder: the fake TensorRT builds no engines");
  return nullptr;
}
