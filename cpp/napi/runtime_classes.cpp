#include "napi/runtime_classes.h"

#include "napi/runtime_context.h"
#include "napi/runtime_device.h"
#include "napi/runtime_engine.h"
#include "napi/runtime_event.h"
#include "napi/runtime_memory.h"
#include "napi/runtime_stream.h"

namespace nt::napi {

std::vector<napi_property_descriptor> classProperties(ObjectKind kind) {
  switch (kind) {
    case ObjectKind::kRuntime:
      return RuntimeObject::properties();
    case ObjectKind::kEngine:
      return EngineObject::properties();
    case ObjectKind::kContext:
      return ContextObject::properties();
    case ObjectKind::kStream:
      return StreamObject::properties();
    case ObjectKind::kEvent:
      return EventObject::properties();
    case ObjectKind::kMemory:
      return MemoryObject::properties();
    case ObjectKind::kGraph:
      break;
  }
  return GraphObject::properties();
}

}  // namespace nt::napi
