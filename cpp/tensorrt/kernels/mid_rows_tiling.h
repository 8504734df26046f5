// Which tiling a layer of some hundred rows takes.
#pragma once

#include <array>

#include "tensorrt/kernels/mid_rows.h"

namespace nt::kernels {

// A tiling is for up to so many rows; more than the last the table does not know.
inline constexpr std::array<int32_t, 6> kMidRowsBounds = {64, 128, 192, 256, 384, 512};

// n and k as in MidRowsArgs. Depends on its arguments alone.
MidRowsTiling chooseMidRowsTiling(int32_t rows, int32_t n, int32_t k, bool gated) noexcept;

}  // namespace nt::kernels
