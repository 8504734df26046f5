// Storage types of weights.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string_view>

namespace nt {

enum class DType : uint8_t { kF32, kF16, kBF16 };

constexpr size_t sizeOf(DType type) noexcept {
  return type == DType::kF32 ? 4 : 2;
}

constexpr std::string_view nameOf(DType type) noexcept {
  return type == DType::kF32 ? "F32" : type == DType::kF16 ? "F16" : "BF16";
}

// safetensors' spelling: "F32", "F16", "BF16"; anything else is not supported.
constexpr std::optional<DType> parseDType(std::string_view name) noexcept {
  if (name == "F32") return DType::kF32;
  if (name == "F16") return DType::kF16;
  if (name == "BF16") return DType::kBF16;
  return std::nullopt;
}

}  // namespace nt
