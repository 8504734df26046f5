#include "napi/runtime_device.h"

#include <string>

#include "napi/arguments.h"
#include "napi/object_writer.h"
#include "napi/runtime_create.h"
#include "napi/runtime_engine.h"
#include "napi/runtime_event.h"
#include "napi/runtime_memory.h"
#include "napi/runtime_plan_buffer.h"
#include "napi/runtime_stream.h"

namespace nt::napi {
namespace {

class DeserializeJob final : public Job {
 public:
  DeserializeJob(RuntimeEnvironment& environment, TensorRtModule* module,
                 std::shared_ptr<runtime::Runtime> runtime, PlanBuffer plan, bool hostCode)
      : environment_(environment),
        engine_(environment.releases().prepare(module)),
        runtime_(std::move(runtime)),
        plan_(plan),
        hostCode_(hostCode) {}

  void run() noexcept override {
    Expected<std::shared_ptr<runtime::Engine>> made =
        runtime_->deserialize(plan_.data, plan_.bytes, hostCode_);
    if (made) {
      engine_.set(*std::move(made));
    } else {
      failure_ = made.status();
    }
    runtime_.reset();
  }

  napi_value settle(napi_env env, Status& status) noexcept override {
    freePlan(env, plan_);
    status = std::move(failure_);
    if (!status) return nullptr;
    return guarded(env, [&] {
      return environment_.wrap(std::make_unique<EngineObject>(environment_, std::move(engine_)));
    });
  }

  void discard(napi_env env) noexcept override { freePlan(env, plan_); }

 private:
  RuntimeEnvironment& environment_;
  Owned<runtime::Engine> engine_;
  std::shared_ptr<runtime::Runtime> runtime_;
  PlanBuffer plan_;
  bool hostCode_;
  Status failure_;
};

}  // namespace

std::vector<napi_property_descriptor> RuntimeObject::properties() {
  return {
      methodProperty("deserialize", asyncMethod<RuntimeObject, &RuntimeObject::deserialize>),
      methodProperty("allocate", asyncMethod<RuntimeObject, &RuntimeObject::allocate>),
      methodProperty("createStream", asyncMethod<RuntimeObject, &RuntimeObject::createStream>),
      methodProperty("createEvent", asyncMethod<RuntimeObject, &RuntimeObject::createEvent>),
      methodProperty("memory", method<RuntimeObject, &RuntimeObject::memory>),
      methodProperty("counters", method<RuntimeObject, &RuntimeObject::counters>),
      methodProperty("trim", asyncMethod<RuntimeObject, &RuntimeObject::trim>),
      closeProperty<RuntimeObject>(),
  };
}

bool RuntimeObject::describe(napi_env env, napi_value self) noexcept {
  return defineText(env, self, "info", target()->info());
}

Expected<napi_value> RuntimeObject::deserialize(Arguments& arguments) {
  if (!isOpen()) return disposed();
  const bool hostCode = arguments.boolean(1, "hostCode");
  if (arguments.failed()) return arguments.status();
  // Last of all that may fail: from here on the plan is ours.
  Expected<PlanBuffer> plan = takePlan(env(), arguments[0]);
  if (!plan) return plan.status();
  if (!isOpen()) {
    freePlan(env(), *plan);
    return disposed();
  }
  return environment()->start(
      std::make_unique<DeserializeJob>(*environment(), module(), target(), *plan, hostCode));
}

Expected<napi_value> RuntimeObject::allocate(Arguments& arguments) {
  if (!isOpen()) return disposed();
  const Expected<std::string> name = readString(env(), arguments[0], "kind");
  if (!name || (*name != "device" && *name != "pinned")) {
    arguments.fail(0, "kind", "'device' or 'pinned'");
  }
  const uint64_t bytes = arguments.uint53(1, "bytes");
  const bool pooled = arguments.boolean(2, "pooled");
  if (arguments.failed()) return arguments.status();
  const auto kind = *name == "pinned" ? runtime::MemoryKind::kPinned : runtime::MemoryKind::kDevice;
  return startCreate<MemoryObject, runtime::Memory>(
      *environment(), module(), nullptr,
      [runtime = target(), kind, bytes, pooled] { return runtime->allocate(kind, bytes, pooled); });
}

Expected<napi_value> RuntimeObject::createStream(Arguments& arguments) {
  FieldReader fields(env(), arguments[0], "options");
  runtime::StreamOptions options;
  options.priority = fields.int32("priority");
  options.spinUs = fields.int32("spinUs");
  // Afterwards: a getter of the options may have closed the runtime.
  if (!isOpen()) return disposed();
  if (!fields.status()) return fields.status();
  return startCreate<StreamObject, runtime::Stream>(
      *environment(), module(), nullptr,
      [runtime = target(), options] { return runtime->createStream(options); });
}

Expected<napi_value> RuntimeObject::createEvent(Arguments& arguments) {
  if (!isOpen()) return disposed();
  const bool timing = arguments.boolean(0, "timing");
  if (arguments.failed()) return arguments.status();
  return startCreate<EventObject, runtime::Event>(
      *environment(), module(), nullptr,
      [runtime = target(), timing] { return runtime->createEvent(timing); });
}

Expected<napi_value> RuntimeObject::memory(Arguments&) {
  if (!isOpen()) return disposed();
  const Expected<runtime::MemoryFigures> figures = target()->memory();
  if (!figures) return figures.status();
  ObjectWriter out(env());
  out.set("freeBytes", static_cast<double>(figures->freeBytes));
  out.set("totalBytes", static_cast<double>(figures->totalBytes));
  out.set("deviceBytes", static_cast<double>(figures->deviceBytes));
  out.set("pinnedBytes", static_cast<double>(figures->pinnedBytes));
  out.set("pooledDeviceBytes", static_cast<double>(figures->pooledDeviceBytes));
  out.set("pooledPinnedBytes", static_cast<double>(figures->pooledPinnedBytes));
  if (out.object() == nullptr) return Status("ERR_INTERNAL", "Could not create the figures");
  return out.object();
}

Expected<napi_value> RuntimeObject::counters(Arguments&) {
  if (!isOpen()) return disposed();
  const runtime::DeviceCounters counters = target()->counters();
  ObjectWriter out(env());
  out.set("deviceAllocations", static_cast<double>(counters.deviceAllocations));
  out.set("deviceFrees", static_cast<double>(counters.deviceFrees));
  out.set("pinnedAllocations", static_cast<double>(counters.pinnedAllocations));
  out.set("pinnedFrees", static_cast<double>(counters.pinnedFrees));
  out.set("poolHits", static_cast<double>(counters.poolHits));
  if (out.object() == nullptr) return Status("ERR_INTERNAL", "Could not create the counters");
  return out.object();
}

Expected<napi_value> RuntimeObject::trim(Arguments&) {
  if (!isOpen()) return disposed();
  auto work = [runtime = target()]() -> Expected<bool> {
    runtime->trim();
    return true;
  };
  return environment()->start(makeJob(std::move(work), [](napi_env env, bool) {
    napi_value undefined = nullptr;
    napi_get_undefined(env, &undefined);
    return undefined;
  }));
}

}  // namespace nt::napi
