// The addon's functions for the generic runtime: NativeRuntimeExports of lib/native/runtime_addon.ts.
#pragma once

#include <napi.h>

namespace nt::napi {

napi_value createRuntime(napi_env env, napi_callback_info info) noexcept;
napi_value setLogListener(napi_env env, napi_callback_info info) noexcept;
napi_value injectFaults(napi_env env, napi_callback_info info) noexcept;

}  // namespace nt::napi
