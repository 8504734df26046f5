// What the generic runtime keeps per environment (main thread, each Worker).
#pragma once

#include <napi.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>

#include "core/module.h"
#include "core/status.h"
#include "napi/runtime_completions.h"
#include "napi/runtime_pool.h"
#include "napi/runtime_releases.h"

namespace nt::napi {

class LogListener;
class NativeObject;

enum class ObjectKind : uint8_t { kRuntime, kEngine, kContext, kStream, kEvent, kMemory, kGraph };
inline constexpr size_t kObjectKinds = 7;

const char* className(ObjectKind kind) noexcept;

class RuntimeEnvironment {
 public:
  // Made by the first call that needs it.
  static Expected<RuntimeEnvironment*> of(napi_env env);
  // Null where there is none yet.
  static RuntimeEnvironment* find(napi_env env) noexcept;

  explicit RuntimeEnvironment(napi_env env);
  ~RuntimeEnvironment();

  napi_env env() const noexcept { return env_; }
  CompletionChannel& completions() noexcept { return *completions_; }
  Releases& releases() noexcept { return *releases_; }
  std::unique_ptr<LogListener>& log() noexcept { return log_; }

  // A promise of the job's result; its failure to start as a Status.
  Expected<napi_value> start(std::unique_ptr<Job> job, std::shared_ptr<Strand> strand = nullptr) {
    return pool_.start(*completions_, std::move(job), std::move(strand));
  }

  // The JavaScript object around `object`. Null, with an exception pending, on failure.
  napi_value wrap(std::unique_ptr<NativeObject> object) noexcept;

 private:
  friend class NativeObject;

  Status open();
  static void onEnvironmentTeardown(void* data) noexcept;

  napi_env env_;
  std::shared_ptr<CompletionChannel> completions_ = std::make_shared<CompletionChannel>();
  std::shared_ptr<Releases> releases_ = std::make_shared<Releases>();
  Pool pool_;
  std::unique_ptr<LogListener> log_;
  std::array<napi_ref, kObjectKinds> classes_{};
  // Set while a constructor is called from C++; a call from JavaScript finds it empty and throws.
  std::unique_ptr<NativeObject> underConstruction_;
  NativeObject* objects_ = nullptr;  // all that JavaScript has, in an intrusive list
};

}  // namespace nt::napi
