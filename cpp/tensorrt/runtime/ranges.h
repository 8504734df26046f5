// Rows of bytes in memory.
#pragma once

#include <cstdint>
#include <string>

#include "core/status.h"

namespace nt::runtime {

struct Rows {
  uint64_t offset;
  uint64_t pitch;  // from one row's start to the next
  uint64_t bytes;  // of a row
  uint64_t rows;

  // From the first row's start to the last one's end. Does not overflow once checkRows() has passed.
  uint64_t extent() const noexcept { return rows == 0 ? 0 : pitch * (rows - 1) + bytes; }
  // "4 rows of 16 bytes, 32 apart, at offset 128"
  std::string text() const;
};

// ERR_INVALID_ARGUMENT where rows overlap each other, or end beyond 2^63. `role` names them in the error.
Status checkRows(const Rows& rows, const char* role);

// Whether the two have a byte in common. Both have the same count and size of rows.
bool overlap(const Rows& one, const Rows& other) noexcept;

}  // namespace nt::runtime
