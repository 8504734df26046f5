// Streams of the generic runtime on a real device: what test/native/tensorrt/test_runtime_streams.cpp cannot
// see of a fake one, and what a call costs. Needs a GPU.
#include <cuda_runtime_api.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstring>
#include <future>
#include <memory>
#include <thread>
#include <utility>
#include <vector>

#include "check.h"
#include "tensorrt/cuda.h"
#include "tensorrt/runtime/device_state.h"
#include "tensorrt/runtime/event.h"
#include "tensorrt/runtime/memory.h"
#include "tensorrt/runtime/reaper.h"
#include "tensorrt/runtime/stream.h"

namespace {

using namespace nt;
using namespace nt::runtime;
using Clock = std::chrono::steady_clock;

DeviceState& device() {
  static DeviceState* const state = *DeviceState::of(0);
  return *state;
}
std::shared_ptr<Memory> memory(MemoryKind kind, uint64_t bytes) {
  return *createMemory(device(), kind, bytes, false);
}
std::shared_ptr<runtime::Stream> stream(int32_t spinUs) {
  return *createStream(device(), {0, spinUs});
}
Status synchronize(runtime::Stream& stream) {
  std::promise<Status> promise;
  stream.synchronize([&](Status status) { promise.set_value(std::move(status)); });
  return promise.get_future().get();
}
std::shared_ptr<Graph> endCapture(runtime::Stream& stream) {
  std::promise<Expected<std::shared_ptr<Graph>>> promise;
  const Status status =
      stream.endCapture([&](Expected<std::shared_ptr<Graph>> graph) { promise.set_value(std::move(graph)); });
  if (!status) return nullptr;
  Expected<std::shared_ptr<Graph>> graph = promise.get_future().get();
  return graph ? *graph : nullptr;
}
double since(Clock::time_point start) {
  return std::chrono::duration<double, std::micro>(Clock::now() - start).count();
}
double percentile(std::vector<double> values, double share) {
  std::sort(values.begin(), values.end());
  return values[static_cast<size_t>(share * static_cast<double>(values.size() - 1))];
}

constexpr uint64_t kLarge = uint64_t{256} << 20;

TEST(copies_between_pinned_memory_keep_their_place_in_the_stream) {
  const auto s = stream(50);
  const auto big = memory(MemoryKind::kDevice, kLarge);
  const auto a = memory(MemoryKind::kPinned, 4096);
  const auto b = memory(MemoryKind::kPinned, 4096);
  std::memset(a->address(), 1, 4096);
  std::memset(b->address(), 2, 4096);
  for (int i = 0; i < 20; ++i) CHECK(s->fill(big, 0, kLarge, static_cast<uint8_t>(i)));
  CHECK(s->copy(a, 0, big, kLarge - 4096, 4096));
  CHECK(s->copy(b, 0, a, 0, 4096));
  CHECK(s->fill(a, 0, 4096, 77));
  CHECK(s->copyRows(a, 0, 8, b, 0, 16, 4, 100));
  CHECK(synchronize(*s));
  CHECK_EQ(static_cast<uint8_t*>(b->address())[4095], 19);
  CHECK_EQ(static_cast<uint8_t*>(a->address())[3], 19);
  CHECK_EQ(static_cast<uint8_t*>(a->address())[4], 77);
}

TEST(graphs_are_captured_while_other_streams_allocate) {
  const auto s = stream(50);
  const auto from = memory(MemoryKind::kPinned, 4096);
  const auto there = memory(MemoryKind::kDevice, 4096);
  const auto back = memory(MemoryKind::kPinned, 4096);
  std::atomic<bool> stop{false};
  std::thread other([&] {
    while (!stop) {
      const auto scratch = memory(MemoryKind::kDevice, 1 << 20);
      const auto t = stream(0);
      (void)t->fill(scratch, 0, 1 << 20, 3);
      (void)synchronize(*t);
    }
  });
  for (int i = 0; i < 50; ++i) {
    CHECK(s->beginCapture());
    CHECK(s->copy(there, 0, from, 0, 4096));
    CHECK(s->copy(back, 0, there, 0, 4096));
    const auto graph = endCapture(*s);
    if (graph == nullptr) {
      CHECK(graph != nullptr);
      break;
    }
    std::memset(from->address(), i, 4096);
    CHECK(s->launch(graph));
    CHECK(synchronize(*s));
    CHECK_EQ(static_cast<uint8_t*>(back->address())[4095], static_cast<uint8_t>(i));
  }
  stop = true;
  other.join();
}

TEST(times_and_waits_across_streams) {
  const auto a = stream(50);
  const auto b = stream(50);
  const auto big = memory(MemoryKind::kDevice, kLarge);
  const auto out = memory(MemoryKind::kPinned, 16);
  const auto start = *createEvent(device(), true);
  const auto end = *createEvent(device(), true);
  for (int i = 1; i <= 20; ++i) {
    CHECK(a->record(start));
    for (int k = 0; k < 10; ++k) CHECK(a->fill(big, 0, kLarge, static_cast<uint8_t>(i)));
    CHECK(a->record(end));
    CHECK(b->wait(end));
    CHECK(b->copy(out, 0, big, kLarge - 16, 16));
    CHECK(synchronize(*b));
    CHECK_EQ(static_cast<uint8_t*>(out->address())[15], i);
    const auto ms = end->elapsedSince(*start);
    CHECK(bool(ms) && *ms > 0.1F && *ms < 1000);
  }
}

// The same graph as CUDA alone launches it and waits for it, and as a stream does.
TEST(what_a_launch_and_a_synchronize_cost) {
  const auto from = memory(MemoryKind::kPinned, 4096);
  const auto there = memory(MemoryKind::kDevice, 4096);
  constexpr int kRounds = 20'000;
  for (const int pauseUs : {0, 200, 2000}) {
    const int rounds = pauseUs == 0 ? kRounds : kRounds / 20;
    const auto s = stream(50);
    CHECK(s->beginCapture());
    CHECK(s->copy(there, 0, from, 0, 4096));
    CHECK(s->copy(from, 0, there, 0, 4096));
    const auto graph = endCapture(*s);
    REQUIRE(graph != nullptr);
    std::vector<double> calls;
    std::vector<double> whole;
    for (int i = 0; i < rounds; ++i) {
      std::atomic<bool> done{false};
      const auto start = Clock::now();
      CHECK(s->launch(graph));
      s->synchronize([&](Status status) { done = status.isOk(); });
      calls.push_back(since(start));
      while (!done.load(std::memory_order_acquire)) {
      }
      whole.push_back(since(start));
      if (pauseUs > 0) std::this_thread::sleep_for(std::chrono::microseconds(pauseUs));
    }
    const StreamCounters counters = s->counters();

    nt::Stream raw;
    nt::Event event;
    CapturedGraph captured;
    GraphExec exec;
    REQUIRE(cudaStreamCreateWithFlags(raw.put(), cudaStreamNonBlocking) == cudaSuccess);
    REQUIRE(cudaEventCreateWithFlags(event.put(), cudaEventDisableTiming) == cudaSuccess);
    REQUIRE(cudaStreamBeginCapture(raw.get(), cudaStreamCaptureModeRelaxed) == cudaSuccess);
    cudaMemcpyAsync(there->address(), from->address(), 4096, cudaMemcpyHostToDevice, raw.get());
    cudaMemcpyAsync(from->address(), there->address(), 4096, cudaMemcpyDeviceToHost, raw.get());
    REQUIRE(cudaStreamEndCapture(raw.get(), captured.put()) == cudaSuccess);
    REQUIRE(cudaGraphInstantiate(exec.put(), captured.get(), 0) == cudaSuccess);
    std::vector<double> bare;
    for (int i = 0; i < rounds; ++i) {
      const auto start = Clock::now();
      cudaGraphLaunch(exec.get(), raw.get());
      cudaEventRecord(event.get(), raw.get());
      while (cudaEventQuery(event.get()) == cudaErrorNotReady) {
      }
      bare.push_back(since(start));
      if (pauseUs > 0) std::this_thread::sleep_for(std::chrono::microseconds(pauseUs));
    }
    std::printf(
        "# pause %d us: both calls %.2f us (P99 %.2f), until done %.2f us (P99 %.2f); CUDA alone %.2f us "
        "(P99 "
        "%.2f); context switches of the stream's threads %.3f per round\n",
        pauseUs, percentile(calls, 0.5), percentile(calls, 0.99), percentile(whole, 0.5),
        percentile(whole, 0.99), percentile(bare, 0.5), percentile(bare, 0.99),
        static_cast<double>(counters.voluntarySwitches + counters.involuntarySwitches) / rounds);
    CHECK(percentile(calls, 0.5) < 10);
    CHECK(percentile(whole, 0.5) < percentile(bare, 0.5) + 40);
  }
}

TEST(figures_follow_what_is_allocated) {
  auto s = stream(50);
  auto scratch = memory(MemoryKind::kDevice, 4096);
  CHECK(s->fill(scratch, 0, 4096, 1));
  CHECK(synchronize(*s));
  const MemoryFigures figures = *device().memory();
  CHECK(figures.deviceBytes >= 4096);
  std::promise<void> gone;
  releaseLater(std::move(scratch), [&] { gone.set_value(); });
  gone.get_future().get();
  CHECK_EQ(device().memory()->deviceBytes, figures.deviceBytes - 4096);
}

}  // namespace

TEST_MAIN()
