#include "tensorrt/runtime/process_exit.h"

#include <unistd.h>

#include <atomic>
#include <chrono>
#include <cstdlib>
#include <thread>

namespace nt::runtime {

namespace {

std::atomic<bool> exiting{false};
std::atomic<int> working{0};
thread_local int depth = 0;

void onExit() {
  exiting = true;
  const auto end = std::chrono::steady_clock::now() + std::chrono::seconds(1);
  // A section that calls exit() itself is not waited for.
  while (working > (depth > 0 ? 1 : 0) && std::chrono::steady_clock::now() < end) {
    std::this_thread::sleep_for(std::chrono::microseconds(200));
  }
}

}  // namespace

WorkSection::WorkSection() noexcept {
  // Registered after CUDA's own handlers, which came with the module's load: runs before them.
  static const int registered = std::atexit(&onExit);
  (void)registered;
  if (depth++ > 0) return;
  ++working;
  if (!exiting) return;
  --working;
  while (true) pause();
}

WorkSection::~WorkSection() {
  if (--depth == 0) --working;
}

}  // namespace nt::runtime
