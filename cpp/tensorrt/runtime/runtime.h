// TensorRT's runtime on one device.
#pragma once

#include "core/runtime.h"

namespace nt::runtime {

// See TensorRtModule::createRuntime.
Expected<std::shared_ptr<Runtime>> createRuntime(const RuntimeOptions& options);

}  // namespace nt::runtime
