// Deterministic damage to a well-formed input: the same seed gives the same bytes on every machine.
#pragma once

#include <cstdint>
#include <string>

#include "core/random.h"

namespace nt::test {

class Mutator {
 public:
  explicit Mutator(uint64_t seed) : seed_(seed) {}

  // Uniform in 0 ... bound - 1; `bound` is 1 at least.
  uint64_t below(uint64_t bound) { return randomBits(seed_, counter_++) % bound; }

  // One to four edits: a byte replaced, a bit flipped, a stretch removed, repeated or overwritten, the end
  // cut off.
  std::string mutate(std::string text) {
    for (uint64_t edits = 1 + below(4); edits > 0; --edits) {
      if (text.empty()) return text;
      const size_t at = below(text.size());
      const size_t length = 1 + below(16);
      switch (below(7)) {
        case 0:
          text[at] = static_cast<char>(below(256));
          break;
        case 1:
          text[at] = static_cast<char>(text[at] ^ (1 << below(8)));
          break;
        case 2:
          text.erase(at, length);
          break;
        case 3:
          text.insert(at, text.substr(below(text.size()), length));
          break;
        case 4:
          text.replace(at, length, kTokens[below(std::size(kTokens))]);
          break;
        case 5:
          text.insert(at, kTokens[below(std::size(kTokens))]);
          break;
        default:
          // Rare, as it hides all later edits.
          if (below(4) == 0) text.resize(at);
      }
    }
    return text;
  }

 private:
  // What means something to a JSON reader or to arithmetic.
  static constexpr const char* kTokens[] = {"{",
                                            "}",
                                            "[",
                                            "]",
                                            ",",
                                            ":",
                                            "\"",
                                            "\\",
                                            "\\u",
                                            "\\ud800",
                                            "null",
                                            "true",
                                            "-1",
                                            "0",
                                            "1e999",
                                            "1.5",
                                            "2147483648",
                                            "4294967296",
                                            "9223372036854775807",
                                            "18446744073709551616",
                                            "-",
                                            "[[[[[[[[",
                                            "\xC3\xA9",
                                            "\xFF"};

  uint64_t seed_;
  uint64_t counter_ = 0;
};

}  // namespace nt::test
