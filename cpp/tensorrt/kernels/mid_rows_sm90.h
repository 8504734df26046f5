// What mid_rows_sm90.cu defines, once for each 16-bit type.
#pragma once

#include "tensorrt/kernels/mid_rows.h"

// (warpgroups, blocks of 64 rows a warpgroup, columns)
#define NT_MID_ROWS_TILES(tile) \
  tile(1, 1, 96);               \
  tile(1, 1, 128);              \
  tile(1, 1, 176);              \
  tile(1, 1, 224);              \
  tile(2, 1, 96);               \
  tile(2, 1, 128);              \
  tile(2, 1, 176);              \
  tile(2, 1, 224);              \
  tile(3, 1, 96);               \
  tile(3, 1, 128);              \
  tile(3, 1, 176);              \
  tile(2, 2, 96);               \
  tile(2, 2, 112)

namespace nt::kernels::sm90 {

template <DType Type>
struct MidRows {
  static bool has(const MidRowsTiling&, bool gated) noexcept;
  static cudaError_t linear(const MidRowsArgs&, const MidRowsTiling&, bool overlap, cudaStream_t) noexcept;
  static cudaError_t norm(const MidRowsNormArgs&, bool overlap, cudaStream_t) noexcept;
};

}  // namespace nt::kernels::sm90
