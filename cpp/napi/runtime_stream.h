// NativeStream of lib/native/runtime_addon.ts.
#pragma once

#include <napi.h>

#include <vector>

#include "napi/runtime_object.h"

namespace nt::napi {

class StreamObject final : public TypedObject<runtime::Stream, ObjectKind::kStream> {
 public:
  using TypedObject::TypedObject;
  static std::vector<napi_property_descriptor> properties();

 private:
  Status copy(Arguments& arguments);
  Status copyRows(Arguments& arguments);
  Status fill(Arguments& arguments);
  Status enqueue(Arguments& arguments);
  Status record(Arguments& arguments);
  Status wait(Arguments& arguments);
  Status beginCapture(Arguments& arguments);
  Status launch(Arguments& arguments);
  Expected<napi_value> resolve(Arguments& arguments);
  Expected<napi_value> endCapture(Arguments& arguments);
  Expected<napi_value> synchronize(Arguments& arguments);
  Expected<napi_value> counters(Arguments& arguments);
};

}  // namespace nt::napi
