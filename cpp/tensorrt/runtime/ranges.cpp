#include "tensorrt/runtime/ranges.h"

namespace nt::runtime {

std::string Rows::text() const {
  std::string text;
  if (rows != 1) text = std::to_string(rows) + " rows of ";
  text += std::to_string(bytes) + " bytes";
  if (rows > 1) text += ", " + std::to_string(pitch) + " apart,";
  return text + " at offset " + std::to_string(offset);
}

Status checkRows(const Rows& rows, const char* role) {
  constexpr uint64_t kMost = uint64_t{1} << 63;
  if (rows.rows > 1 && rows.pitch < rows.bytes) {
    return Status::invalid("Rows of " + std::string(role) + " overlap: they have " +
                           std::to_string(rows.bytes) + " bytes and start " + std::to_string(rows.pitch) +
                           " bytes apart");
  }
  const bool tooFar =
      rows.bytes > kMost || (rows.rows > 1 && rows.pitch > (kMost - rows.bytes) / (rows.rows - 1));
  if (tooFar) return Status::invalid(std::string(role) + " is too large: " + rows.text());
  return {};
}

bool overlap(const Rows& one, const Rows& other) noexcept {
  if (one.bytes == 0) return false;
  uint64_t i = 0;
  uint64_t j = 0;
  while (i < one.rows && j < other.rows) {
    const uint64_t a = one.offset + i * one.pitch;
    const uint64_t b = other.offset + j * other.pitch;
    if (a < b + other.bytes && b < a + one.bytes) return true;
    ++(a < b ? i : j);
  }
  return false;
}

}  // namespace nt::runtime
