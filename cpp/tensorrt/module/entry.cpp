// The one symbol that nt-tensorrt.so exports.
#include "tensorrt/module.h"

extern "C" __attribute__((visibility("default"))) nt::TensorRtModule* nt_tensorrt_module(uint32_t abi) {
  return abi == nt::kModuleAbi ? &nt::tensorRtModule() : nullptr;
}
