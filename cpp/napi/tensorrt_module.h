// Opens nt-tensorrt.so, the TensorRT backend module.
#pragma once

#include <string>

#include "core/module.h"

namespace nt::napi {

// Blocks while the file is mapped. A module that opened stays in the process for good. Errors:
// ERR_TENSORRT_MODULE_NOT_FOUND, ERR_TENSORRT_MODULE_LOAD_FAILED (with the loader's words),
// ERR_VERSION_MISMATCH for a module of another build.
Expected<TensorRtModule*> openTensorRtModule(const std::string& path);

}  // namespace nt::napi
