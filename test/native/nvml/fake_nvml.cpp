// A libnvidia-ml.so.1 of two GPUs. Its figures grow with each call of nvmlDeviceGetUtilizationRates.
//   FAKE_NVML_GPUS       how many there are, else 2
//   FAKE_NVML_FAIL       ",function=code,...": what a function answers; "function@gpu=code" of one GPU alone
//   FAKE_NVML_SLEEP_MS   how long nvmlDeviceGetCount_v2 takes
#include <unistd.h>

#include <atomic>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>

#define EXPORT extern "C" __attribute__((visibility("default")))

namespace {

struct Gpu {
  unsigned index;
};
Gpu gpus[8] = {{0}, {1}, {2}, {3}, {4}, {5}, {6}, {7}};
std::atomic<unsigned> readings = 0;
std::atomic<bool> initialised = false;

int configured(const std::string& key) {
  const char* text = std::getenv("FAKE_NVML_FAIL");
  const char* found = text == nullptr ? nullptr : std::strstr(text, ("," + key + "=").c_str());
  return found == nullptr ? 0 : std::atoi(std::strchr(found, '=') + 1);
}

// 1: NVML_ERROR_UNINITIALIZED.
int result(const char* function, const void* device = nullptr) {
  if (!initialised && std::strcmp(function, "nvmlInit_v2") != 0) return 1;
  if (const int error = configured(function)) return error;
  if (device == nullptr) return 0;
  return configured(std::string(function) + "@" + std::to_string(static_cast<const Gpu*>(device)->index));
}

unsigned count() {
  const char* text = std::getenv("FAKE_NVML_GPUS");
  return text == nullptr ? 2 : static_cast<unsigned>(std::atoi(text));
}

}  // namespace

EXPORT int nvmlInit_v2() {
  const int error = result("nvmlInit_v2");
  if (error == 0) initialised = true;
  return error;
}
EXPORT const char* nvmlErrorString(int error) {
  return error == 18 ? "Driver/library version mismatch" : error == 999 ? "Unknown Error" : nullptr;
}
EXPORT int nvmlDeviceGetCount_v2(unsigned* number) {
  if (const char* ms = std::getenv("FAKE_NVML_SLEEP_MS")) usleep(std::atoi(ms) * 1000);
  *number = count();
  return result("nvmlDeviceGetCount_v2");
}
EXPORT int nvmlDeviceGetHandleByIndex_v2(unsigned index, void** device) {
  if (index >= count()) return 2;
  *device = &gpus[index];
  return result("nvmlDeviceGetHandleByIndex_v2", *device);
}
EXPORT int nvmlDeviceGetName(void* device, char* name, unsigned length) {
  std::snprintf(name, length, "Fake GPU %u", static_cast<Gpu*>(device)->index);
  return result("nvmlDeviceGetName", device);
}
EXPORT int nvmlDeviceGetUUID(void* device, char* uuid, unsigned length) {
  std::snprintf(uuid, length, "GPU-00000000-0000-0000-0000-00000000000%u", static_cast<Gpu*>(device)->index);
  return result("nvmlDeviceGetUUID", device);
}
EXPORT int nvmlDeviceGetPciInfo_v3(void* device, void* info) {
  struct {
    char legacy[16];
    uint32_t numbers[5];
    char busId[32];
  } pci{};
  std::snprintf(pci.busId, sizeof pci.busId, "00000000:%02X:00.0", 0x1B + static_cast<Gpu*>(device)->index);
  std::memcpy(info, &pci, sizeof pci);
  return result("nvmlDeviceGetPciInfo_v3", device);
}
EXPORT int nvmlDeviceGetUtilizationRates(void* device, unsigned* rates) {
  rates[0] = 10 + readings++;
  rates[1] = 5;
  return result("nvmlDeviceGetUtilizationRates", device);
}
EXPORT int nvmlDeviceGetMemoryInfo(void* device, unsigned long long* memory) {
  memory[0] = 150ULL << 30;
  memory[1] = 110ULL << 30;
  memory[2] = 40ULL << 30;
  return result("nvmlDeviceGetMemoryInfo", device);
}
EXPORT int nvmlDeviceGetTemperature(void* device, unsigned sensor, unsigned* celsius) {
  *celsius = sensor == 0 ? 41 : 0;
  return result("nvmlDeviceGetTemperature", device);
}
EXPORT int nvmlDeviceGetPowerUsage(void* device, unsigned* milliwatts) {
  *milliwatts = 123456;
  return result("nvmlDeviceGetPowerUsage", device);
}
