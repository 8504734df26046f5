// Builds engines from ONNX models.
#pragma once

#include "core/module.h"

namespace nt {

// See TensorRtModule::buildOnnx.
Expected<OnnxBuildResult> buildOnnxEngine(const OnnxBuildOptions& options, BuildListener* listener);

}  // namespace nt
