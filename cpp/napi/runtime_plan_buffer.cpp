#include "napi/runtime_plan_buffer.h"

namespace nt::napi {
namespace {

bool isDetached(napi_env env, napi_value buffer) noexcept {
  bool detached = false;
  return napi_is_detached_arraybuffer(env, buffer, &detached) == napi_ok && detached;
}

// structuredClone(buffer, { transfer: [buffer] }): detaches `buffer`, and only the caller has what holds its
// bytes now. Node-API has no call for that: napi_detach_arraybuffer frees them.
napi_value transfer(napi_env env, napi_value buffer) noexcept {
  napi_value global = nullptr;
  napi_value clone = nullptr;
  napi_value options = nullptr;
  napi_value list = nullptr;
  napi_value result = nullptr;
  if (napi_get_global(env, &global) != napi_ok ||
      napi_get_named_property(env, global, "structuredClone", &clone) != napi_ok ||
      napi_create_object(env, &options) != napi_ok || napi_create_array(env, &list) != napi_ok ||
      napi_set_element(env, list, 0, buffer) != napi_ok ||
      napi_set_named_property(env, options, "transfer", list) != napi_ok) {
    return nullptr;
  }
  const napi_value arguments[] = {buffer, options};
  return napi_call_function(env, global, clone, 2, arguments, &result) == napi_ok ? result : nullptr;
}

}  // namespace

Expected<PlanBuffer> takePlan(napi_env env, napi_value value) {
  bool isBuffer = false;
  void* data = nullptr;
  PlanBuffer plan;
  if (napi_is_arraybuffer(env, value, &isBuffer) != napi_ok || !isBuffer ||
      napi_get_arraybuffer_info(env, value, &data, &plan.bytes) != napi_ok || isDetached(env, value) ||
      plan.bytes == 0) {
    return Status::invalid("plan must be an ArrayBuffer that is neither empty nor detached");
  }
  napi_value taken = transfer(env, value);
  bool pending = false;
  if (napi_is_exception_pending(env, &pending) == napi_ok && pending) {
    napi_value ignored = nullptr;
    napi_get_and_clear_last_exception(env, &ignored);
  }
  void* now = nullptr;
  size_t length = 0;
  if (taken == nullptr || napi_is_arraybuffer(env, taken, &isBuffer) != napi_ok || !isBuffer ||
      napi_get_arraybuffer_info(env, taken, &now, &length) != napi_ok || length != plan.bytes ||
      now != data || !isDetached(env, value)) {
    return Status::invalid("plan must be an ArrayBuffer that can be transferred",
                           "read the plan into an ArrayBuffer of its own: small Buffers share one");
  }
  if (napi_create_reference(env, taken, 1, &plan.holder) != napi_ok) {
    return Status("ERR_INTERNAL", "Could not reference the plan");
  }
  plan.data = now;
  return plan;
}

void freePlan(napi_env env, const PlanBuffer& plan) noexcept {
  napi_value buffer = nullptr;
  if (napi_get_reference_value(env, plan.holder, &buffer) == napi_ok && buffer != nullptr) {
    napi_detach_arraybuffer(env, buffer);
  }
  napi_delete_reference(env, plan.holder);
}

}  // namespace nt::napi
