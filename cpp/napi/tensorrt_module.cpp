#include "napi/tensorrt_module.h"

#if defined(__linux__)
#include <dlfcn.h>
#include <unistd.h>
#endif

namespace nt::napi {

#if defined(__linux__)

Expected<TensorRtModule*> openTensorRtModule(const std::string& path) {
  if (access(path.c_str(), F_OK) != 0) {
    return Status("ERR_TENSORRT_MODULE_NOT_FOUND", "There is no TensorRT backend module " + path);
  }
  // RTLD_LOCAL: its CUDA runtime and C++ library are its own. Never closed, see core/module.h.
  void* handle = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (handle == nullptr) {
    const char* said = dlerror();
    return Status("ERR_TENSORRT_MODULE_LOAD_FAILED", said == nullptr ? "the loader gives no reason" : said);
  }
  auto* entryPoint = reinterpret_cast<ModuleEntryPoint*>(dlsym(handle, kModuleEntryPoint));
  if (entryPoint == nullptr) {
    return Status("ERR_TENSORRT_MODULE_LOAD_FAILED",
                  std::string("it is no TensorRT backend module: it does not export ") + kModuleEntryPoint);
  }
  TensorRtModule* module = entryPoint(kModuleAbi);
  if (module != nullptr) return module;
  return Status(
      "ERR_VERSION_MISMATCH",
      "The TensorRT backend module " + path + " does not know interface " + std::to_string(kModuleAbi) +
          " of this addon: they come from different builds",
      "build both again (npm run build:native && npm run build:tensorrt), or reinstall the package");
}

#else

Expected<TensorRtModule*> openTensorRtModule(const std::string&) {
  return Status("ERR_TENSORRT_MODULE_NOT_FOUND", "The TensorRT backend runs on Linux alone");
}

#endif

}  // namespace nt::napi
