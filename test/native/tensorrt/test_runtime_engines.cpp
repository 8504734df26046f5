// Engines of the generic runtime, on the fake GPU (test/native/fake_gpu): plans, what is told of them,
// weights.
#include <chrono>
#include <memory>
#include <mutex>
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

// y = w x + v, both of one weight, which are refitted together.
std::string weightsModel(const std::string& more) {
  return R"({"tensors":[{"name":"x","mode":"input","dtype":"float32","shape":[4]},)"
         R"({"name":"m","mode":"output","dtype":"float32","shape":[4]},)"
         R"({"name":"y","mode":"output","dtype":"float32","shape":[4]}],)"
         R"("weights":{"scale.weight":{"dtype":"float32","values":[3]},"shift.weight":{"dtype":"float32","values":[5]}},)" +
         more +
         R"("layers":[{"op":"scale","inputs":["x"],"output":"m","weight":"scale.weight"},)"
         R"({"op":"scale","inputs":["x"],"output":"y","weight":"shift.weight"}]})";
}

class Lines final : public LogSink {
 public:
  Lines() { tensorRtModule().addLogSink(this); }
  ~Lines() override { tensorRtModule().removeLogSink(this); }
  LogSeverity threshold() const noexcept override { return LogSeverity::kVerbose; }
  void onLine(LogSeverity, const char* text) noexcept override {
    const std::lock_guard lock(mutex_);
    all_ += std::string(text) + "\n";
  }
  std::string all() {
    const std::lock_guard lock(mutex_);
    return all_;
  }

 private:
  std::mutex mutex_;
  std::string all_;
};

TEST(aRuntimeTellsWhatItRunsOn) {
  const auto runtime = makeRuntime();
  const auto json = parseJson(runtime->info());
  REQUIRE(json);
  const JsonValue root = json->root();
  CHECK(root.find("device")->integer() == 0);
  CHECK(root.find("libraryVersion")->integer() == 100600);
  CHECK(root.find("maxPriority")->integer() >= 0);
  for (const char* key : {"name", "computeCapability", "libraryPath"})
    CHECK(!root.find(key)->string()->empty());
  for (const char* key : {"memoryBytes", "multiprocessors", "driverCuda", "runtimeCuda"})
    CHECK(root.find(key)->integer() > 0);
  FAILS(tensorRtModule().createRuntime({NT_FAKE_GPU_FOLDER, 99}).status(), "ERR_INVALID_ARGUMENT",
        "device 99");
  FAILS(tensorRtModule().createRuntime({NT_FAKE_GPU_FOLDER, -1}).status(), "ERR_INVALID_ARGUMENT",
        "device -1");
  FAILS(tensorRtModule().createRuntime({"/nowhere", 0}).status(), "ERR_TENSORRT_NOT_FOUND", "/nowhere");
}

TEST(anEngineTellsWhatItIs) {
  Bench bench(scaleModel(R"(,"refittable":true)"));
  const auto json = parseJson(bench.engine->info());
  REQUIRE(json);
  const JsonValue root = json->root();
  CHECK(root.find("name")->string() == "scale");
  CHECK(root.find("profiles")->integer() == 2);
  CHECK(root.find("layers")->integer() == 1);
  CHECK(root.find("refittable")->kind() == JsonKind::kTrue);
  CHECK(root.find("hardwareCompatibility")->string() == "none");
  CHECK(root.find("capability")->string() == "standard");
  CHECK(root.find("profilingVerbosity")->string() == "detailed");
  std::vector<int64_t> memory;
  for (const JsonValue& bytes : root.find("deviceMemory")->elements()) memory.push_back(*bytes.integer());
  CHECK(memory == (std::vector<int64_t>{4096, 65536}));
  std::vector<JsonValue> tensors;
  for (const JsonValue& tensor : root.find("tensors")->elements()) tensors.push_back(tensor);
  REQUIRE(tensors.size() == 2);
  CHECK(tensors[0].find("name")->string() == "x");
  CHECK(tensors[0].find("mode")->string() == "input");
  CHECK(tensors[0].find("dtype")->string() == "float32");
  CHECK(tensors[0].find("location")->string() == "device");
  CHECK(tensors[0].find("isShapeTensor")->kind() == JsonKind::kFalse);
  CHECK_EQ(tensors[0].find("formats")->size(), size_t{2});
  CHECK_EQ(tensors[0].find("profiles")->size(), size_t{2});
  CHECK(tensors[0].find("values")->isNull());
  CHECK(tensors[1].find("mode")->string() == "output");
  CHECK(tensors[1].find("profiles")->isNull());
  std::vector<int64_t> largest;
  for (const JsonValue& profile : tensors[0].find("profiles")->elements()) {
    for (const JsonValue& extent : profile.find("max")->elements()) largest.push_back(*extent.integer());
  }
  CHECK(largest == (std::vector<int64_t>{4, 4, 64, 4}));

  Bench fill(fillModel());
  const auto fillJson = parseJson(fill.engine->info());
  REQUIRE(fillJson);
  for (const JsonValue& tensor : fillJson->root().find("tensors")->elements()) {
    if (tensor.find("name")->string() != "s") continue;
    CHECK(tensor.find("location")->string() == "host");
    CHECK(tensor.find("isShapeTensor")->kind() == JsonKind::kTrue);
    for (const JsonValue& range : tensor.find("values")->elements())
      CHECK(range.find("max")->elements().begin() != range.find("max")->elements().end());
  }
}

TEST(plansThatDoNotFitAreRefused) {
  const auto runtime = makeRuntime();
  const auto status = [&](const Bytes& plan, bool hostCode = false) {
    return runtime->deserialize(plan.data(), plan.size(), hostCode).status();
  };
  FAILS(runtime->deserialize(nullptr, 0, false).status(), "ERR_ENGINE_INVALID", "empty");
  FAILS(status(Bytes(100, 'x')), "ERR_ENGINE_INVALID", "TensorRT 10.6.0 does not take the plan: ");
  Bytes plan = planOf(scaleModel());
  plan.back() ^= 1;
  FAILS(status(plan), "ERR_ENGINE_INVALID", "corrupt");
  plan.resize(plan.size() / 2);
  FAILS(status(plan), "ERR_ENGINE_INVALID", "does not take the plan: ");
  FAILS(status(planOf(scaleModel(R"(,"tensorrt":"10.3.0")"))), "ERR_ENGINE_INCOMPATIBLE", "10.3");
  FAILS(status(planOf(scaleModel(R"(,"compute":"8.0")"))), "ERR_ENGINE_INCOMPATIBLE", "8.0");
  const Bytes withCode = planOf(scaleModel(R"(,"hostCode":true)"));
  FAILS(status(withCode), "ERR_ENGINE_INCOMPATIBLE", "does not take the plan: ");
  CHECK_CONTAINS(status(withCode).hint(), "host code");
  OK(status(withCode, true));
  const Bytes int4 = planOf(scaleModel());
  OK(status(int4));
}

TEST(linesReachTheirListener) {
  Lines lines;
  Bench bench(scaleModel(R"(,"log":[{"severity":"info","text":"reading the plan"}])",
                         R"({"op":"log","severity":"warning","text":"a layer's word"},)"));
  CHECK_CONTAINS(lines.all(), "reading the plan\n");
  OK(bench.context->setInputShape(kX, {2, 4}));
  OK(bench.context->setAddress(kX, bench.upload(counting(8)), 0));
  OK(bench.run());
  CHECK_CONTAINS(lines.all(), "a layer's word\n");
}

TEST(layersAreToldAsJson) {
  Bench bench(scaleModel());
  for (const int32_t profile : {-1, 0, 1}) {
    const auto layers = bench.engine->layers(profile);
    REQUIRE(layers);
    CHECK(parseJson(*layers).status().isOk());
    CHECK_CONTAINS(*layers, "times two");
  }
  FAILS(bench.engine->layers(2).status(), "ERR_INVALID_ARGUMENT", "profile is 2");
  FAILS(bench.engine->layers(-2).status(), "ERR_INVALID_ARGUMENT", "profile is -2");
}

TEST(anEngineIsSerialised) {
  Bench bench(scaleModel());
  const auto bytes = bench.engine->serialize();
  REQUIRE(bytes);
  const auto again = bench.runtime->deserialize(bytes->data(), bytes->size(), false);
  REQUIRE(again);
  CHECK_EQ((*again)->info(), bench.engine->info());
}

TEST(weightsAreRefitted) {
  Bench bench(weightsModel(R"("refittable":true,"coupled":[["scale.weight","shift.weight"]],)"));
  const float two = 2;
  const float four = 4;
  const int32_t integer = 1;
  CHECK(take(bench.engine->refittableWeights()) ==
        (std::vector<std::string>{"scale.weight", "shift.weight"}));
  const auto refit = [&](std::vector<NamedWeights> weights) { return bench.engine->refit(weights); };
  OK(bench.context->setAddress(0, bench.upload(std::vector<float>(4, 1.0F)), 0));
  const auto results = [&] {
    OK(bench.run());
    const float m = bench.download<float>(take(bench.context->output(1)).memory, 1)[0];
    const float y = bench.download<float>(take(bench.context->output(2)).memory, 1)[0];
    return std::pair(m, y);
  };
  const auto before = results();
  const Status unknown = refit({{"scale.wieght", "float32", &two, 1}});
  FAILS(unknown, "ERR_WEIGHTS_INVALID", "no refittable weights 'scale.wieght'");
  CHECK_CONTAINS(unknown.hint(), "'scale.weight'");
  FAILS(refit({{"scale.weight", "int32", &integer, 1}, {"shift.weight", "float32", &two, 1}}),
        "ERR_WEIGHTS_INVALID", "take 1 values of float32, given were 1 values of int32");
  FAILS(refit({{"shift.weight", "float32", &two, 1}, {"scale.weight", "float32", &two, 2}}),
        "ERR_WEIGHTS_INVALID", "take 1 values of float32, given were 2 values");
  FAILS(refit({{"scale.weight", "float32", &two, 1}, {"scale.weight", "float32", &two, 1}}),
        "ERR_WEIGHTS_INVALID", "given twice");
  FAILS(refit({{"scale.weight", "float32", nullptr, 1}}), "ERR_WEIGHTS_INVALID", "no values");
  FAILS(refit({{"scale.weight", "float32", &two, 1}}), "ERR_WEIGHTS_MISSING", "1 weights are missing");
  CHECK(results() == before);
  OK(refit({{"scale.weight", "float32", &two, 1}, {"shift.weight", "float32", &four, 1}}));
  const auto after = results();
  CHECK(after != before);
  CHECK_EQ(after.second, 2 * after.first);

  Bench fixed(scaleModel());
  FAILS(fixed.engine->refit({}), "ERR_INVALID_ARGUMENT", "not refittable");
  FAILS(fixed.engine->refittableWeights().status(), "ERR_INVALID_ARGUMENT", "not refittable");
}

TEST(aStrippedEngineWantsItsWeights) {
  Bench bench(weightsModel(R"("refittable":true,"stripped":true,)"));
  const float two = 2;
  OK(bench.context->setAddress(0, bench.upload(std::vector<float>(4, 1.0F)), 0));
  FAILS(bench.run(), "ERR_WEIGHTS_MISSING", "without its weights");
  FAILS(bench.engine->refit({{"scale.weight", "float32", &two, 1}}), "ERR_WEIGHTS_MISSING", "'shift.weight'");
  FAILS(bench.run(), "ERR_WEIGHTS_MISSING", "without its weights");
  OK(bench.engine->refit({{"scale.weight", "float32", &two, 1}, {"shift.weight", "float32", &two, 1}}));
  OK(bench.run());
}

// Every place where memory of the device may be missing, one after the other.
TEST(whatFailsForMemoryLeavesNothingBehind) {
  const auto runtime = makeRuntime();
  const Bytes plan = planOf(nonzeroModel());
  const Bytes refittable = planOf(weightsModel(R"("refittable":true,)"));
  const auto attempt = [&](const Bytes& bytes) -> Status {
    auto engine = runtime->deserialize(bytes.data(), bytes.size(), false);
    if (!engine) return engine.status();
    Status result;
    auto context = (*engine)->createContext({});
    if (context) {
      auto stream = take(runtime->createStream({0, 0}));
      auto x = runtime->allocate(MemoryKind::kDevice, 256, false);
      if (x) {
        OK(stream->fill(*x, 0, 256, 1));
        OK((*context)->setAddress(0, *x, 0));
        OK(stream->enqueue(*context));
        result = synchronize(*stream);
      }
      if (!x) result = x.status();
      close(*std::move(context));
      if (x) close(*std::move(x));
      close(std::move(stream));
    } else {
      result = context.status();
    }
    close(*std::move(engine));
    return result;
  };
  // What is trimmed goes on a thread of the module's.
  const auto leftovers = [&] {
    for (int i = 0; i < 12'000; ++i) {
      runtime->trim();
      const fake::Figures figures = fake::figures();
      if (figures.deviceBlocks + figures.streams + figures.events + figures.graphs == 0) return std::string();
      std::this_thread::sleep_for(std::chrono::milliseconds(5));
    }
    const fake::Figures figures = fake::figures();
    return std::to_string(figures.deviceBlocks) + " blocks, " + std::to_string(figures.streams) +
           " streams, " + std::to_string(figures.events) + " events";
  };
  for (const Bytes& bytes : {plan, refittable}) {
    OK(attempt(bytes));
    CHECK_EQ(leftovers(), std::string());
    int failures = 0;
    for (int64_t n = 1; n <= 100; ++n) {
      tensorRtModule().injectFaults({n, 0, 0, 0});
      const Status status = attempt(bytes);
      tensorRtModule().injectFaults({});
      CHECK_EQ(leftovers(), std::string());
      if (status) break;
      ++failures;
      FAILS(status, "ERR_OUT_OF_DEVICE_MEMORY", "out of memory");
    }
    CHECK(failures >= 3 && failures < 100);
  }
  CHECK_EQ(fake::figures().violations, uint64_t{0});
}

// The last one on its device: a dead device stays dead.
TEST(aDeadDeviceIsSaidToBeDead) {
  Bench bench(scaleModel("", R"({"op":"die"},)"), 1);
  OK(bench.context->setInputShape(kX, {2, 4}));
  OK(bench.context->setAddress(kX, bench.upload(counting(8)), 0));
  FAILS(bench.run(), "ERR_BACKEND_DEAD", "GPU 1");
  FAILS(bench.run(), "ERR_BACKEND_DEAD", "earlier error");
  const Bytes plan = planOf(scaleModel());
  FAILS(bench.runtime->deserialize(plan.data(), plan.size(), false).status(), "ERR_BACKEND_DEAD", "GPU 1");
  FAILS(bench.engine->createContext({}).status(), "ERR_BACKEND_DEAD", "GPU 1");
  FAILS(bench.engine->serialize().status(), "ERR_BACKEND_DEAD", "GPU 1");
  FAILS(bench.engine->layers(-1).status(), "ERR_BACKEND_DEAD", "GPU 1");
  FAILS(tensorRtModule().createRuntime({NT_FAKE_GPU_FOLDER, 1}).status(), "ERR_BACKEND_DEAD", "GPU 1");
  close(std::move(bench.context));
  close(std::move(bench.engine));
  close(std::move(bench.stream));
  close(std::move(bench.runtime));
  Bench other(scaleModel());
  OK(other.context->setInputShape(kX, {2, 4}));
}

}  // namespace

TEST_MAIN()
