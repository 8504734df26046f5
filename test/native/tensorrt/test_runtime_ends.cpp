// How streams end: closed, with the process, and with the device.
#include <unistd.h>

#include <array>

#include "runtime_streams.h"

namespace {

using namespace nt;
using namespace nt::runtime;
using namespace nt::test;
using namespace std::chrono_literals;

constexpr const char* kEndsWithWork = "--end-with-work";

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
  CHECK(isReady(gone, 60s));
  CHECK_EQ(bytesOf(log)[0], 1);
}

TEST(a_process_may_end_with_work_under_way) {
  std::array<char, 4096> path{};
  REQUIRE(readlink("/proc/self/exe", path.data(), path.size() - 1) > 0);
  const auto start = std::chrono::steady_clock::now();
  CHECK_EQ(std::system((std::string(path.data()) + " " + kEndsWithWork).c_str()), 0);
  CHECK(std::chrono::steady_clock::now() - start < 60s);
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
  CHECK(isReady(streamGone, 60s));
  CHECK(isReady(scratchGone, 60s));
  CHECK(isReady(pooledGone, 60s));
  settle();
}

TEST(nothing_was_done_that_cuda_forbids) {
  CHECK_EQ(fake::figures().violations, 0U);
  CHECK_EQ(fake::lastViolation(), "");
}

// What a program does that ends with work under way, on a device that is never done with it.
int endWithWorkUnderWay() {
  static Gate& gate = *new Gate;  // outlives the end, as the device does
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
