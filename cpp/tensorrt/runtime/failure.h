// Why TensorRT failed on a device.
#pragma once

#include <string>

#include "core/status.h"
#include "tensorrt/logger.h"
#include "tensorrt/runtime/device_state.h"

namespace nt::runtime {

// For a call that said no more than false or nullptr, with the lines of the log: ERR_BACKEND_DEAD where CUDA
// cannot recover, ERR_OUT_OF_DEVICE_MEMORY where memory was the reason, else `code`. `stream`, unless null,
// is asked for errors that TensorRT has taken already; it must not be capturing.
Status failureOn(DeviceState& device, const char* code, const std::string& what, const LogScope& log,
                 cudaStream_t stream = nullptr);

}  // namespace nt::runtime
