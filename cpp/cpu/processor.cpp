#include "cpu/processor.h"

#include <sched.h>

#include <fstream>
#include <thread>

namespace nt::cpu {

namespace {

int affinityCores() {
  cpu_set_t set;
  CPU_ZERO(&set);
  if (sched_getaffinity(0, sizeof(set), &set) == 0 && CPU_COUNT(&set) > 0) return CPU_COUNT(&set);
  const unsigned cores = std::thread::hardware_concurrency();
  return cores > 0 ? int(cores) : 1;
}

std::string modelName() {
  std::ifstream file("/proc/cpuinfo");
  for (std::string line; std::getline(file, line);) {
    if (line.starts_with("model name")) {
      const size_t colon = line.find(": ");
      if (colon != std::string::npos) return line.substr(colon + 2);
    }
  }
  return "CPU";
}

}  // namespace

Processor detectProcessor() {
  Processor processor;
#ifdef __x86_64__
  // These also ask XGETBV whether the system saves the registers.
  __builtin_cpu_init();
  processor.avx2 =
      __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
  processor.avx512 = processor.avx2 && __builtin_cpu_supports("avx512f") &&
                     __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
                     __builtin_cpu_supports("avx512dq");
#endif
  processor.cores = affinityCores();
  processor.model = modelName();
  return processor;
}

Expected<const Kernels*> kernelsFor(std::string_view simd, const Processor& processor) {
  const bool best = simd.empty();
  if (!best && simd != "avx512" && simd != "avx2" && simd != "portable") {
    return Status::invalid("simd is '" + std::string(simd) + "'; expected 'avx512', 'avx2' or 'portable'.");
  }
#ifdef __x86_64__
  if ((best || simd == "avx512") && processor.avx512) return &kAvx512Kernels;
  if ((best || simd == "avx2") && processor.avx2) return &kAvx2Kernels;
#endif
  if (best || simd == "portable") return &kPortableKernels;
  return Status::invalid("This processor (" + processor.model + ") has no " + std::string(simd) + ".",
                         "leave simd out to use the best that it has");
}

}  // namespace nt::cpu
