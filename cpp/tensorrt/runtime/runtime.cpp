#include "tensorrt/runtime/runtime.h"

#include <cuda_runtime_api.h>

#include <memory>
#include <string>
#include <utility>

#include "tensorrt/driver.h"
#include "tensorrt/guarded.h"
#include "tensorrt/library.h"
#include "tensorrt/runtime/device_state.h"
#include "tensorrt/runtime/engine.h"
#include "tensorrt/runtime/event.h"
#include "tensorrt/runtime/json_writer.h"
#include "tensorrt/runtime/memory.h"
#include "tensorrt/runtime/reaper.h"
#include "tensorrt/runtime/stream.h"

namespace nt::runtime {

namespace {

class RuntimeObject final : public Runtime {
 public:
  RuntimeObject(std::shared_ptr<RuntimeCore> core, std::string info) noexcept
      : core_(std::move(core)), info_(std::move(info)) {}

  const std::string& info() const noexcept override { return info_; }

  Expected<std::shared_ptr<Engine>> deserialize(const void* plan, uint64_t bytes,
                                                bool hostCode) noexcept override {
    return guarded([&] { return EngineObject::create(core_, plan, bytes, hostCode); });
  }
  Expected<std::shared_ptr<Memory>> allocate(MemoryKind kind, uint64_t bytes, bool pooled) noexcept override {
    return createMemory(device(), kind, bytes, pooled);
  }
  Expected<std::shared_ptr<Stream>> createStream(const StreamOptions& options) noexcept override {
    return runtime::createStream(device(), options);
  }
  Expected<std::shared_ptr<Event>> createEvent(bool timing) noexcept override {
    return runtime::createEvent(device(), timing);
  }
  Expected<MemoryFigures> memory() noexcept override { return device().memory(); }
  DeviceCounters counters() noexcept override { return device().counters(); }
  void trim() noexcept override { device().trim(); }

 private:
  DeviceState& device() const noexcept { return core_->device; }

  const std::shared_ptr<RuntimeCore> core_;
  const std::string info_;
};

Expected<std::string> infoOf(DeviceState& device, const GpuFacts& gpu, const Library& library) {
  int multiprocessors = 0;
  int driver = 0;
  int runtime = 0;
  int lowest = 0;
  int highest = 0;
  for (const cudaError_t error :
       {cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, device.device()),
        cudaDriverGetVersion(&driver), cudaRuntimeGetVersion(&runtime),
        cudaDeviceGetStreamPriorityRange(&lowest, &highest)}) {
    if (Status status = device.check(error, "Asking the GPU what it is"); !status) return status;
  }
  JsonWriter json;
  json.open('{');
  json.key("device").value(device.device());
  json.key("name").value(gpu.name);
  json.key("computeCapability")
      .value(std::to_string(gpu.computeMajor) + "." + std::to_string(gpu.computeMinor));
  json.key("memoryBytes").value(static_cast<int64_t>(gpu.memoryBytes));
  json.key("multiprocessors").value(multiprocessors);
  json.key("libraryVersion").value(library.version());
  json.key("libraryPath").value(library.path());
  json.key("driverCuda").value(driver);
  json.key("runtimeCuda").value(runtime);
  json.key("maxPriority").value(lowest - highest);  // CUDA's numbers fall as priority rises
  json.close('}');
  return json.take();
}

}  // namespace

Expected<std::shared_ptr<Runtime>> createRuntime(const RuntimeOptions& options) {
  const Expected<GpuFacts> gpu = requireDevice(options.device);
  if (!gpu) return gpu.status();
  const Expected<const Library*> library = Library::open(options.libraryPath);
  if (!library) return library.status();
  const Expected<DeviceState*> device = DeviceState::of(options.device);
  if (!device) return device.status();
  const DeviceScope scope(options.device);
  if (Status status = (*device)->select(); !status) return status;
  Expected<std::string> info = infoOf(**device, *gpu, **library);
  if (!info) return info.status();
  auto core = std::make_shared<RuntimeCore>(**device, **library);
  // Now rather than with the first engine: what keeps TensorRT from starting is an error of the runtime.
  if (Status status = core->start(); !status) return status;
  return std::shared_ptr<Runtime>(makeReaped<RuntimeObject>(std::move(core), *std::move(info)));
}

}  // namespace nt::runtime
