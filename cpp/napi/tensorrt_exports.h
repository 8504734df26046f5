// The addon's functions for the TensorRT backend module; lib/native/addon.ts describes them.
#pragma once

#include <napi.h>

namespace nt::napi {

napi_value probeTensorRt(napi_env env, napi_callback_info info) noexcept;
napi_value buildEngine(napi_env env, napi_callback_info info) noexcept;
napi_value createTensorRtBackend(napi_env env, napi_callback_info info) noexcept;

}  // namespace nt::napi
