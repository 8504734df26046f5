// What the addon keeps per environment (main thread, each Worker). There are no globals.
#pragma once

#include <napi.h>

#include <memory>

#include "core/backend.h"
#include "napi/backend_reaper.h"

namespace nt::napi {

class RuntimeEnvironment;

struct AddonData {
  napi_ref backendClass = nullptr;
  napi_ref listenerKey = nullptr;  // a Symbol
  // Set while the constructor is called from C++; a call from JavaScript finds it empty and throws.
  std::unique_ptr<Backend> underConstruction;
  BackendReaper backendReaper;
  std::shared_ptr<RuntimeEnvironment> runtime;  // made when it is needed

  static AddonData* of(napi_env env) noexcept {
    void* data = nullptr;
    return napi_get_instance_data(env, &data) == napi_ok ? static_cast<AddonData*>(data) : nullptr;
  }
};

}  // namespace nt::napi
