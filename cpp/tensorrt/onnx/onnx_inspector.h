// Says what of an ONNX model TensorRT does not support.
#pragma once

#include "core/module.h"

namespace nt {

// See TensorRtModule::inspectOnnx.
Expected<OnnxReport> inspectOnnxModel(const OnnxInspectOptions& options);

}  // namespace nt
