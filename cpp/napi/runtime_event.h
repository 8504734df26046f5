// NativeEvent and NativeGraph of lib/native/runtime_addon.ts.
#pragma once

#include <napi.h>

#include <vector>

#include "napi/runtime_object.h"

namespace nt::napi {

class EventObject final : public TypedObject<runtime::Event, ObjectKind::kEvent> {
 public:
  using TypedObject::TypedObject;
  static std::vector<napi_property_descriptor> properties();

 private:
  Expected<napi_value> elapsedSince(Arguments& arguments);
  Expected<napi_value> isComplete(Arguments& arguments);
};

class GraphObject final : public TypedObject<runtime::Graph, ObjectKind::kGraph> {
 public:
  using TypedObject::TypedObject;
  static std::vector<napi_property_descriptor> properties() { return {closeProperty<GraphObject>()}; }
};

}  // namespace nt::napi
