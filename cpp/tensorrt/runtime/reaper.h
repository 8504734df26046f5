// A thread that destroys what nobody holds any more: freeing device memory and contexts may block.
#pragma once

#include <functional>
#include <memory>

#include "core/runtime.h"

namespace nt::runtime {

// See TensorRtModule::release.
void releaseLater(std::shared_ptr<Object> object, std::function<void()> done) noexcept;

}  // namespace nt::runtime
