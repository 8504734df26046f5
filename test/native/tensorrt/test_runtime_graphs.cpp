// Captures and graphs of the generic runtime, on a GPU of host memory.
#include "runtime_streams.h"
#include "tensorrt/runtime/faults.h"

namespace {

using namespace nt;
using namespace nt::runtime;
using namespace nt::test;
using namespace std::chrono_literals;

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
  CHECK(gone.wait_for(60s) == std::future_status::ready);
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

TEST(nothing_was_done_that_cuda_forbids) {
  CHECK_EQ(fake::figures().violations, 0U);
  CHECK_EQ(fake::lastViolation(), "");
}

}  // namespace

TEST_MAIN()
