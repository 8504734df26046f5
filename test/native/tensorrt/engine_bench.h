// For tests of engines and contexts: models for the fake GPU (test/native/fake_gpu), a device to run them on,
// and the calls of cpp/core/runtime.h made to wait.
#pragma once

#include <cstdlib>
#include <cstring>
#include <future>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "check.h"
#include "fake_gpu/fake_gpu.h"
#include "fake_gpu/plan_writer.h"
#include "tensorrt/module.h"

namespace nt::test {

using namespace nt::runtime;
using Bytes = std::vector<char>;

// Read at the first call of CUDA.
inline const int twoDevices = setenv("FAKE_GPU_DEVICES", "2", 1);

// See test/native/fake_gpu/README.md.
inline Bytes planOf(const std::string& json) {
  const std::string plan = fake::makePlan(json);
  return {plan.begin(), plan.end()};
}

// y = 2 x + 1 with x [rows, 4]; profiles of 1 ... 4 and of 4 ... 64 rows.
inline std::string scaleModel(const std::string& more = "", const std::string& moreLayers = "") {
  return R"({"name":"scale","tensors":[)"
         R"({"name":"x","mode":"input","dtype":"float32","shape":[-1,4]},)"
         R"({"name":"y","mode":"output","dtype":"float32","shape":[-1,4]}],)"
         R"("profiles":[{"x":{"min":[1,4],"opt":[2,4],"max":[4,4]}},{"x":{"min":[4,4],"opt":[8,4],"max":[64,4]}}],)"
         R"("activationBytes":[4096,65536],"weightBytes":1024)" +
         more + R"(,"layers":[)" + moreLayers +
         R"({"name":"times two","op":"scale","inputs":["x"],"output":"y","a":2,"b":1}]})";
}
inline constexpr int32_t kX = 0;
inline constexpr int32_t kY = 1;

// y holds the indices of x's values that are not zero.
inline std::string nonzeroModel() {
  return R"({"tensors":[{"name":"x","mode":"input","dtype":"float32","shape":[64]},)"
         R"({"name":"y","mode":"output","dtype":"int64","shape":[1,-1]}],"scratchBytes":512,)"
         R"("layers":[{"op":"nonzero","inputs":["x"],"output":"y"}]})";
}

// y of the shape that s holds.
inline std::string fillModel() {
  return R"({"tensors":[{"name":"s","mode":"input","dtype":"int32","shape":[2],"shapeTensor":true},)"
         R"({"name":"y","mode":"output","dtype":"float32","shape":[-1,-1]}],)"
         R"("profiles":[{"s":{"values":{"min":[1,1],"opt":[2,2],"max":[16,16]}}}],)"
         R"("layers":[{"op":"fill","inputs":["s"],"output":"y","a":7}]})";
}

inline std::shared_ptr<Runtime> makeRuntime(int32_t device = 0) {
  auto runtime = tensorRtModule().createRuntime({NT_FAKE_GPU_FOLDER, device});
  if (!runtime) fail(__FILE__, __LINE__, runtime.status().code() + ": " + runtime.status().message());
  return *std::move(runtime);
}

template <class T>
T take(Expected<T> expected) {
  if (!expected) fail(__FILE__, __LINE__, expected.status().code() + ": " + expected.status().message());
  return *std::move(expected);
}

inline void ok(const Status& status, const char* file, int line) {
  if (!status) fail(file, line, status.code() + ": " + status.message());
}
#define OK(status) nt::test::ok(status, __FILE__, __LINE__)

inline void failsWith(const Status& status, const std::string& code, const std::string& part,
                      const char* file, int line) {
  if (status.code() != code) {
    fail(file, line, "code is '" + status.code() + "' (" + status.message() + "), expected " + code);
  }
  checkContains(status.message(), part, file, line);
}
#define FAILS(status, code, part) nt::test::failsWith(status, code, part, __FILE__, __LINE__)

inline Status synchronize(runtime::Stream& stream) {
  std::promise<Status> done;
  stream.synchronize([&](Status status) { done.set_value(std::move(status)); });
  return done.get_future().get();
}

inline void close(std::shared_ptr<Object> object) {
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

inline std::vector<float> counting(size_t count) {
  std::vector<float> values(count);
  for (size_t i = 0; i < count; ++i) values[i] = static_cast<float>(i);
  return values;
}

}  // namespace nt::test
