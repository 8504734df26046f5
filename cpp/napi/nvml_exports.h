// gpuUsage() of lib/native/addon.ts.
#pragma once

#include <napi.h>

namespace nt::napi {

napi_value gpuUsage(napi_env env, napi_callback_info info) noexcept;

}  // namespace nt::napi
