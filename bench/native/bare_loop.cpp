// What a plan does without this library around it: copies and enqueueV3 in a loop of C++, as the yardstick
// for sessions. JSON on the standard output; kUsage says how to call it.
//
// latency: one request at a time on one stream; one copy in, enqueueV3, one copy out, a wait that spins.
// latencyGraph: the same as a CUDA graph. throughput: `--in-flight` requests on `--lanes` streams with a
// context each, one thread. Request and answer are copied from and to memory of their own, as a caller's
// would be. batches: device time of CUDA graphs, replayed one behind the other.
#include <NvInfer.h>
#include <dlfcn.h>

#include <algorithm>
#include <chrono>
#include <cstring>
#include <fstream>
#include <iterator>
#include <map>
#include <memory>
#include <string>

#include "cuda_util.h"

namespace {

using bench::Graph;
using Clock = std::chrono::steady_clock;

constexpr char kUsage[] =
    "bare_loop PLAN [options]\n"
    "  --shape INPUT=1x128  of an input that is dynamic; may be given for each\n"
    "  --profile N          default 0\n"
    "  --runs N             of each latency. Default 2000\n"
    "  --lanes N            streams of the throughput, with a context each. Default 4\n"
    "  --in-flight N        requests of the throughput, shared by the lanes. Default 8\n"
    "  --seconds N          of the throughput. Default 2\n"
    "  --batches 22,32,44   in place of all that: milliseconds of batches of so many rows (first dimensions\n"
    "                       that are dynamic), with and without copies; 2 s a batch. Each runs on the\n"
    "                       profile whose OPT is nearest unless there is a --profile; other dynamic\n"
    "                       dimensions are --shape's, else OPT's\n";

class Logger final : public nvinfer1::ILogger {
 public:
  void log(Severity severity, const char* message) noexcept override {
    if (severity <= Severity::kERROR) std::fprintf(stderr, "[TensorRT] %s\n", message);
  }
};

struct Arguments {
  std::string plan;
  std::map<std::string, nvinfer1::Dims> shapes;
  int profile = -1;  // none was given
  std::vector<int64_t> batches;
  int runs = 2000;
  int lanes = 4;
  int inFlight = 8;
  double seconds = 2;
};

// Positive, with one character between them.
std::vector<int64_t> parseNumbers(const char* text) {
  std::vector<int64_t> numbers;
  for (char* end = nullptr; *text != '\0'; text = *end == '\0' ? end : end + 1) {
    numbers.push_back(std::strtoll(text, &end, 10));
    REQUIRE(end != text && numbers.back() > 0);
  }
  return numbers;
}

nvinfer1::Dims parseShape(const char* text) {
  nvinfer1::Dims dims{};
  for (const int64_t extent : parseNumbers(text)) {
    REQUIRE(dims.nbDims < nvinfer1::Dims::MAX_DIMS);
    dims.d[dims.nbDims++] = extent;
  }
  return dims;
}

Arguments parse(int count, char** values) {
  // A plan, and pairs of names and values.
  if (count < 2 || count % 2 != 0 || std::strcmp(values[1], "--help") == 0) {
    std::fputs(kUsage, stderr);
    std::exit(2);
  }
  Arguments arguments;
  arguments.plan = values[1];
  for (int i = 2; i < count; i += 2) {
    const std::string name = values[i];
    const char* value = values[i + 1];
    if (name == "--shape") {
      const char* equals = std::strchr(value, '=');
      REQUIRE(equals != nullptr);
      arguments.shapes[std::string(value, equals)] = parseShape(equals + 1);
    } else if (name == "--profile") {
      arguments.profile = std::atoi(value);
    } else if (name == "--runs") {
      arguments.runs = std::atoi(value);
    } else if (name == "--lanes") {
      arguments.lanes = std::atoi(value);
    } else if (name == "--in-flight") {
      arguments.inFlight = std::atoi(value);
    } else if (name == "--seconds") {
      arguments.seconds = std::atof(value);
    } else if (name == "--batches") {
      arguments.batches = parseNumbers(value);
    } else {
      std::fprintf(stderr, "unknown option %s\n%s", values[i], kUsage);
      std::exit(2);
    }
  }
  return arguments;
}

size_t elementBytes(nvinfer1::DataType type) {
  switch (type) {
    case nvinfer1::DataType::kINT64:
      return 8;
    case nvinfer1::DataType::kFLOAT:
    case nvinfer1::DataType::kINT32:
      return 4;
    case nvinfer1::DataType::kHALF:
    case nvinfer1::DataType::kBF16:
      return 2;
    default:
      return 1;
  }
}

struct Tensor {
  std::string name;
  bool isInput = false;
  size_t offset = 0;
  size_t bytes = 0;
};

struct Layout {
  std::vector<Tensor> tensors;
  size_t inputBytes = 0;
  size_t outputOffset = 0;
  size_t bytes = 0;
};

// Inputs first, then outputs, so that each side is one copy.
Layout layOut(const nvinfer1::ICudaEngine& engine, const nvinfer1::IExecutionContext& context) {
  Layout layout;
  for (const auto mode : {nvinfer1::TensorIOMode::kINPUT, nvinfer1::TensorIOMode::kOUTPUT}) {
    if (mode == nvinfer1::TensorIOMode::kOUTPUT) layout.outputOffset = layout.bytes;
    for (int i = 0; i < engine.getNbIOTensors(); ++i) {
      const char* name = engine.getIOTensorName(i);
      if (engine.getTensorIOMode(name) != mode) continue;
      const nvinfer1::Dims dims = context.getTensorShape(name);
      size_t bytes = elementBytes(engine.getTensorDataType(name));
      for (int axis = 0; axis < dims.nbDims; ++axis) {
        REQUIRE(dims.d[axis] >= 0);
        bytes *= static_cast<size_t>(dims.d[axis]);
      }
      layout.tensors.push_back({name, mode == nvinfer1::TensorIOMode::kINPUT, layout.bytes, bytes});
      layout.bytes += (bytes + 255) / 256 * 256;
      if (mode == nvinfer1::TensorIOMode::kINPUT) layout.inputBytes = layout.bytes;
    }
  }
  return layout;
}

// Pinned memory of one request in flight, and an event for its end.
struct Slot {
  char* pinned = nullptr;
  cudaEvent_t done = nullptr;
};

class Lane {
 public:
  Lane(nvinfer1::ICudaEngine& engine, const Arguments& arguments, int slots)
      : context_(engine.createExecutionContext()) {
    REQUIRE(context_ != nullptr);
    CUDA_CHECK(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking));
    REQUIRE(context_->setOptimizationProfileAsync(std::max(arguments.profile, 0), stream_));
    for (const auto& [name, dims] : arguments.shapes) REQUIRE(context_->setInputShape(name.c_str(), dims));
    layout_ = layOut(engine, *context_);
    CUDA_CHECK(cudaMalloc(reinterpret_cast<void**>(&device_), layout_.bytes));
    CUDA_CHECK(cudaMemset(device_, 0, layout_.bytes));
    for (const Tensor& tensor : layout_.tensors) {
      REQUIRE(context_->setTensorAddress(tensor.name.c_str(), device_ + tensor.offset));
    }
    slots_.resize(static_cast<size_t>(slots));
    for (Slot& slot : slots_) {
      CUDA_CHECK(cudaMallocHost(reinterpret_cast<void**>(&slot.pinned), layout_.bytes));
      CUDA_CHECK(cudaEventCreateWithFlags(&slot.done, cudaEventDisableTiming));
    }
    request_.resize(layout_.inputBytes);
    answer_.resize(layout_.bytes - layout_.outputOffset);
    for (int i = 0; i < 20; ++i) run(slots_[0]);
    CUDA_CHECK(cudaStreamSynchronize(stream_));
  }

  void enqueueAlone() { REQUIRE(context_->enqueueV3(stream_)); }

  void enqueue(const Slot& slot) {
    CUDA_CHECK(cudaMemcpyAsync(device_, slot.pinned, layout_.inputBytes, cudaMemcpyHostToDevice, stream_));
    enqueueAlone();
    CUDA_CHECK(cudaMemcpyAsync(slot.pinned + layout_.outputOffset, device_ + layout_.outputOffset,
                               answer_.size(), cudaMemcpyDeviceToHost, stream_));
  }

  void run(const Slot& slot) {
    std::memcpy(slot.pinned, request_.data(), request_.size());
    enqueue(slot);
    CUDA_CHECK(cudaStreamSynchronize(stream_));
    take(slot);
  }

  void launch(const Slot& slot) {
    std::memcpy(slot.pinned, request_.data(), request_.size());
    enqueue(slot);
    CUDA_CHECK(cudaEventRecord(slot.done, stream_));
  }

  void take(const Slot& slot) {
    std::memcpy(answer_.data(), slot.pinned + layout_.outputOffset, answer_.size());
  }

  void replay(const Graph& graph, const Slot& slot) {
    std::memcpy(slot.pinned, request_.data(), request_.size());
    graph.launch(stream_);
    CUDA_CHECK(cudaStreamSynchronize(stream_));
    take(slot);
  }

  cudaStream_t stream() const { return stream_; }
  const Slot& slot(size_t index) const { return slots_[index % slots_.size()]; }

 private:
  std::unique_ptr<nvinfer1::IExecutionContext> context_;
  cudaStream_t stream_ = nullptr;
  char* device_ = nullptr;
  Layout layout_;
  std::vector<Slot> slots_;
  std::vector<char> request_;
  std::vector<char> answer_;
};

template <class Body>
void printLatency(const char* name, int runs, Body&& body) {
  std::vector<double> times;
  for (int i = 0; i < runs / 10; ++i) body();
  for (int i = 0; i < runs; ++i) {
    const auto started = Clock::now();
    body();
    times.push_back(std::chrono::duration<double, std::milli>(Clock::now() - started).count());
  }
  std::sort(times.begin(), times.end());
  const auto at = [&](double share) {
    return times[static_cast<size_t>(share * static_cast<double>(times.size() - 1))];
  };
  std::printf("\"%s\": {\"p50\": %.5f, \"p99\": %.5f, \"count\": %d}, ", name, at(0.5), at(0.99), runs);
}

double throughput(std::vector<std::unique_ptr<Lane>>& lanes, const Arguments& arguments) {
  const auto slotsOf = static_cast<size_t>(arguments.inFlight) / lanes.size();
  const auto lane = [&](size_t number) -> Lane& { return *lanes[number % lanes.size()]; };
  const auto slot = [&](size_t number) -> const Slot& {
    return lane(number).slot(number / lanes.size() % slotsOf);
  };
  const auto inFlight = slotsOf * lanes.size();
  size_t launched = 0;
  for (; launched < inFlight; ++launched) lane(launched).launch(slot(launched));
  size_t done = 0;
  const auto started = Clock::now();
  const auto end = started + std::chrono::duration<double>(arguments.seconds);
  for (; Clock::now() < end; ++done) {
    CUDA_CHECK(cudaEventSynchronize(slot(done).done));
    lane(done).take(slot(done));
    lane(launched).launch(slot(launched));
    ++launched;
  }
  const double seconds = std::chrono::duration<double>(Clock::now() - started).count();
  CUDA_CHECK(cudaDeviceSynchronize());
  return static_cast<double>(done) / seconds;
}

using Selector = nvinfer1::OptProfileSelector;

std::vector<const char*> inputsOf(const nvinfer1::ICudaEngine& engine) {
  std::vector<const char*> names;
  for (int i = 0; i < engine.getNbIOTensors(); ++i) {
    const char* name = engine.getIOTensorName(i);
    if (engine.getTensorIOMode(name) == nvinfer1::TensorIOMode::kINPUT) names.push_back(name);
  }
  return names;
}

// The profile that takes so many rows and has the nearest OPT, as a ratio. -1: none takes them.
int profileFor(const nvinfer1::ICudaEngine& engine, int64_t rows) {
  int best = -1;
  double bestRatio = 0;
  for (int profile = 0; profile < engine.getNbOptimizationProfiles(); ++profile) {
    double ratio = 1;
    for (const char* name : inputsOf(engine)) {
      if (engine.getTensorShape(name).d[0] != -1) continue;
      const auto extent = [&](Selector which) { return engine.getProfileShape(name, profile, which).d[0]; };
      const int64_t opt = extent(Selector::kOPT);
      ratio = static_cast<double>(std::max(rows, opt)) / static_cast<double>(std::min(rows, opt));
      if (rows < extent(Selector::kMIN) || rows > extent(Selector::kMAX)) ratio = 0;
      if (ratio == 0) break;
    }
    if (ratio > 0 && (best < 0 || ratio < bestRatio)) {
      best = profile;
      bestRatio = ratio;
    }
  }
  return best;
}

Arguments argumentsFor(const nvinfer1::ICudaEngine& engine, const Arguments& given, int64_t rows) {
  Arguments arguments = given;
  if (given.profile < 0) arguments.profile = profileFor(engine, rows);
  if (arguments.profile < 0) {
    std::fprintf(stderr, "no profile takes %lld rows\n", static_cast<long long>(rows));
    std::exit(2);
  }
  for (const char* name : inputsOf(engine)) {
    const auto opt = engine.getProfileShape(name, arguments.profile, Selector::kOPT);
    nvinfer1::Dims& dims = arguments.shapes.emplace(name, opt).first->second;
    if (engine.getTensorShape(name).d[0] == -1) dims.d[0] = rows;
  }
  return arguments;
}

// A batch of one size, captured with and without its copies.
class Batch {
 public:
  Batch(nvinfer1::ICudaEngine& engine, const Arguments& given, int64_t rows)
      : rows_(rows),
        arguments_(argumentsFor(engine, given, rows)),
        lane_(engine, arguments_, 1),
        alone_(lane_.stream(), [this] { lane_.enqueueAlone(); }),
        copied_(lane_.stream(), [this] { lane_.enqueue(lane_.slot(0)); }) {}

  void measure() {
    aloneMs_.push_back(replay(alone_));
    copiedMs_.push_back(replay(copied_));
  }

  void print(const char* separator) const {
    const double ms = bench::median(aloneMs_);
    const auto rows = static_cast<double>(rows_);
    std::printf(
        "%s{\"batch\": %lld, \"profile\": %d, \"graphMs\": %.5f, \"usPerRow\": %.3f, \"perSecond\": %.0f, "
        "\"withCopiesMs\": %.5f, \"slowestMs\": %.5f}",
        separator, static_cast<long long>(rows_), arguments_.profile, ms, ms * 1000 / rows, rows * 1000 / ms,
        bench::median(copiedMs_), *std::max_element(aloneMs_.begin(), aloneMs_.end()));
  }

 private:
  // Milliseconds of one of as many runs as fill about 30 ms.
  double replay(const Graph& graph) const {
    const auto launch = [&](int runs) {
      for (int i = 0; i < runs; ++i) graph.launch(lane_.stream());
    };
    const double once = bench::deviceMs(lane_.stream(), 1, [&] { launch(1); });
    const int runs = std::clamp(static_cast<int>(30 / once), 4, 1000);
    return bench::deviceMs(lane_.stream(), 1, [&] { launch(runs); }) / runs;
  }

  int64_t rows_;
  Arguments arguments_;
  Lane lane_;
  Graph alone_;
  Graph copied_;
  std::vector<double> aloneMs_;
  std::vector<double> copiedMs_;
};

void printBatches(nvinfer1::ICudaEngine& engine, const Arguments& arguments) {
  constexpr int kRounds = 7;
  std::vector<std::unique_ptr<Batch>> batches;
  for (const int64_t rows : arguments.batches) {
    batches.push_back(std::make_unique<Batch>(engine, arguments, rows));
  }
  // In turn, so that a change of the clock meets all of them.
  for (int round = 0; round < kRounds; ++round) {
    for (const auto& batch : batches) batch->measure();
  }
  std::printf("\"batches\": [");
  for (const auto& batch : batches) batch->print(batch == batches.front() ? "\n " : ",\n ");
  std::printf("]}\n");
}

}  // namespace

int main(int count, char** values) {
  const Arguments arguments = parse(count, values);
  void* library = dlopen("libnvinfer.so.10", RTLD_NOW | RTLD_GLOBAL);
  if (library == nullptr) std::fprintf(stderr, "%s\n", dlerror());
  REQUIRE(library != nullptr);
  auto* version = reinterpret_cast<int32_t (*)()>(dlsym(library, "getInferLibVersion"));
  auto* create = reinterpret_cast<void* (*)(void*, int32_t)>(dlsym(library, "createInferRuntime_INTERNAL"));
  REQUIRE(version != nullptr && create != nullptr);
  Logger logger;
  const std::unique_ptr<nvinfer1::IRuntime> runtime(
      static_cast<nvinfer1::IRuntime*>(create(&logger, version())));
  std::ifstream file(arguments.plan, std::ios::binary);
  const std::vector<char> plan(std::istreambuf_iterator<char>(file), {});
  const std::unique_ptr<nvinfer1::ICudaEngine> engine(
      runtime->deserializeCudaEngine(plan.data(), plan.size()));
  REQUIRE(engine != nullptr);
  std::printf("{\"tensorrt\": %d, ", version());
  if (!arguments.batches.empty()) {
    printBatches(*engine, arguments);
    return 0;
  }
  {
    Lane lane(*engine, arguments, 1);
    printLatency("latency", arguments.runs, [&] { lane.run(lane.slot(0)); });
    const Graph graph(lane.stream(), [&] { lane.enqueue(lane.slot(0)); });
    printLatency("latencyGraph", arguments.runs, [&] { lane.replay(graph, lane.slot(0)); });
    std::printf("\"enqueueUs\": %.2f, ",
                bench::hostUs(lane.stream(), 200, [&] { lane.enqueue(lane.slot(0)); }));
    std::printf("\"deviceMs\": %.5f, ",
                bench::deviceMs(lane.stream(), 200, [&] { lane.enqueue(lane.slot(0)); }));
  }
  std::vector<std::unique_ptr<Lane>> lanes;
  for (int i = 0; i < arguments.lanes; ++i) {
    lanes.push_back(std::make_unique<Lane>(*engine, arguments, arguments.inFlight / arguments.lanes));
  }
  std::printf("\"throughput\": {\"lanes\": %d, \"inFlight\": %d, \"perSecond\": %.1f}}\n", arguments.lanes,
              arguments.inFlight, throughput(lanes, arguments));
  return 0;
}
