#include <array>
#include <bit>
#include <cmath>
#include <limits>

#include "check.h"
#include "core/convert.h"
#include "core/random.h"

namespace nt {
namespace {

using Block = std::array<uint32_t, 4>;

// The known-answer vectors published with the Random123 library for philox4x32, 10 rounds.
TEST(philoxGivesTheKnownAnswers) {
  CHECK((philox4x32({0, 0, 0, 0}, {0, 0}) == Block{0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8}));
  const uint32_t ones = 0xFFFFFFFF;
  CHECK((philox4x32({ones, ones, ones, ones}, {ones, ones}) ==
         Block{0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD}));
  CHECK((philox4x32({0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344}, {0xA4093822, 0x299F31D0}) ==
         Block{0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1}));
}

TEST(drawsDependOnAllThreeArguments) {
  CHECK_EQ(randomBits(1, 2, 3), randomBits(1, 2, 3));
  CHECK(randomBits(1, 2, 3) != randomBits(2, 2, 3));
  CHECK(randomBits(1, 2, 3) != randomBits(1, 3, 3));
  CHECK(randomBits(1, 2, 3) != randomBits(1, 2, 4));
  CHECK(randomBits(uint64_t{1} << 40, 0) != randomBits(0, 0));
  CHECK(randomBits(0, uint64_t{1} << 40) != randomBits(0, 0));
  CHECK(randomBits(0, 0, uint64_t{1} << 40) != randomBits(0, 0));
}

// 16 bins, 2^20 draws: chi-squared with 15 degrees of freedom is above 50 with a probability of about 1e-5.
TEST(uniformFillsItsIntervalEvenly) {
  constexpr int kDraws = 1 << 20;
  std::array<int, 16> bins{};
  double sum = 0;
  for (uint64_t i = 0; i < kDraws; ++i) {
    const double value = uniform(42, i);
    const float rounded = uniformFloat(42, i);
    if (!(value >= 0 && value < 1 && rounded >= 0 && rounded < 1 && std::fabs(value - rounded) < 1e-7)) {
      CHECK(value >= 0 && value < 1);
      CHECK(rounded >= 0 && rounded < 1);
      return;
    }
    sum += value;
    ++bins[static_cast<size_t>(value * 16)];
  }
  CHECK(std::fabs(sum / kDraws - 0.5) < 0.002);
  double chiSquared = 0;
  for (const int count : bins) chiSquared += std::pow(count - kDraws / 16.0, 2) / (kDraws / 16.0);
  CHECK(chiSquared < 50);
}

TEST(sixteenBitValuesSurviveTheRoundTrip) {
  int wrong = 0;
  for (uint32_t i = 0; i <= 0xFFFF; ++i) {
    const auto bits = static_cast<uint16_t>(i);
    const bool nan16 = (bits & 0x7C00) == 0x7C00 && (bits & 0x03FF) != 0;
    const bool nanBf = (bits & 0x7F80) == 0x7F80 && (bits & 0x007F) != 0;
    if (floatToF16(f16ToFloat(bits)) != (nan16 ? bits | 0x0200 : bits)) ++wrong;
    if (floatToBf16(bf16ToFloat(bits)) != (nanBf ? bits | 0x0040 : bits)) ++wrong;
    if (nan16 != std::isnan(f16ToFloat(bits)) || nanBf != std::isnan(bf16ToFloat(bits))) ++wrong;
  }
  CHECK_EQ(wrong, 0);
}

// Against the definition: value = mantissa * 2^exponent, in double, where every float16 is exact.
TEST(f16FollowsItsDefinition) {
  int wrong = 0;
  for (uint32_t i = 0; i < 0x7C00; ++i) {
    const int exponent = static_cast<int>(i >> 10);
    const double mantissa = i & 0x3FF;
    const double value =
        exponent == 0 ? std::ldexp(mantissa, -24) : std::ldexp(1024 + mantissa, exponent - 25);
    if (f16ToFloat(static_cast<uint16_t>(i)) != value) ++wrong;
    if (f16ToFloat(static_cast<uint16_t>(i | 0x8000)) != -value) ++wrong;
  }
  CHECK_EQ(wrong, 0);
}

// Between each pair of neighbours: below the middle goes down, above goes up, the middle goes to the even
// one.
template <typename ToFloat, typename FromFloat>
int roundingErrors(uint32_t infinity, ToFloat toFloat, FromFloat fromFloat) {
  int wrong = 0;
  for (uint32_t i = 0; i + 1 < infinity; ++i) {
    const double low = toFloat(static_cast<uint16_t>(i));
    const double high = toFloat(static_cast<uint16_t>(i + 1));
    const auto middle = static_cast<float>((low + high) / 2);
    const uint32_t even = i % 2 == 0 ? i : i + 1;
    if (fromFloat(middle) != even || fromFloat(-middle) != (even | 0x8000U)) ++wrong;
    if (fromFloat(std::nextafter(middle, 0.0F)) != i) ++wrong;
    if (fromFloat(std::nextafter(middle, std::numeric_limits<float>::infinity())) != i + 1) ++wrong;
  }
  return wrong;
}

TEST(roundsToNearestEven) {
  CHECK_EQ(roundingErrors(0x7C00, f16ToFloat, floatToF16), 0);
  CHECK_EQ(roundingErrors(0x7F80, bf16ToFloat, floatToBf16), 0);
}

TEST(overflowGivesInfinity) {
  const float infinity = std::numeric_limits<float>::infinity();
  CHECK_EQ(floatToF16(65519.996F), 0x7BFF);
  CHECK_EQ(floatToF16(65520.0F), 0x7C00);
  CHECK_EQ(floatToF16(-1e30F), 0xFC00);
  CHECK_EQ(floatToF16(infinity), 0x7C00);
  CHECK_EQ(floatToBf16(std::numeric_limits<float>::max()), 0x7F80);
  CHECK_EQ(floatToBf16(-infinity), 0xFF80);
  CHECK(std::isnan(bf16ToFloat(floatToBf16(std::bit_cast<float>(0x7FFFFFFFU)))));
  CHECK(std::isnan(bf16ToFloat(floatToBf16(std::bit_cast<float>(0x7F800001U)))));
  CHECK(std::isnan(f16ToFloat(floatToF16(std::bit_cast<float>(0x7F800001U)))));
}

}  // namespace
}  // namespace nt

TEST_MAIN()
