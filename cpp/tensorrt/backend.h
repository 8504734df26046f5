// The TensorRT backend: the queue, the threads and the results around a Runner.
#pragma once

#include <memory>

#include "core/backend.h"
#include "core/module.h"

namespace nt {

// See TensorRtModule::createBackend.
Expected<std::unique_ptr<Backend>> createTensorRtBackend(const TensorRtOptions& options);

}  // namespace nt
