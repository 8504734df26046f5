// Sixteen float lanes in two AVX registers. simd_portable.h documents what differs from the obvious.
#pragma once

#include <immintrin.h>

#include <cstddef>
#include <cstdint>

namespace nt::cpu::avx2 {

inline constexpr int kMaxTileRows = 6;
// 16 registers, two to a vector: at most 12 for accumulators.
constexpr int tileVectors(int rows) {
  return rows <= 1 ? 4 : rows <= 3 ? 2 : 1;
}
inline constexpr int kWideTileVectors = 1;
inline constexpr int kScoreQueries = 2, kScoreChunks = 2;
inline constexpr int kValueQueries = 2, kValueVectors = 2;

struct Vec {
  __m256 lo, hi;
};

inline __m256i firstLanes(size_t n) {
  alignas(32) static constexpr int32_t kMask[16] = {-1, -1, -1, -1, -1, -1, -1, -1, 0, 0, 0, 0, 0, 0, 0, 0};
  return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(kMask + 8 - (n < 8 ? n : 8)));
}

inline Vec zero() {
  return {_mm256_setzero_ps(), _mm256_setzero_ps()};
}
inline Vec set1(float x) {
  return {_mm256_set1_ps(x), _mm256_set1_ps(x)};
}
inline Vec load(const float* p) {
  return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)};
}
inline Vec loadPartial(const float* p, size_t n) {
  const __m256 hi = n > 8 ? _mm256_maskload_ps(p + 8, firstLanes(n - 8)) : _mm256_setzero_ps();
  return {_mm256_maskload_ps(p, firstLanes(n)), hi};
}
inline void store(float* p, Vec v) {
  _mm256_storeu_ps(p, v.lo);
  _mm256_storeu_ps(p + 8, v.hi);
}
inline void storePartial(float* p, Vec v, size_t n) {
  _mm256_maskstore_ps(p, firstLanes(n), v.lo);
  if (n > 8) _mm256_maskstore_ps(p + 8, firstLanes(n - 8), v.hi);
}
inline Vec add(Vec a, Vec b) {
  return {_mm256_add_ps(a.lo, b.lo), _mm256_add_ps(a.hi, b.hi)};
}
inline Vec sub(Vec a, Vec b) {
  return {_mm256_sub_ps(a.lo, b.lo), _mm256_sub_ps(a.hi, b.hi)};
}
inline Vec mul(Vec a, Vec b) {
  return {_mm256_mul_ps(a.lo, b.lo), _mm256_mul_ps(a.hi, b.hi)};
}
inline Vec div(Vec a, Vec b) {
  return {_mm256_div_ps(a.lo, b.lo), _mm256_div_ps(a.hi, b.hi)};
}
inline Vec fma(Vec a, Vec b, Vec c) {
  return {_mm256_fmadd_ps(a.lo, b.lo, c.lo), _mm256_fmadd_ps(a.hi, b.hi, c.hi)};
}
inline Vec max(Vec a, Vec b) {
  return {_mm256_max_ps(a.lo, b.lo), _mm256_max_ps(a.hi, b.hi)};
}
inline Vec min(Vec a, Vec b) {
  return {_mm256_min_ps(a.lo, b.lo), _mm256_min_ps(a.hi, b.hi)};
}
template <int kPredicate>
inline uint32_t compareMask(Vec a, Vec b) {
  const auto lo = uint32_t(_mm256_movemask_ps(_mm256_cmp_ps(a.lo, b.lo, kPredicate)));
  const auto hi = uint32_t(_mm256_movemask_ps(_mm256_cmp_ps(a.hi, b.hi, kPredicate)));
  return lo | hi << 8;
}
inline uint32_t maskGreaterEqual(Vec a, Vec b) {
  return compareMask<_CMP_GE_OQ>(a, b);
}
inline uint32_t maskNan(Vec a) {
  return compareMask<_CMP_UNORD_Q>(a, a);
}
inline Vec zeroBelow(Vec v, Vec x, Vec bound) {
  return {_mm256_and_ps(v.lo, _mm256_cmp_ps(x.lo, bound.lo, _CMP_NLT_UQ)),
          _mm256_and_ps(v.hi, _mm256_cmp_ps(x.hi, bound.hi, _CMP_NLT_UQ))};
}
inline __m256 exponentOf(__m256 shifted) {
  const __m256i biased = _mm256_add_epi32(_mm256_castps_si256(shifted), _mm256_set1_epi32(127));
  return _mm256_castsi256_ps(_mm256_slli_epi32(biased, 23));
}
inline Vec exponentOf(Vec shifted) {
  return {exponentOf(shifted.lo), exponentOf(shifted.hi)};
}
inline float reduceAdd(Vec v) {
  const __m256 eight = _mm256_add_ps(v.lo, v.hi);
  const __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
  const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_add_ss(two, _mm_shuffle_ps(two, two, 1)));
}
inline float reduceMax(Vec v) {
  const __m256 eight = _mm256_max_ps(v.lo, v.hi);
  const __m128 four = _mm_max_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
  const __m128 two = _mm_max_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_max_ss(two, _mm_shuffle_ps(two, two, 1)));
}

inline Vec loadF32(const float* p) {
  return load(p);
}
inline __m256 widenBf16(const uint16_t* p) {
  const __m128i bits = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(bits), 16));
}
inline Vec loadBf16(const uint16_t* p) {
  return {widenBf16(p), widenBf16(p + 8)};
}
inline Vec loadF16(const uint16_t* p) {
  return {_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))),
          _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p + 8)))};
}

}  // namespace nt::cpu::avx2
