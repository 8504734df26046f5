#include "napi/runtime_stream.h"

#include "napi/object_writer.h"
#include "napi/runtime_context.h"
#include "napi/runtime_event.h"
#include "napi/runtime_memory.h"

namespace nt::napi {
namespace {

struct ShapesCompletion final : Completion {
  Expected<std::vector<runtime::Shape>> result = std::vector<runtime::Shape>{};

  napi_value settle(napi_env env, Status& status) noexcept override {
    status = result.status();
    napi_value array = nullptr;
    if (!status || napi_create_array_with_length(env, result->size(), &array) != napi_ok) return nullptr;
    for (uint32_t i = 0; i < result->size(); ++i) {
      napi_value shape = makeNumbers(env, (*result)[i]);
      if (shape == nullptr || napi_set_element(env, array, i, shape) != napi_ok) return nullptr;
    }
    return array;
  }
};

struct GraphCompletion final : Completion {
  explicit GraphCompletion(RuntimeEnvironment& home, TensorRtModule* module)
      : environment(home), graph(home.releases().prepare(module)) {}

  RuntimeEnvironment& environment;
  Owned<runtime::Graph> graph;
  Status result;

  napi_value settle(napi_env env, Status& status) noexcept override {
    status = std::move(result);
    if (!status) return nullptr;
    return guarded(
        env, [&] { return environment.wrap(std::make_unique<GraphObject>(environment, std::move(graph))); });
  }
};

}  // namespace

std::vector<napi_property_descriptor> StreamObject::properties() {
  return {
      methodProperty("copy", method<StreamObject, &StreamObject::copy>),
      methodProperty("copyRows", method<StreamObject, &StreamObject::copyRows>),
      methodProperty("fill", method<StreamObject, &StreamObject::fill>),
      methodProperty("enqueue", method<StreamObject, &StreamObject::enqueue>),
      methodProperty("record", method<StreamObject, &StreamObject::record>),
      methodProperty("wait", method<StreamObject, &StreamObject::wait>),
      methodProperty("beginCapture", method<StreamObject, &StreamObject::beginCapture>),
      methodProperty("launch", method<StreamObject, &StreamObject::launch>),
      methodProperty("resolve", asyncMethod<StreamObject, &StreamObject::resolve>),
      methodProperty("endCapture", asyncMethod<StreamObject, &StreamObject::endCapture>),
      methodProperty("synchronize", asyncMethod<StreamObject, &StreamObject::synchronize>),
      methodProperty("counters", method<StreamObject, &StreamObject::counters>),
      closeProperty<StreamObject>(),
  };
}

Status StreamObject::copy(Arguments& arguments) {
  if (!isOpen()) return disposed();
  const auto* to = arguments.object<MemoryObject>(0, "to", module());
  const uint64_t toOffset = arguments.uint53(1, "toOffset");
  const auto* from = arguments.object<MemoryObject>(2, "from", module());
  const uint64_t fromOffset = arguments.uint53(3, "fromOffset");
  const uint64_t bytes = arguments.uint53(4, "bytes");
  if (arguments.failed()) return arguments.status();
  return target()->copy(to->target(), toOffset, from->target(), fromOffset, bytes);
}

Status StreamObject::copyRows(Arguments& arguments) {
  if (!isOpen()) return disposed();
  const auto* to = arguments.object<MemoryObject>(0, "to", module());
  const uint64_t toOffset = arguments.uint53(1, "toOffset");
  const uint64_t toPitch = arguments.uint53(2, "toPitch");
  const auto* from = arguments.object<MemoryObject>(3, "from", module());
  const uint64_t fromOffset = arguments.uint53(4, "fromOffset");
  const uint64_t fromPitch = arguments.uint53(5, "fromPitch");
  const uint64_t bytes = arguments.uint53(6, "bytes");
  const uint64_t rows = arguments.uint53(7, "rows");
  if (arguments.failed()) return arguments.status();
  return target()->copyRows(to->target(), toOffset, toPitch, from->target(), fromOffset, fromPitch, bytes,
                            rows);
}

Status StreamObject::fill(Arguments& arguments) {
  if (!isOpen()) return disposed();
  const auto* memory = arguments.object<MemoryObject>(0, "memory", module());
  const uint64_t offset = arguments.uint53(1, "offset");
  const uint64_t bytes = arguments.uint53(2, "bytes");
  const uint64_t value = arguments.uint53(3, "value");
  if (value > 255) arguments.fail(3, "value", "an integer in [0, 255]");
  if (arguments.failed()) return arguments.status();
  return target()->fill(memory->target(), offset, bytes, static_cast<uint8_t>(value));
}

Status StreamObject::enqueue(Arguments& arguments) {
  if (!isOpen()) return disposed();
  const auto* context = arguments.object<ContextObject>(0, "context", module());
  return arguments.failed() ? arguments.status() : target()->enqueue(context->target());
}

Status StreamObject::record(Arguments& arguments) {
  if (!isOpen()) return disposed();
  const auto* event = arguments.object<EventObject>(0, "event", module());
  return arguments.failed() ? arguments.status() : target()->record(event->target());
}

Status StreamObject::wait(Arguments& arguments) {
  if (!isOpen()) return disposed();
  const auto* event = arguments.object<EventObject>(0, "event", module());
  return arguments.failed() ? arguments.status() : target()->wait(event->target());
}

Status StreamObject::beginCapture(Arguments&) {
  return isOpen() ? target()->beginCapture() : disposed();
}

Status StreamObject::launch(Arguments& arguments) {
  if (!isOpen()) return disposed();
  const auto* graph = arguments.object<GraphObject>(0, "graph", module());
  return arguments.failed() ? arguments.status() : target()->launch(graph->target());
}

Expected<napi_value> StreamObject::resolve(Arguments& arguments) {
  if (!isOpen()) return disposed();
  const auto* context = arguments.object<ContextObject>(0, "context", module());
  if (arguments.failed()) return arguments.status();
  auto owned = std::make_unique<ShapesCompletion>();
  ShapesCompletion* completion = owned.get();
  Expected<CompletionChannel::Begun> begun = environment()->completions().begin(std::move(owned));
  if (!begun) return begun.status();
  target()->resolve(context->target(), [completion, ticket = std::move(begun->ticket)](
                                           Expected<std::vector<runtime::Shape>> shapes) {
    if (!ticket->claim()) return;
    completion->result = std::move(shapes);
    ticket->post();
  });
  return begun->promise;
}

Expected<napi_value> StreamObject::endCapture(Arguments&) {
  if (!isOpen()) return disposed();
  auto owned = std::make_unique<GraphCompletion>(*environment(), module());
  GraphCompletion* completion = owned.get();
  Expected<CompletionChannel::Begun> begun = environment()->completions().begin(std::move(owned));
  if (!begun) return begun.status();
  const auto done = [completion, ticket = begun->ticket](Expected<std::shared_ptr<runtime::Graph>> graph) {
    if (!ticket->claim()) return;
    if (graph) {
      completion->graph.set(*std::move(graph));
    } else {
      completion->result = graph.status();
    }
    ticket->post();
  };
  if (Status status = target()->endCapture(done); !status) done(status);
  return begun->promise;
}

Expected<napi_value> StreamObject::synchronize(Arguments&) {
  if (!isOpen()) return disposed();
  auto owned = std::make_unique<StatusCompletion>();
  StatusCompletion* completion = owned.get();
  Expected<CompletionChannel::Begun> begun = environment()->completions().begin(std::move(owned));
  if (!begun) return begun.status();
  target()->synchronize([completion, ticket = std::move(begun->ticket)](Status status) {
    if (!ticket->claim()) return;
    completion->result = std::move(status);
    ticket->post();
  });
  return begun->promise;
}

Expected<napi_value> StreamObject::counters(Arguments&) {
  if (!isOpen()) return disposed();
  const runtime::StreamCounters counters = target()->counters();
  ObjectWriter out(env());
  out.set("commands", static_cast<double>(counters.commands));
  out.set("enqueues", static_cast<double>(counters.enqueues));
  out.set("graphLaunches", static_cast<double>(counters.graphLaunches));
  out.set("reshapes", static_cast<double>(counters.reshapes));
  out.set("enqueueUs", counters.enqueueUs);
  out.set("queueUs", counters.queueUs);
  out.set("voluntarySwitches", static_cast<double>(counters.voluntarySwitches));
  out.set("involuntarySwitches", static_cast<double>(counters.involuntarySwitches));
  if (out.object() == nullptr) return Status("ERR_INTERNAL", "Could not create the counters");
  return out.object();
}

}  // namespace nt::napi
