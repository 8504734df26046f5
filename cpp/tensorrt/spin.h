// Busy waiting.
#pragma once

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace nt {

// Tells the processor that this thread waits, `times` times in a row (some 40 ns each).
inline void spinPause(int times = 1) noexcept {
  for (int i = 0; i < times; ++i) {
#if defined(__x86_64__)
    _mm_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
  }
}

}  // namespace nt
