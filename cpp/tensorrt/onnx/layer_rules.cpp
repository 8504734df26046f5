#include "tensorrt/onnx/layer_rules.h"

#include <string>

#include "core/text.h"

// Superseded by strong typing, and the one way to say it of single layers of a weakly typed network.
#pragma GCC diagnostic ignored "-Wdeprecated-declarations"

namespace nt {

namespace {

using nvinfer1::DataType;
using nvinfer1::ILayer;
using nvinfer1::LayerType;

bool isFloat(DataType type) {
  return type == DataType::kFLOAT || type == DataType::kHALF || type == DataType::kBF16;
}

// Moves, makes or converts values, and so has no precision to choose.
bool computes(const ILayer& layer) {
  switch (layer.getType()) {
    case LayerType::kCONSTANT:
    case LayerType::kCONCATENATION:
    case LayerType::kSHAPE:
    case LayerType::kCAST:
    case LayerType::kIDENTITY:
    case LayerType::kSHUFFLE:
    case LayerType::kQUANTIZE:
    case LayerType::kDEQUANTIZE:
    case LayerType::kASSERTION:
    case LayerType::kTRIP_LIMIT:
    case LayerType::kITERATOR:
    case LayerType::kRECURRENCE:
    case LayerType::kLOOP_OUTPUT:
    case LayerType::kCONDITION:
    case LayerType::kCONDITIONAL_INPUT:
    case LayerType::kCONDITIONAL_OUTPUT:
    case LayerType::kPLUGIN_V2:
    case LayerType::kPLUGIN_V3:
      return false;
    default:
      break;
  }
  for (int32_t i = 0; i < layer.getNbOutputs(); ++i) {
    const nvinfer1::ITensor* output = layer.getOutput(i);
    if (output != nullptr && isFloat(output->getType()) && !output->isShapeTensor()) return true;
  }
  return false;
}

DataType typeOf(OnnxPrecision precision) {
  return precision == OnnxPrecision::kF16    ? DataType::kHALF
         : precision == OnnxPrecision::kBF16 ? DataType::kBF16
                                             : DataType::kFLOAT;
}

void constrain(ILayer& layer, DataType type) {
  layer.setPrecision(type);
  for (int32_t i = 0; i < layer.getNbOutputs(); ++i) {
    const nvinfer1::ITensor* output = layer.getOutput(i);
    // An output of the network keeps the type that the model gives it.
    if (output != nullptr && isFloat(output->getType()) && !output->isNetworkOutput())
      layer.setOutputType(i, type);
  }
}

}  // namespace

bool matchesGlob(std::string_view pattern, std::string_view name) noexcept {
  size_t p = 0;
  size_t n = 0;
  size_t star = std::string_view::npos;
  size_t resume = 0;
  while (n < name.size()) {
    if (p < pattern.size() && pattern[p] == '*') {
      star = p++;
      resume = n;
    } else if (p < pattern.size() && (pattern[p] == '?' || pattern[p] == name[n])) {
      ++p;
      ++n;
    } else if (star != std::string_view::npos) {
      p = star + 1;
      n = ++resume;
    } else {
      return false;
    }
  }
  while (p < pattern.size() && pattern[p] == '*') ++p;
  return p == pattern.size();
}

Expected<int32_t> applyLayerRules(nvinfer1::INetworkDefinition& network,
                                  const std::vector<OnnxLayerRule>& rules, OnnxPrecision base) {
  if (rules.empty()) return 0;
  std::vector<ILayer*> layers;
  std::vector<std::string_view> names;
  for (int32_t i = 0; i < network.getNbLayers(); ++i) {
    ILayer* layer = network.getLayer(i);
    if (layer == nullptr || layer->getName() == nullptr || !computes(*layer)) continue;
    layers.push_back(layer);
    names.emplace_back(layer->getName());
  }
  for (const OnnxLayerRule& rule : rules) {
    bool matched = false;
    for (const std::string_view name : names) matched = matched || matchesGlob(rule.pattern, name);
    if (matched) continue;
    std::string near;
    for (const std::string_view name : nearestNames(rule.pattern, names))
      near += (near.empty() ? "" : ", ") + quoted(name);
    if (near.empty()) {
      for (size_t i = 0; i < names.size() && i < 3; ++i) near += (i == 0 ? "" : ", ") + quoted(names[i]);
    }
    return Status::invalid("The pattern " + quoted(rule.pattern) + " matches none of the " +
                               std::to_string(names.size()) + " layers that compute",
                           near.empty() ? "" : "there are layers such as " + near);
  }
  const bool strict = base == OnnxPrecision::kF32 || base == OnnxPrecision::kTF32;
  int32_t constrained = 0;
  for (size_t i = 0; i < layers.size(); ++i) {
    const OnnxLayerRule* last = nullptr;
    for (const OnnxLayerRule& rule : rules) {
      if (matchesGlob(rule.pattern, names[i])) last = &rule;
    }
    if (last == nullptr && !strict) continue;
    constrain(*layers[i], last == nullptr ? DataType::kFLOAT : typeOf(last->precision));
    if (last != nullptr) ++constrained;
  }
  return constrained;
}

}  // namespace nt
