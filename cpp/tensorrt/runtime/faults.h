// Failures on demand. Verification only.
#pragma once

#include "core/runtime.h"

namespace nt::runtime {

void injectFaults(const Faults& faults) noexcept;

// Count one call each; true = it is to fail.
bool failsDeviceAllocation() noexcept;
bool failsPinnedAllocation() noexcept;
bool failsEnqueue() noexcept;
bool failsCopy() noexcept;

}  // namespace nt::runtime
