// Reads the options of the TensorRT functions; the rules are those of napi/arguments.h.
#pragma once

#include <napi.h>

#include <string>

#include "core/module.h"

namespace nt::napi {

// Options together with the module that they are for.
template <typename Options>
struct ForModule {
  std::string modulePath;
  Options options;
};

struct ProbeOptions {
  std::string libraryPath;
};

Expected<ForModule<ProbeOptions>> readProbeOptions(napi_env env, napi_value value);
Expected<ForModule<BuildOptions>> readBuildOptions(napi_env env, napi_value value);
Expected<ForModule<TensorRtOptions>> readTensorRtOptions(napi_env env, napi_value value);

}  // namespace nt::napi
