// Time of the CPU backend's steps, without JavaScript: prefill and decode of the demo model at several batch
// sizes.
//   g++ -std=c++20 -O2 -Icpp -Itest/native bench/native/cpu_step.cpp test/native/cpu_harness.cpp
//   <libnt_cpu.a> <libnt_core.a>
// (cmake -DNT_BUILD_TESTS=ON builds it as cpu_step). Arguments: threads (0 = all), simd ("" = best), context
// (tokens). Prints one JSON line per measurement; microseconds are medians over the steps, each submitted
// when the last has come back.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

#include "core/random.h"
#include "cpu_harness.h"

namespace {

using namespace nt;
using namespace nt::test;
using Clock = std::chrono::steady_clock;

constexpr int32_t kPageSize = 16;

double median(std::vector<double>& values) {
  std::nth_element(values.begin(), values.begin() + long(values.size() / 2), values.end());
  return values[values.size() / 2];
}

std::vector<int32_t> prompt(int32_t length, uint64_t seed) {
  std::vector<int32_t> ids;
  for (int32_t i = 0; i < length; ++i) ids.push_back(int32_t(6 + randomBits(seed, uint64_t(i)) % 4000));
  return ids;
}

bool decode(Session& session, int32_t rows, int32_t context, int32_t steps, float temperature) {
  const int32_t pagesEach = (context + steps + kPageSize) / kPageSize;
  SamplingParams sampling;
  sampling.temperature = temperature;
  for (int32_t s = 0; s < rows; ++s) {
    const auto ids = prompt(context, uint64_t(s));
    if (!session.open(s, ids, sampling)) return false;
    if (!session.step({{s, ids, 0, kSample, session.pages(s * pagesEach, context)}}).status) return false;
  }
  std::vector<double> wall;
  std::vector<double> run;
  for (int32_t i = 0; i < steps; ++i) {
    std::vector<SequenceStep> sequences;
    for (int32_t s = 0; s < rows; ++s) {
      const int32_t cached = context + i;
      sequences.push_back(
          {s, {kLastSampledToken}, cached, kSample, session.pages(s * pagesEach, cached + 1)});
    }
    const auto begin = Clock::now();
    const StepResult result = session.step(sequences);
    if (!result.status) return false;
    wall.push_back(std::chrono::duration<double, std::micro>(Clock::now() - begin).count());
    run.push_back(double(result.runUs));
  }
  for (int32_t s = 0; s < rows; ++s) {
    if (!session.backend->closeSlot(s)) return false;
  }
  const double wallUs = median(wall);
  std::printf(
      R"({"step":"decode","rows":%d,"context":%d,"temperature":%g,"runUs":%.1f,"wallUs":%.1f,"tokensPerSecond":%.0f})"
      "\n",
      rows, context, double(temperature), median(run), wallUs, rows * 1e6 / wallUs);
  return true;
}

bool prefill(Session& session, int32_t length, int32_t repeats) {
  std::vector<double> run;
  for (int32_t i = 0; i < repeats; ++i) {
    const auto ids = prompt(length, uint64_t(i));
    if (!session.open(0, ids)) return false;
    const StepResult result = session.step({{0, ids, 0, kSample, session.pages(0, length)}});
    if (!result.status || !session.backend->closeSlot(0)) return false;
    run.push_back(double(result.runUs));
  }
  const double runUs = median(run);
  std::printf(R"({"step":"prefill","tokens":%d,"runUs":%.1f,"tokensPerSecond":%.0f})"
              "\n",
              length, runUs, length * 1e6 / runUs);
  return true;
}

}  // namespace

int main(int argc, char** argv) {
  const LlamaShape shape{.vocab = 4096,
                         .width = 192,
                         .inner = 512,
                         .layers = 6,
                         .heads = 4,
                         .kvHeads = 2,
                         .headDim = 64,
                         .positions = 1024};
  CpuOptions options;
  options.graph = shape.graph();
  options.files = {NT_SOURCE_DIR "/models/tiny-storyteller/model.safetensors"};
  options.pageSize = kPageSize;
  options.numPages = 4096;
  options.threads = argc > 1 ? std::atoi(argv[1]) : 0;
  options.simd = argc > 2 ? argv[2] : "";
  const int32_t context = argc > 3 ? std::atoi(argv[3]) : 128;
  Session session(options);
  if (!session.ok()) {
    std::fprintf(stderr, "%s\n", session.status.message().c_str());
    return 1;
  }
  std::printf(R"({"device":"%s"})"
              "\n",
              session.backend->info().device.c_str());
  bool ok = true;
  for (const int32_t rows : {1, 2, 4, 8, 16, 32, 64}) ok = ok && decode(session, rows, context, 128, 0);
  ok = ok && decode(session, 16, context, 128, 0.8F);
  for (const int32_t length : {16, 64, 256, 900}) ok = ok && prefill(session, length, 9);
  if (!ok) std::fprintf(stderr, "a step failed\n");
  return ok ? 0 : 1;
}
