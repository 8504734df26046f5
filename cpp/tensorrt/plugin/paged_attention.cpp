#include "tensorrt/plugin/paged_attention.h"

#include <cuda_runtime_api.h>

#include <algorithm>
#include <array>
#include <new>
#include <optional>
#include <string_view>

#include "tensorrt/plugin/step_state.h"

namespace nt {

namespace {

using namespace nvinfer1;

constexpr const char* kName = "NtPagedAttention";
constexpr const char* kVersion = "1";
constexpr const char* kNamespace = "";

thread_local StepState* currentState = nullptr;

std::optional<DType> toDType(DataType type) noexcept {
  switch (type) {
    case DataType::kFLOAT:
      return DType::kF32;
    case DataType::kHALF:
      return DType::kF16;
    case DataType::kBF16:
      return DType::kBF16;
    default:
      return std::nullopt;
  }
}

bool valid(const PagedAttentionParams& p) noexcept {
  return p.layer >= kLayerFromState && p.heads > 0 && p.kvHeads > 0 && p.heads % p.kvHeads == 0 &&
         p.headDim > 0 && p.scale > 0 && p.rope >= 0 && p.window >= 0;
}

class PagedAttention final : public IPluginV3,
                             public IPluginV3OneCore,
                             public IPluginV3OneBuild,
                             public IPluginV3OneRuntime {
 public:
  explicit PagedAttention(const PagedAttentionParams& params, StepState* state = nullptr) noexcept
      : params_(params), state_(state) {
    if (state_ != nullptr) ++state_->attached;
  }
  ~PagedAttention() override {
    if (state_ != nullptr) --state_->attached;
  }
  PagedAttention(const PagedAttention&) = delete;
  PagedAttention& operator=(const PagedAttention&) = delete;

  // IPluginV3
  IPluginCapability* getCapabilityInterface(PluginCapabilityType type) noexcept override {
    switch (type) {
      case PluginCapabilityType::kCORE:
        return static_cast<IPluginV3OneCore*>(this);
      case PluginCapabilityType::kBUILD:
        return static_cast<IPluginV3OneBuild*>(this);
      case PluginCapabilityType::kRUNTIME:
        return static_cast<IPluginV3OneRuntime*>(this);
    }
    return nullptr;
  }
  IPluginV3* clone() noexcept override { return new (std::nothrow) PagedAttention(params_, state_); }

  // Core
  const char* getPluginName() const noexcept override { return kName; }
  const char* getPluginVersion() const noexcept override { return kVersion; }
  const char* getPluginNamespace() const noexcept override { return kNamespace; }

  // Build
  int32_t getNbOutputs() const noexcept override { return 1; }
  int32_t configurePlugin(const DynamicPluginTensorDesc*, int32_t, const DynamicPluginTensorDesc*,
                          int32_t) noexcept override {
    return 0;
  }
  bool supportsFormatCombination(int32_t position, const DynamicPluginTensorDesc* tensors, int32_t,
                                 int32_t) noexcept override {
    const PluginTensorDesc& desc = tensors[position].desc;
    return desc.format == TensorFormat::kLINEAR && toDType(desc.type).has_value() &&
           desc.type == tensors[0].desc.type;
  }
  int32_t getOutputDataTypes(DataType* outputs, int32_t, const DataType* inputs,
                             int32_t) const noexcept override {
    outputs[0] = inputs[0];
    return 0;
  }
  int32_t getOutputShapes(const DimsExprs* inputs, int32_t, const DimsExprs*, int32_t, DimsExprs* outputs,
                          int32_t, IExprBuilder& builder) noexcept override {
    outputs[0].nbDims = 2;
    outputs[0].d[0] = inputs[0].d[0];
    outputs[0].d[1] = builder.constant(outputWidth());
    return 0;
  }
  // The rotated queries; FlashInfer's own scratch depends on the batch and lives in the StepState.
  size_t getWorkspaceSize(const DynamicPluginTensorDesc* inputs, int32_t, const DynamicPluginTensorDesc*,
                          int32_t) const noexcept override {
    const auto type = toDType(inputs[0].desc.type);
    if (!type) return 0;
    return static_cast<size_t>(inputs[0].max.d[0]) * static_cast<size_t>(outputWidth()) * sizeOf(*type);
  }
  // All instances of a shape cost the same whatever their layer: one timing serves them.
  const char* getTimingCacheID() noexcept override { return kName; }

  // Runtime
  int32_t onShapeChange(const PluginTensorDesc*, int32_t, const PluginTensorDesc*,
                        int32_t) noexcept override {
    return 0;
  }
  IPluginV3* attachToContext(IPluginResourceContext*) noexcept override {
    return new (std::nothrow) PagedAttention(params_, StepStateScope::current());
  }
  const PluginFieldCollection* getFieldsToSerialize() noexcept override {
    fields_ = {PluginField{"layer", &params_.layer, PluginFieldType::kINT32, 1},
               PluginField{"heads", &params_.heads, PluginFieldType::kINT32, 1},
               PluginField{"kvHeads", &params_.kvHeads, PluginFieldType::kINT32, 1},
               PluginField{"headDim", &params_.headDim, PluginFieldType::kINT32, 1},
               PluginField{"scale", &params_.scale, PluginFieldType::kFLOAT32, 1},
               PluginField{"rope", &params_.rope, PluginFieldType::kINT32, 1},
               PluginField{"window", &params_.window, PluginFieldType::kINT32, 1}};
    collection_ = {static_cast<int32_t>(fields_.size()), fields_.data()};
    return &collection_;
  }
  int32_t enqueue(const PluginTensorDesc* inputDesc, const PluginTensorDesc*, const void* const* inputs,
                  void* const* outputs, void* workspace, cudaStream_t stream) noexcept override;

 private:
  int64_t outputWidth() const noexcept { return static_cast<int64_t>(params_.heads) * params_.headDim; }

  PagedAttentionParams params_;
  StepState* state_;
  std::array<PluginField, 7> fields_{};
  PluginFieldCollection collection_{};
};

int32_t PagedAttention::enqueue(const PluginTensorDesc* inputDesc, const PluginTensorDesc*,
                                const void* const* inputs, void* const* outputs, void* workspace,
                                cudaStream_t stream) noexcept {
  const auto rows = static_cast<uint32_t>(inputDesc[0].dims.d[0]);
  if (rows == 0) return 0;
  const auto type = toDType(inputDesc[0].type);
  if (!type) return kPluginNoKernel;
  const auto elementBytes = static_cast<int64_t>(sizeOf(*type));
  if (state_ == nullptr)
    return cudaMemsetAsync(outputs[0], 0, static_cast<size_t>(rows * outputWidth() * elementBytes), stream);

  // The projection's output, which nothing else in a layer reads.
  return runPagedAttention(params_, *state_, *type, rows, const_cast<void*>(inputs[0]), outputs[0], workspace,
                           stream);
}

class PagedAttentionCreator final : public IPluginCreatorV3One {
 public:
  const char* getPluginName() const noexcept override { return kName; }
  const char* getPluginVersion() const noexcept override { return kVersion; }
  const char* getPluginNamespace() const noexcept override { return kNamespace; }
  const PluginFieldCollection* getFieldNames() noexcept override { return &names_; }
  IPluginV3* createPlugin(const char*, const PluginFieldCollection* fields, TensorRTPhase) noexcept override {
    PagedAttentionParams params;
    for (int32_t i = 0; fields != nullptr && i < fields->nbFields; ++i) {
      const PluginField& field = fields->fields[i];
      if (field.data == nullptr || field.length != 1) return nullptr;
      const std::string_view name = field.name;
      const auto integer = [&] { return *static_cast<const int32_t*>(field.data); };
      if (name == "layer")
        params.layer = integer();
      else if (name == "heads")
        params.heads = integer();
      else if (name == "kvHeads")
        params.kvHeads = integer();
      else if (name == "headDim")
        params.headDim = integer();
      else if (name == "scale")
        params.scale = *static_cast<const float*>(field.data);
      else if (name == "rope")
        params.rope = integer();
      else if (name == "window")
        params.window = integer();
    }
    return createPagedAttention(params);
  }

 private:
  PluginFieldCollection names_{0, nullptr};
};

}  // namespace

StepStateScope::StepStateScope(StepState* state) noexcept : previous_(currentState) {
  currentState = state;
}
StepStateScope::~StepStateScope() {
  currentState = previous_;
}
StepState* StepStateScope::current() noexcept {
  return currentState;
}

int32_t runPagedAttention(const PagedAttentionParams& params, const StepState& step, DType type,
                          uint32_t rows, void* input, void* out, void* rotated,
                          cudaStream_t stream) noexcept {
  const auto elementBytes = static_cast<int64_t>(sizeOf(type));
  const int32_t layer = params.layer == kLayerFromState ? step.layer : params.layer;
  if (rows != step.rows) return kPluginRowsMismatch;
  if (layer < 0 || layer >= step.layers || params.rope >= step.ropes) return kPluginUnknownLayer;
  const auto headDim = static_cast<uint32_t>(params.headDim);
  const kernels::AttentionKernels* kernels = kernels::findAttentionKernels(type, headDim, step.plainKernels);
  if (kernels == nullptr) return kPluginNoKernel;

  if (step.marks != nullptr) {
    const cudaError_t status = step.marks->mark(StepPart::linear(layer), stream);
    if (status != cudaSuccess) return status;
  }
  const int64_t heads = params.heads;
  const int64_t kvHeads = params.kvHeads;
  kernels::PagedKv kv;
  auto* pool = static_cast<char*>(step.pool) + layer * step.layerBytes;
  kv.headStride = headDim;
  kv.tokenStride = kvHeads * headDim;
  kv.pageStride = 2 * step.pageSize * kv.tokenStride;
  kv.k = pool;
  kv.v = pool + kv.pageStride / 2 * elementBytes;
  kv.indices = step.kvIndices;
  kv.indptr = step.kvIndptr;
  kv.lastPageLen = step.lastPageLen;
  kv.batch = step.batch;
  kv.kvHeads = static_cast<uint32_t>(kvHeads);
  kv.pageSize = static_cast<uint32_t>(step.pageSize);

  const bool inPlace =
      std::any_of(step.parts.begin(), step.parts.begin() + step.partCount,
                  [](const AttentionPart& part) { return part.path == AttentionPath::kFreshPrefill; });
  char* const q = static_cast<char*>(input);
  char* const k = q + heads * headDim * elementBytes;
  char* const v = k + kvHeads * headDim * elementBytes;
  kernels::RopeAppendArgs append;
  append.q = q;
  append.k = k;
  append.v = v;
  append.rowStride = (heads + 2 * kvHeads) * headDim;
  append.qOut = inPlace ? q : rotated;
  append.qOutStride = inPlace ? append.rowStride : heads * headDim;
  append.kOut = inPlace ? k : nullptr;
  append.kv = kv;
  append.batchIndices = step.batchIndices;
  append.positions = step.positions;
  append.cosSin = step.cosSin[params.rope];
  append.rows = rows;
  append.heads = static_cast<uint32_t>(heads);
  append.overlap = step.overlap;
  // Its own rows are all that it has to rotate.
  const bool rotatesItself =
      kernels->plans && step.partCount == 1 && step.parts[0].path == AttentionPath::kDecode;
  if (rotatesItself) {
    append.qOut = q;
    append.qOutStride = append.rowStride;
  } else if (const cudaError_t status = kernels->ropeAppend(append, stream); status != cudaSuccess) {
    return status;
  }

  kernels::AttentionArgs attention;
  attention.batchIndices = step.batchIndices;
  attention.positions = step.positions;
  attention.kv = kv;
  attention.heads = static_cast<uint32_t>(heads);
  attention.scale = params.scale;
  attention.window = params.window;
  attention.overlap = step.overlap;
  attention.cosSin = rotatesItself ? append.cosSin : nullptr;
  attention.qStride = append.qOutStride;
  attention.kvStride = append.rowStride;
  const int64_t outBytes = heads * headDim * elementBytes;
  const int64_t queryBytes = append.qOutStride * elementBytes;
  const int64_t inputBytes = append.rowStride * elementBytes;
  for (uint32_t i = 0; i < step.partCount; ++i) {
    const AttentionPart& part = step.parts[i];
    const auto run = (*kernels)[part.path].run;
    if (run == nullptr) return kPluginNoKernel;
    attention.q = static_cast<char*>(append.qOut) + part.firstRow * queryBytes;
    attention.k = k + part.firstRow * inputBytes;
    attention.v = v + part.firstRow * inputBytes;
    attention.out = static_cast<char*>(out) + part.firstRow * outBytes;
    attention.qIndptr = part.qIndptr;
    attention.kv.indptr = kv.indptr + part.firstSequence;
    attention.kv.lastPageLen = kv.lastPageLen + part.firstSequence;
    attention.kv.batch = part.sequences;
    attention.rows = part.rows;
    if (const cudaError_t status = run(part.workspace, part.plan, attention, stream); status != cudaSuccess)
      return status;
  }
  return step.marks == nullptr ? cudaSuccess : step.marks->mark(StepPart::attention(layer), stream);
}

nvinfer1::IPluginV3* createPagedAttention(const PagedAttentionParams& params) noexcept {
  return valid(params) ? new (std::nothrow) PagedAttention(params) : nullptr;
}

bool registerPagedAttention(nvinfer1::IPluginRegistry& registry) noexcept {
  static PagedAttentionCreator creator;
  return registry.registerCreator(creator, kNamespace);
}

}  // namespace nt
