// Builds the engines of a graph.
#pragma once

#include "core/module.h"

namespace nt {

// See TensorRtModule::build.
Expected<BuildResult> buildModel(const BuildOptions& options, BuildListener* listener);

}  // namespace nt
