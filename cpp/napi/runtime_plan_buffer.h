// Takes an ArrayBuffer's bytes over from JavaScript without a copy.
#pragma once

#include <napi.h>

#include <cstddef>

#include "core/status.h"

namespace nt::napi {

// Bytes that no script can reach. Event loop, but for `data`.
struct PlanBuffer {
  napi_ref holder = nullptr;
  const void* data = nullptr;
  size_t bytes = 0;
};

// Detaches the caller's ArrayBuffer. Runs JavaScript of the runtime's own.
Expected<PlanBuffer> takePlan(napi_env env, napi_value value);
// Gives the bytes back to the system. Once.
void freePlan(napi_env env, const PlanBuffer& plan) noexcept;

}  // namespace nt::napi
