// Reads the options of the ONNX functions; the rules are those of napi/arguments.h.
#pragma once

#include <napi.h>

#include "core/module.h"
#include "napi/tensorrt_arguments.h"

namespace nt::napi {

Expected<ForModule<OnnxBuildOptions>> readOnnxBuildOptions(napi_env env, napi_value value);
Expected<ForModule<OnnxInspectOptions>> readOnnxInspectOptions(napi_env env, napi_value value);

}  // namespace nt::napi
