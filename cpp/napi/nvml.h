// What NVIDIA's management library tells of this machine's GPUs. The library is opened at run time, and
// nothing of NVIDIA's is needed to build this: the functions in use are declared in nvml.cpp.
#pragma once

#include <cstdint>
#include <limits>
#include <string>
#include <vector>

#include "core/status.h"

namespace nt {

inline constexpr double kUnknown = std::numeric_limits<double>::quiet_NaN();

// A figure that a GPU does not tell is kUnknown.
struct GpuUsage {
  int32_t index = 0;              // NVML's: by PCI bus, whatever CUDA_VISIBLE_DEVICES says
  std::string name;               // '' where it is not told
  std::string uuid;               // "GPU-..."
  std::string pciBusId;           // "00000000:1B:00.0"
  double utilisation = kUnknown;  // share of the last sample period in which a kernel ran, 0 to 1
  double memoryUsedBytes = kUnknown;
  double memoryTotalBytes = kUnknown;
  double temperatureCelsius = kUnknown;
  double powerWatts = kUnknown;
};

struct GpuUsageReport {
  bool available = false;  // the library is there, and its driver runs
  std::vector<GpuUsage> gpus;
};

// Blocks: for milliseconds, and up to seconds the first time in a process. Any thread.
// `libraryPath`: '' = libnvidia-ml.so.1, by the loader's search. A library, once opened, stays so.
Expected<GpuUsageReport> readGpuUsage(const std::string& libraryPath);

}  // namespace nt
