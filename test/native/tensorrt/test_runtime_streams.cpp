// Streams and events of the generic runtime, on a GPU of host memory.
#include "runtime_streams.h"
#include "tensorrt/runtime/faults.h"

namespace {

using namespace nt;
using namespace nt::runtime;
using namespace nt::test;
using namespace std::chrono_literals;

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
  CHECK(gone.wait_for(60s) == std::future_status::ready);
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
  CHECK(oldGone.wait_for(60s) == std::future_status::ready);
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

TEST(nothing_was_done_that_cuda_forbids) {
  CHECK_EQ(fake::figures().violations, 0U);
  CHECK_EQ(fake::lastViolation(), "");
}

}  // namespace

TEST_MAIN()
