#include "tensorrt/driver.h"

#include <cuda.h>
#include <cuda_runtime_api.h>
#include <dlfcn.h>
#include <link.h>

#include <array>

namespace nt {

namespace {

constexpr const char* kDriverLibrary = "libcuda.so.1";

std::string versionText(int32_t cuda) {
  return std::to_string(cuda / 1000) + "." + std::to_string(cuda % 1000 / 10);
}

// The driver's functions by name: the module must load where there is no driver.
class Driver {
 public:
  explicit Driver(void* library) noexcept : library_(library) {}

  template <class Fn, class... Args>
  CUresult call(const char* name, Args... args) const noexcept {
    auto* function = reinterpret_cast<Fn*>(dlsym(library_, name));
    return function == nullptr ? CUDA_ERROR_NOT_FOUND : function(args...);
  }

  std::string errorText(CUresult error) const {
    const char* text = nullptr;
    if (call<decltype(cuGetErrorString)>("cuGetErrorString", error, &text) != CUDA_SUCCESS ||
        text == nullptr) {
      return "CUDA driver error " + std::to_string(static_cast<int>(error));
    }
    return text;
  }

 private:
  void* library_;
};

Status noGpu(const std::string& why) {
  return {"ERR_NO_GPU", "The CUDA driver is there but offers no GPU: " + why,
          "Check nvidia-smi, CUDA_VISIBLE_DEVICES and, in a container, that it was started with GPU access"};
}

Status tooOld(int32_t cuda) {
  return {"ERR_DRIVER_TOO_OLD",
          "The NVIDIA driver serves CUDA " +
              (cuda == 0 ? std::string("of an unknown version") : versionText(cuda)) +
              ", this build needs CUDA " + versionText(requiredCuda()),
          "Install a newer NVIDIA driver (580 or later for CUDA 13)"};
}

Status probeDevice(const Driver& driver, int index, GpuFacts& gpu) {
  CUdevice device = 0;
  std::array<char, 256> name{};
  size_t bytes = 0;
  int major = 0;
  int minor = 0;
  CUresult result = driver.call<decltype(cuDeviceGet)>("cuDeviceGet", &device, index);
  if (result == CUDA_SUCCESS) {
    result = driver.call<decltype(cuDeviceGetName)>("cuDeviceGetName", name.data(),
                                                    static_cast<int>(name.size()), device);
  }
  if (result == CUDA_SUCCESS) {
    result = driver.call<CUresult(size_t*, CUdevice)>("cuDeviceTotalMem_v2", &bytes, device);
  }
  const auto attribute = [&](CUdevice_attribute which, int* to) {
    if (result == CUDA_SUCCESS) {
      result = driver.call<decltype(cuDeviceGetAttribute)>("cuDeviceGetAttribute", to, which, device);
    }
  };
  attribute(CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, &major);
  attribute(CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR, &minor);
  if (result != CUDA_SUCCESS) {
    return {"ERR_CUDA", "GPU " + std::to_string(index) + ": " + driver.errorText(result)};
  }
  gpu = {name.data(), major, minor, bytes};
  return {};
}

}  // namespace

int32_t requiredCuda() noexcept {
  // Within a major version a newer runtime runs on an older driver.
  return CUDART_VERSION / 1000 * 1000;
}

void probeDriver(ModuleFacts& facts) {
  facts.requiredCuda = requiredCuda();
  // Never closed: CUDA does not survive it.
  void* library = dlopen(kDriverLibrary, RTLD_NOW | RTLD_LOCAL);
  if (library == nullptr) {
    facts.driver = {"ERR_DRIVER_NOT_FOUND", std::string("No NVIDIA driver: ") + dlerror(),
                    "Install the NVIDIA driver; in a container, start it with GPU access (--gpus all)"};
    return;
  }
  const Driver driver(library);
  link_map* map = nullptr;
  if (dlinfo(library, RTLD_DI_LINKMAP, &map) == 0 && map != nullptr) facts.driverPath = map->l_name;

  int version = 0;
  if (driver.call<decltype(cuDriverGetVersion)>("cuDriverGetVersion", &version) == CUDA_SUCCESS) {
    facts.driverCuda = version;
  }
  const CUresult started = driver.call<decltype(cuInit)>("cuInit", 0U);
  if (started == CUDA_ERROR_NO_DEVICE) {
    facts.driver = noGpu(driver.errorText(started));
    return;
  }
  if (started == CUDA_ERROR_SYSTEM_DRIVER_MISMATCH || started == CUDA_ERROR_NOT_FOUND) {
    facts.driver = tooOld(facts.driverCuda);
    return;
  }
  if (started != CUDA_SUCCESS) {
    facts.driver = {"ERR_CUDA", "The CUDA driver does not start: " + driver.errorText(started)};
    return;
  }
  int count = 0;
  const CUresult counted = driver.call<decltype(cuDeviceGetCount)>("cuDeviceGetCount", &count);
  if (counted != CUDA_SUCCESS || count == 0) {
    facts.driver = noGpu(counted == CUDA_SUCCESS ? "the device count is 0" : driver.errorText(counted));
    return;
  }
  for (int i = 0; i < count; ++i) {
    GpuFacts gpu;
    if (Status status = probeDevice(driver, i, gpu); !status) {
      facts.driver = std::move(status);
      return;
    }
    facts.gpus.push_back(std::move(gpu));
  }
  if (facts.driverCuda < facts.requiredCuda) facts.driver = tooOld(facts.driverCuda);
}

Expected<GpuFacts> requireDevice(int32_t device) {
  ModuleFacts facts;
  probeDriver(facts);
  if (!facts.driver) return facts.driver;
  if (device < 0 || static_cast<size_t>(device) >= facts.gpus.size()) {
    return Status::invalid("device " + std::to_string(device) + " does not exist, there are " +
                           std::to_string(facts.gpus.size()) + " GPUs");
  }
  return facts.gpus[static_cast<size_t>(device)];
}

}  // namespace nt
