#include "tensorrt/onnx/input_profiles.h"

#include <algorithm>
#include <array>
#include <limits>
#include <string>
#include <string_view>
#include <utility>

#include "core/text.h"

namespace nt {

namespace {

using nvinfer1::Dims;
using nvinfer1::IOptimizationProfile;
using nvinfer1::ITensor;
using nvinfer1::OptProfileSelector;

std::vector<int64_t> shapeOf(const Dims& dims) {
  return {dims.d, dims.d + std::max(dims.nbDims, 0)};
}

Dims dimsOf(const std::vector<int64_t>& shape) {
  Dims dims{};
  dims.nbDims = static_cast<int32_t>(shape.size());
  std::copy(shape.begin(), shape.end(), dims.d);
  return dims;
}

bool isDynamic(const ITensor& tensor) {
  const std::vector<int64_t> shape = shapeOf(tensor.getDimensions());
  return std::any_of(shape.begin(), shape.end(), [](int64_t extent) { return extent < 0; });
}

class ProfileChecker {
 public:
  explicit ProfileChecker(const nvinfer1::INetworkDefinition& network) {
    for (int32_t i = 0; i < network.getNbInputs(); ++i) {
      if (const ITensor* input = network.getInput(i); input != nullptr) inputs_.push_back(input);
    }
  }

  // The inputs that need a range: dynamic ones, and shape tensors.
  std::vector<const ITensor*> needed() const {
    std::vector<const ITensor*> list;
    for (const ITensor* input : inputs_) {
      if (isDynamic(*input) || input->isShapeTensor()) list.push_back(input);
    }
    return list;
  }

  Status check(const OnnxRange& range, const std::string& where) const {
    const ITensor* input = find(range.input);
    if (input == nullptr) return unknown(range.input, where);
    const std::string name = where + ": input " + quoted(range.input);
    if (range.values != input->isShapeTensor()) {
      return range.values ? Status::invalid(name + " is no shape tensor: it takes shapes, not values")
                          : Status::invalid(name + " is a shape tensor: it takes values, not shapes",
                                            "give its range with values: true");
    }
    const std::vector<int64_t> shape = shapeOf(input->getDimensions());
    size_t count = shape.size();
    if (range.values) {
      count = 1;
      for (const int64_t extent : shape) count *= static_cast<size_t>(std::max<int64_t>(extent, 0));
    }
    const std::array sides = {std::pair{"min", &range.min}, std::pair{"opt", &range.opt},
                              std::pair{"max", &range.max}};
    for (const auto& [side, given] : sides) {
      const std::string what = name + ": " + side;
      const std::string expected = range.values ? std::to_string(count) + " values" : shapeText(shape);
      if (given->size() != count || count > nvinfer1::Dims::MAX_DIMS * (range.values ? 1024U : 1U)) {
        return Status::invalid(what + " is " + shapeText(*given) + ", expected is " + expected);
      }
      for (size_t i = 0; i < count && !range.values; ++i) {
        if ((*given)[i] < 0 || (shape[i] >= 0 && shape[i] != (*given)[i]))
          return Status::invalid(what + " is " + shapeText(*given) + ", the model has " + expected,
                                 "-1 stands for a dimension that may vary");
      }
      for (size_t i = 0; i < count && range.values; ++i) {
        if ((*given)[i] < std::numeric_limits<int32_t>::min() ||
            (*given)[i] > std::numeric_limits<int32_t>::max())
          return Status::invalid(what + " must hold numbers of 32 bits, not " + shapeText(*given));
      }
    }
    for (size_t i = 0; i < count; ++i) {
      if (range.min[i] <= range.opt[i] && range.opt[i] <= range.max[i]) continue;
      return Status::invalid(name + ": min " + shapeText(range.min) + ", opt " + shapeText(range.opt) +
                             " and max " + shapeText(range.max) + " must not fall");
    }
    return {};
  }

 private:
  const ITensor* find(std::string_view name) const {
    for (const ITensor* input : inputs_) {
      if (name == input->getName()) return input;
    }
    return nullptr;
  }

  Status unknown(const std::string& name, const std::string& where) const {
    std::string there;
    for (const ITensor* input : inputs_)
      there += (there.empty() ? "" : ", ") + quoted(input->getName()) + " " +
               shapeText(shapeOf(input->getDimensions()));
    return Status::invalid(where + ": the model has no input " + quoted(name), "it has " + there);
  }

  std::vector<const ITensor*> inputs_;
};

bool setRange(IOptimizationProfile& profile, const OnnxRange& range) {
  const char* name = range.input.c_str();
  const std::array sides = {std::pair{OptProfileSelector::kMIN, &range.min},
                            std::pair{OptProfileSelector::kOPT, &range.opt},
                            std::pair{OptProfileSelector::kMAX, &range.max}};
  for (const auto& [side, given] : sides) {
    if (range.values) {
      const std::vector<int32_t> values(given->begin(), given->end());
      // Superseded by a call that the oldest library lacks.
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wdeprecated-declarations"
      if (!profile.setShapeValues(name, side, values.data(), static_cast<int32_t>(values.size())))
        return false;
#pragma GCC diagnostic pop
    } else if (!profile.setDimensions(name, side, dimsOf(*given))) {
      return false;
    }
  }
  return true;
}

}  // namespace

Status addInputProfiles(nvinfer1::IBuilder& builder, nvinfer1::IBuilderConfig& config,
                        const nvinfer1::INetworkDefinition& network,
                        const std::vector<OnnxProfile>& profiles) {
  const ProfileChecker checker(network);
  const std::vector<const ITensor*> needed = checker.needed();
  const auto missing = [&](const OnnxProfile* profile) {
    std::string names;
    for (const ITensor* input : needed) {
      const auto isInput = [&](const OnnxRange& range) { return range.input == input->getName(); };
      if (profile != nullptr && std::any_of(profile->begin(), profile->end(), isInput)) continue;
      names += (names.empty() ? "" : ", ") + quoted(input->getName()) + " " +
               shapeText(shapeOf(input->getDimensions()));
    }
    return names;
  };
  if (profiles.empty() && !needed.empty()) {
    return Status::invalid(
        "The model has inputs of varying shape, and no profile was given: " + missing(nullptr),
        "give min, opt and max shapes for each of them");
  }
  for (size_t i = 0; i < profiles.size(); ++i) {
    const std::string where = "Profile " + std::to_string(i);
    if (const std::string names = missing(&profiles[i]); !names.empty())
      return Status::invalid(where + " has no range for " + names);
    IOptimizationProfile* profile = builder.createOptimizationProfile();
    if (profile == nullptr) return {"ERR_BUILD_FAILED", "TensorRT could not make a profile"};
    for (const OnnxRange& range : profiles[i]) {
      if (Status status = checker.check(range, where); !status) return status;
      if (!setRange(*profile, range))
        return Status::invalid(where + ": TensorRT refused the range of input " + quoted(range.input));
    }
    if (!profile->isValid() || config.addOptimizationProfile(profile) < 0)
      return Status::invalid(where + ": TensorRT refused the profile");
  }
  return {};
}

}  // namespace nt
