// The JavaScript object around a Backend (NativeBackend of lib/native/addon.ts).
#pragma once

#include <napi.h>

#include <cstdint>
#include <list>
#include <memory>
#include <thread>

#include "core/backend.h"
#include "napi/result_channel.h"

namespace nt::napi {

// Lives on the event loop. The object is held strongly while a step is in flight or it closes, and may be
// collected otherwise; then the environment's BackendReaper ends the backend.
class BackendObject final : public ResultListener {
 public:
  // Defines the class in the environment's AddonData.
  static napi_status define(napi_env env) noexcept;
  // Null, with an exception pending, on failure; the backend is ended then.
  static napi_value create(napi_env env, std::unique_ptr<Backend> backend) noexcept;

  ~BackendObject() override;
  void onResults(std::list<StepResult>&& results, bool ended) noexcept override;

 private:
  enum class State : uint8_t { kOpen, kClosing, kClosed };

  explicit BackendObject(napi_env env, std::unique_ptr<Backend> backend);

  static napi_value construct(napi_env env, napi_callback_info info) noexcept;
  template <auto Method>
  static napi_value call(napi_env env, napi_callback_info info) noexcept;
  static void onEnvironmentTeardown(void* data) noexcept;
  static void finalize(napi_env env, void* data, void* hint) noexcept;

  napi_value start(napi_value self, napi_value listener);
  napi_value openSlot(napi_value self, napi_value init);
  napi_value closeSlot(napi_value self, napi_value slot);
  napi_value setMask(napi_value self, napi_value slot, napi_value mask);
  napi_value submit(napi_value self, napi_value step);
  napi_value close(napi_value self, napi_value unused);

  bool throwUnlessOpen();
  void hold() noexcept;
  void letGo() noexcept;
  void finishClose() noexcept;

  napi_env env_;
  std::unique_ptr<Backend> backend_;  // while kOpen on the event loop; then the closer's
  std::shared_ptr<ResultChannel> channel_;
  std::thread closer_;
  State state_ = State::kOpen;
  bool started_ = false;
  uint32_t inFlight_ = 0;  // steps
  uint32_t holds_ = 0;
  napi_ref self_ = nullptr;
  napi_ref closed_ = nullptr;  // the promise
  napi_deferred closing_ = nullptr;
};

}  // namespace nt::napi
