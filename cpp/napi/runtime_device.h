// NativeRuntime of lib/native/runtime_addon.ts: TensorRT's runtime on one device.
#pragma once

#include <napi.h>

#include <vector>

#include "napi/runtime_object.h"

namespace nt::napi {

class RuntimeObject final : public TypedObject<runtime::Runtime, ObjectKind::kRuntime> {
 public:
  using TypedObject::TypedObject;
  static std::vector<napi_property_descriptor> properties();
  bool describe(napi_env env, napi_value self) noexcept override;

 private:
  Expected<napi_value> deserialize(Arguments& arguments);
  Expected<napi_value> allocate(Arguments& arguments);
  Expected<napi_value> createStream(Arguments& arguments);
  Expected<napi_value> createEvent(Arguments& arguments);
  Expected<napi_value> memory(Arguments& arguments);
  Expected<napi_value> counters(Arguments& arguments);
  Expected<napi_value> trim(Arguments& arguments);
};

}  // namespace nt::napi
