// NativeContext of lib/native/runtime_addon.ts.
#pragma once

#include <napi.h>

#include <vector>

#include "napi/runtime_object.h"

namespace nt::napi {

class ContextObject final : public TypedObject<runtime::Context, ObjectKind::kContext> {
 public:
  using TypedObject::TypedObject;
  static std::vector<napi_property_descriptor> properties();

 private:
  Status setProfile(Arguments& arguments);
  Status setInputShape(Arguments& arguments);
  Status setShapeValues(Arguments& arguments);
  Status setAddress(Arguments& arguments);
  Status setDeviceMemory(Arguments& arguments);
  Status setProfiling(Arguments& arguments);
  Expected<napi_value> output(Arguments& arguments);
  Expected<napi_value> takeProfile(Arguments& arguments);
};

}  // namespace nt::napi
