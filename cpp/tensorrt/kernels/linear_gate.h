// What a linear layer of gate and up projections does with its product.
#pragma once

#include <cstdint>

namespace nt::kernels {

enum class LinearGate : uint8_t { kNone, kSilu, kGeluTanh };

}  // namespace nt::kernels
