// Sixteen float lanes without intrinsics. Every operation gives, bit for bit, what the vector paths give: all
// of them are correctly rounded, and the fused multiply-add is emulated where the target has none.
#pragma once

#include <cstddef>
#include <cstdint>

namespace nt::cpu::portable {

inline constexpr int kMaxTileRows = 4;
// Vectors of output columns in one register tile of `rows` rows.
constexpr int tileVectors(int rows) {
  return rows <= 2 ? 2 : 1;
}
inline constexpr int kWideTileVectors = 1;
inline constexpr int kScoreQueries = 2, kScoreChunks = 2;
inline constexpr int kValueQueries = 2, kValueVectors = 2;

inline float fmaLane(float a, float b, float c) {
#ifdef __FP_FAST_FMAF
  return __builtin_fmaf(a, b, c);
#else
  // The product is exact in double. Rounding the sum to odd makes the second rounding, to float, the only one
  // that counts (Boldo & Melquiond, "Emulation of a FMA and correctly rounded sums", 2008).
  const double product = double(a) * double(b);
  const double sum = product + double(c);
  const double shifted = sum - product;
  const double error = (product - (sum - shifted)) + (double(c) - shifted);
  auto bits = __builtin_bit_cast(uint64_t, sum);
  if ((error > 0 || error < 0) && (bits & 1) == 0) bits += ((error > 0) == (sum > 0)) ? 1 : ~uint64_t{0};
  return float(__builtin_bit_cast(double, bits));
#endif
}

struct Vec {
  float lane[16];
};

template <typename F>
inline Vec generate(F f) {
  Vec out;
  for (int i = 0; i < 16; ++i) out.lane[i] = f(i);
  return out;
}

inline Vec zero() {
  return generate([](int) { return 0.0F; });
}
inline Vec set1(float x) {
  return generate([=](int) { return x; });
}
inline Vec load(const float* p) {
  return generate([=](int i) { return p[i]; });
}
inline Vec loadPartial(const float* p, size_t n) {
  return generate([=](int i) { return size_t(i) < n ? p[i] : 0.0F; });
}
inline void store(float* p, const Vec& v) {
  for (int i = 0; i < 16; ++i) p[i] = v.lane[i];
}
inline void storePartial(float* p, const Vec& v, size_t n) {
  for (size_t i = 0; i < n && i < 16; ++i) p[i] = v.lane[i];
}
inline Vec add(const Vec& a, const Vec& b) {
  return generate([&](int i) { return a.lane[i] + b.lane[i]; });
}
inline Vec sub(const Vec& a, const Vec& b) {
  return generate([&](int i) { return a.lane[i] - b.lane[i]; });
}
inline Vec mul(const Vec& a, const Vec& b) {
  return generate([&](int i) { return a.lane[i] * b.lane[i]; });
}
inline Vec div(const Vec& a, const Vec& b) {
  return generate([&](int i) { return a.lane[i] / b.lane[i]; });
}
inline Vec fma(const Vec& a, const Vec& b, const Vec& c) {
  return generate([&](int i) { return fmaLane(a.lane[i], b.lane[i], c.lane[i]); });
}
// As the instructions have it: b where either is a NaN.
inline Vec max(const Vec& a, const Vec& b) {
  return generate([&](int i) { return a.lane[i] > b.lane[i] ? a.lane[i] : b.lane[i]; });
}
inline Vec min(const Vec& a, const Vec& b) {
  return generate([&](int i) { return a.lane[i] < b.lane[i] ? a.lane[i] : b.lane[i]; });
}
inline uint32_t maskGreaterEqual(const Vec& a, const Vec& b) {
  uint32_t mask = 0;
  for (int i = 0; i < 16; ++i) mask |= uint32_t(a.lane[i] >= b.lane[i]) << i;
  return mask;
}
inline uint32_t maskNan(const Vec& a) {
  uint32_t mask = 0;
  for (int i = 0; i < 16; ++i) mask |= uint32_t(a.lane[i] != a.lane[i]) << i;
  return mask;
}
// v where v's lane of `x` is at least `bound`, or a NaN; 0 elsewhere.
inline Vec zeroBelow(const Vec& v, const Vec& x, const Vec& bound) {
  return generate([&](int i) { return x.lane[i] < bound.lane[i] ? 0.0F : v.lane[i]; });
}
// 2^n where the lane holds 1.5 * 2^23 + n, -126 <= n <= 127.
inline Vec exponentOf(const Vec& shifted) {
  return generate([&](int i) {
    return __builtin_bit_cast(float, (__builtin_bit_cast(uint32_t, shifted.lane[i]) + 127U) << 23);
  });
}
// Order of the vector paths: lanes i and i + 8, then i + 4, i + 2, i + 1.
inline float reduceAdd(const Vec& v) {
  Vec t = v;
  for (int half = 8; half >= 1; half /= 2) {
    for (int i = 0; i < half; ++i) t.lane[i] += t.lane[i + half];
  }
  return t.lane[0];
}
inline float reduceMax(const Vec& v) {
  float best = v.lane[0];
  for (int i = 1; i < 16; ++i) best = v.lane[i] > best ? v.lane[i] : best;
  return best;
}

inline float fromHalf(uint16_t bits) {
  const uint32_t sign = uint32_t(bits & 0x8000U) << 16;
  const uint32_t exponent = (bits >> 10) & 0x1FU;
  const uint32_t mantissa = bits & 0x3FFU;
  if (exponent == 0) {
    const float magnitude = float(mantissa) * 0x1p-24F;
    return __builtin_bit_cast(float, __builtin_bit_cast(uint32_t, magnitude) | sign);
  }
  if (exponent == 31) {
    const uint32_t quiet = mantissa != 0 ? 0x400000U : 0U;
    return __builtin_bit_cast(float, sign | 0x7F800000U | (mantissa << 13) | quiet);
  }
  return __builtin_bit_cast(float, sign | ((exponent + 112U) << 23) | (mantissa << 13));
}

inline Vec loadF32(const float* p) {
  return load(p);
}
inline Vec loadBf16(const uint16_t* p) {
  return generate([=](int i) { return __builtin_bit_cast(float, uint32_t(p[i]) << 16); });
}
inline Vec loadF16(const uint16_t* p) {
  return generate([=](int i) { return fromHalf(p[i]); });
}

}  // namespace nt::cpu::portable
