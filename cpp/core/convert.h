// Scalar conversions between float32 and the 16-bit storage types, bit-exact to IEEE 754 hardware: round to
// nearest, ties to even; overflow gives infinity; a NaN stays a NaN (made quiet). They do not depend on the
// processor's rounding mode or flush settings. Backends use them where no vector instruction does it, and as
// the reference for those.
#pragma once

#include <bit>
#include <cstdint>

namespace nt {

constexpr float bf16ToFloat(uint16_t bits) noexcept {
  return std::bit_cast<float>(uint32_t{bits} << 16);
}

constexpr uint16_t floatToBf16(float value) noexcept {
  const auto bits = std::bit_cast<uint32_t>(value);
  // Rounding would carry a NaN whose payload is all ones into zero; and cutting could leave no payload.
  if ((bits & 0x7FFFFFFFU) > 0x7F800000U) return static_cast<uint16_t>((bits >> 16) | 0x0040U);
  const uint32_t half = 0x7FFFU + ((bits >> 16) & 1U);
  return static_cast<uint16_t>((bits + half) >> 16);
}

constexpr float f16ToFloat(uint16_t bits) noexcept {
  const uint32_t sign = (uint32_t{bits} & 0x8000U) << 16;
  const uint32_t exponent = (uint32_t{bits} >> 10) & 0x1FU;
  uint32_t mantissa = uint32_t{bits} & 0x3FFU;
  if (exponent == 0x1F) {
    const uint32_t quiet = mantissa == 0 ? 0U : 0x00400000U;
    return std::bit_cast<float>(sign | 0x7F800000U | quiet | mantissa << 13);
  }
  if (exponent != 0) return std::bit_cast<float>(sign | (exponent + 112U) << 23 | mantissa << 13);
  if (mantissa == 0) return std::bit_cast<float>(sign);
  // Subnormal: mantissa * 2^-24, normal as float32.
  const auto shift = static_cast<uint32_t>(std::countl_zero(mantissa)) - 21U;
  mantissa = (mantissa << shift) & 0x3FFU;
  return std::bit_cast<float>(sign | (113U - shift) << 23 | mantissa << 13);
}

constexpr uint16_t floatToF16(float value) noexcept {
  const auto bits = std::bit_cast<uint32_t>(value);
  const uint32_t sign = (bits >> 16) & 0x8000U;
  const uint32_t magnitude = bits & 0x7FFFFFFFU;
  if (magnitude > 0x7F800000U) return static_cast<uint16_t>(sign | 0x7E00U | ((magnitude >> 13) & 0x3FFU));
  // 65520 lies half-way between the largest finite value and the next power of two.
  if (magnitude >= 0x477FF000U) return static_cast<uint16_t>(sign | 0x7C00U);
  if (magnitude >= 0x38800000U) {  // >= 2^-14: normal
    const uint32_t rounded = magnitude + 0x0FFFU + ((magnitude >> 13) & 1U);
    return static_cast<uint16_t>(sign | ((rounded >> 13) - (112U << 10)));
  }
  if (magnitude <= 0x33000000U)
    return static_cast<uint16_t>(sign);  // <= 2^-25: half of the smallest, ties to zero
  // Subnormal: the value in units of 2^-24. `shift` is 14 ... 24.
  const uint32_t mantissa = (magnitude & 0x007FFFFFU) | 0x00800000U;
  const uint32_t shift = 126U - (magnitude >> 23);
  const uint32_t half = (1U << (shift - 1)) - 1U + ((mantissa >> shift) & 1U);
  return static_cast<uint16_t>(sign | (mantissa + half) >> shift);
}

}  // namespace nt
