#include "napi/nvml_exports.h"

#include <exception>
#include <memory>
#include <string>
#include <utility>

#include "napi/arguments.h"
#include "napi/async_task.h"
#include "napi/errors.h"
#include "napi/nvml.h"
#include "napi/object_writer.h"

namespace nt::napi {
namespace {

napi_value makeGpu(napi_env env, const GpuUsage& gpu) noexcept {
  ObjectWriter out(env);
  out.set("index", gpu.index);
  out.set("name", gpu.name);
  out.set("uuid", gpu.uuid);
  out.set("pciBusId", gpu.pciBusId);
  out.set("utilisation", gpu.utilisation);
  out.set("memoryUsedBytes", gpu.memoryUsedBytes);
  out.set("memoryTotalBytes", gpu.memoryTotalBytes);
  out.set("temperatureCelsius", gpu.temperatureCelsius);
  out.set("powerWatts", gpu.powerWatts);
  return out.object();
}

class GpuUsageTask final : public AsyncTask {
 public:
  explicit GpuUsageTask(std::string libraryPath) : libraryPath_(std::move(libraryPath)) {}

  void run() noexcept override {
    try {
      report_ = readGpuUsage(libraryPath_);
    } catch (const std::exception&) {
      failed_ = true;
    }
  }

  napi_value take(napi_env env, Status& status) noexcept override {
    status = failed_ ? Status("ERR_OUT_OF_MEMORY", "Out of memory in the native addon") : report_.status();
    if (!status.isOk()) return nullptr;
    ObjectWriter out(env);
    out.set("available", report_->available);
    out.setList("gpus", report_->gpus, [&](const GpuUsage& gpu) { return makeGpu(env, gpu); });
    return out.object();
  }

  bool joinsAtTeardown() const noexcept override { return true; }

 private:
  std::string libraryPath_;
  Expected<GpuUsageReport> report_ = GpuUsageReport{};
  bool failed_ = false;
};

}  // namespace

napi_value gpuUsage(napi_env env, napi_callback_info info) noexcept {
  return guarded(env, [&]() -> napi_value {
    size_t count = 1;
    napi_value argument = nullptr;
    if (napi_get_cb_info(env, info, &count, &argument, nullptr, nullptr) != napi_ok) return nullptr;
    Expected<std::string> libraryPath = readString(env, argument, "libraryPath");
    if (!libraryPath) return makeRejected(env, libraryPath.status());
    return startTask(env, "node-tensorrt:gpuUsage", std::make_shared<GpuUsageTask>(*std::move(libraryPath)));
  });
}

}  // namespace nt::napi
