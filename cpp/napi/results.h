// StepResult -> NativeStepResult of lib/native/addon.ts.
#pragma once

#include <napi.h>

#include "core/backend.h"

namespace nt::napi {

// Null, with an exception pending or the environment unable to run JavaScript, when an object could not be
// created.
napi_value makeStepResult(napi_env env, const StepResult& result) noexcept;

// A frozen ExecutorInfo.
napi_value makeBackendInfo(napi_env env, const BackendInfo& info) noexcept;

}  // namespace nt::napi
