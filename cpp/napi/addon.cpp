// Entry point of node-tensorrt.node: NativeAddon of lib/native/addon.ts.
#include <napi.h>

#include <array>
#include <string>
#include <vector>

#include "cpu/cpu_backend.h"
#include "napi/addon_data.h"
#include "napi/arguments.h"
#include "napi/async_task.h"
#include "napi/backend_object.h"
#include "napi/errors.h"
#include "napi/load_job.h"
#include "napi/nvml_exports.h"
#include "napi/onnx_exports.h"
#include "napi/runtime_exports.h"
#include "napi/tensorrt_exports.h"

namespace nt::napi {
namespace {

napi_value getCpuFeatures(napi_env env, napi_callback_info) noexcept {
  return guarded(env, [&]() -> napi_value {
    const CpuFeatures features = cpuFeatures();
    Napi::Object object = Napi::Object::New(env);
    Napi::Array simd = Napi::Array::New(env, features.simd.size());
    for (uint32_t i = 0; i < features.simd.size(); ++i) simd.Set(i, features.simd[i]);
    object.Set("model", features.model);
    object.Set("threads", features.threads);
    object.Set("simd", simd);
    return object;
  });
}

napi_value createCpu(napi_env env, napi_callback_info info) noexcept {
  return guarded(env, [&]() -> napi_value {
    size_t count = 1;
    napi_value argument = nullptr;
    if (napi_get_cb_info(env, info, &count, &argument, nullptr, nullptr) != napi_ok) return nullptr;
    Expected<CpuOptions> options = readCpuOptions(env, argument);
    if (!options) return makeRejected(env, options.status());
    return loadBackend(
        env, [options = *std::move(options)] { return createCpuBackend(options); }, AtTeardown::kDetach);
  });
}

napi_value makeString(napi_env env, const char* text) {
  napi_value value = nullptr;
  napi_create_string_utf8(env, text, NAPI_AUTO_LENGTH, &value);
  return value;
}

napi_value makeFunction(napi_env env, const char* name, napi_callback callback) {
  napi_value value = nullptr;
  napi_create_function(env, name, NAPI_AUTO_LENGTH, callback, nullptr, &value);
  return value;
}

Napi::Object init(Napi::Env env, Napi::Object exports) {
  auto data = std::make_unique<AddonData>();
  const auto finalize = [](napi_env, void* instance, void*) { delete static_cast<AddonData*>(instance); };
  if (napi_set_instance_data(env, data.get(), finalize, nullptr) != napi_ok) {
    throwStatus(env, {"ERR_INTERNAL", "Could not set the addon's instance data"});
    return exports;
  }
  data.release();
  const auto value = [](const char* name, napi_value it) {
    return napi_property_descriptor{name, nullptr, nullptr, nullptr, nullptr, it, napi_enumerable, nullptr};
  };
  const std::array properties = {
      value("version", makeString(env, NT_VERSION)),
      value("buildType", makeString(env, NT_BUILD_TYPE)),
      value("cpuFeatures", makeFunction(env, "cpuFeatures", getCpuFeatures)),
      value("createCpuBackend", makeFunction(env, "createCpuBackend", createCpu)),
      value("gpuUsage", makeFunction(env, "gpuUsage", gpuUsage)),
      value("probeTensorRt", makeFunction(env, "probeTensorRt", probeTensorRt)),
      value("buildEngine", makeFunction(env, "buildEngine", buildEngine)),
      value("buildOnnxEngine", makeFunction(env, "buildOnnxEngine", buildOnnxEngine)),
      value("inspectOnnx", makeFunction(env, "inspectOnnx", inspectOnnx)),
      value("createTensorRtBackend", makeFunction(env, "createTensorRtBackend", createTensorRtBackend)),
      value("createRuntime", makeFunction(env, "createRuntime", createRuntime)),
      value("setLogListener", makeFunction(env, "setLogListener", setLogListener)),
      value("injectFaults", makeFunction(env, "injectFaults", injectFaults)),
  };
  if (BackendObject::define(env) != napi_ok ||
      napi_define_properties(env, exports, properties.size(), properties.data()) != napi_ok) {
    throwStatus(env, {"ERR_INTERNAL", "Could not define the addon's exports"});
  }
  return exports;
}

}  // namespace
}  // namespace nt::napi

namespace {
Napi::Object initAddon(Napi::Env env, Napi::Object exports) {
  return nt::napi::init(env, exports);
}
}  // namespace

NODE_API_MODULE(node_tensorrt, initAddon)
