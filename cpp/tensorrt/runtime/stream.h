// Streams: a queue of commands, a thread that hands them to CUDA and one that waits for the device.
#pragma once

#include <memory>

#include "core/runtime.h"
#include "tensorrt/runtime/device_state.h"

namespace nt::runtime {

// ERR_INVALID_ARGUMENT, ERR_CUDA, ERR_BACKEND_DEAD, ERR_OUT_OF_MEMORY where no thread can be had.
Expected<std::shared_ptr<Stream>> createStream(DeviceState& device, const StreamOptions& options) noexcept;

}  // namespace nt::runtime
