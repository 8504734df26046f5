// The module's one instance.
#pragma once

#include "core/module.h"

namespace nt {

TensorRtModule& tensorRtModule() noexcept;

}  // namespace nt
