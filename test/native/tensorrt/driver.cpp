// Stands in for libcuda.so.1: answers as a driver does on the machine that the definitions describe.
#include <cstddef>
#include <cstring>

#ifndef INIT
#define INIT 0
#endif
#ifndef VERSION
#define VERSION 13000
#endif
#ifndef DEVICES
#define DEVICES 1
#endif

#define EXPORT extern "C" __attribute__((visibility("default")))

EXPORT int cuInit(unsigned) {
  return INIT;
}
EXPORT int cuDriverGetVersion(int* version) {
  *version = VERSION;
  return 0;
}
EXPORT int cuDeviceGetCount(int* count) {
  *count = DEVICES;
  return 0;
}
EXPORT int cuDeviceGet(int* device, int index) {
  *device = index;
  return 0;
}
EXPORT int cuDeviceGetName(char* name, int length, int) {
  std::strncpy(name, "Stand-in", static_cast<size_t>(length));
  return 0;
}
EXPORT int cuDeviceTotalMem_v2(size_t* bytes, int) {
  *bytes = size_t{1} << 30;
  return 0;
}
EXPORT int cuDeviceGetAttribute(int* value, int, int) {
  *value = 9;
  return 0;
}
EXPORT int cuGetErrorString(int, const char** text) {
  *text = "the stand-in's error";
  return 0;
}
