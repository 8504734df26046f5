// The addon's functions for ONNX models: NativeOnnxExports of lib/native/onnx_addon.ts.
#pragma once

#include <napi.h>

namespace nt::napi {

// (options, onProgress) -> { promise, cancel }
napi_value buildOnnxEngine(napi_env env, napi_callback_info info) noexcept;
// (options) -> promise of a report
napi_value inspectOnnx(napi_env env, napi_callback_info info) noexcept;

}  // namespace nt::napi
