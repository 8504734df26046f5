// Optimization profiles for the inputs of a parsed network.
#pragma once

#include <NvInfer.h>

#include <vector>

#include "core/onnx_build.h"
#include "core/status.h"

namespace nt {

// Checks each range against the network and gives the profiles to the builder. ERR_INVALID_ARGUMENT names
// the profile, the input, what is expected and what was given.
Status addInputProfiles(nvinfer1::IBuilder& builder, nvinfer1::IBuilderConfig& config,
                        const nvinfer1::INetworkDefinition& network,
                        const std::vector<OnnxProfile>& profiles);

}  // namespace nt
