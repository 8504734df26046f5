// The CUDA runtime's functions that the module calls, see device.h. Kernels are registered and never run.
#include <array>
#include <cstring>
#include <utility>

#include "device.h"

using namespace nt::fake;

namespace {

thread_local int currentDevice = 0;
thread_local cudaError_t lastError = cudaSuccess;

cudaError_t say(cudaError_t error) {
  if (error != cudaSuccess) lastError = error;
  return error;
}

// The runtime's own checks of a call on the current device.
cudaError_t enter() {
  if (Gpu::get().devices() == 0) return cudaErrorNoDevice;
  return deathOf(currentDevice);
}

#define ENTER()                                                                        \
  do {                                                                                 \
    if (const cudaError_t before = enter(); before != cudaSuccess) return say(before); \
  } while (false)

cudaError_t unsupportedInCapture(const std::shared_ptr<StreamState>& stream) {
  const auto capture = stream->capturing();
  if (capture == nullptr) return cudaSuccess;
  const std::lock_guard lock(capture->mutex);
  capture->invalid = true;
  return cudaErrorStreamCaptureUnsupported;
}

cudaError_t makeStream(cudaStream_t* stream) {
  ENTER();
  auto state = std::make_shared<StreamState>();
  state->device = currentDevice;
  state->start(state);
  *stream = Gpu::get().streams.add(std::move(state));
  return cudaSuccess;
}

cudaError_t awaitStream(const std::shared_ptr<StreamState>& stream) {
  if (const cudaError_t error = unsupportedInCapture(stream); error != cudaSuccess) return say(error);
  stream->drain();
  return say(deathOf(stream->device));
}

// One side of a copy. Memory of the host that CUDA did not allocate is taken as it is.
struct Side {
  const void* address;
  bool pageable;
};

Side sideOf(const void* address) {
  Gpu& gpu = Gpu::get();
  return {address, !gpu.isDevice(address) && !gpu.isPinned(address)};
}

char* reachSide(const Side& side, size_t bytes) {
  return static_cast<char*>(side.pageable ? const_cast<void*>(side.address) : reach(side.address, bytes));
}

struct Rows {
  size_t bytes;
  size_t rows;
  size_t toPitch;
  size_t fromPitch;
  size_t span(size_t pitch) const { return rows == 0 || bytes == 0 ? 0 : pitch * (rows - 1) + bytes; }
};

bool fitsKind(const Side& to, const Side& from, cudaMemcpyKind kind) {
  const bool toDevice = isDeviceAddress(to.address);
  const bool fromDevice = isDeviceAddress(from.address);
  switch (kind) {
    case cudaMemcpyHostToHost:
      return !toDevice && !fromDevice;
    case cudaMemcpyHostToDevice:
      return toDevice && !fromDevice;
    case cudaMemcpyDeviceToHost:
      return !toDevice && fromDevice;
    case cudaMemcpyDeviceToDevice:
      return toDevice && fromDevice;
    default:
      return true;
  }
}

cudaError_t copy(void* toAddress, const void* fromAddress, const Rows& rows, cudaMemcpyKind kind,
                 cudaStream_t handle) {
  ENTER();
  if (rows.bytes == 0 || rows.rows == 0) return cudaSuccess;
  if (rows.rows > 1 && (rows.toPitch < rows.bytes || rows.fromPitch < rows.bytes))
    return say(cudaErrorInvalidPitchValue);
  const Side to = sideOf(toAddress);
  const Side from = sideOf(fromAddress);
  const size_t toSpan = rows.span(rows.toPitch);
  const size_t fromSpan = rows.span(rows.fromPitch);
  if (reachSide(to, toSpan) == nullptr || reachSide(from, fromSpan) == nullptr) {
    violation("a copy of " + std::to_string(rows.rows) + " x " + std::to_string(rows.bytes) +
              " bytes reaches past an allocation");
    return say(cudaErrorInvalidValue);
  }
  if (!fitsKind(to, from, kind)) return say(cudaErrorInvalidMemcpyDirection);
  // CUDA has read memory of the host that is not pinned when the call returns.
  std::shared_ptr<std::vector<char>> staged;
  if (from.pageable && !isCapturing(handle)) {
    const auto* begin = static_cast<const char*>(from.address);
    staged = std::make_shared<std::vector<char>>(begin, begin + fromSpan);
  }
  const cudaError_t error = submit(handle, [=] {
    char* out = reachSide(to, toSpan);
    const char* in = staged != nullptr ? staged->data() : reachSide(from, fromSpan);
    if (out == nullptr || in == nullptr) {
      violation("memory was freed before the copy that uses it");
      return cudaErrorIllegalAddress;
    }
    for (size_t i = 0; i < rows.rows; ++i)
      std::memmove(out + i * rows.toPitch, in + i * rows.fromPitch, rows.bytes);
    return cudaSuccess;
  });
  if (error != cudaSuccess) return say(error);
  return to.pageable && !isCapturing(handle) ? cudaStreamSynchronize(handle) : cudaSuccess;
}

cudaError_t runAll(const GraphState& graph) {
  for (const Work& work : graph.works) {
    if (const cudaError_t error = work(); error != cudaSuccess) return error;
  }
  return cudaSuccess;
}

cudaError_t allocation(cudaError_t (Gpu::*allocate)(int, uint64_t, void**), void** memory, size_t bytes) {
  ENTER();
  if (Gpu::get().isAllocationBarred()) return say(cudaErrorStreamCaptureUnsupported);
  *memory = nullptr;
  return bytes == 0 ? cudaSuccess : say((Gpu::get().*allocate)(currentDevice, bytes, memory));
}

}  // namespace

extern "C" {
#pragma GCC visibility push(default)

cudaError_t cudaGetDeviceCount(int* count) {
  *count = Gpu::get().devices();
  return say(*count == 0 ? cudaErrorNoDevice : cudaSuccess);
}
cudaError_t cudaSetDevice(int device) {
  if (device < 0 || device >= Gpu::get().devices()) return say(cudaErrorInvalidDevice);
  currentDevice = device;
  return say(deathOf(device));
}
cudaError_t cudaGetDevice(int* device) {
  *device = currentDevice;
  return Gpu::get().devices() == 0 ? say(cudaErrorNoDevice) : cudaSuccess;
}
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int device) {
  if (device < 0 || device >= Gpu::get().devices()) return say(cudaErrorInvalidDevice);
  switch (attribute) {
    case cudaDevAttrComputeCapabilityMajor:
      *value = 9;
      break;
    case cudaDevAttrMultiProcessorCount:
      *value = 8;
      break;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin:
    case cudaDevAttrMaxSharedMemoryPerMultiprocessor:
      *value = 227 << 10;
      break;
    default:
      *value = 0;
  }
  return cudaSuccess;
}
cudaError_t cudaDeviceGetStreamPriorityRange(int* least, int* greatest) {
  ENTER();
  *least = 0;
  *greatest = -5;
  return cudaSuccess;
}
cudaError_t cudaDeviceSynchronize() {
  ENTER();
  Gpu::get().drainDevice(currentDevice);
  return say(deathOf(currentDevice));
}
cudaError_t cudaRuntimeGetVersion(int* version) {
  *version = CUDART_VERSION;
  return cudaSuccess;
}
cudaError_t cudaDriverGetVersion(int* version) {
  *version = CUDART_VERSION;
  return cudaSuccess;
}

cudaError_t cudaGetLastError() {
  const cudaError_t error = std::exchange(lastError, cudaSuccess);
  const cudaError_t death = deathOf(currentDevice);
  return death != cudaSuccess ? death : error;
}
cudaError_t cudaPeekAtLastError() {
  const cudaError_t death = deathOf(currentDevice);
  return death != cudaSuccess ? death : lastError;
}
const char* cudaGetErrorName(cudaError_t error) {
  switch (error) {
#define NAME(name) \
  case name:       \
    return #name
    NAME(cudaSuccess);
    NAME(cudaErrorInvalidValue);
    NAME(cudaErrorMemoryAllocation);
    NAME(cudaErrorNotReady);
    NAME(cudaErrorNoDevice);
    NAME(cudaErrorInvalidDevice);
    NAME(cudaErrorIllegalAddress);
    NAME(cudaErrorAssert);
    NAME(cudaErrorLaunchFailure);
    NAME(cudaErrorECCUncorrectable);
    NAME(cudaErrorNotSupported);
    NAME(cudaErrorInvalidResourceHandle);
    NAME(cudaErrorInvalidMemcpyDirection);
    NAME(cudaErrorInvalidPitchValue);
    NAME(cudaErrorStreamCaptureUnsupported);
    NAME(cudaErrorStreamCaptureInvalidated);
    NAME(cudaErrorStreamCaptureIsolation);
    NAME(cudaErrorStreamCaptureUnmatched);
    NAME(cudaErrorIllegalState);
    NAME(cudaErrorCapturedEvent);
#undef NAME
    default:
      return "cudaErrorOfTheFakeGpu";
  }
}
const char* cudaGetErrorString(cudaError_t error) {
  switch (error) {
    case cudaSuccess:
      return "no error";
    case cudaErrorMemoryAllocation:
      return "out of memory";
    case cudaErrorInvalidValue:
      return "invalid argument";
    case cudaErrorIllegalAddress:
      return "an illegal memory access was encountered";
    case cudaErrorAssert:
      return "device-side assert triggered";
    case cudaErrorLaunchFailure:
      return "unspecified launch failure";
    case cudaErrorInvalidResourceHandle:
      return "invalid resource handle";
    case cudaErrorNotReady:
      return "device not ready";
    case cudaErrorStreamCaptureUnsupported:
      return "operation not permitted when stream is capturing";
    case cudaErrorStreamCaptureInvalidated:
      return "operation failed due to a previous error during capture";
    default:
      return cudaGetErrorName(error);
  }
}

cudaError_t cudaMalloc(void** memory, size_t bytes) {
  return allocation(&Gpu::allocate, memory, bytes);
}
cudaError_t cudaMallocHost(void** memory, size_t bytes) {
  return allocation(&Gpu::allocatePinned, memory, bytes);
}
cudaError_t cudaHostAlloc(void** memory, size_t bytes, unsigned) {
  return allocation(&Gpu::allocatePinned, memory, bytes);
}
// On a dead device both answer its error; the memory is taken back all the same, so that leaks can be told.
cudaError_t cudaFree(void* memory) {
  if (memory == nullptr) return say(enter());
  if (Gpu::get().isAllocationBarred()) return say(cudaErrorStreamCaptureUnsupported);
  const cudaError_t error = Gpu::get().free(memory);
  const cudaError_t death = enter();
  return say(death != cudaSuccess ? death : error);
}
cudaError_t cudaFreeHost(void* memory) {
  if (memory == nullptr) return say(enter());
  const cudaError_t error = Gpu::get().freePinned(memory);
  const cudaError_t death = enter();
  return say(death != cudaSuccess ? death : error);
}
cudaError_t cudaMemGetInfo(size_t* free, size_t* total) {
  ENTER();
  *total = Gpu::get().totalBytes();
  *free = Gpu::get().freeBytes(currentDevice);
  return cudaSuccess;
}
cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind kind,
                            cudaStream_t stream) {
  return copy(to, from, {bytes, 1, bytes, bytes}, kind, stream);
}
cudaError_t cudaMemcpy(void* to, const void* from, size_t bytes, cudaMemcpyKind kind) {
  const cudaError_t error = copy(to, from, {bytes, 1, bytes, bytes}, kind, nullptr);
  return error == cudaSuccess ? cudaStreamSynchronize(nullptr) : error;
}
cudaError_t cudaMemcpy2DAsync(void* to, size_t toPitch, const void* from, size_t fromPitch, size_t width,
                              size_t height, cudaMemcpyKind kind, cudaStream_t stream) {
  return copy(to, from, {width, height, toPitch, fromPitch}, kind, stream);
}
cudaError_t cudaMemsetAsync(void* to, int value, size_t bytes, cudaStream_t stream) {
  ENTER();
  if (bytes == 0) return cudaSuccess;
  if (reach(to, bytes) == nullptr) {
    violation("a fill of " + std::to_string(bytes) + " bytes reaches past an allocation");
    return say(cudaErrorInvalidValue);
  }
  return say(submit(stream, [=] {
    void* out = reach(to, bytes);
    if (out == nullptr) {
      violation("memory was freed before the fill that uses it");
      return cudaErrorIllegalAddress;
    }
    std::memset(out, value, bytes);
    return cudaSuccess;
  }));
}
cudaError_t cudaMemset(void* to, int value, size_t bytes) {
  const cudaError_t error = cudaMemsetAsync(to, value, bytes, nullptr);
  return error == cudaSuccess ? cudaStreamSynchronize(nullptr) : error;
}

cudaError_t cudaStreamCreate(cudaStream_t* stream) {
  return makeStream(stream);
}
cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned) {
  return makeStream(stream);
}
cudaError_t cudaStreamCreateWithPriority(cudaStream_t* stream, unsigned, int) {
  return makeStream(stream);
}
// What is queued is still done.
cudaError_t cudaStreamDestroy(cudaStream_t handle) {
  const auto stream = Gpu::get().streams.remove(handle);
  if (stream == nullptr) {
    violation("a stream is destroyed that does not exist");
    return say(cudaErrorInvalidResourceHandle);
  }
  const std::lock_guard lock(stream->mutex);
  stream->destroyed = true;
  stream->changed.notify_all();
  return say(deathOf(stream->device));
}
cudaError_t cudaStreamSynchronize(cudaStream_t handle) {
  ENTER();
  const auto stream = Gpu::get().stream(handle, currentDevice);
  return stream == nullptr ? say(cudaErrorInvalidResourceHandle) : awaitStream(stream);
}
cudaError_t cudaStreamQuery(cudaStream_t handle) {
  ENTER();
  const auto stream = Gpu::get().stream(handle, currentDevice);
  if (stream == nullptr) return say(cudaErrorInvalidResourceHandle);
  if (const cudaError_t error = unsupportedInCapture(stream); error != cudaSuccess) return say(error);
  const bool idle = stream->isIdle();
  if (const cudaError_t death = deathOf(stream->device); death != cudaSuccess) return say(death);
  return idle ? cudaSuccess : say(cudaErrorNotReady);
}
cudaError_t cudaLaunchHostFunc(cudaStream_t stream, cudaHostFn_t function, void* data) {
  ENTER();
  return say(submit(stream, [=] {
    function(data);
    return cudaSuccess;
  }));
}

cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned flags) {
  ENTER();
  auto state = std::make_shared<EventState>();
  state->device = currentDevice;
  state->flags = flags;
  *event = Gpu::get().events.add(std::move(state));
  return cudaSuccess;
}
cudaError_t cudaEventCreate(cudaEvent_t* event) {
  return cudaEventCreateWithFlags(event, cudaEventDefault);
}
cudaError_t cudaEventDestroy(cudaEvent_t handle) {
  const auto event = Gpu::get().events.remove(handle);
  if (event == nullptr) {
    violation("an event is destroyed that does not exist");
    return say(cudaErrorInvalidResourceHandle);
  }
  return say(deathOf(event->device));
}

static std::shared_ptr<EventState> eventOf(cudaEvent_t handle) {
  auto event = Gpu::get().events.find(handle);
  if (event == nullptr) violation("an event is used that does not exist");
  return event;
}

cudaError_t cudaEventRecord(cudaEvent_t handle, cudaStream_t streamHandle) {
  ENTER();
  const auto event = eventOf(handle);
  const auto stream = Gpu::get().stream(streamHandle, currentDevice);
  if (event == nullptr || stream == nullptr || event->device != stream->device) {
    return say(cudaErrorInvalidResourceHandle);
  }
  if (const auto capture = stream->capturing(); capture != nullptr) {
    const std::lock_guard lock(event->mutex);
    event->capture = capture;
    return cudaSuccess;
  }
  uint64_t number = 0;
  {
    const std::lock_guard lock(event->mutex);
    event->capture.reset();
    number = ++event->recorded;
  }
  return say(submit(streamHandle, [event, number] {
    const std::lock_guard lock(event->mutex);
    if (number > event->done) {
      event->done = number;
      event->at = Clock::now();
    }
    event->changed.notify_all();
    return cudaSuccess;
  }));
}
cudaError_t cudaEventQuery(cudaEvent_t handle) {
  ENTER();
  const auto event = eventOf(handle);
  if (event == nullptr) return say(cudaErrorInvalidResourceHandle);
  if (const cudaError_t death = deathOf(event->device); death != cudaSuccess) return say(death);
  const std::lock_guard lock(event->mutex);
  if (event->capture != nullptr) return say(cudaErrorCapturedEvent);
  return event->done == event->recorded ? cudaSuccess : say(cudaErrorNotReady);
}
cudaError_t cudaEventSynchronize(cudaEvent_t handle) {
  ENTER();
  const auto event = eventOf(handle);
  if (event == nullptr) return say(cudaErrorInvalidResourceHandle);
  std::unique_lock lock(event->mutex);
  if (event->capture != nullptr) return say(cudaErrorCapturedEvent);
  const uint64_t until = event->recorded;
  event->changed.wait(lock, [&] { return event->done >= until || deathOf(event->device) != cudaSuccess; });
  return say(deathOf(event->device));
}
cudaError_t cudaEventElapsedTime(float* ms, cudaEvent_t startHandle, cudaEvent_t endHandle) {
  ENTER();
  const auto start = eventOf(startHandle);
  const auto end = eventOf(endHandle);
  if (start == nullptr || end == nullptr) return say(cudaErrorInvalidResourceHandle);
  std::array<Clock::time_point, 2> times;
  for (size_t i = 0; i < 2; ++i) {
    EventState& event = i == 0 ? *start : *end;
    const std::lock_guard lock(event.mutex);
    if ((event.flags & cudaEventDisableTiming) != 0 || event.recorded == 0)
      return say(cudaErrorInvalidResourceHandle);
    if (event.done != event.recorded) return say(cudaErrorNotReady);
    times[i] = event.at;
  }
  *ms = std::chrono::duration<float, std::milli>(times[1] - times[0]).count();
  return cudaSuccess;
}
cudaError_t cudaStreamWaitEvent(cudaStream_t streamHandle, cudaEvent_t handle, unsigned) {
  ENTER();
  const auto event = eventOf(handle);
  const auto stream = Gpu::get().stream(streamHandle, currentDevice);
  if (event == nullptr || stream == nullptr) return say(cudaErrorInvalidResourceHandle);
  const auto capture = stream->capturing();
  uint64_t number = 0;
  {
    const std::lock_guard lock(event->mutex);
    if (event->capture != nullptr && !event->capture->ended) {
      if (capture != nullptr && capture != event->capture) return say(cudaErrorStreamCaptureMerge);
      // The stream takes part in the capture from here on.
      const std::lock_guard inner(stream->mutex);
      stream->capture = event->capture;
      return cudaSuccess;
    }
    number = event->recorded;
  }
  if (capture != nullptr) {
    const std::lock_guard lock(capture->mutex);
    capture->invalid = true;
    return say(cudaErrorStreamCaptureIsolation);
  }
  return say(submit(streamHandle, [event, number] {
    std::unique_lock lock(event->mutex);
    event->changed.wait(lock, [&] { return event->done >= number || deathOf(event->device) != cudaSuccess; });
    return cudaSuccess;
  }));
}

cudaError_t cudaStreamBeginCapture(cudaStream_t handle, cudaStreamCaptureMode mode) {
  ENTER();
  if (handle == nullptr) return say(cudaErrorStreamCaptureUnsupported);
  const auto stream = Gpu::get().stream(handle, currentDevice);
  if (stream == nullptr) return say(cudaErrorInvalidResourceHandle);
  if (stream->capturing() != nullptr) return say(cudaErrorIllegalState);
  auto capture = std::make_shared<Capture>();
  capture->mode = mode;
  capture->origin = handle;
  if (mode != cudaStreamCaptureModeRelaxed) {
    const std::lock_guard lock(Gpu::get().captureMutex);
    Gpu::get().captures.push_back(capture);
  }
  const std::lock_guard lock(stream->mutex);
  stream->capture = std::move(capture);
  return cudaSuccess;
}
cudaError_t cudaStreamEndCapture(cudaStream_t handle, cudaGraph_t* graph) {
  ENTER();
  *graph = nullptr;
  const auto stream = Gpu::get().stream(handle, currentDevice);
  if (stream == nullptr) return say(cudaErrorInvalidResourceHandle);
  const auto capture = stream->capturing();
  if (capture == nullptr) return say(cudaErrorIllegalState);
  if (capture->origin != handle) return say(cudaErrorStreamCaptureUnmatched);
  const std::lock_guard lock(capture->mutex);
  capture->ended = true;
  if (capture->invalid) return say(cudaErrorStreamCaptureInvalidated);
  auto state = std::make_shared<GraphState>();
  state->device = stream->device;
  state->works = std::move(capture->works);
  *graph = Gpu::get().graphs.add(std::move(state));
  return cudaSuccess;
}
cudaError_t cudaStreamIsCapturing(cudaStream_t handle, cudaStreamCaptureStatus* status) {
  ENTER();
  *status = isCapturing(handle) ? cudaStreamCaptureStatusActive : cudaStreamCaptureStatusNone;
  return cudaSuccess;
}
cudaError_t cudaGraphInstantiate(cudaGraphExec_t* exec, cudaGraph_t handle, unsigned long long) {
  ENTER();
  const auto graph = Gpu::get().graphs.find(handle);
  if (graph == nullptr) {
    violation("a graph is used that does not exist");
    return say(cudaErrorInvalidValue);
  }
  *exec = Gpu::get().execs.add(std::make_shared<GraphState>(*graph));
  return cudaSuccess;
}
cudaError_t cudaGraphUpload(cudaGraphExec_t exec, cudaStream_t) {
  ENTER();
  return Gpu::get().execs.find(exec) == nullptr ? say(cudaErrorInvalidValue) : cudaSuccess;
}
cudaError_t cudaGraphLaunch(cudaGraphExec_t handle, cudaStream_t stream) {
  ENTER();
  const auto exec = Gpu::get().execs.find(handle);
  if (exec == nullptr) {
    violation("a graph is launched that does not exist");
    return say(cudaErrorInvalidValue);
  }
  return say(submit(stream, [exec] { return runAll(*exec); }));
}
cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
  if (Gpu::get().graphs.remove(graph) == nullptr) {
    violation("a graph is destroyed that does not exist");
    return say(cudaErrorInvalidValue);
  }
  return cudaSuccess;
}
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t exec) {
  if (Gpu::get().execs.remove(exec) == nullptr) {
    violation("an executable graph is destroyed that does not exist");
    return say(cudaErrorInvalidValue);
  }
  return cudaSuccess;
}

// Of kernels. Nothing here runs one.
cudaError_t cudaFuncSetAttribute(const void*, cudaFuncAttribute, int) {
  return cudaSuccess;
}
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int* blocks, const void*, int, size_t,
                                                                   unsigned) {
  *blocks = 1;
  return cudaSuccess;
}
cudaError_t cudaGetDriverEntryPointByVersion(const char*, void** function, unsigned, unsigned long long,
                                             cudaDriverEntryPointQueryResult* result) {
  *function = nullptr;
  if (result != nullptr) *result = cudaDriverEntryPointSymbolNotFound;
  return say(cudaErrorNotSupported);
}
cudaError_t cudaLaunchKernel(const void*, dim3, dim3, void**, size_t, cudaStream_t) {
  return say(cudaErrorNotSupported);
}
cudaError_t cudaLaunchKernelExC(const cudaLaunchConfig_t*, const void*, void**) {
  return say(cudaErrorNotSupported);
}
cudaError_t __cudaLaunchKernel(cudaKernel_t, dim3, dim3, void**, size_t, cudaStream_t) {
  return say(cudaErrorNotSupported);
}
cudaError_t __cudaGetKernel(cudaKernel_t* kernel, const void* entry) {
  *kernel = static_cast<cudaKernel_t>(const_cast<void*>(entry));
  return cudaSuccess;
}
cudaError_t __cudaPopCallConfiguration(dim3*, dim3*, size_t*, void*) {
  return cudaErrorNotSupported;
}
unsigned __cudaPushCallConfiguration(dim3, dim3, size_t, cudaStream_t) {
  return 1;
}
void** __cudaRegisterFatBinary(void*) {
  static void* handle = nullptr;
  return &handle;
}
void __cudaRegisterFatBinaryEnd(void**) {}
void __cudaUnregisterFatBinary(void**) {}
void __cudaRegisterVar(void**, char*, char*, const char*, int, size_t, int, int) {}
void __cudaRegisterFunction(void**, const char*, char*, const char*, int, uint3*, uint3*, dim3*, dim3*,
                            int*) {}

#pragma GCC visibility pop
}
