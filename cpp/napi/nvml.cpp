#include "napi/nvml.h"

#include <map>
#include <memory>
#include <mutex>

#if defined(__linux__)
#include <dlfcn.h>
#endif

namespace nt {

#if defined(__linux__)

namespace {

// https://docs.nvidia.com/deploy/nvml-api: the part that is used, of its stable binary interface.
using Device = void*;
constexpr int kSuccess = 0;
constexpr int kDriverNotLoaded = 9;
constexpr unsigned kTemperatureOfGpu = 0;
constexpr unsigned kTextLength = 96;  // NVML_DEVICE_UUID_V2_BUFFER_SIZE, and that of names
struct Utilization {
  unsigned gpu;  // percent
  unsigned memory;
};
struct Memory {
  unsigned long long total;
  unsigned long long free;
  unsigned long long used;
};
struct PciInfo {
  char busIdLegacy[16];
  unsigned domain;
  unsigned bus;
  unsigned device;
  unsigned pciDeviceId;
  unsigned pciSubSystemId;
  char busId[32];
};

constexpr const char* kLibrary = "libnvidia-ml.so.1";

class Nvml {
 public:
  explicit Nvml(const std::string& path)
      : library_(dlopen(path.empty() ? kLibrary : path.c_str(), RTLD_NOW | RTLD_LOCAL)) {}

  Expected<GpuUsageReport> read() {
    const std::lock_guard lock(mutex_);
    GpuUsageReport report;
    if (library_ == nullptr) return report;
    if (!initialised_) {
      const int error = call<int()>("nvmlInit_v2");
      if (error == kDriverNotLoaded) return report;
      if (error != kSuccess) return failure("nvmlInit_v2", error);
      initialised_ = true;
    }
    unsigned count = 0;
    if (const int error = call<int(unsigned*)>("nvmlDeviceGetCount_v2", &count); error != kSuccess) {
      return failure("nvmlDeviceGetCount_v2", error);
    }
    report.available = true;
    for (unsigned index = 0; index < count; ++index) {
      Device device = nullptr;
      // One that this process may not see, or that has fallen off the bus: the others are told.
      if (call<int(unsigned, Device*)>("nvmlDeviceGetHandleByIndex_v2", index, &device) != kSuccess) continue;
      report.gpus.push_back(describe(static_cast<int32_t>(index), device));
    }
    return report;
  }

 private:
  static constexpr int kFunctionNotFound = 13;  // NVML's own code for it

  template <class Fn, class... Args>
  int call(const char* name, Args... args) const noexcept {
    auto* function = reinterpret_cast<Fn*>(dlsym(library_, name));
    return function == nullptr ? kFunctionNotFound : function(args...);
  }

  Status failure(const char* function, int error) const {
    auto* errorString = reinterpret_cast<const char* (*)(int)>(dlsym(library_, "nvmlErrorString"));
    const char* text = errorString == nullptr ? nullptr : errorString(error);
    return {"ERR_CUDA", std::string("NVIDIA's management library failed in ") + function + ": " +
                            (text == nullptr ? "error " + std::to_string(error) : text)};
  }

  std::string text(const char* function, Device device) const {
    char buffer[kTextLength] = {};
    return call<int(Device, char*, unsigned)>(function, device, buffer, kTextLength) == kSuccess
               ? std::string(buffer)
               : std::string();
  }

  GpuUsage describe(int32_t index, Device device) const {
    GpuUsage gpu;
    gpu.index = index;
    gpu.name = text("nvmlDeviceGetName", device);
    gpu.uuid = text("nvmlDeviceGetUUID", device);
    PciInfo pci{};
    if (call<int(Device, PciInfo*)>("nvmlDeviceGetPciInfo_v3", device, &pci) == kSuccess) {
      gpu.pciBusId = pci.busId;
    }
    Utilization utilisation{};
    if (call<int(Device, Utilization*)>("nvmlDeviceGetUtilizationRates", device, &utilisation) == kSuccess) {
      gpu.utilisation = utilisation.gpu / 100.0;
    }
    Memory memory{};
    if (call<int(Device, Memory*)>("nvmlDeviceGetMemoryInfo", device, &memory) == kSuccess) {
      gpu.memoryUsedBytes = static_cast<double>(memory.used);
      gpu.memoryTotalBytes = static_cast<double>(memory.total);
    }
    unsigned value = 0;
    if (call<int(Device, unsigned, unsigned*)>("nvmlDeviceGetTemperature", device, kTemperatureOfGpu,
                                               &value) == kSuccess) {
      gpu.temperatureCelsius = value;
    }
    if (call<int(Device, unsigned*)>("nvmlDeviceGetPowerUsage", device, &value) == kSuccess) {
      gpu.powerWatts = value / 1000.0;
    }
    return gpu;
  }

  std::mutex mutex_;
  void* library_;
  bool initialised_ = false;
};

}  // namespace

Expected<GpuUsageReport> readGpuUsage(const std::string& libraryPath) {
  static std::mutex mutex;
  // Never freed: a thread may be in it while the process exits.
  static auto& libraries = *new std::map<std::string, std::unique_ptr<Nvml>>();
  Nvml* library = nullptr;
  {
    const std::lock_guard lock(mutex);
    std::unique_ptr<Nvml>& slot = libraries[libraryPath];
    if (slot == nullptr) slot = std::make_unique<Nvml>(libraryPath);
    library = slot.get();
  }
  return library->read();
}

#else

Expected<GpuUsageReport> readGpuUsage(const std::string&) {
  return GpuUsageReport{};
}

#endif

}  // namespace nt
