#include "tensorrt/runtime/refit.h"

#include <set>
#include <string_view>

#include "core/text.h"
#include "tensorrt/runtime/engine_info.h"

namespace nt::runtime {

namespace {

using nvinfer1::IRefitter;

constexpr size_t kNamed = 5;

std::vector<std::string> namesOf(IRefitter& refitter, int32_t (IRefitter::*get)(int32_t, const char**)) {
  const int32_t count = (refitter.*get)(0, nullptr);
  std::vector<const char*> names(static_cast<size_t>(std::max(count, 0)), nullptr);
  (refitter.*get)(static_cast<int32_t>(names.size()), names.data());
  std::vector<std::string> result;
  for (const char* name : names) {
    if (name != nullptr && *name != '\0') result.emplace_back(name);
  }
  return result;
}

Status unknownName(IRefitter& refitter, const std::string& name) {
  const std::vector<std::string> known = refittableNames(refitter);
  const std::vector<std::string_view> views(known.begin(), known.end());
  std::string hint;
  for (const std::string_view near : nearestNames(name, views)) {
    hint += (hint.empty() ? "Did you mean " : " or ") + quoted(near);
  }
  if (hint.empty()) hint = "refittableWeights() lists the names";
  return {
      "ERR_WEIGHTS_INVALID",
      "The engine has no refittable weights " + quoted(name) + " among its " + std::to_string(known.size()),
      hint};
}

Status checkWeights(IRefitter& refitter, const NamedWeights& weights) {
  const nvinfer1::Weights wanted = refitter.getWeightsPrototype(weights.name.c_str());
  if (wanted.count < 0) return unknownName(refitter, weights.name);
  const auto text = [](std::string_view dtype, int64_t count) {
    return std::to_string(count) + " values of " + std::string(dtype);
  };
  if (parseDtype(weights.dtype) != wanted.type || weights.count != wanted.count) {
    return {"ERR_WEIGHTS_INVALID", "Weights " + quoted(weights.name) + " take " +
                                       text(dtypeName(wanted.type), wanted.count) + ", given were " +
                                       text(weights.dtype, weights.count)};
  }
  if (weights.values == nullptr && weights.count > 0)
    return {"ERR_WEIGHTS_INVALID", "Weights " + quoted(weights.name) + " have no values"};
  return {};
}

}  // namespace

std::vector<std::string> refittableNames(IRefitter& refitter) {
  return namesOf(refitter, &IRefitter::getAllWeights);
}

std::vector<std::string> missingNames(IRefitter& refitter) {
  return namesOf(refitter, &IRefitter::getMissingWeights);
}

Status giveWeights(IRefitter& refitter, const std::vector<NamedWeights>& weights) {
  std::set<std::string_view> names;
  for (const NamedWeights& given : weights) {
    if (!names.insert(given.name).second)
      return {"ERR_WEIGHTS_INVALID", "Weights " + quoted(given.name) + " are given twice"};
    if (Status status = checkWeights(refitter, given); !status) return status;
  }
  for (const NamedWeights& given : weights) {
    const nvinfer1::Weights values{*parseDtype(given.dtype), given.values, given.count};
    if (!refitter.setNamedWeights(given.name.c_str(), values))
      return {"ERR_WEIGHTS_INVALID", "TensorRT does not take the weights " + quoted(given.name)};
  }
  const int32_t missing = refitter.getMissingWeights(0, nullptr);
  if (missing <= 0) return {};
  std::string list;
  const std::vector<std::string> missed = missingNames(refitter);
  for (size_t i = 0; i < missed.size() && i < kNamed; ++i) list += (i == 0 ? ": " : ", ") + quoted(missed[i]);
  if (missed.size() > kNamed) list += ", ...";
  return {"ERR_WEIGHTS_MISSING", std::to_string(missing) + " weights are missing beside those given" + list,
          "Give them in the same call: TensorRT has joined them with others"};
}

}  // namespace nt::runtime
