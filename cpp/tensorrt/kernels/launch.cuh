// The device's multiprocessors, and launches of kernels that may start while the one before them in the
// stream ends (programmatic dependent launch, from compute capability 9.0).
#pragma once

#include <cuda_runtime.h>

namespace nt::kernels {

// Of the thread's device.
inline cudaError_t multiprocessorCount(int* count) noexcept {
  int device = 0;
  const cudaError_t error = cudaGetDevice(&device);
  return error == cudaSuccess ? cudaDeviceGetAttribute(count, cudaDevAttrMultiProcessorCount, device) : error;
}

// With `overlap` the kernel must wait, on the device, before it touches what its predecessor writes.
template <class... Parameters, class... Arguments>
cudaError_t launchKernel(void (*kernel)(Parameters...), dim3 blocks, unsigned threads, size_t sharedBytes,
                         bool overlap, cudaStream_t stream, Arguments... arguments) noexcept {
  cudaLaunchAttribute attribute{};
  attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attribute.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = blocks;
  config.blockDim = dim3(threads);
  config.dynamicSmemBytes = sharedBytes;
  config.stream = stream;
  config.attrs = &attribute;
  config.numAttrs = overlap ? 1 : 0;
  return cudaLaunchKernelEx(&config, kernel, static_cast<Parameters>(arguments)...);
}

}  // namespace nt::kernels
