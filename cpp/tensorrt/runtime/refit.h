// Setting an engine's weights by name.
#pragma once

#include <NvInferRuntime.h>

#include <string>
#include <vector>

#include "core/runtime.h"

namespace nt::runtime {

// In the engine's order. Weights without a name cannot be set, and are not among them.
std::vector<std::string> refittableNames(nvinfer1::IRefitter& refitter);
std::vector<std::string> missingNames(nvinfer1::IRefitter& refitter);

// Hands the weights to the refitter, which copies nothing: their values must stay until it has refitted.
// Nothing is handed over where a name, a type or a count is wrong (ERR_WEIGHTS_INVALID). ERR_WEIGHTS_MISSING
// where others must be given with them.
Status giveWeights(nvinfer1::IRefitter& refitter, const std::vector<NamedWeights>& weights);

}  // namespace nt::runtime
