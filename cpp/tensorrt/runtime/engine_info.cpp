#include "tensorrt/runtime/engine_info.h"

#include <NvInfer.h>

#include <algorithm>
#include <array>
#include <utility>

#include "core/text.h"
#include "tensorrt/runtime/json_writer.h"

namespace nt::runtime {

namespace {

using nvinfer1::DataType;
using nvinfer1::Dims;
using nvinfer1::ICudaEngine;
using nvinfer1::OptProfileSelector;

constexpr std::array<std::pair<DataType, std::string_view>, 10> kNames = {{
    {DataType::kFLOAT, "float32"},
    {DataType::kHALF, "float16"},
    {DataType::kBF16, "bfloat16"},
    {DataType::kFP8, "float8"},
    {DataType::kINT8, "int8"},
    {DataType::kUINT8, "uint8"},
    {DataType::kINT32, "int32"},
    {DataType::kINT64, "int64"},
    {DataType::kBOOL, "bool"},
    {DataType::kINT4, "int4"},
}};

int64_t multiply(int64_t a, int64_t b) noexcept {
  int64_t product = 0;
  return __builtin_mul_overflow(a, b, &product) ? INT64_MAX : product;
}

std::string textOf(const char* text) {
  return text == nullptr ? "" : text;
}

Range shapeRange(const ICudaEngine& engine, const TensorFacts& tensor, int32_t profile) {
  const auto get = [&](OptProfileSelector which) {
    const Dims dims = engine.getProfileShape(tensor.name.c_str(), profile, which);
    // A profile may be silent on what has no dynamic dimension.
    return dims.nbDims == static_cast<int32_t>(tensor.shape.size()) ? toShape(dims) : tensor.shape;
  };
  return {get(OptProfileSelector::kMIN), get(OptProfileSelector::kOPT), get(OptProfileSelector::kMAX)};
}

// Empty where the engine tells none, as of values that were given with 64 bits.
Range valueRange(const ICudaEngine& engine, const TensorFacts& tensor, int32_t profile) {
  const Shape& largest = tensor.profiles[static_cast<size_t>(profile)].max;
  const auto count = static_cast<size_t>(volumeOf(tensor.isDynamic() ? largest : tensor.shape));
  const auto get = [&](OptProfileSelector which) -> std::vector<int64_t> {
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wdeprecated-declarations"  // its successor came with 10.11
    const int32_t* values = engine.getProfileTensorValues(tensor.name.c_str(), profile, which);
#pragma GCC diagnostic pop
    return values == nullptr ? std::vector<int64_t>() : std::vector<int64_t>(values, values + count);
  };
  return {get(OptProfileSelector::kMIN), get(OptProfileSelector::kOPT), get(OptProfileSelector::kMAX)};
}

Expected<TensorFacts> readTensor(const ICudaEngine& engine, const char* name, int32_t profiles) {
  TensorFacts tensor;
  tensor.name = name;
  tensor.type = engine.getTensorDataType(name);
  tensor.dtype = dtypeName(tensor.type);
  if (tensor.dtype.empty()) {
    return Status("ERR_MODEL_UNSUPPORTED",
                  "Tensor " + quoted(name) + " has TensorRT's data type " +
                      std::to_string(static_cast<int32_t>(tensor.type)) + ", which has no counterpart here",
                  "Build the engine with inputs and outputs of another type");
  }
  tensor.input = engine.getTensorIOMode(name) == nvinfer1::TensorIOMode::kINPUT;
  tensor.onHost = engine.getTensorLocation(name) == nvinfer1::TensorLocation::kHOST;
  tensor.shapeTensor = engine.isShapeInferenceIO(name);
  tensor.shape = toShape(engine.getTensorShape(name));
  for (int32_t i = 0; i < profiles; ++i) {
    tensor.layouts.push_back({textOf(engine.getTensorFormatDesc(name, i)),
                              engine.getTensorVectorizedDim(name, i),
                              std::max(engine.getTensorComponentsPerElement(name, i), 1)});
    if (!tensor.input) continue;
    tensor.profiles.push_back(shapeRange(engine, tensor, i));
    if (tensor.shapeTensor) tensor.values.push_back(valueRange(engine, tensor, i));
  }
  return tensor;
}

void write(JsonWriter& json, const Range& range) {
  json.open('{');
  json.key("min").value(range.min);
  json.key("opt").value(range.opt);
  json.key("max").value(range.max);
  json.close('}');
}

void write(JsonWriter& json, const std::vector<Range>& ranges) {
  json.open('[');
  for (const Range& range : ranges) write(json, range);
  json.close(']');
}

void write(JsonWriter& json, const TensorFacts& tensor) {
  json.open('{');
  json.key("name").value(tensor.name);
  json.key("mode").value(tensor.input ? "input" : "output");
  json.key("dtype").value(tensor.dtype);
  json.key("shape").value(tensor.shape);
  json.key("location").value(tensor.onHost ? "host" : "device");
  json.key("isShapeTensor").value(tensor.shapeTensor);
  json.key("formats").open('[');
  for (const TensorLayout& layout : tensor.layouts) json.value(layout.format);
  json.close(']');
  json.key("profiles");
  if (tensor.input) {
    write(json, tensor.profiles);
  } else {
    json.null();
  }
  json.key("values");
  // Values that the engine keeps to itself are no range.
  const bool known = std::any_of(tensor.values.begin(), tensor.values.end(),
                                 [](const Range& range) { return !range.max.empty(); });
  if (known) {
    write(json, tensor.values);
  } else {
    json.null();
  }
  json.close('}');
}

}  // namespace

bool TensorFacts::isDynamic() const noexcept {
  return std::any_of(shape.begin(), shape.end(), [](int64_t extent) { return extent < 0; });
}

int64_t TensorFacts::bytesOf(const Shape& of, int32_t profile) const noexcept {
  int64_t count = 1;
  const TensorLayout& layout = layouts[static_cast<size_t>(profile)];
  for (size_t i = 0; i < of.size(); ++i) {
    int64_t extent = of[i];
    if (static_cast<int64_t>(i) == layout.vectorizedDim && extent < INT64_MAX - layout.components) {
      extent = (extent + layout.components - 1) / layout.components * layout.components;
    }
    count = multiply(count, extent);
  }
  return bytesOfValues(type, count);
}

std::string_view dtypeName(DataType type) noexcept {
  for (const auto& [known, name] : kNames) {
    if (known == type) return name;
  }
  return {};
}

std::optional<DataType> parseDtype(std::string_view name) noexcept {
  for (const auto& [type, known] : kNames) {
    if (known == name) return type;
  }
  return std::nullopt;
}

int64_t bytesOfValues(DataType type, int64_t count) noexcept {
  switch (type) {
    case DataType::kINT64:
      return multiply(count, 8);
    case DataType::kFLOAT:
    case DataType::kINT32:
      return multiply(count, 4);
    case DataType::kHALF:
    case DataType::kBF16:
      return multiply(count, 2);
    case DataType::kINT4:
      return count / 2 + count % 2;
    default:
      return count;
  }
}

Shape toShape(const Dims& dims) {
  const int32_t rank = std::clamp<int32_t>(dims.nbDims, 0, Dims::MAX_DIMS);
  return {dims.d, dims.d + rank};
}

Dims toDims(const Shape& shape) noexcept {
  Dims dims{};
  dims.nbDims = static_cast<int32_t>(std::min<size_t>(shape.size(), Dims::MAX_DIMS));
  std::copy_n(shape.begin(), dims.nbDims, dims.d);
  return dims;
}

int64_t volumeOf(const Shape& shape) noexcept {
  int64_t count = 1;
  for (const int64_t extent : shape) count = multiply(count, extent);
  return count;
}

Expected<EngineFacts> readEngine(const ICudaEngine& engine) {
  EngineFacts facts;
  facts.name = textOf(engine.getName());
  facts.profiles = engine.getNbOptimizationProfiles();
  facts.layers = engine.getNbLayers();
  facts.streamableWeights = engine.getStreamableWeightsSize();
  facts.auxStreams = engine.getNbAuxStreams();
  facts.refittable = engine.isRefittable();
  switch (engine.getHardwareCompatibilityLevel()) {
    case nvinfer1::HardwareCompatibilityLevel::kAMPERE_PLUS:
      facts.hardwareCompatibility = "ampere+";
      break;
    case nvinfer1::HardwareCompatibilityLevel::kSAME_COMPUTE_CAPABILITY:
      facts.hardwareCompatibility = "same-compute-capability";
      break;
    default:
      facts.hardwareCompatibility = "none";
  }
  facts.capability =
      engine.getEngineCapability() == nvinfer1::EngineCapability::kSTANDARD ? "standard" : "safe";
  switch (engine.getProfilingVerbosity()) {
    case nvinfer1::ProfilingVerbosity::kDETAILED:
      facts.profilingVerbosity = "detailed";
      break;
    case nvinfer1::ProfilingVerbosity::kNONE:
      facts.profilingVerbosity = "none";
      break;
    default:
      facts.profilingVerbosity = "layer-names";
  }
  for (int32_t i = 0; i < facts.profiles; ++i) {
    facts.deviceMemory.push_back(engine.getDeviceMemorySizeForProfileV2(i));
  }
  const int32_t tensors = engine.getNbIOTensors();
  for (int32_t i = 0; i < tensors; ++i) {
    Expected<TensorFacts> tensor = readTensor(engine, engine.getIOTensorName(i), facts.profiles);
    if (!tensor) return tensor.status();
    facts.tensors.push_back(*std::move(tensor));
  }
  return facts;
}

std::string infoJson(const EngineFacts& facts) {
  JsonWriter json;
  json.open('{');
  json.key("name").value(facts.name);
  json.key("tensors").open('[');
  for (const TensorFacts& tensor : facts.tensors) write(json, tensor);
  json.close(']');
  json.key("profiles").value(facts.profiles);
  json.key("layers").value(facts.layers);
  json.key("deviceMemory").value(facts.deviceMemory);
  json.key("streamableWeights").value(facts.streamableWeights);
  json.key("auxStreams").value(facts.auxStreams);
  json.key("refittable").value(facts.refittable);
  json.key("hardwareCompatibility").value(facts.hardwareCompatibility);
  json.key("capability").value(facts.capability);
  json.key("profilingVerbosity").value(facts.profilingVerbosity);
  json.close('}');
  return json.take();
}

}  // namespace nt::runtime
