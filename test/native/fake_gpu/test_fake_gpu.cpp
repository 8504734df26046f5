// That the fake GPU behaves as CUDA and TensorRT do where the module depends on it.
#include <NvInferRuntime.h>
#include <dlfcn.h>

#include <chrono>
#include <cstring>
#include <future>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "check.h"
#include "fake_gpu.h"
#include "plan_writer.h"

using namespace nt::fake;

namespace {

struct Stream {
  cudaStream_t handle = nullptr;
  Stream() { cudaStreamCreateWithFlags(&handle, cudaStreamNonBlocking); }
  ~Stream() { cudaStreamDestroy(handle); }
};

struct Log final : nvinfer1::ILogger {
  std::string text;
  void log(Severity severity, const char* line) noexcept override {
    if (severity <= Severity::kWARNING) text += std::string(line) + "\n";
  }
};

template <class T>
T* deviceArray(size_t count) {
  void* memory = nullptr;
  cudaMalloc(&memory, count * sizeof(T));
  return static_cast<T*>(memory);
}

// Of the folder that was built.
struct Library {
  void* handle = dlopen(NT_FAKE_GPU_FOLDER "/libnvinfer.so.10", RTLD_NOW | RTLD_LOCAL);
  Log log;
  std::unique_ptr<nvinfer1::IRuntime> createRuntime() {
    const auto make =
        reinterpret_cast<void* (*)(void*, int32_t)>(dlsym(handle, "createInferRuntime_INTERNAL"));
    return std::unique_ptr<nvinfer1::IRuntime>(static_cast<nvinfer1::IRuntime*>(make(&log, 100600)));
  }
  std::unique_ptr<nvinfer1::IRefitter> createRefitter(nvinfer1::ICudaEngine& engine) {
    const auto make =
        reinterpret_cast<void* (*)(void*, void*, int32_t)>(dlsym(handle, "createInferRefitter_INTERNAL"));
    return std::unique_ptr<nvinfer1::IRefitter>(
        static_cast<nvinfer1::IRefitter*>(make(&engine, &log, 100600)));
  }
};

std::unique_ptr<nvinfer1::ICudaEngine> load(nvinfer1::IRuntime& runtime, const std::string& plan) {
  return std::unique_ptr<nvinfer1::ICudaEngine>(runtime.deserializeCudaEngine(plan.data(), plan.size()));
}

// Lets a stream's work go on when it is opened.
struct Gate {
  std::promise<void> promise;
  std::shared_future<void> opened = promise.get_future().share();
  void open() { promise.set_value(); }
  cudaError_t holdUp(cudaStream_t stream) {
    return submit(stream, [opened = opened] {
      opened.wait();
      return cudaSuccess;
    });
  }
};

cudaError_t sleepOn(cudaStream_t stream, int ms) {
  return submit(stream, [ms] {
    std::this_thread::sleep_for(std::chrono::milliseconds(ms));
    return cudaSuccess;
  });
}

}  // namespace

TEST(copies_are_asynchronous_and_in_order) {
  const Figures before = figures();
  {
    const Stream stream;
    int* device = deviceArray<int>(4);
    void* pinned = nullptr;
    CHECK_EQ(cudaMallocHost(&pinned, 16), cudaSuccess);
    auto* host = static_cast<int*>(pinned);
    std::memset(host, 0, 16);
    Gate gate;
    gate.holdUp(stream.handle);
    CHECK_EQ(cudaMemsetAsync(device, 1, 16, stream.handle), cudaSuccess);
    CHECK_EQ(cudaMemcpyAsync(host, device, 16, cudaMemcpyDeviceToHost, stream.handle), cudaSuccess);
    CHECK_EQ(cudaStreamQuery(stream.handle), cudaErrorNotReady);
    CHECK_EQ(host[3], 0);
    gate.open();
    CHECK_EQ(cudaStreamSynchronize(stream.handle), cudaSuccess);
    CHECK_EQ(host[3], 0x01010101);
    CHECK_EQ(cudaGetLastError(), cudaErrorNotReady);
    CHECK_EQ(cudaFree(device), cudaSuccess);
    CHECK_EQ(cudaFreeHost(pinned), cudaSuccess);
  }
  Figures after = figures();
  after.allocations = before.allocations;
  CHECK(after == before);
}

TEST(what_no_correct_program_does_is_told) {
  int* device = deviceArray<int>(4);
  const Stream stream;
  std::vector<int> host(8);
  CHECK_EQ(cudaMemcpyAsync(host.data(), device, 17, cudaMemcpyDeviceToHost, stream.handle),
           cudaErrorInvalidValue);
  CHECK_CONTAINS(lastViolation(), "reaches past an allocation");
  CHECK_EQ(cudaFree(device), cudaSuccess);
  CHECK_EQ(cudaFree(device), cudaErrorInvalidValue);
  CHECK_CONTAINS(lastViolation(), "not allocated");
  cudaEvent_t event = nullptr;
  cudaEventCreateWithFlags(&event, cudaEventDisableTiming);
  CHECK_EQ(cudaEventDestroy(event), cudaSuccess);
  CHECK_EQ(cudaEventQuery(event), cudaErrorInvalidResourceHandle);
  CHECK_EQ(figures().violations, uint64_t{3});
  clearViolations();
  cudaGetLastError();
}

TEST(events_order_streams) {
  const Stream first;
  const Stream second;
  cudaEvent_t event = nullptr;
  cudaEventCreateWithFlags(&event, cudaEventDisableTiming);
  std::string order;
  sleepOn(first.handle, 30);
  submit(first.handle, [&] {
    order += 'a';
    return cudaSuccess;
  });
  CHECK_EQ(cudaEventRecord(event, first.handle), cudaSuccess);
  CHECK_EQ(cudaStreamWaitEvent(second.handle, event, 0), cudaSuccess);
  submit(second.handle, [&] {
    order += 'b';
    return cudaSuccess;
  });
  CHECK_EQ(cudaStreamSynchronize(second.handle), cudaSuccess);
  CHECK_EQ(order, std::string("ab"));
  CHECK_EQ(cudaEventQuery(event), cudaSuccess);
  cudaEventDestroy(event);
}

TEST(graphs_replay_what_was_captured) {
  const Stream stream;
  auto* device = deviceArray<char>(8);
  CHECK_EQ(cudaStreamBeginCapture(stream.handle, cudaStreamCaptureModeRelaxed), cudaSuccess);
  CHECK_EQ(cudaMemsetAsync(device, 7, 8, stream.handle), cudaSuccess);
  cudaGraph_t graph = nullptr;
  CHECK_EQ(cudaStreamEndCapture(stream.handle, &graph), cudaSuccess);
  std::vector<char> host(8);
  CHECK_EQ(cudaMemcpy(host.data(), device, 8, cudaMemcpyDeviceToHost), cudaSuccess);
  CHECK_EQ(static_cast<uint8_t>(host[0]), 0xCD);
  cudaGraphExec_t exec = nullptr;
  CHECK_EQ(cudaGraphInstantiate(&exec, graph, 0), cudaSuccess);
  CHECK_EQ(cudaGraphLaunch(exec, stream.handle), cudaSuccess);
  CHECK_EQ(cudaStreamSynchronize(stream.handle), cudaSuccess);
  CHECK_EQ(cudaMemcpy(host.data(), device, 8, cudaMemcpyDeviceToHost), cudaSuccess);
  CHECK_EQ(host[7], 7);
  // A wait within a capture breaks it.
  CHECK_EQ(cudaStreamBeginCapture(stream.handle, cudaStreamCaptureModeRelaxed), cudaSuccess);
  CHECK_EQ(cudaStreamSynchronize(stream.handle), cudaErrorStreamCaptureUnsupported);
  cudaGraph_t none = nullptr;
  CHECK_EQ(cudaStreamEndCapture(stream.handle, &none), cudaErrorStreamCaptureInvalidated);
  CHECK(none == nullptr);
  cudaGraphExecDestroy(exec);
  cudaGraphDestroy(graph);
  cudaFree(device);
  cudaGetLastError();
}

TEST(memory_ends_and_fails_on_demand) {
  setTotalBytes(1 << 20);
  void* memory = nullptr;
  CHECK_EQ(cudaMalloc(&memory, 2 << 20), cudaErrorMemoryAllocation);
  setTotalBytes(uint64_t{16} << 30);
  failAllocation(2);
  CHECK_EQ(cudaMalloc(&memory, 16), cudaSuccess);
  void* other = nullptr;
  CHECK_EQ(cudaMallocHost(&other, 16), cudaErrorMemoryAllocation);
  CHECK_EQ(cudaMallocHost(&other, 16), cudaSuccess);
  cudaFree(memory);
  cudaFreeHost(other);
  cudaGetLastError();
}

TEST(an_engine_runs) {
  Library library;
  REQUIRE(library.handle != nullptr);
  const auto runtime = library.createRuntime();
  const auto engine = load(*runtime, scalePlan(2, 1));
  REQUIRE(engine != nullptr);
  const std::unique_ptr<nvinfer1::IExecutionContext> context(engine->createExecutionContext());
  const Stream stream;
  CHECK(!context->setInputShape("x", nvinfer1::Dims2(9, 4)));
  CHECK_CONTAINS(library.log.text, "does not satisfy any optimization profiles");
  CHECK(!context->enqueueV3(stream.handle));
  CHECK(context->setInputShape("x", nvinfer1::Dims2(2, 4)));
  CHECK_EQ(context->getTensorShape("y").d[0], int64_t{2});
  CHECK(!context->enqueueV3(stream.handle));
  CHECK_CONTAINS(library.log.text, "Neither address or allocator is set for tensor x");
  auto* x = deviceArray<float>(8);
  auto* y = deviceArray<float>(8);
  const std::vector<float> in = {0, 1, 2, 3, 4, 5, 6, 7};
  CHECK_EQ(cudaMemcpyAsync(x, in.data(), 32, cudaMemcpyHostToDevice, stream.handle), cudaSuccess);
  CHECK(context->setTensorAddress("x", x));
  CHECK(context->setTensorAddress("y", y));
  CHECK(context->enqueueV3(stream.handle));
  std::vector<float> out(8);
  CHECK_EQ(cudaMemcpyAsync(out.data(), y, 32, cudaMemcpyDeviceToHost, stream.handle), cudaSuccess);
  CHECK_EQ(cudaStreamSynchronize(stream.handle), cudaSuccess);
  for (size_t i = 0; i < 8; ++i) CHECK_EQ(out[i], 2 * in[i] + 1);

  const auto refitter = library.createRefitter(*engine);
  const float five = 5;
  CHECK_EQ(refitter->getMissingWeights(0, nullptr), 0);
  CHECK(refitter->setNamedWeights("a", nvinfer1::Weights{nvinfer1::DataType::kFLOAT, &five, 1}));
  CHECK(refitter->refitCudaEngineAsync(stream.handle));
  CHECK(context->enqueueV3(stream.handle));
  CHECK_EQ(cudaMemcpyAsync(out.data(), y, 32, cudaMemcpyDeviceToHost, stream.handle), cudaSuccess);
  CHECK_EQ(out[7], 36.0F);
  cudaFree(x);
  cudaFree(y);
  CHECK_EQ(figures().violations, uint64_t{0});
}

TEST(a_damaged_plan_is_refused) {
  Library library;
  const auto runtime = library.createRuntime();
  const std::string good = scalePlan();
  for (size_t i = 0; i < good.size(); ++i) {
    std::string bad = good;
    bad[i] = static_cast<char>(bad[i] ^ 0x10);
    CHECK(load(*runtime, bad) == nullptr);
    CHECK(load(*runtime, good.substr(0, i)) == nullptr);
  }
  CHECK_CONTAINS(library.log.text, "Magic tag does not match");
  CHECK(load(*runtime, makePlan(R"({"tensorrt":"10.5.0","tensors":[],"layers":[]})")) == nullptr);
  CHECK_CONTAINS(library.log.text, "expecting library version 10.6.0 got 10.5.0");
}

TEST(an_output_whose_size_the_data_decides) {
  struct Allocator final : nvinfer1::IOutputAllocator {
    void* memory = nullptr;
    nvinfer1::Dims shape{};
    bool refuses = false;
    void* reallocateOutputAsync(const char*, void*, uint64_t size, uint64_t, cudaStream_t) noexcept override {
      cudaFree(memory);
      memory = nullptr;
      if (!refuses) cudaMalloc(&memory, size);
      return memory;
    }
    void notifyShape(const char*, const nvinfer1::Dims& dims) noexcept override { shape = dims; }
  };
  Library library;
  const auto runtime = library.createRuntime();
  const auto engine =
      load(*runtime, makePlan(R"({"tensors":[{"name":"x","mode":"input","shape":[2,3]},)"
                              R"({"name":"y","mode":"output","dtype":"int64","shape":[2,-1]}],)"
                              R"("layers":[{"op":"nonzero","inputs":["x"],"output":"y"}]})"));
  REQUIRE(engine != nullptr);
  const std::unique_ptr<nvinfer1::IExecutionContext> context(engine->createExecutionContext());
  const Stream stream;
  auto* x = deviceArray<float>(6);
  const std::vector<float> in = {0, 1, 0, 5, 0, 7};
  cudaMemcpy(x, in.data(), 24, cudaMemcpyHostToDevice);
  CHECK(context->setTensorAddress("x", x));
  CHECK(!context->enqueueV3(stream.handle));
  CHECK_CONTAINS(library.log.text, "data-dependent shape and no output allocator");
  Allocator allocator;
  CHECK(context->setOutputAllocator("y", &allocator));
  CHECK(context->enqueueV3(stream.handle));
  CHECK_EQ(allocator.shape.d[1], int64_t{3});
  std::vector<int64_t> out(6);
  CHECK_EQ(cudaMemcpyAsync(out.data(), allocator.memory, 48, cudaMemcpyDeviceToHost, stream.handle),
           cudaSuccess);
  CHECK(out == std::vector<int64_t>({0, 1, 1, 1, 0, 2}));
  allocator.refuses = true;
  CHECK(!context->enqueueV3(stream.handle));
  CHECK_CONTAINS(library.log.text, "the output allocator of y gave no 48 bytes");
  cudaStreamSynchronize(stream.handle);
  cudaFree(x);
}

TEST(values_of_a_shape_tensor_decide_a_shape) {
  Library library;
  const auto runtime = library.createRuntime();
  const auto engine = load(
      *runtime,
      makePlan(R"({"tensors":[{"name":"s","mode":"input","dtype":"int32","shape":[2],"shapeTensor":true},)"
               R"({"name":"y","mode":"output","dtype":"float16","shape":[-1,-1]}],)"
               R"("profiles":[{"s":{"values":{"min":[1,1],"opt":[2,2],"max":[4,4]}}}],)"
               R"("layers":[{"op":"fill","inputs":["s"],"output":"y","a":1.5}]})"));
  REQUIRE(engine != nullptr);
  const std::unique_ptr<nvinfer1::IExecutionContext> context(engine->createExecutionContext());
  const char* missing = nullptr;
  CHECK_EQ(context->inferShapes(1, &missing), 1);
  CHECK_EQ(std::string(missing), std::string("s"));
  std::vector<int32_t> values = {2, 5};
  CHECK(context->setInputTensorAddress("s", values.data()));
  CHECK_EQ(context->inferShapes(0, nullptr), -1);
  values[1] = 3;
  CHECK_EQ(context->inferShapes(0, nullptr), 0);
  CHECK_EQ(context->getTensorShape("y").d[1], int64_t{3});
  auto* y = deviceArray<uint16_t>(6);
  const Stream stream;
  CHECK(context->setTensorAddress("y", y));
  CHECK(context->enqueueV3(stream.handle));
  std::vector<uint16_t> out(6);
  CHECK_EQ(cudaMemcpyAsync(out.data(), y, 12, cudaMemcpyDeviceToHost, stream.handle), cudaSuccess);
  CHECK_EQ(out[5], uint16_t{0x3E00});
  cudaFree(y);
}

TEST(activation_memory_is_used_and_layers_are_timed) {
  struct Profiler final : nvinfer1::IProfiler {
    std::string layers;
    void reportLayerTime(const char* name, float ms) noexcept override {
      if (ms >= 0) layers += std::string(name) + " ";
    }
  };
  Library library;
  const auto runtime = library.createRuntime();
  const auto engine = load(*runtime, scalePlan());
  const std::unique_ptr<nvinfer1::IExecutionContext> context(
      engine->createExecutionContext(nvinfer1::ExecutionContextAllocationStrategy::kUSER_MANAGED));
  const Stream stream;
  auto* x = deviceArray<float>(4);
  auto* y = deviceArray<float>(4);
  CHECK(context->setInputShape("x", nvinfer1::Dims2(1, 4)));
  CHECK(context->setTensorAddress("x", x));
  CHECK(context->setTensorAddress("y", y));
  CHECK(!context->enqueueV3(stream.handle));
  CHECK_CONTAINS(library.log.text, "device memory is not set");
  auto* activation = deviceArray<char>(1024);
  context->setDeviceMemoryV2(activation, 1023);
  CHECK(!context->enqueueV3(stream.handle));
  context->setDeviceMemoryV2(activation, 1024);
  Profiler profiler;
  context->setProfiler(&profiler);
  CHECK(context->enqueueV3(stream.handle));
  CHECK_EQ(profiler.layers, std::string("scale_0 "));
  char last = 0;
  CHECK_EQ(cudaMemcpy(&last, activation + 1023, 1, cudaMemcpyDeviceToHost), cudaSuccess);
  CHECK_EQ(static_cast<uint8_t>(last), uint8_t{0xA5});
  // Gone before the run: what a GPU would answer with an illegal access.
  context->setProfiler(nullptr);
  sleepOn(stream.handle, 1);
  cudaFree(activation);
  (void)context->enqueueV3(stream.handle);
  CHECK_EQ(cudaStreamSynchronize(stream.handle), cudaErrorIllegalAddress);
  CHECK_EQ(figures().violations, uint64_t{1});
  clearViolations();
  revive(0);
  cudaFree(x);
  cudaFree(y);
}

TEST(a_dead_device_answers_everything_with_its_error) {
  const Stream stream;
  cudaEvent_t event = nullptr;
  cudaEventCreateWithFlags(&event, cudaEventDisableTiming);
  void* memory = nullptr;
  CHECK_EQ(cudaMalloc(&memory, 16), cudaSuccess);
  submit(stream.handle, [] { return cudaErrorIllegalAddress; });
  CHECK_EQ(cudaStreamSynchronize(stream.handle), cudaErrorIllegalAddress);
  CHECK_EQ(cudaEventRecord(event, stream.handle), cudaErrorIllegalAddress);
  void* other = nullptr;
  CHECK_EQ(cudaMalloc(&other, 16), cudaErrorIllegalAddress);
  CHECK_EQ(cudaGetLastError(), cudaErrorIllegalAddress);
  CHECK_EQ(cudaFree(memory), cudaErrorIllegalAddress);
  CHECK_EQ(cudaEventDestroy(event), cudaErrorIllegalAddress);
  revive(0);
  CHECK_EQ(figures().violations, uint64_t{0});
}

TEST_MAIN()
