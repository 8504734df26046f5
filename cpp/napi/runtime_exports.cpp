#include "napi/runtime_exports.h"

#include <optional>
#include <string>

#include "napi/arguments.h"
#include "napi/runtime_device.h"
#include "napi/runtime_log.h"
#include "napi/tensorrt_module.h"

namespace nt::napi {
namespace {

std::optional<runtime::LogSeverity> severityOf(const std::string& name) noexcept {
  if (name == "internal-error") return runtime::LogSeverity::kInternalError;
  if (name == "error") return runtime::LogSeverity::kError;
  if (name == "warning") return runtime::LogSeverity::kWarning;
  if (name == "info") return runtime::LogSeverity::kInfo;
  if (name == "verbose") return runtime::LogSeverity::kVerbose;
  return std::nullopt;
}

Expected<napi_value> startRuntime(napi_env env, Arguments& arguments) {
  FieldReader fields(env, arguments[0], "options");
  const std::string modulePath = fields.string("modulePath");
  runtime::RuntimeOptions options;
  options.libraryPath = fields.string("libraryPath");
  options.device = fields.int32("device");
  if (!fields.status()) return fields.status();
  Expected<RuntimeEnvironment*> environment = RuntimeEnvironment::of(env);
  if (!environment) return environment.status();
  RuntimeEnvironment& home = **environment;
  // Which module it is turns out on the pool.
  auto work = [owned = Owned<runtime::Runtime>(home.releases().prepare(nullptr)), modulePath,
               options]() mutable -> Expected<Owned<runtime::Runtime>> {
    Expected<TensorRtModule*> module = openTensorRtModule(modulePath);
    if (!module) return module.status();
    owned.setModule(*module);
    Expected<std::shared_ptr<runtime::Runtime>> made = (*module)->createRuntime(options);
    if (!made) return made.status();
    owned.set(*std::move(made));
    return std::move(owned);
  };
  return home.start(makeJob(std::move(work), [&home](napi_env, Owned<runtime::Runtime>& owned) {
    return home.wrap(std::make_unique<RuntimeObject>(home, std::move(owned)));
  }));
}

Status listen(napi_env env, Arguments& arguments) {
  const Expected<std::string> modulePath = readString(env, arguments[0], "modulePath");
  if (!modulePath) return modulePath.status();
  const Expected<std::string> severity = readString(env, arguments[1], "severity");
  const std::optional<runtime::LogSeverity> threshold =
      severity ? severityOf(*severity) : std::optional<runtime::LogSeverity>();
  if (!threshold) {
    return Status::invalid("severity must be 'internal-error', 'error', 'warning', 'info' or 'verbose'");
  }
  const bool ends = arguments.isNull(2);
  napi_valuetype type = napi_undefined;
  if (!ends && (napi_typeof(env, arguments[2], &type) != napi_ok || type != napi_function)) {
    return Status::invalid("listener must be a function or null");
  }
  Expected<RuntimeEnvironment*> environment = RuntimeEnvironment::of(env);
  if (!environment) return environment.status();
  if (ends) {
    (*environment)->log().reset();
    return Status::ok();
  }
  Expected<TensorRtModule*> module = openTensorRtModule(*modulePath);
  if (!module) return module.status();
  Expected<std::unique_ptr<LogListener>> listener =
      LogListener::create(env, *module, *threshold, arguments[2]);
  if (!listener) return listener.status();
  (*environment)->log() = *std::move(listener);
  return Status::ok();
}

Status inject(napi_env env, Arguments& arguments) {
  const Expected<std::string> modulePath = readString(env, arguments[0], "modulePath");
  if (!modulePath) return modulePath.status();
  FieldReader fields(env, arguments[1], "faults");
  runtime::Faults faults;
  faults.failDeviceAllocation = static_cast<int64_t>(fields.uint53("failDeviceAllocation"));
  faults.failPinnedAllocation = static_cast<int64_t>(fields.uint53("failPinnedAllocation"));
  faults.failEnqueue = static_cast<int64_t>(fields.uint53("failEnqueue"));
  faults.failCopy = static_cast<int64_t>(fields.uint53("failCopy"));
  if (!fields.status()) return fields.status();
  Expected<TensorRtModule*> module = openTensorRtModule(*modulePath);
  if (!module) return module.status();
  (*module)->injectFaults(faults);
  return Status::ok();
}

}  // namespace

napi_value createRuntime(napi_env env, napi_callback_info info) noexcept {
  Status failure;
  napi_value promise = guarded(env, [&]() -> napi_value {
    Arguments arguments(env, info);
    Expected<napi_value> started = startRuntime(env, arguments);
    if (started) return *started;
    failure = started.status();
    return nullptr;
  });
  return promise != nullptr ? promise : makeRejected(env, failure);
}

napi_value setLogListener(napi_env env, napi_callback_info info) noexcept {
  return guarded(env, [&]() -> napi_value {
    Arguments arguments(env, info);
    if (Status status = listen(env, arguments); !status) throwStatus(env, status);
    return nullptr;
  });
}

napi_value injectFaults(napi_env env, napi_callback_info info) noexcept {
  return guarded(env, [&]() -> napi_value {
    Arguments arguments(env, info);
    if (Status status = inject(env, arguments); !status) throwStatus(env, status);
    return nullptr;
  });
}

}  // namespace nt::napi
