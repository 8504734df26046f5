// Engines and contexts of the generic runtime, on the fake GPU (test/native/fake_gpu).
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <future>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "check.h"
#include "core/json.h"
#include "fake_gpu/fake_gpu.h"
#include "fake_gpu/plan_writer.h"
#include "tensorrt/module.h"

namespace {

using namespace nt;
using namespace nt::runtime;
using Bytes = std::vector<char>;

// See test/native/fake_gpu/README.md.
Bytes planOf(const std::string& json) {
  const std::string plan = fake::makePlan(json);
  return {plan.begin(), plan.end()};
}

// y = 2 x + 1 with x [rows, 4]; profiles of 1 ... 4 and of 4 ... 64 rows.
std::string scaleModel(const std::string& more = "", const std::string& moreLayers = "") {
  return R"({"name":"scale","tensors":[)"
         R"({"name":"x","mode":"input","dtype":"float32","shape":[-1,4]},)"
         R"({"name":"y","mode":"output","dtype":"float32","shape":[-1,4]}],)"
         R"("profiles":[{"x":{"min":[1,4],"opt":[2,4],"max":[4,4]}},{"x":{"min":[4,4],"opt":[8,4],"max":[64,4]}}],)"
         R"("activationBytes":[4096,65536],"weightBytes":1024)" +
         more + R"(,"layers":[)" + moreLayers +
         R"({"name":"times two","op":"scale","inputs":["x"],"output":"y","a":2,"b":1}]})";
}
constexpr int32_t kX = 0;
constexpr int32_t kY = 1;

// y holds the indices of x's values that are not zero.
std::string nonzeroModel() {
  return R"({"tensors":[{"name":"x","mode":"input","dtype":"float32","shape":[64]},)"
         R"({"name":"y","mode":"output","dtype":"int64","shape":[1,-1]}],"scratchBytes":512,)"
         R"("layers":[{"op":"nonzero","inputs":["x"],"output":"y"}]})";
}

// y of the shape that s holds.
std::string fillModel() {
  return R"({"tensors":[{"name":"s","mode":"input","dtype":"int32","shape":[2],"shapeTensor":true},)"
         R"({"name":"y","mode":"output","dtype":"float32","shape":[-1,-1]}],)"
         R"("profiles":[{"s":{"values":{"min":[1,1],"opt":[2,2],"max":[16,16]}}}],)"
         R"("layers":[{"op":"fill","inputs":["s"],"output":"y","a":7}]})";
}

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

std::shared_ptr<Runtime> makeRuntime(int32_t device = 0) {
  auto runtime = tensorRtModule().createRuntime({NT_FAKE_GPU_FOLDER, device});
  if (!runtime) test::fail(__FILE__, __LINE__, runtime.status().code() + ": " + runtime.status().message());
  return *std::move(runtime);
}

template <class T>
T take(Expected<T> expected) {
  if (!expected)
    test::fail(__FILE__, __LINE__, expected.status().code() + ": " + expected.status().message());
  return *std::move(expected);
}

void ok(const Status& status, int line) {
  if (!status) test::fail(__FILE__, line, status.code() + ": " + status.message());
}
#define OK(status) ok(status, __LINE__)

void failsWith(const Status& status, const std::string& code, const std::string& part, int line) {
  if (status.code() != code) {
    test::fail(__FILE__, line,
               "code is '" + status.code() + "' (" + status.message() + "), expected " + code);
  }
  test::checkContains(status.message(), part, __FILE__, line);
}
#define FAILS(status, code, part) failsWith(status, code, part, __LINE__)

Status synchronize(runtime::Stream& stream) {
  std::promise<Status> done;
  stream.synchronize([&](Status status) { done.set_value(std::move(status)); });
  return done.get_future().get();
}

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

void close(std::shared_ptr<Object> object) {
  std::promise<void> gone;
  tensorRtModule().release(std::move(object), [&] { gone.set_value(); });
  gone.get_future().wait();
}

// A device with one engine, one stream, and pinned memory to look through.
struct Bench {
  explicit Bench(const std::string& json, int32_t device = 0, const ContextOptions& options = {})
      : runtime(makeRuntime(device)), stream(take(runtime->createStream({0, 0}))) {
    const Bytes plan = planOf(json);
    engine = take(runtime->deserialize(plan.data(), plan.size(), false));
    context = take(engine->createContext(options));
  }

  std::shared_ptr<Memory> device(uint64_t bytes) {
    return take(runtime->allocate(MemoryKind::kDevice, bytes, false));
  }
  std::shared_ptr<Memory> pinned(uint64_t bytes) {
    return take(runtime->allocate(MemoryKind::kPinned, bytes, false));
  }
  template <class T>
  std::shared_ptr<Memory> upload(const std::vector<T>& values) {
    const auto from = pinned(values.size() * sizeof(T));
    std::memcpy(from->address(), values.data(), values.size() * sizeof(T));
    const auto to = device(values.size() * sizeof(T));
    OK(stream->copy(to, 0, from, 0, values.size() * sizeof(T)));
    return to;
  }
  template <class T>
  std::vector<T> download(const std::shared_ptr<Memory>& from, size_t count) {
    const auto to = pinned(count * sizeof(T));
    OK(stream->copy(to, 0, from, 0, count * sizeof(T)));
    OK(synchronize(*stream));
    const auto* values = static_cast<const T*>(to->address());
    return {values, values + count};
  }
  Status run() {
    if (Status status = stream->enqueue(context); !status) return status;
    return synchronize(*stream);
  }

  std::shared_ptr<Runtime> runtime;
  std::shared_ptr<runtime::Stream> stream;
  std::shared_ptr<Engine> engine;
  std::shared_ptr<Context> context;
};

std::vector<float> counting(size_t count) {
  std::vector<float> values(count);
  for (size_t i = 0; i < count; ++i) values[i] = static_cast<float>(i);
  return values;
}

std::vector<float> scaled(std::vector<float> values) {
  for (float& value : values) value = 2 * value + 1;
  return values;
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

}  // namespace

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
    for (int i = 0; i < 400; ++i) {
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

int main(int argc, char** argv) {
  setenv("FAKE_GPU_DEVICES", "2", 1);
  return nt::test::runAll(argc > 1 ? argv[1] : "");
}
