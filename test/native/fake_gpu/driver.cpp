// The CUDA driver's functions that the module asks for by name (cpp/tensorrt/driver.cpp).
#include <cstdio>

#include "device.h"

#define EXPORT extern "C" NT_FAKE_EXPORT

EXPORT int cuInit(unsigned) {
  return nt::fake::Gpu::get().devices() == 0 ? cudaErrorNoDevice : cudaSuccess;
}
EXPORT int cuDriverGetVersion(int* version) {
  *version = CUDART_VERSION;
  return 0;
}
EXPORT int cuDeviceGetCount(int* count) {
  *count = nt::fake::Gpu::get().devices();
  return 0;
}
EXPORT int cuDeviceGet(int* device, int index) {
  *device = index;
  return 0;
}
EXPORT int cuDeviceGetName(char* name, int length, int) {
  std::snprintf(name, static_cast<size_t>(length), "Fake GPU");
  return 0;
}
EXPORT int cuDeviceTotalMem_v2(size_t* bytes, int) {
  *bytes = nt::fake::Gpu::get().totalBytes();
  return 0;
}
// Compute capability 9.0: 75 and 76 are the numbers of its parts.
EXPORT int cuDeviceGetAttribute(int* value, int attribute, int) {
  *value = attribute == 75 ? 9 : 0;
  return 0;
}
EXPORT int cuGetErrorString(int error, const char** text) {
  *text = cudaGetErrorString(static_cast<cudaError_t>(error));
  return 0;
}
