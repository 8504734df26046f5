#include "napi/runtime_context.h"

#include "napi/object_writer.h"
#include "napi/runtime_memory.h"

namespace nt::napi {
namespace {

constexpr uint32_t kMaxDims = 8;  // TensorRT's
constexpr uint32_t kMaxShapeValues = 4096;

}  // namespace

std::vector<napi_property_descriptor> ContextObject::properties() {
  return {
      methodProperty("setProfile", method<ContextObject, &ContextObject::setProfile>),
      methodProperty("setInputShape", method<ContextObject, &ContextObject::setInputShape>),
      methodProperty("setShapeValues", method<ContextObject, &ContextObject::setShapeValues>),
      methodProperty("setAddress", method<ContextObject, &ContextObject::setAddress>),
      methodProperty("setDeviceMemory", method<ContextObject, &ContextObject::setDeviceMemory>),
      methodProperty("setProfiling", method<ContextObject, &ContextObject::setProfiling>),
      methodProperty("output", method<ContextObject, &ContextObject::output>),
      methodProperty("takeProfile", method<ContextObject, &ContextObject::takeProfile>),
      closeProperty<ContextObject>(),
  };
}

Status ContextObject::setProfile(Arguments& arguments) {
  if (!isOpen()) return disposed();
  const int32_t profile = arguments.int32(0, "profile");
  return arguments.failed() ? arguments.status() : target()->setProfile(profile);
}

Status ContextObject::setInputShape(Arguments& arguments) {
  const int32_t tensor = arguments.int32(0, "tensor");
  std::vector<int64_t> shape = arguments.integers(1, "shape", kMaxDims);
  // Afterwards: a getter of the array may have closed the context.
  if (!isOpen()) return disposed();
  return arguments.failed() ? arguments.status() : target()->setInputShape(tensor, std::move(shape));
}

Status ContextObject::setShapeValues(Arguments& arguments) {
  const int32_t tensor = arguments.int32(0, "tensor");
  std::vector<int64_t> values = arguments.integers(1, "values", kMaxShapeValues);
  if (!isOpen()) return disposed();
  return arguments.failed() ? arguments.status() : target()->setShapeValues(tensor, std::move(values));
}

Status ContextObject::setAddress(Arguments& arguments) {
  if (!isOpen()) return disposed();
  const int32_t tensor = arguments.int32(0, "tensor");
  const bool isNull = arguments.isNull(1);
  const auto* memory = isNull ? nullptr : arguments.object<MemoryObject>(1, "memory", module());
  const uint64_t offset = arguments.uint53(2, "offset");
  if (arguments.failed()) return arguments.status();
  return target()->setAddress(tensor, isNull ? nullptr : memory->target(), offset);
}

Status ContextObject::setDeviceMemory(Arguments& arguments) {
  if (!isOpen()) return disposed();
  const auto* memory = arguments.object<MemoryObject>(0, "memory", module());
  const uint64_t offset = arguments.uint53(1, "offset");
  return arguments.failed() ? arguments.status() : target()->setDeviceMemory(memory->target(), offset);
}

Status ContextObject::setProfiling(Arguments& arguments) {
  if (!isOpen()) return disposed();
  const bool on = arguments.boolean(0, "on");
  return arguments.failed() ? arguments.status() : target()->setProfiling(on);
}

Expected<napi_value> ContextObject::output(Arguments& arguments) {
  if (!isOpen()) return disposed();
  const int32_t tensor = arguments.int32(0, "tensor");
  if (arguments.failed()) return arguments.status();
  Owned<runtime::Memory> memory(environment()->releases().prepare(module()));
  Expected<runtime::OutputView> view = target()->output(tensor);
  if (!view) return view.status();
  ObjectWriter out(env());
  out.set("shape", makeNumbers(env(), view->shape));
  if (view->memory) {
    memory.set(std::move(view->memory));
    out.set("memory", environment()->wrap(std::make_unique<MemoryObject>(*environment(), std::move(memory))));
  } else {
    out.setNull("memory");
  }
  if (out.object() == nullptr) return Status("ERR_INTERNAL", "Could not create the output's description");
  return out.object();
}

Expected<napi_value> ContextObject::takeProfile(Arguments&) {
  if (!isOpen()) return disposed();
  const std::string text = target()->takeProfile();
  napi_value value = nullptr;
  if (napi_create_string_utf8(env(), text.data(), text.size(), &value) != napi_ok) {
    return Status("ERR_INTERNAL", "Could not create a string");
  }
  return value;
}

}  // namespace nt::napi
