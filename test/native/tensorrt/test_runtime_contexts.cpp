// Contexts of the generic runtime, on the fake GPU (test/native/fake_gpu): shapes, memory, runs.
#include <algorithm>
#include <future>
#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "core/json.h"
#include "engine_bench.h"

namespace {

using namespace nt;
using namespace nt::runtime;
using namespace nt::test;

Expected<std::vector<Shape>> resolve(runtime::Stream& stream, const std::shared_ptr<Context>& context) {
  std::promise<Expected<std::vector<Shape>>> done;
  stream.resolve(context, [&](Expected<std::vector<Shape>> shapes) { done.set_value(std::move(shapes)); });
  return done.get_future().get();
}

Expected<std::shared_ptr<Graph>> endCapture(runtime::Stream& stream) {
  std::promise<Expected<std::shared_ptr<Graph>>> done;
  const Status status =
      stream.endCapture([&](Expected<std::shared_ptr<Graph>> graph) { done.set_value(std::move(graph)); });
  if (!status) return status;
  return done.get_future().get();
}

std::vector<float> scaled(std::vector<float> values) {
  for (float& value : values) value = 2 * value + 1;
  return values;
}

TEST(aRunComputes) {
  Bench bench(scaleModel());
  const std::vector<float> values = counting(12);
  OK(bench.context->setInputShape(kX, {3, 4}));
  OK(bench.context->setAddress(kX, bench.upload(values), 0));
  const auto y = bench.device(48);
  OK(bench.context->setAddress(kY, y, 0));
  OK(bench.run());
  CHECK(bench.download<float>(y, 12) == scaled(values));
  const auto view = take(bench.context->output(kY));
  CHECK(view.shape == (Shape{3, 4}));
  CHECK(view.memory == nullptr);
  CHECK_EQ(fake::figures().violations, uint64_t{0});
}

TEST(shapesAreResolvedWithoutARun) {
  Bench bench(scaleModel());
  FAILS(resolve(*bench.stream, bench.context).status(), "ERR_INVALID_TENSOR", "Input 'x' has no shape yet");
  OK(bench.context->setInputShape(kX, {3, 4}));
  const auto shapes = resolve(*bench.stream, bench.context);
  REQUIRE(shapes);
  CHECK(*shapes == (std::vector<Shape>{{3, 4}, {3, 4}}));
  FAILS(bench.context->output(kY).status(), "ERR_INVALID_ARGUMENT", "has not run");
  Bench nonzero(nonzeroModel());
  const auto unknown = resolve(*nonzero.stream, nonzero.context);
  REQUIRE(unknown);
  CHECK(*unknown == (std::vector<Shape>{{64}, {1, -1}}));
}

TEST(memoryThatIsTooSmallIsNeverWritten) {
  Bench bench(scaleModel());
  OK(bench.context->setInputShape(kX, {3, 4}));
  FAILS(bench.run(), "ERR_INVALID_TENSOR", "Input 'x' has no memory yet");
  OK(bench.context->setAddress(kX, bench.device(47), 0));
  FAILS(bench.run(), "ERR_INVALID_TENSOR",
        "Input 'x' needs 48 bytes for float32 of shape [3, 4], its memory has 47");
  OK(bench.context->setAddress(kX, bench.upload(counting(12)), 0));
  OK(bench.context->setAddress(kY, bench.device(300), 256));
  FAILS(bench.run(), "ERR_INVALID_TENSOR",
        "Output 'y' needs 48 bytes for float32 of shape [3, 4], its memory has 44");
  OK(bench.context->setAddress(kY, bench.device(304), 256));
  OK(bench.run());
  // Enough for three rows, not for four.
  OK(bench.context->setInputShape(kX, {4, 4}));
  FAILS(bench.run(), "ERR_INVALID_TENSOR", "Input 'x' needs 64 bytes");
  OK(bench.context->setInputShape(kX, {3, 4}));
  OK(bench.run());
  CHECK_EQ(fake::figures().violations, uint64_t{0});
}

TEST(argumentsAreCheckedAtTheCall) {
  Bench bench(scaleModel());
  Context& context = *bench.context;
  FAILS(context.setInputShape(2, {1, 4}), "ERR_INVALID_TENSOR", "no tensor 2");
  FAILS(context.setInputShape(-1, {1, 4}), "ERR_INVALID_TENSOR", "no tensor -1");
  FAILS(context.setInputShape(kY, {1, 4}), "ERR_INVALID_TENSOR", "Output 'y' is no input");
  FAILS(context.setInputShape(kX, {1, 4, 1}), "ERR_INVALID_TENSOR", "not [1, 4, 1]");
  FAILS(context.setInputShape(kX, {1, 5}), "ERR_INVALID_TENSOR",
        "takes shapes from [1, 4] to [4, 4] in profile 0");
  FAILS(context.setInputShape(kX, {5, 4}), "ERR_INVALID_TENSOR", "not [5, 4]");
  FAILS(context.setInputShape(kX, {-1, 4}), "ERR_INVALID_TENSOR", "not [-1, 4]");
  FAILS(context.setProfile(2), "ERR_INVALID_ARGUMENT", "profile is 2");
  FAILS(context.setProfile(-1), "ERR_INVALID_ARGUMENT", "profile is -1");
  FAILS(context.setShapeValues(kX, {1}), "ERR_INVALID_TENSOR", "no shape tensor");
  FAILS(context.setAddress(kX, nullptr, 0), "ERR_INVALID_TENSOR", "only outputs");
  FAILS(context.setAddress(kX, bench.device(64), 65), "ERR_INVALID_ARGUMENT", "offset is 65");
  FAILS(context.setAddress(kX, bench.device(64), 16), "ERR_INVALID_TENSOR", "multiple of 256");
  FAILS(context.setDeviceMemory(bench.device(65536), 0), "ERR_INVALID_ARGUMENT",
        "activation memory of its own");
  FAILS(context.output(kX).status(), "ERR_INVALID_TENSOR", "is no output");
  FAILS(context.output(9).status(), "ERR_INVALID_TENSOR", "no tensor 9");
  FAILS(bench.engine->createContext({7, ContextMemory::kStatic}).status(), "ERR_INVALID_ARGUMENT",
        "profile is 7");
  Bench fill(fillModel());
  FAILS(fill.context->setShapeValues(0, {1, 2, 3}), "ERR_INVALID_TENSOR", "takes 2 values, not 3");
  FAILS(fill.context->setShapeValues(0, {1, 17}), "ERR_INVALID_TENSOR", "from [1, 1] to [16, 16]");
  FAILS(fill.context->setAddress(0, fill.device(8), 0), "ERR_INVALID_TENSOR", "lives on the host");
}

TEST(aProfileIsChanged) {
  for (const ContextMemory memory : {ContextMemory::kStatic, ContextMemory::kOnProfileChange}) {
    Bench bench(scaleModel(), 0, {0, memory});
    const auto y = bench.device(1024);
    OK(bench.context->setAddress(kX, bench.upload(counting(256)), 0));
    OK(bench.context->setAddress(kY, y, 0));
    OK(bench.context->setInputShape(kX, {2, 4}));
    OK(bench.run());
    OK(bench.context->setProfile(1));
    FAILS(bench.context->setInputShape(kX, {2, 4}), "ERR_INVALID_TENSOR",
          "from [4, 4] to [64, 4] in profile 1");
    FAILS(bench.run(), "ERR_INVALID_TENSOR", "has no shape yet");
    OK(bench.context->setInputShape(kX, {64, 4}));
    OK(bench.run());
    CHECK(bench.download<float>(y, 256) == scaled(counting(256)));
    OK(bench.context->setProfile(0));
    OK(bench.context->setInputShape(kX, {1, 4}));
    OK(bench.run());
    CHECK(bench.stream->counters().reshapes >= 4);
  }
  Bench second(scaleModel(), 0, {1, ContextMemory::kStatic});
  OK(second.context->setInputShape(kX, {64, 4}));
}

TEST(activationsAreWhereTheUserSays) {
  Bench bench(scaleModel(), 0, {0, ContextMemory::kUser});
  OK(bench.context->setInputShape(kX, {1, 4}));
  OK(bench.context->setAddress(kX, bench.upload(counting(256)), 0));
  FAILS(bench.run(), "ERR_INVALID_TENSOR",
        "needs 4096 bytes of activation memory in profile 0, it was given 0");
  OK(bench.context->setDeviceMemory(bench.device(8192), 256));
  OK(bench.run());
  OK(bench.context->setProfile(1));
  OK(bench.context->setInputShape(kX, {4, 4}));
  FAILS(bench.run(), "ERR_INVALID_TENSOR", "needs 65536 bytes");
  OK(bench.context->setDeviceMemory(bench.device(65536), 0));
  OK(bench.run());
  FAILS(bench.context->setDeviceMemory(bench.pinned(65536), 0), "ERR_INVALID_ARGUMENT", "device memory");
  FAILS(bench.context->setDeviceMemory(nullptr, 0), "ERR_INVALID_ARGUMENT", "device memory");
}

TEST(valuesDecideAShape) {
  Bench bench(fillModel());
  FAILS(bench.run(), "ERR_INVALID_TENSOR", "Input 's' has no values yet");
  OK(bench.context->setShapeValues(0, {2, 3}));
  OK(bench.run());
  auto view = take(bench.context->output(1));
  CHECK(view.shape == (Shape{2, 3}));
  CHECK(bench.download<float>(view.memory, 6) == std::vector<float>(6, 7.0F));
  // Memory of the host: what is in it at the run counts.
  const auto host = bench.pinned(8);
  auto* values = static_cast<int32_t*>(host->address());
  values[0] = 4;
  values[1] = 4;
  const auto y = bench.device(64);
  OK(bench.context->setAddress(0, host, 0));
  OK(bench.context->setAddress(1, y, 0));
  OK(bench.run());
  CHECK(take(bench.context->output(1)).shape == (Shape{4, 4}));
  values[1] = 5;
  FAILS(bench.run(), "ERR_INVALID_TENSOR", "Output 'y' needs 80 bytes");
  values[1] = 1;
  OK(bench.run());
  OK(bench.context->setAddress(0, bench.pinned(4), 0));
  FAILS(bench.run(), "ERR_INVALID_TENSOR", "Input 's' needs 8 bytes");
  CHECK_EQ(fake::figures().violations, uint64_t{0});
}

TEST(theDataDecidesASize) {
  Bench bench(nonzeroModel());
  std::vector<float> few(64, 0.0F);
  few[3] = few[5] = 1;
  OK(bench.context->setAddress(0, bench.upload(few), 0));
  OK(bench.run());
  auto first = take(bench.context->output(1));
  CHECK(first.shape == (Shape{1, 2}));
  REQUIRE(first.memory != nullptr);
  // The caller holds the first run's output: the second gets memory of its own.
  OK(bench.context->setAddress(0, bench.upload(std::vector<float>(64, 1.0F)), 0));
  OK(bench.run());
  const auto second = take(bench.context->output(1));
  CHECK(second.shape == (Shape{1, 64}));
  CHECK(first.memory != second.memory);
  CHECK(bench.download<int64_t>(first.memory, 2) == (std::vector<int64_t>{3, 5}));
  CHECK_EQ(bench.download<int64_t>(second.memory, 64)[63], int64_t{63});

  // The caller's memory.
  const auto small = bench.device(16);
  OK(bench.context->setAddress(1, small, 0));
  FAILS(bench.run(), "ERR_INVALID_TENSOR", "Output 'y' turned out to need 512 bytes, its memory has 16");
  OK(bench.context->setAddress(0, bench.upload(few), 0));
  OK(bench.run());
  CHECK(take(bench.context->output(1)).shape == (Shape{1, 2}));
  CHECK(take(bench.context->output(1)).memory == nullptr);
  CHECK(bench.download<int64_t>(small, 2) == (std::vector<int64_t>{3, 5}));
  CHECK_EQ(fake::figures().violations, uint64_t{0});
}

TEST(anOutputsOwnMemoryIsUsedAgainUnlessItIsHeld) {
  Bench bench(scaleModel());
  OK(bench.context->setInputShape(kX, {2, 4}));
  OK(bench.context->setAddress(kX, bench.upload(counting(8)), 0));
  OK(bench.run());
  const void* address = take(bench.context->output(kY)).memory->address();
  OK(bench.run());
  auto held = take(bench.context->output(kY)).memory;
  CHECK(held->address() == address);
  OK(bench.context->setAddress(kX, bench.upload(std::vector<float>(8, 9.0F)), 0));
  OK(bench.run());
  CHECK(take(bench.context->output(kY)).memory->address() != address);
  CHECK(bench.download<float>(held, 8) == scaled(counting(8)));
}

TEST(aRunThatIsRefusedSaysWhy) {
  Bench bench(scaleModel("", R"({"name":"stubborn","op":"refuse","rows":2},)"));
  OK(bench.context->setInputShape(kX, {2, 4}));
  OK(bench.context->setAddress(kX, bench.upload(counting(8)), 0));
  FAILS(bench.run(), "ERR_EXECUTION_FAILED", "TensorRT could not run the engine: ");
  FAILS(bench.run(), "ERR_EXECUTION_FAILED", "stubborn refuses 2 rows");
  OK(bench.context->setInputShape(kX, {1, 4}));
  OK(bench.run());
}

TEST(changesOfASkippedRunHoldForTheNext) {
  Bench bench(scaleModel());
  const auto x = bench.upload(counting(16));
  const auto y = bench.device(64);
  OK(bench.context->setInputShape(kX, {2, 4}));
  OK(bench.context->setAddress(kX, x, 0));
  OK(bench.run());
  tensorRtModule().injectFaults({0, 0, 0, 1});
  OK(bench.stream->copy(y, 0, x, 0, 64));
  OK(bench.context->setInputShape(kX, {4, 4}));
  OK(bench.context->setAddress(kY, y, 0));
  OK(bench.stream->enqueue(bench.context));
  CHECK(!synchronize(*bench.stream));
  tensorRtModule().injectFaults({});
  OK(bench.run());
  CHECK(take(bench.context->output(kY)).shape == (Shape{4, 4}));
  CHECK(bench.download<float>(y, 16) == scaled(counting(16)));
}

TEST(layersAreMeasured) {
  Bench bench(scaleModel());
  OK(bench.context->setInputShape(kX, {2, 4}));
  OK(bench.context->setAddress(kX, bench.upload(counting(8)), 0));
  OK(bench.run());
  CHECK_EQ(bench.context->takeProfile(), std::string("[]"));
  OK(bench.context->setProfiling(true));
  for (int i = 0; i < 3; ++i) OK(bench.run());
  const std::string profile = bench.context->takeProfile();
  const auto json = parseJson(profile);
  REQUIRE(json);
  CHECK_EQ(json->root().size(), size_t{1});
  for (const JsonValue& layer : json->root().elements()) {
    CHECK(layer.find("name")->string() == "times two");
    CHECK(layer.find("runs")->integer() == 3);
    CHECK(layer.find("ms")->number().has_value());
  }
  OK(bench.context->setProfiling(false));
  OK(bench.run());
  CHECK_EQ(bench.context->takeProfile(), std::string("[]"));
}

TEST(aCapturedContextKeepsItsShapes) {
  Bench bench(scaleModel());
  const auto x = bench.upload(counting(16));
  const auto y = bench.device(64);
  OK(bench.context->setInputShape(kX, {2, 4}));
  OK(bench.context->setAddress(kX, x, 0));
  OK(bench.context->setAddress(kY, y, 0));
  const auto refused = [&] {
    OK(bench.stream->beginCapture());
    OK(bench.stream->enqueue(bench.context));
    const Status status = endCapture(*bench.stream).status();
    OK(synchronize(*bench.stream));
    return status;
  };
  FAILS(refused(), "ERR_INVALID_ARGUMENT", "cannot change during a capture");
  OK(bench.context->setInputShape(kX, {2, 4}));
  OK(resolve(*bench.stream, bench.context).status());
  FAILS(refused(), "ERR_INVALID_ARGUMENT", "has not run with these shapes");
  OK(bench.run());
  OK(bench.stream->beginCapture());
  OK(bench.stream->enqueue(bench.context));
  auto captured = endCapture(*bench.stream);
  OK(captured.status());
  REQUIRE(captured);
  OK(bench.context->setInputShape(kX, {4, 4}));
  FAILS(bench.run(), "ERR_INVALID_ARGUMENT", "was captured into a graph");
  OK(bench.context->setInputShape(kX, {2, 4}));
  OK(bench.stream->fill(y, 0, 64, 0));
  OK(bench.stream->launch(*captured));
  CHECK(bench.download<float>(y, 8) == scaled(counting(8)));
  OK(bench.run());
  close(*std::exchange(captured, Expected<std::shared_ptr<Graph>>(Status("", ""))));
  OK(bench.context->setInputShape(kX, {4, 4}));
  OK(bench.run());
  CHECK(bench.download<float>(y, 16) == scaled(counting(16)));
  CHECK_EQ(fake::figures().violations, uint64_t{0});
}

TEST(contextsOnManyStreamsGiveTheSameResults) {
  fake::setJitter(200);
  Bench bench(scaleModel());
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&, t] {
      const auto stream = take(bench.runtime->createStream({0, 20}));
      const auto context = take(bench.engine->createContext({t % 2, ContextMemory::kStatic}));
      const auto in = take(bench.runtime->allocate(MemoryKind::kPinned, 1024, true));
      const auto out = take(bench.runtime->allocate(MemoryKind::kPinned, 1024, true));
      const auto x = take(bench.runtime->allocate(MemoryKind::kDevice, 1024, true));
      OK(context->setAddress(kX, x, 0));
      for (int run = 0; run < 30; ++run) {
        const int64_t rows = t % 2 == 0 ? 1 + run % 4 : 4 + run % 60;
        const auto count = static_cast<size_t>(rows) * 4;
        auto* values = static_cast<float*>(in->address());
        for (size_t i = 0; i < count; ++i)
          values[i] = static_cast<float>(t * 1000 + run + static_cast<int>(i));
        const std::vector<float> expected = scaled({values, values + count});
        OK(context->setInputShape(kX, {rows, 4}));
        OK(stream->copy(x, 0, in, 0, count * 4));
        OK(stream->enqueue(context));
        OK(synchronize(*stream));
        const auto view = take(context->output(kY));
        CHECK(view.shape == (Shape{rows, 4}));
        OK(stream->copy(out, 0, view.memory, 0, count * 4));
        OK(synchronize(*stream));
        const auto* results = static_cast<const float*>(out->address());
        CHECK(std::equal(expected.begin(), expected.end(), results));
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  fake::setJitter(0);
  CHECK_EQ(fake::figures().violations, uint64_t{0});
}

TEST(closingWithWorkInFlightWaitsForIt) {
  Bench bench(scaleModel("", R"({"op":"sleep","us":30000},)"));
  OK(bench.context->setInputShape(kX, {2, 4}));
  OK(bench.context->setAddress(kX, bench.upload(counting(8)), 0));
  for (int i = 0; i < 5; ++i) OK(bench.stream->enqueue(bench.context));
  std::promise<void> contextGone;
  std::promise<void> engineGone;
  tensorRtModule().release(std::move(bench.context), [&] { contextGone.set_value(); });
  tensorRtModule().release(std::move(bench.engine), [&] { engineGone.set_value(); });
  OK(synchronize(*bench.stream));
  contextGone.get_future().wait();
  engineGone.get_future().wait();
  CHECK_EQ(fake::figures().violations, uint64_t{0});
}

}  // namespace

TEST_MAIN()
