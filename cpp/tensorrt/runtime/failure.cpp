#include "tensorrt/runtime/failure.h"

namespace nt::runtime {

Status failureOn(DeviceState& device, const char* code, const std::string& what, const LogScope& log,
                 cudaStream_t stream) {
  cudaError_t error = cudaGetLastError();
  if (error == cudaSuccess && stream != nullptr) {
    error = cudaStreamQuery(stream);
    if (error == cudaErrorNotReady) error = cudaSuccess;
  }
  Status status = device.check(error, what.c_str());
  if (!device.isDead() && log.outOfMemory()) {
    status = {"ERR_OUT_OF_DEVICE_MEMORY", what + ": the GPU is out of memory",
              "Close what else is on this GPU, or use smaller shapes"};
  } else if (status || status.code() == "ERR_CUDA") {
    status = {code, status ? what : status.message()};
  }
  return withLog(std::move(status), log);
}

}  // namespace nt::runtime
