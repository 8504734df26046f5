#include "plan.h"

#include <array>
#include <cstring>
#include <stdexcept>
#include <utility>

#include "core/convert.h"
#include "core/json.h"

namespace nt::fake {

namespace {

using nvinfer1::DataType;
using nvinfer1::Dims;
using Severity = nvinfer1::ILogger::Severity;

constexpr std::string_view kMagic = "NTFAKEPLAN1\n";
constexpr size_t kHeader = 20;

uint32_t fnv1a(std::string_view text) {
  uint32_t hash = 2166136261U;
  for (const char c : text) hash = (hash ^ static_cast<uint8_t>(c)) * 16777619U;
  return hash;
}

uint32_t littleEndian(std::string_view at) {
  uint32_t value = 0;
  for (size_t i = 0; i < 4; ++i) value |= static_cast<uint32_t>(static_cast<uint8_t>(at[i])) << (8 * i);
  return value;
}

[[noreturn]] void wrong(const std::string& what) {
  throw std::runtime_error(what);
}

std::string text(const JsonValue& value, const char* what) {
  const auto string = value.string();
  if (!string) wrong(std::string(what) + " is no string");
  return std::string(*string);
}

int64_t integer(const JsonValue& value, const char* what) {
  const auto number = value.integer();
  if (!number) wrong(std::string(what) + " is no integer");
  return *number;
}

double number(const JsonValue& value, const char* what) {
  const auto number = value.number();
  if (!number) wrong(std::string(what) + " is no number");
  return *number;
}

bool flag(const JsonValue& of, const char* key) {
  const auto found = of.find(key);
  return found && found->kind() == JsonKind::kTrue;
}

JsonValue need(const JsonValue& of, const char* key) {
  const auto found = of.find(key);
  if (!found) wrong(std::string("no '") + key + "'");
  return *found;
}

Dims dims(const JsonValue& value) {
  Dims result{};
  if (!value.isArray() || value.size() > Dims::MAX_DIMS) wrong("a shape is no array of up to 8 integers");
  for (const JsonValue& extent : value.elements()) result.d[result.nbDims++] = integer(extent, "an extent");
  return result;
}

DataType dtype(const JsonValue& of) {
  static constexpr std::array<std::pair<std::string_view, DataType>, 10> kTypes = {
      {{"float32", DataType::kFLOAT},
       {"float16", DataType::kHALF},
       {"bfloat16", DataType::kBF16},
       {"float8", DataType::kFP8},
       {"int8", DataType::kINT8},
       {"uint8", DataType::kUINT8},
       {"int32", DataType::kINT32},
       {"int64", DataType::kINT64},
       {"bool", DataType::kBOOL},
       {"int4", DataType::kINT4}}};
  const auto value = of.find("dtype");
  if (!value) return DataType::kFLOAT;
  const std::string name = text(*value, "dtype");
  for (const auto& [known, type] : kTypes) {
    if (known == name) return type;
  }
  wrong("dtype '" + name + "'");
}

Severity severity(const JsonValue& of) {
  static constexpr std::array<std::string_view, 5> kNames = {"internal-error", "error", "warning", "info",
                                                             "verbose"};
  const std::string name = text(need(of, "severity"), "severity");
  for (size_t i = 0; i < kNames.size(); ++i) {
    if (kNames[i] == name) return static_cast<Severity>(i);
  }
  wrong("severity '" + name + "'");
}

TensorSpec tensor(const JsonValue& value) {
  TensorSpec spec;
  spec.name = text(need(value, "name"), "a tensor's name");
  spec.input = text(need(value, "mode"), "mode") == "input";
  spec.type = dtype(value);
  spec.shape = dims(need(value, "shape"));
  spec.shapeTensor = flag(value, "shapeTensor");
  const auto location = value.find("location");
  spec.onHost = spec.shapeTensor || (location && text(*location, "location") == "host");
  return spec;
}

size_t tensorNamed(const Plan& plan, const std::string& name) {
  const int32_t index = tensorIndex(plan, name);
  if (index < 0) wrong("tensor '" + name + "' is not among the tensors");
  return static_cast<size_t>(index);
}

size_t weightsNamed(const Plan& plan, const std::string& name) {
  for (size_t i = 0; i < plan.weights.size(); ++i) {
    if (plan.weights[i].name == name) return i;
  }
  wrong("weights '" + name + "' are not among the weights");
}

constexpr std::array kSelectors = {"min", "opt", "max"};

std::map<size_t, Bounds> profile(const Plan& plan, const JsonValue& value) {
  std::map<size_t, Bounds> result;
  for (const auto& [name, range] : value.members()) {
    Bounds& bounds = result[tensorNamed(plan, std::string(name))];
    const auto values = range.find("values");
    for (size_t i = 0; i < 3; ++i) {
      const auto shape = range.find(kSelectors[i]);
      bounds.shapes[i] = shape ? dims(*shape) : plan.tensors[tensorNamed(plan, std::string(name))].shape;
      if (!values) continue;
      for (const JsonValue& one : need(*values, kSelectors[i]).elements())
        bounds.values[i].push_back(static_cast<int32_t>(integer(one, "a value")));
    }
  }
  return result;
}

LayerSpec layer(const Plan& plan, const JsonValue& value, size_t index) {
  LayerSpec spec;
  spec.op = text(need(value, "op"), "op");
  const auto name = value.find("name");
  spec.name = name ? text(*name, "a layer's name") : spec.op + "_" + std::to_string(index);
  if (const auto inputs = value.find("inputs")) {
    for (const JsonValue& input : inputs->elements())
      spec.inputs.push_back(tensorNamed(plan, text(input, "an input")));
  }
  if (const auto output = value.find("output")) {
    spec.output = tensorNamed(plan, text(*output, "output"));
    spec.hasOutput = true;
  }
  if (const auto weight = value.find("weight"))
    spec.weight = static_cast<int32_t>(weightsNamed(plan, text(*weight, "weight")));
  const auto numberOf = [&](const char* key, auto& to) {
    if (const auto found = value.find(key)) to = static_cast<std::decay_t<decltype(to)>>(number(*found, key));
  };
  numberOf("a", spec.a);
  numberOf("b", spec.b);
  numberOf("max", spec.max);
  numberOf("us", spec.us);
  numberOf("usPerRow", spec.usPerRow);
  numberOf("rows", spec.rows);
  if (spec.op == "log") {
    spec.severity = severity(value);
    spec.text = text(need(value, "text"), "text");
  }
  struct Op {
    std::string_view name;
    size_t inputs;
    bool output;
  };
  static constexpr std::array<Op, 11> kOps = {{{"identity", 1, true},
                                               {"scale", 1, true},
                                               {"add", 2, true},
                                               {"rowsum", 1, true},
                                               {"nonzero", 1, true},
                                               {"fill", 1, true},
                                               {"sleep", 0, false},
                                               {"assert", 1, false},
                                               {"refuse", 0, false},
                                               {"log", 0, false},
                                               {"die", 0, false}}};
  for (const Op& op : kOps) {
    if (op.name != spec.op) continue;
    if (spec.inputs.size() != op.inputs || spec.hasOutput != op.output)
      wrong("op '" + spec.op + "' has the wrong inputs or output");
    return spec;
  }
  wrong("op '" + spec.op + "'");
}

Plan parse(std::string_view bytes, const JsonValue& root) {
  Plan plan;
  plan.bytes = bytes;
  const auto optionalText = [&](const char* key, std::string& to) {
    if (const auto found = root.find(key)) to = text(*found, key);
  };
  optionalText("name", plan.name);
  optionalText("tensorrt", plan.tensorrt);
  optionalText("compute", plan.compute);
  plan.hostCode = flag(root, "hostCode");
  plan.refittable = flag(root, "refittable");
  plan.stripped = flag(root, "stripped");
  for (const JsonValue& value : need(root, "tensors").elements()) plan.tensors.push_back(tensor(value));
  if (const auto weights = root.find("weights")) {
    for (const auto& [name, value] : weights->members()) {
      WeightsSpec spec{std::string(name), dtype(value), {}};
      for (const JsonValue& one : need(value, "values").elements())
        spec.values.push_back(number(one, "a weight"));
      plan.weights.push_back(std::move(spec));
    }
  }
  if (const auto coupled = root.find("coupled")) {
    for (const JsonValue& group : coupled->elements()) {
      plan.coupled.emplace_back();
      for (const JsonValue& name : group.elements())
        plan.coupled.back().push_back(weightsNamed(plan, text(name, "a name")));
    }
  }
  if (const auto profiles = root.find("profiles")) {
    for (const JsonValue& value : profiles->elements()) plan.profiles.push_back(profile(plan, value));
  }
  if (plan.profiles.empty()) plan.profiles.emplace_back();
  plan.activationBytes.assign(plan.profiles.size(), 0);
  if (const auto activation = root.find("activationBytes")) {
    size_t i = 0;
    if (activation->isArray()) {
      for (const JsonValue& one : activation->elements())
        plan.activationBytes.at(i++) = integer(one, "activationBytes");
    } else {
      plan.activationBytes.assign(plan.profiles.size(), integer(*activation, "activationBytes"));
    }
  }
  if (const auto found = root.find("weightBytes")) plan.weightBytes = integer(*found, "weightBytes");
  if (const auto found = root.find("scratchBytes")) plan.scratchBytes = integer(*found, "scratchBytes");
  for (const JsonValue& value : need(root, "layers").elements())
    plan.layers.push_back(layer(plan, value, plan.layers.size()));
  if (const auto log = root.find("log")) {
    for (const JsonValue& line : log->elements())
      plan.log.push_back({severity(line), text(need(line, "text"), "text")});
  }
  return plan;
}

Status refused(const std::string& why) {
  return {"ERR_ENGINE_INVALID", "IRuntime::deserializeCudaEngine: Error Code 1: Serialization (" + why + ")"};
}

}  // namespace

Expected<Plan> parsePlan(std::string_view bytes) {
  if (bytes.size() < kHeader || bytes.substr(0, kMagic.size()) != kMagic)
    return refused("Serialization assertion magicTagRead == kMAGIC_TAG failed. Magic tag does not match");
  const uint32_t length = littleEndian(bytes.substr(12));
  if (bytes.size() - kHeader != length)
    return refused("Serialization assertion safeVersionRead failed. " +
                   std::to_string(bytes.size() - kHeader) + " of " + std::to_string(length) +
                   " bytes are there");
  const std::string_view json = bytes.substr(kHeader);
  if (fnv1a(json) != littleEndian(bytes.substr(16)))
    return refused("Serialization assertion checksum failed. The plan is corrupt");
  const auto document = parseJson(json);
  if (!document) return refused(document.status().message());
  try {
    return parse(bytes, document->root());
  } catch (const std::exception& error) {
    return refused(error.what());
  }
}

int32_t tensorIndex(const Plan& plan, std::string_view name) {
  for (size_t i = 0; i < plan.tensors.size(); ++i) {
    if (plan.tensors[i].name == name) return static_cast<int32_t>(i);
  }
  return -1;
}

std::string dimsText(const Dims& dims) {
  std::string text = "[";
  for (int32_t i = 0; i < dims.nbDims; ++i) {
    if (i > 0) text += ',';
    text += std::to_string(dims.d[i]);
  }
  return text + "]";
}

int64_t volume(const Dims& dims) {
  int64_t count = 1;
  for (int32_t i = 0; i < dims.nbDims; ++i) count *= dims.d[i];
  return count;
}

bool isKnown(const Dims& dims) {
  for (int32_t i = 0; i < dims.nbDims; ++i) {
    if (dims.d[i] < 0) return false;
  }
  return dims.nbDims >= 0;
}

int64_t bytesOf(DataType type, int64_t count) {
  switch (type) {
    case DataType::kINT64:
      return count * 8;
    case DataType::kFLOAT:
    case DataType::kINT32:
      return count * 4;
    case DataType::kHALF:
    case DataType::kBF16:
      return count * 2;
    case DataType::kINT4:
      return (count + 1) / 2;
    default:
      return count;
  }
}

namespace {
template <class T>
T at(const void* values, int64_t index) {
  T value;
  std::memcpy(&value, static_cast<const char*>(values) + index * static_cast<int64_t>(sizeof(T)), sizeof(T));
  return value;
}
template <class T>
void put(void* values, int64_t index, T value) {
  std::memcpy(static_cast<char*>(values) + index * static_cast<int64_t>(sizeof(T)), &value, sizeof(T));
}
}  // namespace

double loadValue(DataType type, const void* values, int64_t index) {
  switch (type) {
    case DataType::kFLOAT:
      return static_cast<double>(at<float>(values, index));
    case DataType::kHALF:
      return static_cast<double>(f16ToFloat(at<uint16_t>(values, index)));
    case DataType::kBF16:
      return static_cast<double>(bf16ToFloat(at<uint16_t>(values, index)));
    case DataType::kINT8:
      return at<int8_t>(values, index);
    case DataType::kINT32:
      return at<int32_t>(values, index);
    case DataType::kINT64:
      return static_cast<double>(at<int64_t>(values, index));
    default:
      return at<uint8_t>(values, index);
  }
}

void storeValue(DataType type, void* values, int64_t index, double value) {
  switch (type) {
    case DataType::kFLOAT:
      return put(values, index, static_cast<float>(value));
    case DataType::kHALF:
      return put(values, index, floatToF16(static_cast<float>(value)));
    case DataType::kBF16:
      return put(values, index, floatToBf16(static_cast<float>(value)));
    case DataType::kINT8:
      return put(values, index, static_cast<int8_t>(value));
    case DataType::kINT32:
      return put(values, index, static_cast<int32_t>(value));
    case DataType::kINT64:
      return put(values, index, static_cast<int64_t>(value));
    case DataType::kBOOL:
      return put(values, index, static_cast<uint8_t>(value != 0));
    default:
      return put(values, index, static_cast<uint8_t>(value));
  }
}

}  // namespace nt::fake
