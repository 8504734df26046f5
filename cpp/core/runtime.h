// The typed runtime of generic engines: memory, streams, events, graphs, engines and contexts. Implemented by
// the TensorRT module (cpp/tensorrt/runtime), wrapped for JavaScript by cpp/napi. Nothing of NVIDIA's is
// named here.
//
// Commands of a stream are queued: a call checks its arguments and returns at once, a thread of the stream's
// hands the commands to CUDA in the order of the calls. After a command that fails, the rest up to the next
// `synchronize` is skipped, and that `synchronize` reports the first failure and clears it. The order holds
// across streams too: a command sees what earlier calls, of whatever stream, have queued (an event is waited
// for as it was recorded by calls before the wait).
//
// Objects are shared: a queued command holds what it uses until the device is done with it, so the caller may
// let go at any time. Calls on one object come from one thread at a time, unless a comment says otherwise.
// Nothing throws across.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "core/status.h"

namespace nt::runtime {

// Called once, on a thread of the module's. Must return quickly and never throw.
using Done = std::function<void(Status)>;

using Shape = std::vector<int64_t>;

// Base of all that is handed out.
class Object {
 public:
  Object() = default;
  Object(const Object&) = delete;
  Object& operator=(const Object&) = delete;
  virtual ~Object() {
    if (gone_) gone_();
  }
  // Called when the object and all that it held are gone, by whoever lets go last. Once, by a holder.
  void onGone(std::function<void()> gone) noexcept { gone_ = std::move(gone); }

 private:
  std::function<void()> gone_;
};

enum class MemoryKind : uint8_t { kDevice, kPinned };

class Memory : public Object {
 public:
  virtual MemoryKind kind() const noexcept = 0;
  virtual uint64_t bytes() const noexcept = 0;
  // On the device, or of the host (kPinned, which the device reaches too).
  virtual void* address() const noexcept = 0;
};

class Event : public Object {
 public:
  // Milliseconds of device time from `start`'s record to this one's. Both must have completed, with timing.
  virtual Expected<float> elapsedSince(const Event& start) noexcept = 0;
  // Whether the last record that was called for has completed; true where there was none.
  virtual Expected<bool> isComplete() noexcept = 0;
};

// A captured CUDA graph, instantiated. Holds on to all that it uses. A context that was captured keeps its
// profile, shapes and values for as long as the graph lives: a run that would change them fails.
class Graph : public Object {};

struct OutputView {
  Shape shape;
  std::shared_ptr<Memory> memory;
};

// Tensors are named by their index in EngineInfo's `tensors`.
class Context : public Object {
 public:
  // Changes take effect with the next Stream::enqueue or Stream::resolve of this context, in the order of the
  // calls. Tensor, rank and profile range are checked here, byte counts when the change takes effect.
  virtual Status setProfile(int32_t profile) noexcept = 0;
  virtual Status setInputShape(int32_t tensor, Shape shape) noexcept = 0;
  // Values of a shape tensor (an input that lives on the host).
  virtual Status setShapeValues(int32_t tensor, std::vector<int64_t> values) noexcept = 0;
  // Null: the context allocates this output by itself, in the size that each run turns out to need.
  virtual Status setAddress(int32_t tensor, std::shared_ptr<Memory> memory, uint64_t offset) noexcept = 0;
  // Activation memory of a context made with ContextMemory::kUser.
  virtual Status setDeviceMemory(std::shared_ptr<Memory> memory, uint64_t offset) noexcept = 0;
  // Per-layer times of the runs that follow; such a run blocks its stream's queue until it is done.
  virtual Status setProfiling(bool on) noexcept = 0;

  // After the stream has completed: the shape that an output had in the last run, and its memory where the
  // context allocated it (else null). Any thread.
  virtual Expected<OutputView> output(int32_t tensor) noexcept = 0;
  // JSON: [{"name": string, "ms": number, "runs": number}], in order of execution. Starts anew. Any thread.
  virtual std::string takeProfile() noexcept = 0;
};

struct StreamCounters {
  uint64_t commands = 0;
  uint64_t enqueues = 0;
  uint64_t graphLaunches = 0;
  // Changes of a context's shape or profile that TensorRT had to take in.
  uint64_t reshapes = 0;
  double enqueueUs = 0;            // host time in enqueueV3 and graph launches
  double queueUs = 0;              // from the call to the start on the stream's thread, over all commands
  uint64_t voluntarySwitches = 0;  // of the stream's threads, by the operating system
  uint64_t involuntarySwitches = 0;
};

class Stream : public Object {
 public:
  // Bytes in ranges of device or pinned memory, in any combination.
  virtual Status copy(std::shared_ptr<Memory> to, uint64_t toOffset, std::shared_ptr<Memory> from,
                      uint64_t fromOffset, uint64_t bytes) noexcept = 0;
  // `rows` ranges of `bytes` each, their starts `toPitch` and `fromPitch` bytes apart.
  virtual Status copyRows(std::shared_ptr<Memory> to, uint64_t toOffset, uint64_t toPitch,
                          std::shared_ptr<Memory> from, uint64_t fromOffset, uint64_t fromPitch,
                          uint64_t bytes, uint64_t rows) noexcept = 0;
  virtual Status fill(std::shared_ptr<Memory> memory, uint64_t offset, uint64_t bytes,
                      uint8_t value) noexcept = 0;
  // Runs the context with the changes made so far. A context runs on one stream at a time: on another than
  // before, the run waits for the one before.
  virtual Status enqueue(std::shared_ptr<Context> context) noexcept = 0;
  // Takes in the context's changes without running it; reports the shapes of all tensors, by index.
  virtual void resolve(std::shared_ptr<Context> context,
                       std::function<void(Expected<std::vector<Shape>>)> done) noexcept = 0;
  virtual Status record(std::shared_ptr<Event> event) noexcept = 0;
  virtual Status wait(std::shared_ptr<Event> event) noexcept = 0;
  // Commands in between are captured, not run; `synchronize`, `resolve` and another begin are refused there.
  virtual Status beginCapture() noexcept = 0;
  virtual Status endCapture(std::function<void(Expected<std::shared_ptr<Graph>>)> done) noexcept = 0;
  virtual Status launch(std::shared_ptr<Graph> graph) noexcept = 0;
  // All commands called for before are done on the device; or the first that failed since the last one.
  virtual void synchronize(Done done) noexcept = 0;
  // Any thread.
  virtual StreamCounters counters() const noexcept = 0;
};

enum class ContextMemory : uint8_t {
  kStatic,           // enough for every profile, of the context's own
  kOnProfileChange,  // its own, in the size of the profile in use
  kUser,             // setDeviceMemory
};

struct ContextOptions {
  int32_t profile = 0;
  ContextMemory memory = ContextMemory::kStatic;
};

struct NamedWeights {
  std::string name;
  std::string dtype;  // as in EngineInfo
  // Host memory of `count` values that stays until the call has returned.
  const void* values = nullptr;
  int64_t count = 0;
};

class Engine : public Object {
 public:
  // JSON, see NativeEngineInfo in lib/native/runtime_addon.ts. Any thread.
  virtual const std::string& info() const noexcept = 0;
  // TensorRT's own JSON on layers, for a profile (-1 = none). Blocks shortly.
  virtual Expected<std::string> layers(int32_t profile) noexcept = 0;
  // Blocks: call it off the event loop. So do the rest.
  virtual Expected<std::shared_ptr<Context>> createContext(const ContextOptions& options) noexcept = 0;
  virtual Expected<std::vector<std::string>> refittableWeights() noexcept = 0;
  // Sets all or nothing where a name, type or count is wrong. Reports what is still missing for a run:
  // ERR_WEIGHTS_MISSING names it. No context of the engine may be running.
  virtual Status refit(const std::vector<NamedWeights>& weights) noexcept = 0;
  virtual Expected<std::vector<char>> serialize() noexcept = 0;
};

struct MemoryFigures {
  uint64_t freeBytes = 0;  // of the device, whoever uses the rest
  uint64_t totalBytes = 0;
  uint64_t deviceBytes = 0;  // in use by this process through the module, TensorRT's own included
  uint64_t pinnedBytes = 0;
  uint64_t pooledDeviceBytes = 0;  // freed and kept for the next allocation
  uint64_t pooledPinnedBytes = 0;
};

struct DeviceCounters {
  uint64_t deviceAllocations = 0;  // calls of cudaMalloc and its kin
  uint64_t deviceFrees = 0;
  uint64_t pinnedAllocations = 0;
  uint64_t pinnedFrees = 0;
  uint64_t poolHits = 0;
};

struct StreamOptions {
  int32_t priority = 0;  // 0 = the lowest; higher runs first, as far as the device has levels
  // How long a thread spins for the device (and for commands) before it sleeps, in microseconds.
  int32_t spinUs = 50;
};

// One device with TensorRT's runtime on it. All calls may come from any thread.
class Runtime : public Object {
 public:
  // JSON, see NativeRuntimeInfo.
  virtual const std::string& info() const noexcept = 0;
  // Blocks for as long as the plan is large. The bytes are not used after the return. `hostCode`: take plans
  // that are version-compatible and hold a lean runtime, which is host code.
  virtual Expected<std::shared_ptr<Engine>> deserialize(const void* plan, uint64_t bytes,
                                                        bool hostCode) noexcept = 0;
  // `pooled`: of blocks freed before, and back among them afterwards.
  virtual Expected<std::shared_ptr<Memory>> allocate(MemoryKind kind, uint64_t bytes,
                                                     bool pooled) noexcept = 0;
  virtual Expected<std::shared_ptr<Stream>> createStream(const StreamOptions& options) noexcept = 0;
  virtual Expected<std::shared_ptr<Event>> createEvent(bool timing) noexcept = 0;
  virtual Expected<MemoryFigures> memory() noexcept = 0;
  virtual DeviceCounters counters() noexcept = 0;
  // Gives pooled blocks back to the system.
  virtual void trim() noexcept = 0;
};

struct RuntimeOptions {
  std::string libraryPath;  // as in TensorRtOptions
  int32_t device = 0;
};

// Failures on demand, to verify what happens then. Counted from the call on, over the whole process.
struct Faults {
  int64_t failDeviceAllocation = 0;  // the n-th from now, from 1; 0 = none. TensorRT's own count too.
  int64_t failPinnedAllocation = 0;
  int64_t failEnqueue = 0;
  int64_t failCopy = 0;
};

enum class LogSeverity : uint8_t { kInternalError, kError, kWarning, kInfo, kVerbose };

// Called on any thread, also several at once. Must return quickly and never throw.
class LogSink {
 public:
  virtual ~LogSink() = default;
  virtual LogSeverity threshold() const noexcept = 0;
  virtual void onLine(LogSeverity severity, const char* text) noexcept = 0;
};

}  // namespace nt::runtime
