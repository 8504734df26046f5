// Sixteen float lanes in one AVX-512 register. simd_portable.h documents what differs from the obvious.
#pragma once

// GCC 12 warns of the intrinsics' own "undefined" operands (its bug 105593).
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#include <immintrin.h>
#pragma GCC diagnostic pop

#include <cstddef>
#include <cstdint>

namespace nt::cpu::avx512 {

inline constexpr int kMaxTileRows = 12;
// 32 registers: at most 24 accumulators beside the weights and the broadcast row elements.
constexpr int tileVectors(int rows) {
  return rows <= 3 ? 8 : rows <= 6 ? 4 : 2;
}
inline constexpr int kWideTileVectors = 2;
inline constexpr int kScoreQueries = 4, kScoreChunks = 4;
inline constexpr int kValueQueries = 4, kValueVectors = 4;

struct Vec {
  __m512 v;
};

inline __mmask16 firstLanes(size_t n) {
  return n >= 16 ? __mmask16(0xFFFF) : __mmask16((1U << n) - 1U);
}

inline Vec zero() {
  return {_mm512_setzero_ps()};
}
inline Vec set1(float x) {
  return {_mm512_set1_ps(x)};
}
inline Vec load(const float* p) {
  return {_mm512_loadu_ps(p)};
}
inline Vec loadPartial(const float* p, size_t n) {
  return {_mm512_maskz_loadu_ps(firstLanes(n), p)};
}
inline void store(float* p, Vec v) {
  _mm512_storeu_ps(p, v.v);
}
inline void storePartial(float* p, Vec v, size_t n) {
  _mm512_mask_storeu_ps(p, firstLanes(n), v.v);
}
inline Vec add(Vec a, Vec b) {
  return {_mm512_add_ps(a.v, b.v)};
}
inline Vec sub(Vec a, Vec b) {
  return {_mm512_sub_ps(a.v, b.v)};
}
inline Vec mul(Vec a, Vec b) {
  return {_mm512_mul_ps(a.v, b.v)};
}
inline Vec div(Vec a, Vec b) {
  return {_mm512_div_ps(a.v, b.v)};
}
inline Vec fma(Vec a, Vec b, Vec c) {
  return {_mm512_fmadd_ps(a.v, b.v, c.v)};
}
inline Vec max(Vec a, Vec b) {
  return {_mm512_max_ps(a.v, b.v)};
}
inline Vec min(Vec a, Vec b) {
  return {_mm512_min_ps(a.v, b.v)};
}
inline uint32_t maskGreaterEqual(Vec a, Vec b) {
  return _mm512_cmp_ps_mask(a.v, b.v, _CMP_GE_OQ);
}
inline uint32_t maskNan(Vec a) {
  return _mm512_cmp_ps_mask(a.v, a.v, _CMP_UNORD_Q);
}
inline Vec zeroBelow(Vec v, Vec x, Vec bound) {
  return {_mm512_maskz_mov_ps(_mm512_cmp_ps_mask(x.v, bound.v, _CMP_NLT_UQ), v.v)};
}
inline Vec exponentOf(Vec shifted) {
  const __m512i biased = _mm512_add_epi32(_mm512_castps_si512(shifted.v), _mm512_set1_epi32(127));
  return {_mm512_castsi512_ps(_mm512_slli_epi32(biased, 23))};
}
inline float reduceAdd(Vec v) {
  const __m256 eight = _mm256_add_ps(_mm512_castps512_ps256(v.v), _mm512_extractf32x8_ps(v.v, 1));
  const __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
  const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_add_ss(two, _mm_shuffle_ps(two, two, 1)));
}
inline float reduceMax(Vec v) {
  return _mm512_reduce_max_ps(v.v);
}

inline Vec loadF32(const float* p) {
  return load(p);
}
inline Vec loadBf16(const uint16_t* p) {
  const __m256i bits = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16))};
}
inline Vec loadF16(const uint16_t* p) {
  return {_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)))};
}

}  // namespace nt::cpu::avx512
