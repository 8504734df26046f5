// Memory, events, graphs and streams of the generic runtime, on a CUDA runtime that works on host memory.
#include <cuda_runtime_api.h>
#include <dlfcn.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <future>
#include <memory>
#include <new>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "check.h"
#include "fake_gpu.h"
#include "tensorrt/runtime/context_run.h"
#include "tensorrt/runtime/event.h"
#include "tensorrt/runtime/faults.h"
#include "tensorrt/runtime/memory.h"
#include "tensorrt/runtime/pool.h"
#include "tensorrt/runtime/ranges.h"
#include "tensorrt/runtime/reaper.h"
#include "tensorrt/runtime/stream.h"

namespace {

// Allocations of this program until the one that fails, on any thread; 0 = none does.
std::atomic<int64_t> failNew{0};

// The fake GPU is a library of its own, and is not to fail.
bool isOfProgram(void* code) {
  Dl_info here{};
  Dl_info there{};
  return dladdr(&failNew, &here) != 0 && dladdr(code, &there) != 0 && here.dli_fbase == there.dli_fbase;
}

}  // namespace

// Not inlined: GCC would take the pair for mismatched.
[[gnu::noinline]] void* operator new(size_t bytes, const std::nothrow_t&) noexcept {
  const bool fails = failNew.load(std::memory_order_relaxed) > 0 &&
                     isOfProgram(__builtin_return_address(0)) && failNew.fetch_sub(1) == 1;
  return fails ? nullptr : std::malloc(bytes == 0 ? 1 : bytes);
}
[[gnu::noinline]] void* operator new(size_t bytes) {
  const bool fails = failNew.load(std::memory_order_relaxed) > 0 &&
                     isOfProgram(__builtin_return_address(0)) && failNew.fetch_sub(1) == 1;
  void* memory = fails ? nullptr : std::malloc(bytes == 0 ? 1 : bytes);
  if (memory == nullptr) throw std::bad_alloc();
  return memory;
}
[[gnu::noinline]] void operator delete(void* memory) noexcept {
  std::free(memory);
}
[[gnu::noinline]] void operator delete(void* memory, size_t) noexcept {
  std::free(memory);
}

namespace {

using namespace nt;
using namespace nt::runtime;
using namespace std::chrono_literals;

constexpr const char* kEndsWithWork = "--end-with-work";

// Read at the first call of CUDA.
const int twoDevices = setenv("FAKE_GPU_DEVICES", "2", 1);

DeviceState& device() {
  static DeviceState* const state = *DeviceState::of(0);
  return *state;
}

std::shared_ptr<Memory> memory(MemoryKind kind, uint64_t bytes, bool pooled = false) {
  return *createMemory(device(), kind, bytes, pooled);
}
std::shared_ptr<runtime::Stream> stream(int32_t spinUs = 50) {
  return *createStream(device(), {0, spinUs});
}
std::shared_ptr<runtime::Event> event(bool timing = false) {
  return *createEvent(device(), timing);
}

std::future<Status> synchronized(runtime::Stream& stream) {
  auto promise = std::make_shared<std::promise<Status>>();
  stream.synchronize([promise](Status status) { promise->set_value(std::move(status)); });
  return promise->get_future();
}
Status synchronize(runtime::Stream& stream) {
  std::future<Status> done = synchronized(stream);
  if (done.wait_for(20s) != std::future_status::ready) return {"TIMEOUT", "synchronize does not end"};
  return done.get();
}

template <class T>
bool isReady(std::future<T>& future, std::chrono::milliseconds patience = 0ms) {
  return future.wait_for(patience) == std::future_status::ready;
}

std::future<void> released(std::shared_ptr<Object> object) {
  auto promise = std::make_shared<std::promise<void>>();
  releaseLater(std::move(object), [promise] { promise->set_value(); });
  return promise->get_future();
}
// Until what was let go of before is gone. Twice: a stream that ends lets go of more.
void settle() {
  for (int i = 0; i < 2; ++i) {
    std::promise<void> promise;
    reap([&] { promise.set_value(); });
    promise.get_future().wait();
  }
}

std::shared_future<void> goneOf(Object& object) {
  auto promise = std::make_shared<std::promise<void>>();
  object.onGone([promise] { promise->set_value(); });
  return promise->get_future().share();
}

// Lets something else go on until it is opened.
struct Gate {
  std::promise<void> promise;
  std::shared_future<void> opened = promise.get_future().share();
  void open() { promise.set_value(); }
};

uint8_t* bytesOf(const std::shared_ptr<Memory>& memory) {
  return static_cast<uint8_t*>(memory->address());
}

// A run appends the context's value to what the runs before have written: bytes [1] = count, then the values.
// Its value is set by setProfile, its memory by setAddress.
class FakeContext final : public RunnableContext {
 public:
  struct Changes final : ContextChanges {
    int32_t value = -1;
    std::shared_ptr<Memory> memory;
  };

  FakeContext() : RunnableContext(device()) {}

  Status setProfile(int32_t value) noexcept override {
    pending().value = value;
    return {};
  }
  Status setAddress(int32_t, std::shared_ptr<Memory> memory, uint64_t) noexcept override {
    pending().memory = std::move(memory);
    return {};
  }
  Status setInputShape(int32_t, Shape) noexcept override { return {}; }
  Status setShapeValues(int32_t, std::vector<int64_t>) noexcept override { return {}; }
  Status setDeviceMemory(std::shared_ptr<Memory>, uint64_t) noexcept override { return {}; }
  Status setProfiling(bool) noexcept override { return {}; }
  Expected<OutputView> output(int32_t) noexcept override { return OutputView{}; }
  std::string takeProfile() noexcept override { return "[]"; }

  std::unique_ptr<ContextChanges> takeChanges() noexcept override { return std::move(pending_); }
  void keepChanges(std::unique_ptr<ContextChanges> changes) noexcept override {
    if (changes == nullptr) return;
    ++kept;
    take(static_cast<Changes&>(*changes), nullptr);
  }
  Status apply(std::unique_ptr<ContextChanges> changes, cudaStream_t, RunEffects& effects) noexcept override {
    if (Gate* const gate = holdHost; gate != nullptr) gate->opened.wait();
    if (changes == nullptr) return {};
    ++effects.reshapes;
    take(static_cast<Changes&>(*changes), &effects.dropped);
    return {};
  }
  Status enqueueOn(cudaStream_t stream, RunEffects& effects) noexcept override {
    captured += effects.capturing ? 1 : 0;
    if (refuses) return {"ERR_EXECUTION_FAILED", "refused"};
    if (breaksCapture) {
      cudaStreamSynchronize(stream);
      cudaGetLastError();
      return {};
    }
    if (Gate* const hold = holdDevice; hold != nullptr) {
      cudaLaunchHostFunc(stream, [](void* gate) { static_cast<Gate*>(gate)->opened.wait(); }, hold);
    }
    try {
      runs_.push_back(
          std::make_unique<std::pair<uint8_t*, uint8_t>>(bytesOf(memory_), static_cast<uint8_t>(value_)));
    } catch (const std::bad_alloc&) {
      return {"ERR_OUT_OF_MEMORY", ""};
    }
    cudaLaunchHostFunc(
        stream,
        [](void* data) {
          const auto& [at, value] = *static_cast<std::pair<uint8_t*, uint8_t>*>(data);
          at[++at[0]] = value;
        },
        runs_.back().get());
    ++runsPut;
    return {};
  }
  Expected<std::vector<Shape>> shapes() noexcept override { return std::vector<Shape>{{value_, 2}}; }
  Status uses(References& references) noexcept override {
    references.push_back(memory_);
    return {};
  }

  // Until this many runs have been put on streams.
  void awaitRuns(int count) const {
    while (runsPut < count) std::this_thread::sleep_for(1ms);
  }

  std::atomic<bool> refuses = false;
  std::atomic<bool> breaksCapture = false;
  std::atomic<Gate*> holdHost = nullptr;    // the stream's thread waits for it
  std::atomic<Gate*> holdDevice = nullptr;  // the device does
  std::atomic<int> runsPut = 0;
  std::atomic<int> kept = 0;
  std::atomic<int> captured = 0;

 private:
  Changes& pending() {
    if (pending_ == nullptr) pending_ = std::make_unique<Changes>();
    return *pending_;
  }
  void take(Changes& changes, References* dropped) {
    if (changes.value >= 0) value_ = changes.value;
    if (changes.memory == nullptr) return;
    if (memory_ != nullptr && dropped != nullptr) dropped->push_back(memory_);
    memory_ = std::move(changes.memory);
  }

  std::unique_ptr<Changes> pending_;
  int32_t value_ = 0;
  std::shared_ptr<Memory> memory_;
  std::vector<std::unique_ptr<std::pair<uint8_t*, uint8_t>>> runs_;
};

// With memory of its own for 255 runs, which starts empty.
std::shared_ptr<FakeContext> context(std::shared_ptr<Memory> log = memory(MemoryKind::kPinned, 256)) {
  std::memset(log->address(), 0, log->bytes());
  auto context = std::make_shared<FakeContext>();
  (void)context->setAddress(0, std::move(log), 0);
  return context;
}

Expected<std::shared_ptr<Graph>> endCapture(runtime::Stream& stream) {
  std::promise<Expected<std::shared_ptr<Graph>>> promise;
  const Status status =
      stream.endCapture([&](Expected<std::shared_ptr<Graph>> graph) { promise.set_value(std::move(graph)); });
  if (!status) return status;
  return promise.get_future().get();
}

Expected<std::vector<Shape>> resolve(runtime::Stream& stream, std::shared_ptr<runtime::Context> context) {
  std::promise<Expected<std::vector<Shape>>> promise;
  stream.resolve(std::move(context), [&](Expected<std::vector<Shape>> shapes) { promise.set_value(shapes); });
  return promise.get_future().get();
}

TEST(blocks_of_the_pool_are_at_most_a_quarter_larger) {
  CHECK_EQ(sizeClass(0), 512U);
  CHECK_EQ(sizeClass(512), 512U);
  CHECK_EQ(sizeClass(513), 640U);
  CHECK_EQ(sizeClass(1024), 1024U);
  CHECK_EQ(sizeClass(1025), 1280U);
  for (uint64_t bytes = 512; bytes < 300'000; bytes += 7) {
    const uint64_t block = sizeClass(bytes);
    if (block < bytes || block > bytes + bytes / 4 + 1 || sizeClass(block) != block) {
      CHECK_EQ(block, bytes);
      break;
    }
  }
}

TEST(the_pool_lets_the_oldest_go) {
  Pool pool(1000);
  std::array<char, 4> blocks{};
  Pool::Blocks evicted;
  CHECK(pool.put(&blocks[0], 400, evicted));
  CHECK(pool.put(&blocks[1], 300, evicted));
  CHECK(pool.put(&blocks[2], 300, evicted));
  CHECK(evicted.empty());
  CHECK(!pool.put(&blocks[3], 1001, evicted));
  CHECK(pool.put(&blocks[3], 500, evicted));
  REQUIRE(evicted.size() == 2);
  CHECK(evicted.begin()->second.memory == &blocks[1]);
  CHECK(evicted.rbegin()->second.memory == &blocks[0]);
  CHECK_EQ(pool.bytes(), 800U);
  CHECK(pool.take(400) == nullptr);
  CHECK(pool.take(500) == &blocks[3]);
  CHECK_EQ(pool.takeAll().size(), 1U);
  CHECK_EQ(pool.bytes(), 0U);
}

TEST(overlap_of_rows_is_exact) {
  uint32_t random = 1;
  const auto next = [&](uint32_t below) {
    random = random * 1664525U + 1013904223U;
    return (random >> 16) % below;
  };
  int found = 0;
  for (int i = 0; i < 20'000; ++i) {
    const uint64_t bytes = next(5);
    const uint64_t rows = next(5);
    const Rows a{next(40), bytes + next(8), bytes, rows};
    const Rows b{next(40), bytes + next(8), bytes, rows};
    std::array<bool, 128> used{};
    bool common = false;
    for (uint64_t r = 0; r < rows; ++r) {
      for (uint64_t k = 0; k < bytes; ++k) used[a.offset + r * a.pitch + k] = true;
    }
    for (uint64_t r = 0; r < rows; ++r) {
      for (uint64_t k = 0; k < bytes; ++k) common = common || used[b.offset + r * b.pitch + k];
    }
    found += common ? 1 : 0;
    if (overlap(a, b) != common) {
      CHECK_EQ(a.text() + " / " + b.text(), std::string(common ? "overlap" : "no overlap"));
      return;
    }
  }
  CHECK(found > 1000);
  CHECK_EQ(checkRows({0, UINT64_MAX / 2, 8, 4}, "x").code(), "ERR_INVALID_ARGUMENT");
}

TEST(bytes_are_copied_in_every_direction) {
  const auto pinned = memory(MemoryKind::kPinned, 64);
  const auto other = memory(MemoryKind::kPinned, 64);
  const auto onDevice = memory(MemoryKind::kDevice, 64);
  const auto onDevice2 = memory(MemoryKind::kDevice, 64);
  for (int i = 0; i < 64; ++i) bytesOf(pinned)[i] = static_cast<uint8_t>(i);
  const auto s = stream();
  CHECK(s->fill(other, 0, 64, 0xEE));
  CHECK(s->copy(onDevice, 0, pinned, 0, 64));
  CHECK(s->copy(onDevice2, 8, onDevice, 4, 16));
  CHECK(s->fill(onDevice2, 10, 2, 0x77));
  CHECK(s->copy(other, 0, onDevice2, 8, 16));
  CHECK(s->copyRows(other, 32, 4, onDevice, 0, 8, 3, 4));
  CHECK(s->copy(other, 60, other, 0, 2));
  CHECK(s->copy(other, 0, pinned, 0, 0));
  CHECK(synchronize(*s));
  const uint8_t* out = bytesOf(other);
  CHECK_EQ(out[0], 4);
  CHECK_EQ(out[2], 0x77);
  CHECK_EQ(out[4], 8);
  CHECK_EQ(out[16], 0xEE);
  CHECK_EQ(out[36], 8);
  CHECK_EQ(out[38], 10);
  CHECK_EQ(out[39], 0xEE);
  CHECK_EQ(out[44], 24);
  CHECK_EQ(out[60], 4);
  CHECK_EQ(s->counters().commands, 8U);
}

TEST(wrong_ranges_are_refused_at_the_call) {
  const auto a = memory(MemoryKind::kDevice, 100);
  const auto b = memory(MemoryKind::kPinned, 100);
  const auto s = stream();
  const Status past = s->copy(a, 90, b, 0, 20);
  CHECK_EQ(past.code(), "ERR_INVALID_ARGUMENT");
  CHECK_EQ(past.message(), "The target has 100 bytes, 20 at offset 90 were asked for");
  CHECK_CONTAINS(s->copy(a, 0, b, UINT64_MAX, 2).message(), "The source has 100 bytes");
  CHECK_CONTAINS(s->copy(a, 0, nullptr, 0, 2).message(), "The source is missing");
  CHECK_CONTAINS(s->copy(a, 0, a, 5, 10).message(), "overlap");
  CHECK(s->copy(a, 0, a, 10, 10));
  CHECK_CONTAINS(s->copyRows(a, 0, 4, b, 0, 8, 8, 2).message(), "8 bytes and start 4 bytes apart");
  CHECK_CONTAINS(s->copyRows(a, 0, 8, b, 0, 50, 8, 3).message(), "The source has 100 bytes, 108 at offset 0");
  CHECK_EQ(s->copyRows(a, 0, UINT64_MAX, b, 0, 8, 8, 3).code(), "ERR_INVALID_ARGUMENT");
  CHECK_CONTAINS(s->fill(a, 101, 0, 1).message(), "0 at offset 101");
  CHECK_CONTAINS(s->fill(nullptr, 0, 0, 1).message(), "missing");
  CHECK_EQ(s->enqueue(nullptr).code(), "ERR_INVALID_ARGUMENT");
  CHECK_EQ(s->record(nullptr).code(), "ERR_INVALID_ARGUMENT");
  CHECK_EQ(s->wait(nullptr).code(), "ERR_INVALID_ARGUMENT");
  CHECK_EQ(s->launch(nullptr).code(), "ERR_INVALID_ARGUMENT");
  CHECK_EQ(resolve(*s, nullptr).status().code(), "ERR_INVALID_ARGUMENT");
  CHECK_EQ(createStream(device(), {-1, 0}).status().code(), "ERR_INVALID_ARGUMENT");
  CHECK_CONTAINS(createStream(device(), {0, -1}).status().message(), "spinUs is -1");
  CHECK(createStream(device(), {1000, 0}));
  CHECK(synchronize(*s));
}

TEST(objects_of_another_device_are_refused) {
  DeviceState& second = **DeviceState::of(1);
  CHECK(&second != &device());
  CHECK(*DeviceState::of(0) == &device());
  const auto far = *createMemory(second, MemoryKind::kDevice, 16, false);
  const auto s = stream();
  CHECK_CONTAINS(s->fill(far, 0, 16, 0).message(), "GPU 1, the stream of GPU 0");
  const auto farEvent = *createEvent(second, true);
  CHECK_CONTAINS(s->record(farEvent).message(), "The event is of GPU 1");
  CHECK_CONTAINS(event(true)->elapsedSince(*farEvent).status().message(), "GPU 0 and GPU 1");
  // Pinned memory is for all.
  CHECK(s->fill(*createMemory(second, MemoryKind::kPinned, 16, false), 0, 16, 1));
  CHECK(synchronize(*s));
}

TEST(runs_take_the_changes_made_before_them) {
  const auto s = stream();
  const auto log = memory(MemoryKind::kPinned, 256);
  const auto c = context(log);
  for (int i = 0; i < 200; ++i) {
    (void)c->setProfile(i);
    CHECK(s->enqueue(c));
  }
  CHECK(synchronize(*s));
  CHECK_EQ(bytesOf(log)[0], 200);
  bool inOrder = true;
  for (int i = 0; i < 200; ++i) inOrder = inOrder && bytesOf(log)[i + 1] == i;
  CHECK(inOrder);
  const StreamCounters counters = s->counters();
  CHECK_EQ(counters.enqueues, 200U);
  CHECK_EQ(counters.reshapes, 200U);
  CHECK(counters.enqueueUs > 0);
  CHECK(counters.queueUs > 0);
  (void)c->setProfile(7);
  const auto shapes = resolve(*s, c);
  REQUIRE(bool(shapes));
  CHECK_EQ((*shapes)[0][0], 7);
  CHECK_EQ(bytesOf(log)[0], 200);
}

TEST(a_failure_skips_the_rest_until_synchronize) {
  const auto s = stream();
  const auto log = memory(MemoryKind::kPinned, 256);
  const auto c = context(log);
  const auto scratch = memory(MemoryKind::kPinned, 8);
  injectFaults({0, 0, 0, 2});
  CHECK(s->fill(scratch, 0, 8, 0));
  CHECK(s->copy(scratch, 0, log, 0, 1));
  CHECK(s->copy(scratch, 0, log, 0, 1));
  CHECK(s->fill(scratch, 0, 8, 9));
  (void)c->setProfile(5);
  CHECK(s->enqueue(c));
  // The failure is the synchronize's, others are told of it too.
  const auto shapes = resolve(*s, c);
  CHECK_EQ(shapes.status().code(), "ERR_CUDA");
  const Status failed = synchronize(*s);
  CHECK_EQ(failed.code(), "ERR_CUDA");
  CHECK_CONTAINS(failed.message(), "on demand");
  CHECK_EQ(bytesOf(scratch)[0], 0);
  CHECK_EQ(bytesOf(log)[0], 0);
  CHECK_EQ(c->kept, 1);
  CHECK(s->enqueue(c));
  CHECK(synchronize(*s));
  CHECK_EQ(bytesOf(log)[0], 1);
  CHECK_EQ(bytesOf(log)[1], 5);

  injectFaults({0, 0, 1, 0});
  CHECK(s->enqueue(c));
  CHECK_EQ(synchronize(*s).code(), "ERR_EXECUTION_FAILED");
  c->refuses = true;
  CHECK(s->enqueue(c));
  CHECK_EQ(synchronize(*s).message(), "refused");
  CHECK(synchronize(*s));
}

TEST(waits_follow_the_order_of_the_calls) {
  const auto a = stream();
  const auto b = stream();
  const auto log = memory(MemoryKind::kPinned, 256);
  const auto first = context(log);
  const auto second = std::make_shared<FakeContext>();
  (void)second->setAddress(0, log, 0);
  (void)first->setProfile(1);
  (void)second->setProfile(2);
  const auto e = event();
  CHECK(b->wait(e));  // never recorded: no reason to wait
  CHECK(*e->isComplete());
  Gate host;
  first->holdHost = &host;
  CHECK(a->enqueue(first));
  CHECK(a->record(e));
  CHECK(b->wait(e));
  CHECK(b->enqueue(second));
  auto done = synchronized(*b);
  CHECK(!isReady(done, 50ms));
  CHECK(!*e->isComplete());
  host.open();
  CHECK(done.get());
  CHECK(*e->isComplete());
  CHECK_EQ(bytesOf(log)[0], 2);
  CHECK_EQ(bytesOf(log)[1], 1);
  CHECK_EQ(bytesOf(log)[2], 2);
  CHECK(synchronize(*a));

  // The same where only the device is behind.
  Gate gate;
  first->holdHost = nullptr;
  first->holdDevice = &gate;
  CHECK(a->enqueue(first));
  CHECK(a->record(e));
  CHECK(b->wait(e));
  auto again = synchronized(*b);
  CHECK(!isReady(again, 50ms));
  gate.open();
  CHECK(again.get());
}

TEST(streams_that_wait_for_each_other_do_not_lock_up) {
  const auto a = stream(0);
  const auto b = stream(0);
  const auto log = memory(MemoryKind::kPinned, 256);
  const auto x = context(log);
  const auto y = std::make_shared<FakeContext>();
  (void)y->setAddress(0, log, 0);
  const auto e = event();
  const auto f = event();
  for (int i = 0; i < 100; ++i) {
    (void)x->setProfile(i);
    (void)y->setProfile(i);
    CHECK(a->enqueue(x));
    CHECK(a->record(e));
    CHECK(b->wait(e));
    CHECK(b->enqueue(y));
    CHECK(b->record(f));
    CHECK(a->wait(f));
  }
  CHECK(synchronize(*a));
  CHECK(synchronize(*b));
  CHECK_EQ(bytesOf(log)[0], 200);
  bool inOrder = true;
  for (int i = 0; i < 200; ++i) inOrder = inOrder && bytesOf(log)[i + 1] == i / 2;
  CHECK(inOrder);
}

TEST(a_record_that_was_skipped_fails_who_waits) {
  const auto a = stream();
  const auto b = stream();
  const auto scratch = memory(MemoryKind::kPinned, 8);
  const auto e = event();
  injectFaults({0, 0, 0, 1});
  CHECK(a->copy(scratch, 0, scratch, 4, 4));
  CHECK(a->record(e));
  CHECK(b->wait(e));
  const Status failed = synchronize(*b);
  CHECK_EQ(failed.code(), "ERR_CUDA");
  CHECK_CONTAINS(failed.message(), "was not recorded");
  CHECK_EQ(e->isComplete().status().code(), "ERR_CUDA");
  CHECK_EQ(synchronize(*a).code(), "ERR_CUDA");
  CHECK(a->record(e));
  CHECK(b->wait(e));
  CHECK(synchronize(*b));
  CHECK(*e->isComplete());
}

TEST(times_need_complete_records_with_timing) {
  const auto s = stream();
  const auto start = event(true);
  const auto end = event(true);
  CHECK_CONTAINS(end->elapsedSince(*event(false)).status().message(), "without timing");
  CHECK_CONTAINS(end->elapsedSince(*start).status().message(), "start event was never recorded");
  Gate gate;
  const auto c = context();
  c->holdDevice = &gate;
  CHECK(s->record(start));
  CHECK(synchronize(*s));
  CHECK(s->enqueue(c));
  CHECK(s->record(end));
  CHECK_CONTAINS(end->elapsedSince(*start).status().message(), "The event has not completed");
  gate.open();
  CHECK(synchronize(*s));
  const auto elapsed = end->elapsedSince(*start);
  REQUIRE(bool(elapsed));
  CHECK(*elapsed >= 0);
}

TEST(a_context_moves_to_another_stream_behind_its_runs) {
  auto a = stream();
  const auto b = stream();
  const auto log = memory(MemoryKind::kPinned, 256);
  const auto c = context(log);
  Gate gate;
  c->holdDevice = &gate;
  (void)c->setProfile(1);
  CHECK(a->enqueue(c));
  CHECK(synchronized(*a).valid());
  auto issued = synchronized(*a);
  c->awaitRuns(1);
  c->holdDevice = nullptr;
  (void)c->setProfile(2);
  CHECK(b->enqueue(c));
  auto done = synchronized(*b);
  CHECK(!isReady(done, 50ms));
  gate.open();
  CHECK(done.get());
  CHECK(issued.get());
  CHECK_EQ(bytesOf(log)[1], 1);
  CHECK_EQ(bytesOf(log)[2], 2);

  // And when that stream is being closed.
  Gate second;
  c->holdDevice = &second;
  CHECK(a->enqueue(c));
  c->awaitRuns(3);
  c->holdDevice = nullptr;
  a.reset();
  std::this_thread::sleep_for(20ms);
  CHECK(b->enqueue(c));
  auto after = synchronized(*b);
  CHECK(!isReady(after, 50ms));
  second.open();
  CHECK(after.get());
  CHECK_EQ(bytesOf(log)[0], 4);
}

TEST(memory_lives_until_the_device_is_done) {
  const auto s = stream();
  auto scratch = memory(MemoryKind::kDevice, 64);
  Gate gate;
  const auto c = context();
  c->holdDevice = &gate;
  CHECK(s->enqueue(c));
  CHECK(s->fill(scratch, 0, 64, 1));
  const auto gone = released(std::move(scratch));
  CHECK(gone.wait_for(50ms) == std::future_status::timeout);
  gate.open();
  // Nobody synchronizes.
  CHECK(gone.wait_for(10s) == std::future_status::ready);
  CHECK(synchronize(*s));

  // What a change replaces was used by the run before.
  Gate next;
  auto old = memory(MemoryKind::kPinned, 256);
  std::memset(old->address(), 0, 256);
  const auto oldGone = goneOf(*old);
  const auto d = std::make_shared<FakeContext>();
  (void)d->setAddress(0, std::exchange(old, nullptr), 0);
  d->holdDevice = &next;
  CHECK(s->enqueue(d));
  auto fresh = memory(MemoryKind::kPinned, 256);
  std::memset(fresh->address(), 0, 256);
  (void)d->setAddress(0, fresh, 0);
  CHECK(resolve(*s, d));
  CHECK(oldGone.wait_for(50ms) == std::future_status::timeout);
  next.open();
  CHECK(oldGone.wait_for(10s) == std::future_status::ready);
}

TEST(a_stream_that_is_closed_ends_its_work_first) {
  auto s = stream();
  const auto log = memory(MemoryKind::kPinned, 256);
  const auto c = context(log);
  Gate gate;
  c->holdDevice = &gate;
  CHECK(s->enqueue(c));
  auto done = synchronized(*s);
  auto gone = released(std::move(s));
  CHECK(!isReady(gone, 50ms));
  gate.open();
  CHECK(done.get());
  CHECK(isReady(gone, 10'000ms));
  CHECK_EQ(bytesOf(log)[0], 1);
}

TEST(captured_commands_run_at_each_launch) {
  const auto s = stream();
  const auto other = stream();
  auto log = memory(MemoryKind::kPinned, 256);
  uint8_t* const counts = bytesOf(log);
  const auto gone = goneOf(*log);
  auto c = context(log);
  auto source = memory(MemoryKind::kPinned, 8);
  const auto target = memory(MemoryKind::kPinned, 8);
  bytesOf(source)[0] = 42;
  CHECK_CONTAINS(endCapture(*s).status().message(), "in no capture");
  CHECK(s->beginCapture());
  (void)c->setProfile(3);
  CHECK(s->enqueue(c));
  CHECK(s->copy(target, 0, source, 0, 8));
  CHECK_CONTAINS(s->beginCapture().message(), "capture already");
  CHECK_CONTAINS(synchronize(*s).message(), "during a capture");
  CHECK_CONTAINS(resolve(*s, c).status().message(), "during a capture");
  CHECK_EQ(s->record(event()).code(), "ERR_INVALID_ARGUMENT");
  CHECK_EQ(s->wait(event()).code(), "ERR_INVALID_ARGUMENT");
  CHECK_CONTAINS(other->enqueue(c).message(), "in a capture of another stream");
  auto graph = endCapture(*s);
  REQUIRE(bool(graph));
  CHECK_EQ(c->captured, 1);
  CHECK(synchronize(*s));
  CHECK_EQ(counts[0], 0);
  c.reset();
  log.reset();
  source.reset();
  for (int i = 0; i < 3; ++i) {
    CHECK(s->launch(*graph));
    CHECK(other->launch(*graph));
  }
  CHECK(synchronize(*other));
  CHECK(synchronize(*s));
  CHECK_EQ(counts[0], 6);
  CHECK_EQ(counts[1], 3);
  CHECK_EQ(bytesOf(target)[0], 42);
  CHECK_EQ(s->counters().graphLaunches, 3U);
  CHECK(gone.wait_for(0ms) == std::future_status::timeout);
  CHECK(s->beginCapture());
  CHECK_CONTAINS(s->launch(*graph).message(), "during a capture");
  CHECK(endCapture(*s));
  injectFaults({0, 0, 1, 0});
  CHECK(s->launch(*graph));
  CHECK_EQ(synchronize(*s).code(), "ERR_EXECUTION_FAILED");
  auto graphGone = released(*graph);
  graph = Status::invalid("");
  graphGone.get();
  CHECK(gone.wait_for(10s) == std::future_status::ready);
}

TEST(a_void_capture_leaves_the_stream_usable) {
  auto s = stream();
  const auto c = context();
  const auto scratch = memory(MemoryKind::kPinned, 8);
  CHECK(s->beginCapture());
  c->breaksCapture = true;
  CHECK(s->enqueue(c));
  const Status broken = endCapture(*s).status();
  CHECK_EQ(broken.code(), "ERR_CUDA");
  CHECK_CONTAINS(broken.hint(), "cannot be captured");
  CHECK(synchronize(*s));

  // A command that fails in it is the capture's failure alone.
  CHECK(s->beginCapture());
  injectFaults({0, 0, 0, 1});
  CHECK(s->copy(scratch, 0, scratch, 4, 4));
  CHECK_CONTAINS(endCapture(*s).status().message(), "on demand");
  CHECK(synchronize(*s));

  // One from before stays until synchronize.
  injectFaults({0, 0, 0, 1});
  CHECK(s->copy(scratch, 0, scratch, 4, 4));
  CHECK(s->beginCapture());
  CHECK_CONTAINS(endCapture(*s).status().message(), "on demand");
  CHECK_CONTAINS(synchronize(*s).message(), "on demand");

  c->breaksCapture = false;
  CHECK(s->beginCapture());
  CHECK(s->enqueue(c));
  CHECK(endCapture(*s));
  CHECK(s->beginCapture());
  CHECK(s->enqueue(c));
  released(std::move(s)).get();
}

TEST(a_capture_waits_for_runs_of_its_contexts_elsewhere) {
  const auto a = stream();
  const auto b = stream();
  const auto log = memory(MemoryKind::kPinned, 256);
  const auto c = context(log);
  Gate gate;
  c->holdDevice = &gate;
  (void)c->setProfile(1);
  CHECK(a->enqueue(c));
  c->awaitRuns(1);
  c->holdDevice = nullptr;
  CHECK(b->beginCapture());
  (void)c->setProfile(2);
  CHECK(b->enqueue(c));
  const auto graph = endCapture(*b);
  REQUIRE(bool(graph));
  CHECK(b->launch(*graph));
  auto done = synchronized(*b);
  CHECK(!isReady(done, 50ms));
  gate.open();
  CHECK(done.get());
  CHECK_EQ(bytesOf(log)[1], 1);
  CHECK_EQ(bytesOf(log)[2], 2);
}

TEST(memory_is_counted_pooled_and_trimmed) {
  device().trim();
  settle();
  const MemoryFigures before = *device().memory();
  const DeviceCounters start = device().counters();
  auto plain = memory(MemoryKind::kDevice, 1000);
  CHECK_EQ(device().memory()->deviceBytes, before.deviceBytes + 1000);
  released(std::move(plain)).get();
  CHECK_EQ(device().memory()->deviceBytes, before.deviceBytes);
  CHECK_EQ(device().counters().deviceAllocations, start.deviceAllocations + 1);
  CHECK_EQ(device().counters().deviceFrees, start.deviceFrees + 1);

  auto pooled = memory(MemoryKind::kPinned, 1000, true);
  void* const address = pooled->address();
  CHECK_EQ(pooled->bytes(), 1000U);
  released(std::move(pooled)).get();
  CHECK_EQ(device().memory()->pooledPinnedBytes, 1024U);
  CHECK_EQ(device().memory()->pinnedBytes, before.pinnedBytes);
  pooled = memory(MemoryKind::kPinned, 900, true);
  CHECK(pooled->address() == address);
  CHECK_EQ(device().counters().poolHits, start.poolHits + 1);
  CHECK_EQ(device().counters().pinnedAllocations, start.pinnedAllocations + 1);
  released(std::move(pooled)).get();
  device().trim();
  CHECK_EQ(device().memory()->pooledPinnedBytes, 0U);
  settle();
  CHECK_EQ(device().counters().pinnedFrees, start.pinnedFrees + 1);

  void* raw = nullptr;
  CHECK_EQ(device().allocateDeviceRaw(5000, &raw), cudaSuccess);
  CHECK_EQ(device().memory()->deviceBytes, before.deviceBytes + 5000);
  device().freeDeviceRaw(raw);
  CHECK_EQ(device().memory()->deviceBytes, before.deviceBytes);
}

TEST(memory_that_is_out_is_a_typed_error) {
  injectFaults({2, 1, 0, 0});
  CHECK(createMemory(device(), MemoryKind::kDevice, 64, false));
  const auto failed = createMemory(device(), MemoryKind::kDevice, 64, false);
  CHECK_EQ(failed.status().code(), "ERR_OUT_OF_DEVICE_MEMORY");
  CHECK_CONTAINS(failed.status().message(), "Device memory of 64 bytes: GPU 0 is out of memory");
  CHECK(createMemory(device(), MemoryKind::kDevice, 64, false));
  CHECK_EQ(createMemory(device(), MemoryKind::kPinned, 64, true).status().code(), "ERR_OUT_OF_MEMORY");
  CHECK(createMemory(device(), MemoryKind::kPinned, 64, true));
  CHECK_EQ(createMemory(device(), MemoryKind::kDevice, UINT64_MAX, true).status().code(),
           "ERR_OUT_OF_DEVICE_MEMORY");
  CHECK(createMemory(device(), MemoryKind::kDevice, 0, false));
}

TEST(many_streams_at_once) {
  std::vector<std::thread> threads;
  std::atomic<int> wrong{0};
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&wrong, t] {
      for (int round = 0; round < 10; ++round) {
        auto s = stream(t % 2 == 0 ? 0 : 50);
        const auto source = memory(MemoryKind::kPinned, 4096, true);
        const auto there = memory(MemoryKind::kDevice, 4096, true);
        const auto back = memory(MemoryKind::kPinned, 4096, true);
        for (int i = 0; i < 20; ++i) {
          const auto value = static_cast<uint8_t>(t * 50 + i);
          std::memset(source->address(), value, 4096);
          if (!s->copy(there, 0, source, 0, 4096) || !s->copy(back, 0, there, 0, 4096)) ++wrong;
          if (!synchronize(*s) || bytesOf(back)[4095] != value) ++wrong;
        }
        if (round % 2 == 0) releaseLater(std::move(s), nullptr);
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  CHECK_EQ(wrong, 0);
}

TEST(no_allocation_of_the_host_is_one_too_many) {
  int failures = 0;
  for (int64_t n = 1; n <= 120; ++n) {
    auto s = stream(0);
    const auto scratch = memory(MemoryKind::kPinned, 64);
    const auto e = event();
    const auto c = context();
    std::promise<Status> promise;
    Done done = [&](Status status) { promise.set_value(std::move(status)); };
    bool called = true;
    failNew = n;
    called = called & s->fill(scratch, 0, 64, 1).isOk();
    called = called & s->copy(scratch, 0, scratch, 32, 32).isOk();
    called = called & s->record(e).isOk();
    called = called & s->wait(e).isOk();
    called = called & s->enqueue(c).isOk();
    const auto extra = createMemory(device(), MemoryKind::kDevice, 64, n % 2 == 0);
    s->synchronize(std::move(done));
    const Status status = promise.get_future().get();
    failNew = 0;
    if (!status) {
      ++failures;
      if (status.code() != "ERR_OUT_OF_MEMORY") CHECK_EQ(status.message(), "");
    }
    if (!called || !extra) ++failures;
    const Status afterwards = synchronize(*s);
    if (!afterwards && afterwards.code() != "ERR_OUT_OF_MEMORY") CHECK_EQ(afterwards.message(), "");
    CHECK(synchronize(*s));
  }
  CHECK(failures > 3);
}

TEST(a_process_may_end_with_work_under_way) {
  std::array<char, 4096> path{};
  REQUIRE(readlink("/proc/self/exe", path.data(), path.size() - 1) > 0);
  const auto start = std::chrono::steady_clock::now();
  CHECK_EQ(std::system((std::string(path.data()) + " " + kEndsWithWork).c_str()), 0);
  CHECK(std::chrono::steady_clock::now() - start < 10s);
}

// The last ones: the device does not come back.
TEST(a_dead_device_says_so_everywhere_and_lets_go) {
  settle();
  auto s = stream();
  auto idle = stream();
  const auto e = event();
  auto scratch = memory(MemoryKind::kDevice, 64);
  auto pooled = memory(MemoryKind::kPinned, 64, true);
  const auto c = context();
  CHECK(idle->beginCapture());
  CHECK(idle->enqueue(c));
  const auto graph = endCapture(*idle);
  REQUIRE(bool(graph));
  CHECK(idle->beginCapture());
  CHECK(s->fill(scratch, 0, 64, 1));
  CHECK(synchronize(*s));
  fake::kill(0, cudaErrorIllegalAddress);
  (void)s->fill(scratch, 0, 64, 1);  // whether the stream's thread has seen it by the next call is open
  (void)s->enqueue(c);
  const Status died = synchronize(*s);
  CHECK_EQ(died.code(), "ERR_BACKEND_DEAD");
  CHECK_CONTAINS(died.message(), "cudaErrorIllegalAddress");
  CHECK(device().isDead());
  CHECK_EQ(s->fill(scratch, 0, 64, 1).code(), "ERR_BACKEND_DEAD");
  CHECK_EQ(s->copy(pooled, 0, scratch, 0, 64).code(), "ERR_BACKEND_DEAD");
  CHECK_EQ(s->enqueue(c).code(), "ERR_BACKEND_DEAD");
  CHECK_EQ(s->record(e).code(), "ERR_BACKEND_DEAD");
  CHECK_EQ(s->wait(e).code(), "ERR_BACKEND_DEAD");
  CHECK_EQ(s->beginCapture().code(), "ERR_BACKEND_DEAD");
  CHECK_EQ(s->launch(*graph).code(), "ERR_BACKEND_DEAD");
  CHECK_EQ(resolve(*s, c).status().code(), "ERR_BACKEND_DEAD");
  CHECK_EQ(synchronize(*s).code(), "ERR_BACKEND_DEAD");
  CHECK_EQ(endCapture(*idle).status().code(), "ERR_BACKEND_DEAD");
  CHECK_EQ(synchronize(*idle).code(), "ERR_BACKEND_DEAD");
  CHECK_EQ(e->isComplete().status().code(), "ERR_BACKEND_DEAD");
  CHECK_EQ(device().memory().status().code(), "ERR_BACKEND_DEAD");
  CHECK_EQ(createStream(device(), {}).status().code(), "ERR_BACKEND_DEAD");
  CHECK_EQ(createEvent(device(), false).status().code(), "ERR_BACKEND_DEAD");
  CHECK_EQ(createMemory(device(), MemoryKind::kPinned, 64, true).status().code(), "ERR_BACKEND_DEAD");
  CHECK_CONTAINS(device().alive().message(), "cudaErrorIllegalAddress");
  // The other device lives on.
  CHECK((*DeviceState::of(1))->alive());
  auto streamGone = released(std::move(s));
  auto scratchGone = released(std::move(scratch));
  auto pooledGone = released(std::move(pooled));
  idle.reset();
  CHECK(isReady(streamGone, 10'000ms));
  CHECK(isReady(scratchGone, 10'000ms));
  CHECK(isReady(pooledGone, 10'000ms));
  settle();
}

TEST(nothing_was_done_that_cuda_forbids) {
  CHECK_EQ(fake::figures().violations, 0U);
  CHECK_EQ(fake::lastViolation(), "");
}

// What a program does that ends with work under way, on a device that is never done with it.
int endWithWorkUnderWay() {
  static Gate gate;
  static const auto s = stream();
  static const auto c = context();
  c->holdDevice = &gate;
  if (!s->enqueue(c)) return 1;
  s->synchronize([](Status) {});
  releaseLater(stream(), nullptr);
  releaseLater(memory(MemoryKind::kDevice, 64), nullptr);
  c->awaitRuns(1);
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  const std::string filter = argc > 1 ? argv[1] : "";
  return filter == kEndsWithWork ? endWithWorkUnderWay() : nt::test::runAll(filter);
}
