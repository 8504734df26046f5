// What of TensorRT's interfaces the fake does not have: a call says so and ends the process. Methods that
// came after TensorRT 10.6 are among them, as the library that the module runs on has no such entry in its
// tables.
#pragma once

#include <NvInfer.h>

#include <cstdio>
#include <cstdlib>

#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wdeprecated-declarations"

namespace nt::fake {

using namespace nvinfer1;

[[noreturn]] inline void unsupported(const char* method) {
  std::fprintf(stderr, "fake TensorRT: %s is not there in TensorRT 10.6, or not in the fake\n", method);
  std::abort();
}

class BareRuntime : public apiv::VRuntime {
 public:
  IRuntime* getPImpl() noexcept override { unsupported("getPImpl"); }
  nvinfer1::ICudaEngine* deserializeCudaEngine(void const*, std::size_t) noexcept override {
    unsupported("deserializeCudaEngine");
  }
  nvinfer1::ICudaEngine* deserializeCudaEngine(IStreamReader&) noexcept override {
    unsupported("deserializeCudaEngine");
  }
  void setDLACore(int32_t) noexcept override { unsupported("setDLACore"); }
  int32_t getDLACore() const noexcept override { unsupported("getDLACore"); }
  int32_t getNbDLACores() const noexcept override { unsupported("getNbDLACores"); }
  void setGpuAllocator(IGpuAllocator*) noexcept override { unsupported("setGpuAllocator"); }
  void setErrorRecorder(IErrorRecorder*) noexcept override { unsupported("setErrorRecorder"); }
  IErrorRecorder* getErrorRecorder() const noexcept override { unsupported("getErrorRecorder"); }
  ILogger* getLogger() const noexcept override { unsupported("getLogger"); }
  bool setMaxThreads(int32_t) noexcept override { unsupported("setMaxThreads"); }
  int32_t getMaxThreads() const noexcept override { unsupported("getMaxThreads"); }
  void setTemporaryDirectory(char const*) noexcept override { unsupported("setTemporaryDirectory"); }
  char const* getTemporaryDirectory() const noexcept override { unsupported("getTemporaryDirectory"); }
  void setTempfileControlFlags(TempfileControlFlags) noexcept override {
    unsupported("setTempfileControlFlags");
  }
  TempfileControlFlags getTempfileControlFlags() const noexcept override {
    unsupported("getTempfileControlFlags");
  }
  IPluginRegistry& getPluginRegistry() noexcept override { unsupported("getPluginRegistry"); }
  void setPluginRegistryParent(IPluginRegistry*) noexcept override { unsupported("setPluginRegistryParent"); }
  IRuntime* loadRuntime(char const*) noexcept override { unsupported("loadRuntime"); }
  void setEngineHostCodeAllowed(bool) noexcept override { unsupported("setEngineHostCodeAllowed"); }
  bool getEngineHostCodeAllowed() const noexcept override { unsupported("getEngineHostCodeAllowed"); }
  nvinfer1::ICudaEngine* deserializeCudaEngineV2(IStreamReaderV2&) noexcept override {
    unsupported("deserializeCudaEngineV2");
  }
};

class BareRefitter : public apiv::VRefitter {
 public:
  IRefitter* getPImpl() noexcept override { unsupported("getPImpl"); }
  bool setWeights(char const*, WeightsRole, const Weights) noexcept override { unsupported("setWeights"); }
  bool refitCudaEngine() noexcept override { unsupported("refitCudaEngine"); }
  int32_t getMissing(int32_t, char const**, WeightsRole*) noexcept override { unsupported("getMissing"); }
  int32_t getAll(int32_t, char const**, WeightsRole*) noexcept override { unsupported("getAll"); }
  bool setDynamicRange(char const*, float, float) noexcept override { unsupported("setDynamicRange"); }
  float getDynamicRangeMin(char const*) const noexcept override { unsupported("getDynamicRangeMin"); }
  float getDynamicRangeMax(char const*) const noexcept override { unsupported("getDynamicRangeMax"); }
  int32_t getTensorsWithDynamicRange(int32_t, char const**) const noexcept override {
    unsupported("getTensorsWithDynamicRange");
  }
  void setErrorRecorder(IErrorRecorder*) noexcept override { unsupported("setErrorRecorder"); }
  IErrorRecorder* getErrorRecorder() const noexcept override { unsupported("getErrorRecorder"); }
  bool setNamedWeights(char const*, Weights) noexcept override { unsupported("setNamedWeights"); }
  int32_t getMissingWeights(int32_t, char const**) noexcept override { unsupported("getMissingWeights"); }
  int32_t getAllWeights(int32_t, char const**) noexcept override { unsupported("getAllWeights"); }
  ILogger* getLogger() const noexcept override { unsupported("getLogger"); }
  bool setMaxThreads(int32_t) noexcept override { unsupported("setMaxThreads"); }
  int32_t getMaxThreads() const noexcept override { unsupported("getMaxThreads"); }
  bool setNamedWeightsWithLocation(char const*, Weights, TensorLocation) noexcept override {
    unsupported("setNamedWeightsWithLocation");
  }
  Weights getNamedWeights(char const*) const noexcept override { unsupported("getNamedWeights"); }
  TensorLocation getWeightsLocation(char const*) const noexcept override {
    unsupported("getWeightsLocation");
  }
  bool unsetNamedWeights(char const*) noexcept override { unsupported("unsetNamedWeights"); }
  void setWeightsValidation(bool) noexcept override { unsupported("setWeightsValidation"); }
  bool getWeightsValidation() const noexcept override { unsupported("getWeightsValidation"); }
  bool refitCudaEngineAsync(cudaStream_t) noexcept override { unsupported("refitCudaEngineAsync"); }
  Weights getWeightsPrototype(char const*) const noexcept override { unsupported("getWeightsPrototype"); }
};

class BareCudaEngine : public apiv::VCudaEngine {
 public:
  ICudaEngine* getPImpl() noexcept override { unsupported("getPImpl"); }
  int32_t getNbLayers() const noexcept override { unsupported("getNbLayers"); }
  IHostMemory* serialize() const noexcept override { unsupported("serialize"); }
  IExecutionContext* createExecutionContext(ExecutionContextAllocationStrategy) noexcept override {
    unsupported("createExecutionContext");
  }
  IExecutionContext* createExecutionContextWithoutDeviceMemory() noexcept override {
    unsupported("createExecutionContextWithoutDeviceMemory");
  }
  size_t getDeviceMemorySize() const noexcept override { unsupported("getDeviceMemorySize"); }
  bool isRefittable() const noexcept override { unsupported("isRefittable"); }
  char const* getName() const noexcept override { unsupported("getName"); }
  int32_t getNbOptimizationProfiles() const noexcept override { unsupported("getNbOptimizationProfiles"); }
  int32_t const* getProfileTensorValues(char const*, int32_t, OptProfileSelector) const noexcept override {
    unsupported("getProfileTensorValues");
  }
  EngineCapability getEngineCapability() const noexcept override { unsupported("getEngineCapability"); }
  void setErrorRecorder(IErrorRecorder*) noexcept override { unsupported("setErrorRecorder"); }
  IErrorRecorder* getErrorRecorder() const noexcept override { unsupported("getErrorRecorder"); }
  bool hasImplicitBatchDimension() const noexcept override { unsupported("hasImplicitBatchDimension"); }
  TacticSources getTacticSources() const noexcept override { unsupported("getTacticSources"); }
  ProfilingVerbosity getProfilingVerbosity() const noexcept override { unsupported("getProfilingVerbosity"); }
  IEngineInspector* createEngineInspector() const noexcept override { unsupported("createEngineInspector"); }
  Dims getTensorShape(char const*) const noexcept override { unsupported("getTensorShape"); }
  DataType getTensorDataType(char const*) const noexcept override { unsupported("getTensorDataType"); }
  TensorLocation getTensorLocation(char const*) const noexcept override { unsupported("getTensorLocation"); }
  bool isShapeInferenceIO(char const*) const noexcept override { unsupported("isShapeInferenceIO"); }
  TensorIOMode getTensorIOMode(char const*) const noexcept override { unsupported("getTensorIOMode"); }
  int32_t getTensorBytesPerComponent(char const*) const noexcept override {
    unsupported("getTensorBytesPerComponent");
  }
  int32_t getTensorComponentsPerElement(char const*) const noexcept override {
    unsupported("getTensorComponentsPerElement");
  }
  TensorFormat getTensorFormat(char const*) const noexcept override { unsupported("getTensorFormat"); }
  char const* getTensorFormatDesc(char const*) const noexcept override { unsupported("getTensorFormatDesc"); }
  int32_t getTensorVectorizedDim(char const*) const noexcept override {
    unsupported("getTensorVectorizedDim");
  }
  Dims getProfileShape(char const*, int32_t, OptProfileSelector) const noexcept override {
    unsupported("getProfileShape");
  }
  int32_t getNbIOTensors() const noexcept override { unsupported("getNbIOTensors"); }
  char const* getIOTensorName(int32_t) const noexcept override { unsupported("getIOTensorName"); }
  HardwareCompatibilityLevel getHardwareCompatibilityLevel() const noexcept override {
    unsupported("getHardwareCompatibilityLevel");
  }
  int32_t getNbAuxStreams() const noexcept override { unsupported("getNbAuxStreams"); }
  int32_t getTensorBytesPerComponentV2(char const*, int32_t) const noexcept override {
    unsupported("getTensorBytesPerComponentV2");
  }
  int32_t getTensorComponentsPerElementV2(char const*, int32_t) const noexcept override {
    unsupported("getTensorComponentsPerElementV2");
  }
  TensorFormat getTensorFormatV2(char const*, int32_t) const noexcept override {
    unsupported("getTensorFormatV2");
  }
  char const* getTensorFormatDescV2(char const*, int32_t) const noexcept override {
    unsupported("getTensorFormatDescV2");
  }
  int32_t getTensorVectorizedDimV2(char const*, int32_t) const noexcept override {
    unsupported("getTensorVectorizedDimV2");
  }
  ISerializationConfig* createSerializationConfig() noexcept override {
    unsupported("createSerializationConfig");
  }
  IHostMemory* serializeWithConfig(ISerializationConfig&) const noexcept override {
    unsupported("serializeWithConfig");
  }
  size_t getDeviceMemorySizeForProfile(int32_t) const noexcept override {
    unsupported("getDeviceMemorySizeForProfile");
  }
  IRefitter* createRefitter(ILogger&) noexcept override { unsupported("createRefitter"); }
  bool setWeightStreamingBudget(int64_t) noexcept override { unsupported("setWeightStreamingBudget"); }
  int64_t getWeightStreamingBudget() const noexcept override { unsupported("getWeightStreamingBudget"); }
  int64_t getMinimumWeightStreamingBudget() const noexcept override {
    unsupported("getMinimumWeightStreamingBudget");
  }
  int64_t getStreamableWeightsSize() const noexcept override { unsupported("getStreamableWeightsSize"); }
  bool isDebugTensor(char const*) const noexcept override { unsupported("isDebugTensor"); }
  bool setWeightStreamingBudgetV2(int64_t) noexcept override { unsupported("setWeightStreamingBudgetV2"); }
  int64_t getWeightStreamingBudgetV2() const noexcept override { unsupported("getWeightStreamingBudgetV2"); }
  int64_t getWeightStreamingAutomaticBudget() const noexcept override {
    unsupported("getWeightStreamingAutomaticBudget");
  }
  int64_t getWeightStreamingScratchMemorySize() const noexcept override {
    unsupported("getWeightStreamingScratchMemorySize");
  }
  int64_t getDeviceMemorySizeV2() const noexcept override { unsupported("getDeviceMemorySizeV2"); }
  int64_t getDeviceMemorySizeForProfileV2(int32_t) const noexcept override {
    unsupported("getDeviceMemorySizeForProfileV2");
  }
  int64_t const* getProfileTensorValuesV2(char const*, int32_t, OptProfileSelector) const noexcept override {
    unsupported("getProfileTensorValuesV2");
  }
  IExecutionContext* createExecutionContextWithRuntimeConfig(IRuntimeConfig*) noexcept override {
    unsupported("createExecutionContextWithRuntimeConfig");
  }
  IRuntimeConfig* createRuntimeConfig() noexcept override { unsupported("createRuntimeConfig"); }
  int64_t getEngineStat(EngineStat) const noexcept override { unsupported("getEngineStat"); }
  char const* getAliasedInputTensor(char const*) const noexcept override {
    unsupported("getAliasedInputTensor");
  }
};

class BareExecutionContext : public apiv::VExecutionContext {
 public:
  IExecutionContext* getPImpl() noexcept override { unsupported("getPImpl"); }
  void setDebugSync(bool) noexcept override { unsupported("setDebugSync"); }
  bool getDebugSync() const noexcept override { unsupported("getDebugSync"); }
  void setProfiler(IProfiler*) noexcept override { unsupported("setProfiler"); }
  IProfiler* getProfiler() const noexcept override { unsupported("getProfiler"); }
  ICudaEngine const& getEngine() const noexcept override { unsupported("getEngine"); }
  void setName(char const*) noexcept override { unsupported("setName"); }
  char const* getName() const noexcept override { unsupported("getName"); }
  void setDeviceMemory(void*) noexcept override { unsupported("setDeviceMemory"); }
  int32_t getOptimizationProfile() const noexcept override { unsupported("getOptimizationProfile"); }
  bool allInputDimensionsSpecified() const noexcept override { unsupported("allInputDimensionsSpecified"); }
  bool allInputShapesSpecified() const noexcept override { unsupported("allInputShapesSpecified"); }
  void setErrorRecorder(IErrorRecorder*) noexcept override { unsupported("setErrorRecorder"); }
  IErrorRecorder* getErrorRecorder() const noexcept override { unsupported("getErrorRecorder"); }
  bool executeV2(void* const*) noexcept override { unsupported("executeV2"); }
  bool setOptimizationProfileAsync(int32_t, cudaStream_t) noexcept override {
    unsupported("setOptimizationProfileAsync");
  }
  void setEnqueueEmitsProfile(bool) noexcept override { unsupported("setEnqueueEmitsProfile"); }
  bool getEnqueueEmitsProfile() const noexcept override { unsupported("getEnqueueEmitsProfile"); }
  bool reportToProfiler() const noexcept override { unsupported("reportToProfiler"); }
  bool setInputShape(char const*, Dims const&) noexcept override { unsupported("setInputShape"); }
  Dims getTensorShape(char const*) const noexcept override { unsupported("getTensorShape"); }
  Dims getTensorStrides(char const*) const noexcept override { unsupported("getTensorStrides"); }
  bool setTensorAddress(char const*, void*) noexcept override { unsupported("setTensorAddress"); }
  void const* getTensorAddress(char const*) const noexcept override { unsupported("getTensorAddress"); }
  bool setInputTensorAddress(char const*, void const*) noexcept override {
    unsupported("setInputTensorAddress");
  }
  bool setOutputTensorAddress(char const*, void*) noexcept override { unsupported("setOutputTensorAddress"); }
  int32_t inferShapes(int32_t, char const**) noexcept override { unsupported("inferShapes"); }
  bool setInputConsumedEvent(cudaEvent_t) noexcept override { unsupported("setInputConsumedEvent"); }
  cudaEvent_t getInputConsumedEvent() const noexcept override { unsupported("getInputConsumedEvent"); }
  void* getOutputTensorAddress(char const*) const noexcept override { unsupported("getOutputTensorAddress"); }
  bool setOutputAllocator(char const*, IOutputAllocator*) noexcept override {
    unsupported("setOutputAllocator");
  }
  IOutputAllocator* getOutputAllocator(char const*) noexcept override { unsupported("getOutputAllocator"); }
  int64_t getMaxOutputSize(char const*) const noexcept override { unsupported("getMaxOutputSize"); }
  bool setTemporaryStorageAllocator(IGpuAllocator*) noexcept override {
    unsupported("setTemporaryStorageAllocator");
  }
  IGpuAllocator* getTemporaryStorageAllocator() const noexcept override {
    unsupported("getTemporaryStorageAllocator");
  }
  bool enqueueV3(cudaStream_t) noexcept override { unsupported("enqueueV3"); }
  void setPersistentCacheLimit(size_t) noexcept override { unsupported("setPersistentCacheLimit"); }
  size_t getPersistentCacheLimit() const noexcept override { unsupported("getPersistentCacheLimit"); }
  bool setNvtxVerbosity(ProfilingVerbosity) noexcept override { unsupported("setNvtxVerbosity"); }
  ProfilingVerbosity getNvtxVerbosity() const noexcept override { unsupported("getNvtxVerbosity"); }
  void setAuxStreams(cudaStream_t*, int32_t) noexcept override { unsupported("setAuxStreams"); }
  bool setDebugListener(IDebugListener*) noexcept override { unsupported("setDebugListener"); }
  IDebugListener* getDebugListener() noexcept override { unsupported("getDebugListener"); }
  bool setTensorDebugState(char const*, bool) noexcept override { unsupported("setTensorDebugState"); }
  bool getDebugState(char const*) const noexcept override { unsupported("getDebugState"); }
  bool setAllTensorsDebugState(bool) noexcept override { unsupported("setAllTensorsDebugState"); }
  size_t updateDeviceMemorySizeForShapes() noexcept override {
    unsupported("updateDeviceMemorySizeForShapes");
  }
  void setDeviceMemoryV2(void*, int64_t) noexcept override { unsupported("setDeviceMemoryV2"); }
  IRuntimeConfig* getRuntimeConfig() const noexcept override { unsupported("getRuntimeConfig"); }
  bool setUnfusedTensorsDebugState(bool) noexcept override { unsupported("setUnfusedTensorsDebugState"); }
  bool getUnfusedTensorsDebugState() const noexcept override { unsupported("getUnfusedTensorsDebugState"); }
  bool setCommunicator(void*) noexcept override { unsupported("setCommunicator"); }
};

class BareEngineInspector : public apiv::VEngineInspector {
 public:
  IEngineInspector* getPImpl() noexcept override { unsupported("getPImpl"); }
  bool setExecutionContext(IExecutionContext const*) noexcept override { unsupported("setExecutionContext"); }
  IExecutionContext const* getExecutionContext() const noexcept override {
    unsupported("getExecutionContext");
  }
  char const* getLayerInformation(int32_t, LayerInformationFormat) const noexcept override {
    unsupported("getLayerInformation");
  }
  char const* getEngineInformation(LayerInformationFormat) const noexcept override {
    unsupported("getEngineInformation");
  }
  void setErrorRecorder(IErrorRecorder*) noexcept override { unsupported("setErrorRecorder"); }
  IErrorRecorder* getErrorRecorder() const noexcept override { unsupported("getErrorRecorder"); }
};

class BarePluginRegistry : public IPluginRegistry {
 public:
  virtual ~BarePluginRegistry() noexcept = default;
  bool registerCreator(IPluginCreator&, AsciiChar const* const) noexcept override {
    unsupported("registerCreator");
  }
  IPluginCreator* const* getPluginCreatorList(int32_t* const) const noexcept override {
    unsupported("getPluginCreatorList");
  }
  IPluginCreator* getPluginCreator(AsciiChar const* const, AsciiChar const* const,
                                   AsciiChar const* const) noexcept override {
    unsupported("getPluginCreator");
  }
  IPluginCreatorInterface* getCreator(AsciiChar const* const, AsciiChar const* const,
                                      AsciiChar const* const) noexcept override {
    unsupported("getCreator");
  }
  void setErrorRecorder(IErrorRecorder* const) noexcept override { unsupported("setErrorRecorder"); }
  IErrorRecorder* getErrorRecorder() const noexcept override { unsupported("getErrorRecorder"); }
  bool deregisterCreator(IPluginCreator const&) noexcept override { unsupported("deregisterCreator"); }
  bool isParentSearchEnabled() const override { unsupported("isParentSearchEnabled"); }
  void setParentSearchEnabled(bool const) override { unsupported("setParentSearchEnabled"); }
  PluginLibraryHandle loadLibrary(AsciiChar const*) noexcept override { unsupported("loadLibrary"); }
  void deregisterLibrary(PluginLibraryHandle) noexcept override { unsupported("deregisterLibrary"); }
  bool registerCreator(IPluginCreatorInterface&, AsciiChar const* const) noexcept override {
    unsupported("registerCreator");
  }
  IPluginCreatorInterface* const* getAllCreators(int32_t* const) const noexcept override {
    unsupported("getAllCreators");
  }
  bool deregisterCreator(IPluginCreatorInterface const&) noexcept override {
    unsupported("deregisterCreator");
  }
  IPluginResource* acquirePluginResource(AsciiChar const*, IPluginResource*) noexcept override {
    unsupported("acquirePluginResource");
  }
  int32_t releasePluginResource(AsciiChar const*) noexcept override { unsupported("releasePluginResource"); }
  IPluginCreatorInterface* const* getAllCreatorsRecursive(int32_t* const) noexcept override {
    unsupported("getAllCreatorsRecursive");
  }
};

}  // namespace nt::fake

#pragma GCC diagnostic pop
