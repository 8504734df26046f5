// The CUDA driver, asked before anything of TensorRT is touched: TensorRT's factories throw where there is
// none.
#pragma once

#include "core/module.h"

namespace nt {

// CUDA version that the module's runtime was built for; the driver must serve it.
int32_t requiredCuda() noexcept;

// Fills the driver's part of the facts: path, version, GPUs, and `driver` with what makes it unusable.
void probeDriver(ModuleFacts& facts);

// ERR_NO_GPU and its kin, or ERR_INVALID_ARGUMENT where `device` is none of the GPUs. Ok: the device may be
// used.
Expected<GpuFacts> requireDevice(int32_t device);

}  // namespace nt
