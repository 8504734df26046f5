// What the runtime does when things fail, on the fake GPU: allocations, runs, plans, the device. Through the
// module as the addon opens it, so what is left behind is all that it keeps.
#include <dlfcn.h>

#include <atomic>
#include <chrono>
#include <cstring>
#include <future>
#include <memory>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "check.h"
#include "core/module.h"
#include "fake_gpu.h"
#include "plan_writer.h"

namespace {

using namespace nt;
using namespace nt::runtime;
using namespace std::chrono_literals;
using nt::fake::makePlan;
using nt::fake::scalePlan;

TensorRtModule& module() {
  static TensorRtModule* const module = [] {
    void* library = dlopen(NT_FAKE_GPU_FOLDER "/nt-tensorrt.so", RTLD_NOW | RTLD_LOCAL);
    if (library == nullptr) throw std::runtime_error(dlerror());
    return reinterpret_cast<ModuleEntryPoint*>(dlsym(library, kModuleEntryPoint))(kModuleAbi);
  }();
  return *module;
}

Status synchronize(runtime::Stream& stream) {
  const auto promise = std::make_shared<std::promise<Status>>();
  stream.synchronize([promise](Status status) { promise->set_value(std::move(status)); });
  std::future<Status> done = promise->get_future();
  if (done.wait_for(120s) != std::future_status::ready) return {"TIMEOUT", "synchronize does not end"};
  return done.get();
}

std::future<void> release(std::shared_ptr<Object> object) {
  const auto promise = std::make_shared<std::promise<void>>();
  module().release(std::move(object), [promise] { promise->set_value(); });
  return promise->get_future();
}

// All that a caller holds of one engine. Members are let go of in any order by `close`.
struct Session {
  std::shared_ptr<Runtime> runtime;
  std::shared_ptr<Engine> engine;
  std::shared_ptr<Context> context;
  std::shared_ptr<Stream> stream;
  std::shared_ptr<Event> event;
  std::shared_ptr<Memory> x;
  std::shared_ptr<Memory> y;
  std::shared_ptr<Memory> in;
  std::shared_ptr<Memory> out;

  std::vector<std::shared_ptr<Object>> objects() {
    std::vector<std::shared_ptr<Object>> all = {std::move(runtime), std::move(engine), std::move(context),
                                                std::move(stream),  std::move(event),  std::move(x),
                                                std::move(y),       std::move(in),     std::move(out)};
    std::erase(all, nullptr);
    return all;
  }
};

// False = it is still not gone after two minutes.
bool close(Session session, std::minstd_rand* order = nullptr) {
  std::vector<std::shared_ptr<Object>> objects = session.objects();
  if (order != nullptr) std::shuffle(objects.begin(), objects.end(), *order);
  std::vector<std::future<void>> gone;
  for (auto& object : objects) gone.push_back(release(std::move(object)));
  for (auto& one : gone) {
    if (one.wait_for(120s) != std::future_status::ready) return false;
  }
  return true;
}

template <class T>
Status take(Expected<T> made, T& to) {
  if (made) to = *std::move(made);
  return made.status();
}

constexpr uint64_t kBytes = 8 * 4 * sizeof(float);

// Stops at what fails; what was made until then stays in the session.
Status open(Session& session, const std::string& plan) {
  Session& s = session;
  if (Status status = take(module().createRuntime({NT_FAKE_GPU_FOLDER, 0}), s.runtime); !status)
    return status;
  if (Status status = take(s.runtime->deserialize(plan.data(), plan.size(), false), s.engine); !status)
    return status;
  if (Status status = take(s.engine->createContext({}), s.context); !status) return status;
  if (Status status = take(s.runtime->createStream({0, 0}), s.stream); !status) return status;
  if (Status status = take(s.runtime->createEvent(false), s.event); !status) return status;
  for (auto* memory : {&s.x, &s.y}) {
    if (Status status = take(s.runtime->allocate(MemoryKind::kDevice, kBytes, false), *memory); !status)
      return status;
  }
  for (auto* memory : {&s.in, &s.out}) {
    if (Status status = take(s.runtime->allocate(MemoryKind::kPinned, kBytes, false), *memory); !status)
      return status;
  }
  for (int32_t tensor = 0; tensor < 2; ++tensor) {
    if (Status status = s.context->setAddress(tensor, tensor == 0 ? s.x : s.y, 0); !status) return status;
  }
  return {};
}

// Queues a run of `rows` rows whose values are all `value`.
Status queueRun(Session& s, int64_t rows, float value) {
  auto* values = static_cast<float*>(s.in->address());
  std::fill(values, values + rows * 4, value);
  const uint64_t bytes = static_cast<uint64_t>(rows) * 16;
  if (Status status = s.context->setInputShape(0, {rows, 4}); !status) return status;
  if (Status status = s.stream->copy(s.x, 0, s.in, 0, bytes); !status) return status;
  if (Status status = s.stream->enqueue(s.context); !status) return status;
  if (Status status = s.stream->copy(s.out, 0, s.y, 0, bytes); !status) return status;
  return s.stream->record(s.event);
}

Status run(Session& s, int64_t rows, float value, float expected) {
  std::memset(s.out->address(), 0, kBytes);
  if (Status status = queueRun(s, rows, value); !status) return status;
  if (Status status = synchronize(*s.stream); !status) return status;
  const auto* out = static_cast<const float*>(s.out->address());
  for (int64_t i = 0; i < rows * 4; ++i) {
    if (out[i] != expected) return {"WRONG", "value " + std::to_string(out[i])};
  }
  return {};
}

// Pooled blocks aside, what the module holds on the device.
fake::Figures settled() {
  fake::Figures figures = fake::figures();
  figures.allocations = 0;
  return figures;
}

void checkUnchanged(const fake::Figures& before, const std::string& when) {
  const fake::Figures after = settled();
  if (after == before) return;
  nt::test::fail(__FILE__, __LINE__,
                 when + ": device blocks " + std::to_string(before.deviceBlocks) + " -> " +
                     std::to_string(after.deviceBlocks) + ", pinned blocks " +
                     std::to_string(before.pinnedBlocks) + " -> " + std::to_string(after.pinnedBlocks) +
                     ", streams " + std::to_string(before.streams) + " -> " + std::to_string(after.streams) +
                     ", events " + std::to_string(before.events) + " -> " + std::to_string(after.events) +
                     ", graphs " + std::to_string(before.graphs) + " -> " + std::to_string(after.graphs) +
                     ", violations " + std::to_string(after.violations) + " (" + fake::lastViolation() + ")");
}

bool isOneOf(const Status& status, std::initializer_list<const char*> codes) {
  for (const char* code : codes) {
    if (status.code() == code) return true;
  }
  return false;
}

std::string sleepyPlan(int us) {
  return makePlan(
      R"({"tensors":[{"name":"x","mode":"input","shape":[-1,4]},{"name":"y","mode":"output","shape":[-1,4]}],)"
      R"("profiles":[{"x":{"min":[1,4],"opt":[4,4],"max":[8,4]}}],"activationBytes":4096,"scratchBytes":1000,)"
      R"("layers":[{"op":"sleep","us":)" +
      std::to_string(us) +
      R"(},{"op":"scale","inputs":["x"],"output":"y","a":3},{"op":"refuse","rows":5}]})");
}

}  // namespace

TEST(a_session_leaves_nothing_behind) {
  const fake::Figures before = settled();
  Session session;
  REQUIRE(open(session, scalePlan(2, 1)));
  for (int64_t rows = 1; rows <= 8; ++rows) {
    const auto value = static_cast<float>(rows);
    CHECK_EQ(run(session, rows, value, 2 * value + 1).message(), std::string());
  }
  CHECK(close(std::move(session)));
  checkUnchanged(before, "after a session");
}

// Whichever allocation fails: a typed error, and nothing is left.
TEST(the_nth_allocation_fails) {
  const fake::Figures before = settled();
  int failed = 0;
  for (const bool pinned : {false, true}) {
    for (int64_t n = 1; n <= 100; ++n) {
      Faults faults;
      (pinned ? faults.failPinnedAllocation : faults.failDeviceAllocation) = n;
      module().injectFaults(faults);
      Session session;
      Status status = open(session, sleepyPlan(0));
      for (int64_t rows = 1; status && rows <= 4; ++rows) status = run(session, rows, 2, 6);
      module().injectFaults({});
      if (!status) {
        ++failed;
        const char* expected = pinned ? "ERR_OUT_OF_MEMORY" : "ERR_OUT_OF_DEVICE_MEMORY";
        if (status.code() != expected)
          nt::test::fail(__FILE__, __LINE__,
                         std::to_string(n) + ": " + status.code() + " " + status.message());
        // What failed in a run goes on once there is memory.
        if (session.out != nullptr) CHECK_EQ(run(session, 2, 2, 6).message(), std::string());
      }
      CHECK(close(std::move(session)));
      checkUnchanged(before, "after allocation " + std::to_string(n) + " failed");
    }
  }
  CHECK(failed >= 6);
}

// The same below the module, where the device really has no more.
TEST(cuda_itself_has_no_memory) {
  const fake::Figures before = settled();
  int failed = 0;
  for (uint64_t n = 1; n <= 100; ++n) {
    Session session;
    fake::failAllocation(n);
    Status status = open(session, sleepyPlan(0));
    for (int64_t rows = 1; status && rows <= 4; ++rows) status = run(session, rows, 2, 6);
    fake::failAllocation(0);
    if (!status) {
      ++failed;
      CHECK(isOneOf(status, {"ERR_OUT_OF_MEMORY", "ERR_OUT_OF_DEVICE_MEMORY"}));
    }
    CHECK(close(std::move(session)));
    checkUnchanged(before, "after call " + std::to_string(n) + " of cudaMalloc failed");
  }
  CHECK(failed >= 6);
}

TEST(a_run_that_fails_leaves_the_stream_usable) {
  const fake::Figures before = settled();
  Session session;
  REQUIRE(open(session, sleepyPlan(100)));
  for (int i = 0; i < 20; ++i) {
    Faults faults;
    faults.failEnqueue = 1 + i % 3;
    module().injectFaults(faults);
    Status first;
    for (int k = 0; k < 3 && first; ++k) first = queueRun(session, 2, 1);
    CHECK_EQ(first.message(), std::string());
    const Status status = synchronize(*session.stream);
    CHECK_EQ(status.code(), std::string("ERR_EXECUTION_FAILED"));
    module().injectFaults({});
    // TensorRT's own refusal.
    CHECK(queueRun(session, 5, 1));
    const Status refused = synchronize(*session.stream);
    CHECK_EQ(refused.code(), std::string("ERR_EXECUTION_FAILED"));
    CHECK_CONTAINS(refused.message(), "refuses 5 rows");
    faults = {};
    faults.failCopy = 2;
    module().injectFaults(faults);
    CHECK(queueRun(session, 2, 1));
    CHECK(!synchronize(*session.stream));
    module().injectFaults({});
    CHECK_EQ(run(session, 3, 5, 15).message(), std::string());
  }
  CHECK(close(std::move(session)));
  checkUnchanged(before, "after runs that failed");
}

TEST(rounds_of_good_and_bad_plans_leave_nothing_behind) {
  const fake::Figures before = settled();
  std::minstd_rand random(1);
  const std::string good = sleepyPlan(0);
  for (int round = 0; round < 300; ++round) {
    std::string plan = good;
    const char* expected = "";
    switch (round % 4) {
      case 1:
        plan[random() % plan.size()] ^= static_cast<char>(1 + random() % 255);
        expected = "ERR_ENGINE_INVALID";
        break;
      case 2:
        plan.resize(random() % plan.size());
        expected = "ERR_ENGINE_INVALID";
        break;
      case 3:
        plan = makePlan(R"({"tensorrt":"10.4.0","tensors":[],"layers":[]})");
        expected = "ERR_ENGINE_INCOMPATIBLE";
        break;
      default:
        break;
    }
    Session session;
    Status status = open(session, plan);
    CHECK_EQ(status.code(), std::string(expected));
    if (status) {
      CHECK_EQ(run(session, 1 + round % 4, 1, 3).message(), std::string());
      CHECK(queueRun(session, 5, 1));
      CHECK(!synchronize(*session.stream));
    }
    CHECK(close(std::move(session)));
  }
  checkUnchanged(before, "after 300 rounds");
}

TEST(objects_go_in_any_order_with_work_in_flight) {
  const fake::Figures before = settled();
  std::minstd_rand random(7);
  fake::setJitter(300);
  for (int round = 0; round < 60; ++round) {
    Session session;
    REQUIRE(open(session, sleepyPlan(200)));
    // Keeps a captured graph in flight too.
    CHECK_EQ(run(session, 2, 1, 3).message(), std::string());
    auto captured = std::make_shared<std::promise<std::shared_ptr<Graph>>>();
    CHECK(session.stream->beginCapture());
    CHECK(session.stream->enqueue(session.context));
    CHECK(session.stream->endCapture([captured](Expected<std::shared_ptr<Graph>> graph) {
      captured->set_value(graph ? *std::move(graph) : nullptr);
    }));
    std::shared_ptr<Graph> graph = captured->get_future().get();
    CHECK(graph != nullptr);
    if (graph != nullptr) CHECK(session.stream->launch(graph));
    std::future<void> graphGone = release(std::move(graph));
    for (int k = 0; k < 3; ++k) CHECK(session.stream->enqueue(session.context));
    CHECK(session.stream->record(session.event));
    CHECK(close(std::move(session), &random));
    CHECK(graphGone.wait_for(120s) == std::future_status::ready);
  }
  fake::setJitter(0);
  checkUnchanged(before, "after objects were let go of in any order");
}

// Several threads with objects of their own on one engine.
TEST(threads_share_an_engine) {
  const fake::Figures before = settled();
  Session shared;
  const std::string plan = sleepyPlan(50);
  REQUIRE(open(shared, plan));
  std::atomic<int> wrong = 0;
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&, t] {
      Session own;
      own.runtime = shared.runtime;
      own.engine = shared.engine;
      own.context = *own.engine->createContext({});
      own.stream = *own.runtime->createStream({0, t * 20});
      own.event = *own.runtime->createEvent(true);
      own.x = *own.runtime->allocate(MemoryKind::kDevice, kBytes, true);
      own.y = *own.runtime->allocate(MemoryKind::kDevice, kBytes, true);
      own.in = *own.runtime->allocate(MemoryKind::kPinned, kBytes, true);
      own.out = *own.runtime->allocate(MemoryKind::kPinned, kBytes, true);
      (void)own.context->setAddress(0, own.x, 0);
      (void)own.context->setAddress(1, own.y, 0);
      for (int i = 0; i < 50; ++i) {
        const auto value = static_cast<float>(t * 100 + i);
        if (!run(own, 1 + i % 4, value, 3 * value)) ++wrong;
      }
      own.runtime.reset();
      own.engine.reset();
      if (!close(std::move(own))) ++wrong;
    });
  }
  for (auto& thread : threads) thread.join();
  CHECK_EQ(wrong.load(), 0);
  shared.runtime->trim();
  CHECK(close(std::move(shared)));
  // Trimmed blocks are freed on the reaper's thread.
  for (int i = 0; i < 3000 && !(settled() == before); ++i) std::this_thread::sleep_for(20ms);
  checkUnchanged(before, "after threads");
}

// The last one: the module does not use a device again that has died.
TEST(zz_a_dead_device) {
  const fake::Figures before = settled();
  Session session;
  REQUIRE(open(session, sleepyPlan(1000)));
  Session other;
  REQUIRE(open(other, makePlan(R"({"tensors":[{"name":"x","mode":"input","shape":[-1,4]},)"
                               R"({"name":"y","mode":"output","shape":[-1,4]}],)"
                               R"("profiles":[{"x":{"min":[1,4],"opt":[4,4],"max":[8,4]}}],)"
                               R"("layers":[{"op":"assert","inputs":["x"],"max":10},)"
                               R"({"op":"identity","inputs":["x"],"output":"y"}]})")));
  CHECK_EQ(run(other, 2, 9, 9).message(), std::string());
  for (int i = 0; i < 5; ++i) CHECK(queueRun(session, 2, 1));
  const Status died = run(other, 2, 11, 11);
  CHECK_EQ(died.code(), std::string("ERR_BACKEND_DEAD"));
  CHECK_CONTAINS(died.message(), "assert");
  CHECK_EQ(synchronize(*session.stream).code(), std::string("ERR_BACKEND_DEAD"));
  const Status run1 = run(session, 2, 1, 3);
  CHECK_EQ(run1.code(), std::string("ERR_BACKEND_DEAD"));
  CHECK_EQ(session.runtime->allocate(MemoryKind::kDevice, 16, false).status().code(),
           std::string("ERR_BACKEND_DEAD"));
  CHECK_EQ(session.runtime->createStream({0, 0}).status().code(), std::string("ERR_BACKEND_DEAD"));
  CHECK_EQ(session.engine->createContext({}).status().code(), std::string("ERR_BACKEND_DEAD"));
  CHECK(close(std::move(session)));
  CHECK(close(std::move(other)));
  checkUnchanged(before, "after the device died");
}

TEST_MAIN()
