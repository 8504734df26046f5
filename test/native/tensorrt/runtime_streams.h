// For tests of streams: a context that logs its runs, and the calls of cpp/core/runtime.h made to wait.
#pragma once

#include <cuda_runtime_api.h>

#include <atomic>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <future>
#include <memory>
#include <new>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "check.h"
#include "fake_gpu.h"
#include "tensorrt/runtime/context_run.h"
#include "tensorrt/runtime/event.h"
#include "tensorrt/runtime/memory.h"
#include "tensorrt/runtime/reaper.h"
#include "tensorrt/runtime/stream.h"

namespace nt::test {

using namespace nt::runtime;
using namespace std::chrono_literals;

// Read at the first call of CUDA.
inline const int twoDevices = setenv("FAKE_GPU_DEVICES", "2", 1);

inline DeviceState& device() {
  static DeviceState* const state = *DeviceState::of(0);
  return *state;
}

inline std::shared_ptr<Memory> memory(MemoryKind kind, uint64_t bytes, bool pooled = false) {
  return *createMemory(device(), kind, bytes, pooled);
}
inline std::shared_ptr<runtime::Stream> stream(int32_t spinUs = 50) {
  return *createStream(device(), {0, spinUs});
}
inline std::shared_ptr<runtime::Event> event(bool timing = false) {
  return *createEvent(device(), timing);
}

inline std::future<Status> synchronized(runtime::Stream& stream) {
  auto promise = std::make_shared<std::promise<Status>>();
  stream.synchronize([promise](Status status) { promise->set_value(std::move(status)); });
  return promise->get_future();
}
inline Status synchronize(runtime::Stream& stream) {
  std::future<Status> done = synchronized(stream);
  if (done.wait_for(120s) != std::future_status::ready) return {"TIMEOUT", "synchronize does not end"};
  return done.get();
}

template <class T>
bool isReady(std::future<T>& future, std::chrono::milliseconds patience = 0ms) {
  return future.wait_for(patience) == std::future_status::ready;
}

inline std::future<void> released(std::shared_ptr<Object> object) {
  auto promise = std::make_shared<std::promise<void>>();
  releaseLater(std::move(object), [promise] { promise->set_value(); });
  return promise->get_future();
}
// Until what was let go of before is gone. Twice: a stream that ends lets go of more.
inline void settle() {
  for (int i = 0; i < 2; ++i) {
    std::promise<void> promise;
    reap([&] { promise.set_value(); });
    promise.get_future().wait();
  }
}

inline std::shared_future<void> goneOf(Object& object) {
  auto promise = std::make_shared<std::promise<void>>();
  object.onGone([promise] { promise->set_value(); });
  return promise->get_future().share();
}

// Lets something else go on until it is opened.
struct Gate {
  std::promise<void> promise;
  std::shared_future<void> opened = promise.get_future().share();
  void open() { promise.set_value(); }
};

inline uint8_t* bytesOf(const std::shared_ptr<Memory>& memory) {
  return static_cast<uint8_t*>(memory->address());
}

// A run appends the context's value to what the runs before have written: bytes [1] = count, then the values.
// Its value is set by setProfile, its memory by setAddress.
class FakeContext final : public RunnableContext {
 public:
  struct Changes final : ContextChanges {
    int32_t value = -1;
    std::shared_ptr<Memory> memory;
  };

  FakeContext() : RunnableContext(device()) {}

  Status setProfile(int32_t value) noexcept override {
    pending().value = value;
    return {};
  }
  Status setAddress(int32_t, std::shared_ptr<Memory> memory, uint64_t) noexcept override {
    pending().memory = std::move(memory);
    return {};
  }
  Status setInputShape(int32_t, Shape) noexcept override { return {}; }
  Status setShapeValues(int32_t, std::vector<int64_t>) noexcept override { return {}; }
  Status setDeviceMemory(std::shared_ptr<Memory>, uint64_t) noexcept override { return {}; }
  Status setProfiling(bool) noexcept override { return {}; }
  Expected<OutputView> output(int32_t) noexcept override { return OutputView{}; }
  std::string takeProfile() noexcept override { return "[]"; }

  std::unique_ptr<ContextChanges> takeChanges() noexcept override { return std::move(pending_); }
  void keepChanges(std::unique_ptr<ContextChanges> changes) noexcept override {
    if (changes == nullptr) return;
    ++kept;
    take(static_cast<Changes&>(*changes), nullptr);
  }
  Status apply(std::unique_ptr<ContextChanges> changes, cudaStream_t, RunEffects& effects) noexcept override {
    if (Gate* const gate = holdHost; gate != nullptr) gate->opened.wait();
    if (changes == nullptr) return {};
    ++effects.reshapes;
    take(static_cast<Changes&>(*changes), &effects.dropped);
    return {};
  }
  Status enqueueOn(cudaStream_t stream, RunEffects& effects) noexcept override {
    captured += effects.capturing ? 1 : 0;
    if (refuses) return {"ERR_EXECUTION_FAILED", "refused"};
    if (breaksCapture) {
      cudaStreamSynchronize(stream);
      cudaGetLastError();
      return {};
    }
    if (Gate* const hold = holdDevice; hold != nullptr) {
      cudaLaunchHostFunc(stream, [](void* gate) { static_cast<Gate*>(gate)->opened.wait(); }, hold);
    }
    try {
      runs_.push_back(
          std::make_unique<std::pair<uint8_t*, uint8_t>>(bytesOf(memory_), static_cast<uint8_t>(value_)));
    } catch (const std::bad_alloc&) {
      return {"ERR_OUT_OF_MEMORY", ""};
    }
    cudaLaunchHostFunc(
        stream,
        [](void* data) {
          const auto& [at, value] = *static_cast<std::pair<uint8_t*, uint8_t>*>(data);
          at[++at[0]] = value;
        },
        runs_.back().get());
    ++runsPut;
    return {};
  }
  Expected<std::vector<Shape>> shapes() noexcept override { return std::vector<Shape>{{value_, 2}}; }
  Status uses(References& references) noexcept override {
    references.push_back(memory_);
    return {};
  }

  // Until this many runs have been put on streams.
  void awaitRuns(int count) const {
    while (runsPut < count) std::this_thread::sleep_for(1ms);
  }

  std::atomic<bool> refuses = false;
  std::atomic<bool> breaksCapture = false;
  std::atomic<Gate*> holdHost = nullptr;    // the stream's thread waits for it
  std::atomic<Gate*> holdDevice = nullptr;  // the device does
  std::atomic<int> runsPut = 0;
  std::atomic<int> kept = 0;
  std::atomic<int> captured = 0;

 private:
  Changes& pending() {
    if (pending_ == nullptr) pending_ = std::make_unique<Changes>();
    return *pending_;
  }
  void take(Changes& changes, References* dropped) {
    if (changes.value >= 0) value_ = changes.value;
    if (changes.memory == nullptr) return;
    if (memory_ != nullptr && dropped != nullptr) dropped->push_back(memory_);
    memory_ = std::move(changes.memory);
  }

  std::unique_ptr<Changes> pending_;
  int32_t value_ = 0;
  std::shared_ptr<Memory> memory_;
  std::vector<std::unique_ptr<std::pair<uint8_t*, uint8_t>>> runs_;
};

// With memory of its own for 255 runs, which starts empty.
inline std::shared_ptr<FakeContext> context(std::shared_ptr<Memory> log = memory(MemoryKind::kPinned, 256)) {
  std::memset(log->address(), 0, log->bytes());
  auto context = std::make_shared<FakeContext>();
  (void)context->setAddress(0, std::move(log), 0);
  return context;
}

inline Expected<std::shared_ptr<Graph>> endCapture(runtime::Stream& stream) {
  std::promise<Expected<std::shared_ptr<Graph>>> promise;
  const Status status =
      stream.endCapture([&](Expected<std::shared_ptr<Graph>> graph) { promise.set_value(std::move(graph)); });
  if (!status) return status;
  return promise.get_future().get();
}

inline Expected<std::vector<Shape>> resolve(runtime::Stream& stream,
                                            std::shared_ptr<runtime::Context> context) {
  std::promise<Expected<std::vector<Shape>>> promise;
  stream.resolve(std::move(context), [&](Expected<std::vector<Shape>> shapes) { promise.set_value(shapes); });
  return promise.get_future().get();
}

}  // namespace nt::test
