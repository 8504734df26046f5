#include "napi/onnx_arguments.h"

#include <array>
#include <string_view>
#include <utility>
#include <vector>

#include "core/json.h"
#include "napi/arguments.h"

namespace nt::napi {
namespace {

template <class T, size_t N>
T readChoice(FieldReader& fields, const char* field,
             const std::array<std::pair<std::string_view, T>, N>& choices, const char* expected) {
  const std::string name = fields.string(field);
  for (const auto& [choice, value] : choices) {
    if (choice == name) return value;
  }
  fields.fail(field, expected);
  return choices[0].second;
}

constexpr std::array kPrecisions = {
    std::pair<std::string_view, OnnxPrecision>{"fp32", OnnxPrecision::kF32},
    std::pair<std::string_view, OnnxPrecision>{"tf32", OnnxPrecision::kTF32},
    std::pair<std::string_view, OnnxPrecision>{"fp16", OnnxPrecision::kF16},
    std::pair<std::string_view, OnnxPrecision>{"bf16", OnnxPrecision::kBF16},
    std::pair<std::string_view, OnnxPrecision>{"int8", OnnxPrecision::kInt8},
    std::pair<std::string_view, OnnxPrecision>{"fp8", OnnxPrecision::kFp8},
    std::pair<std::string_view, OnnxPrecision>{"strongly-typed", OnnxPrecision::kStronglyTyped}};
constexpr std::array kRefits = {std::pair<std::string_view, OnnxRefit>{"none", OnnxRefit::kNone},
                                std::pair<std::string_view, OnnxRefit>{"identical", OnnxRefit::kIdentical},
                                std::pair<std::string_view, OnnxRefit>{"any", OnnxRefit::kAny}};
constexpr std::array kHardware = {
    std::pair<std::string_view, OnnxHardware>{"none", OnnxHardware::kNone},
    std::pair<std::string_view, OnnxHardware>{"ampere+", OnnxHardware::kAmperePlus},
    std::pair<std::string_view, OnnxHardware>{"same-compute-capability",
                                              OnnxHardware::kSameComputeCapability}};
constexpr std::array kVerbosities = {
    std::pair<std::string_view, OnnxVerbosity>{"layer-names", OnnxVerbosity::kLayerNames},
    std::pair<std::string_view, OnnxVerbosity>{"none", OnnxVerbosity::kNone},
    std::pair<std::string_view, OnnxVerbosity>{"detailed", OnnxVerbosity::kDetailed}};
constexpr std::array kIoTypes = {std::pair<std::string_view, OnnxIoType>{"model", OnnxIoType::kModel},
                                 std::pair<std::string_view, OnnxIoType>{"fp16", OnnxIoType::kF16},
                                 std::pair<std::string_view, OnnxIoType>{"bf16", OnnxIoType::kBF16}};

bool readIntegers(const JsonValue& object, std::string_view key, std::vector<int64_t>& to) {
  const auto list = object.find(key);
  if (!list || !list->isArray()) return false;
  for (const JsonValue element : list->elements()) {
    const auto value = element.integer();
    if (!value) return false;
    to.push_back(*value);
  }
  return true;
}

// JSON: `[[{ "input", "min", "opt", "max", "values" }]]`, a list of ranges for each profile.
std::vector<OnnxProfile> readProfiles(FieldReader& fields, const char* field) {
  std::vector<OnnxProfile> profiles;
  const std::string text = fields.string(field);
  if (!fields.status()) return profiles;
  const Expected<JsonDocument> document = parseJson(text);
  bool valid = document && document->root().isArray();
  if (valid) {
    for (const JsonValue list : document->root().elements()) {
      OnnxProfile& profile = profiles.emplace_back();
      valid = valid && list.isArray();
      for (const JsonValue item : list.elements()) {
        OnnxRange& range = profile.emplace_back();
        const auto input = item.find("input");
        const auto name = input ? input->string() : std::nullopt;
        const auto values = item.find("values");
        valid = valid && name && values && readIntegers(item, "min", range.min) &&
                readIntegers(item, "opt", range.opt) && readIntegers(item, "max", range.max);
        if (!valid) break;
        range.input = *name;
        range.values = values->kind() == JsonKind::kTrue;
      }
    }
  }
  if (!valid) fields.fail(field, "JSON of lists of { input, min, opt, max, values }");
  return profiles;
}

// JSON: `[{ "pattern", "precision" }]`
std::vector<OnnxLayerRule> readLayers(FieldReader& fields, const char* field) {
  std::vector<OnnxLayerRule> rules;
  const std::string text = fields.string(field);
  if (!fields.status()) return rules;
  const Expected<JsonDocument> document = parseJson(text);
  bool valid = document && document->root().isArray();
  if (valid) {
    for (const JsonValue item : document->root().elements()) {
      const auto pattern = item.find("pattern");
      const auto precision = item.find("precision");
      const auto name = precision ? precision->string() : std::nullopt;
      valid = valid && pattern && pattern->string() && name;
      if (!valid) break;
      OnnxLayerRule& rule = rules.emplace_back();
      rule.pattern = *pattern->string();
      bool known = false;
      for (const auto& [choice, value] : kPrecisions) {
        if (choice == *name) rule.precision = value;
        known = known || choice == *name;
      }
      valid = known;
    }
  }
  if (!valid) fields.fail(field, "JSON of a list of { pattern, precision }");
  return rules;
}

OnnxSource readSource(FieldReader& fields) {
  OnnxSource source;
  source.path = fields.string("modelPath");
  source.bytes = fields.bytes("modelBytes");
  return source;
}

}  // namespace

Expected<ForModule<OnnxBuildOptions>> readOnnxBuildOptions(napi_env env, napi_value value) {
  ForModule<OnnxBuildOptions> read;
  OnnxBuildOptions& options = read.options;
  FieldReader fields(env, value, "options");
  read.modulePath = fields.string("modulePath");
  options.model = readSource(fields);
  options.planPath = fields.string("planPath");
  options.libraryPath = fields.string("libraryPath");
  options.device = fields.int32("device");
  options.precision = readChoice(fields, "precision", kPrecisions,
                                 "'fp32', 'tf32', 'fp16', 'bf16', 'int8', 'fp8' or 'strongly-typed'");
  options.layers = readLayers(fields, "layers");
  options.profiles = readProfiles(fields, "profiles");
  options.workspaceBytes = fields.uint53("workspaceBytes");
  options.optimizationLevel = fields.int32("optimizationLevel");
  options.maxAuxStreams = fields.int32("maxAuxStreams");
  options.timingCachePath = fields.string("timingCachePath");
  options.strip = fields.boolean("strip");
  options.refit = readChoice(fields, "refit", kRefits, "'none', 'identical' or 'any'");
  options.versionCompatible = fields.boolean("versionCompatible");
  options.excludeLeanRuntime = fields.boolean("excludeLeanRuntime");
  options.hardware = readChoice(fields, "hardwareCompatibility", kHardware,
                                "'none', 'ampere+' or 'same-compute-capability'");
  options.verbosity =
      readChoice(fields, "profilingVerbosity", kVerbosities, "'layer-names', 'none' or 'detailed'");
  options.directIo = fields.boolean("directIo");
  options.ioType = readChoice(fields, "ioType", kIoTypes, "'model', 'fp16' or 'bf16'");
  options.sparseWeights = fields.boolean("sparseWeights");
  if (!fields.status()) return fields.status();
  return read;
}

Expected<ForModule<OnnxInspectOptions>> readOnnxInspectOptions(napi_env env, napi_value value) {
  ForModule<OnnxInspectOptions> read;
  FieldReader fields(env, value, "options");
  read.modulePath = fields.string("modulePath");
  read.options.model = readSource(fields);
  read.options.libraryPath = fields.string("libraryPath");
  read.options.device = fields.int32("device");
  if (!fields.status()) return fields.status();
  return read;
}

}  // namespace nt::napi
