// Holds layers of a network to a type, by patterns of their names.
#pragma once

#include <NvInfer.h>

#include <string_view>
#include <vector>

#include "core/onnx_build.h"
#include "core/status.h"

namespace nt {

// Whether a pattern matches all of a name: '*' stands for any characters, '?' for one.
bool matchesGlob(std::string_view pattern, std::string_view name) noexcept;

// Number of layers that were constrained. Of an engine in float32 the layers that no rule names are held to
// float32. ERR_INVALID_ARGUMENT for a rule that matches nothing that computes, naming layers close to it.
Expected<int32_t> applyLayerRules(nvinfer1::INetworkDefinition& network,
                                  const std::vector<OnnxLayerRule>& rules, OnnxPrecision base);

}  // namespace nt
