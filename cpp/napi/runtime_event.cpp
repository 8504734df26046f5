#include "napi/runtime_event.h"

namespace nt::napi {

std::vector<napi_property_descriptor> EventObject::properties() {
  return {
      methodProperty("elapsedSince", method<EventObject, &EventObject::elapsedSince>),
      methodProperty("isComplete", method<EventObject, &EventObject::isComplete>),
      closeProperty<EventObject>(),
  };
}

Expected<napi_value> EventObject::elapsedSince(Arguments& arguments) {
  if (!isOpen()) return disposed();
  const auto* start = arguments.object<EventObject>(0, "start", module());
  if (arguments.failed()) return arguments.status();
  const Expected<float> elapsed = target()->elapsedSince(*start->target());
  if (!elapsed) return elapsed.status();
  napi_value number = nullptr;
  napi_create_double(env(), static_cast<double>(*elapsed), &number);
  return number;
}

Expected<napi_value> EventObject::isComplete(Arguments&) {
  if (!isOpen()) return disposed();
  const Expected<bool> complete = target()->isComplete();
  if (!complete) return complete.status();
  napi_value boolean = nullptr;
  napi_get_boolean(env(), *complete, &boolean);
  return boolean;
}

}  // namespace nt::napi
