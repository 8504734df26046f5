// Counter-based random numbers: Philox4x32-10 of Salmon, Moraes, Dror and Shaw, "Parallel Random Numbers: As
// Easy as 1, 2, 3" (SC 2011). A draw is a pure function of (seed, counter, stream): no state to keep, to
// restore after a preemption, or to share.
#pragma once

#include <array>
#include <cstdint>

namespace nt {

// One block of 128 random bits.
constexpr std::array<uint32_t, 4> philox4x32(std::array<uint32_t, 4> counter,
                                             std::array<uint32_t, 2> key) noexcept {
  for (int round = 0; round < 10; ++round) {
    const uint64_t product0 = uint64_t{0xD2511F53U} * counter[0];
    const uint64_t product1 = uint64_t{0xCD9E8D57U} * counter[2];
    counter = {static_cast<uint32_t>(product1 >> 32) ^ counter[1] ^ key[0], static_cast<uint32_t>(product1),
               static_cast<uint32_t>(product0 >> 32) ^ counter[3] ^ key[1], static_cast<uint32_t>(product0)};
    // The golden ratio's and sqrt(3) - 1's fractions.
    key[0] += 0x9E3779B9U;
    key[1] += 0xBB67AE85U;
  }
  return counter;
}

// 64 random bits of the draw `counter` in `stream`. Sampling uses the index of the output token as the
// counter.
constexpr uint64_t randomBits(uint64_t seed, uint64_t counter, uint64_t stream = 0) noexcept {
  const auto low = [](uint64_t value) { return static_cast<uint32_t>(value); };
  const auto high = [](uint64_t value) { return static_cast<uint32_t>(value >> 32); };
  const auto block =
      philox4x32({low(counter), high(counter), low(stream), high(stream)}, {low(seed), high(seed)});
  return uint64_t{block[1]} << 32 | block[0];
}

// Uniform in [0, 1), a multiple of 2^-53.
constexpr double uniform(uint64_t seed, uint64_t counter, uint64_t stream = 0) noexcept {
  return static_cast<double>(randomBits(seed, counter, stream) >> 11) * 0x1p-53;
}

// Uniform in [0, 1), a multiple of 2^-24: `uniform` rounded down to float32, never up to 1.
constexpr float uniformFloat(uint64_t seed, uint64_t counter, uint64_t stream = 0) noexcept {
  return static_cast<float>(randomBits(seed, counter, stream) >> 40) * 0x1p-24F;
}

}  // namespace nt
