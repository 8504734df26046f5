#include "napi/runtime_engine.h"

#include <string>

#include "napi/arguments.h"
#include "napi/runtime_context.h"
#include "napi/runtime_create.h"
#include "napi/runtime_refit.h"

namespace nt::napi {
namespace {

napi_value makeText(napi_env env, const std::string& text) noexcept {
  napi_value value = nullptr;
  return napi_create_string_utf8(env, text.data(), text.size(), &value) == napi_ok ? value : nullptr;
}

// A Buffer over the vector's memory; a copy where the JavaScript runtime allows no foreign memory.
napi_value makeBuffer(napi_env env, std::vector<char>& bytes) {
  auto held = std::make_unique<std::vector<char>>(std::move(bytes));
  const auto finalize = [](napi_env, void*, void* hint) { delete static_cast<std::vector<char>*>(hint); };
  napi_value buffer = nullptr;
  const napi_status status =
      napi_create_external_buffer(env, held->size(), held->data(), finalize, held.get(), &buffer);
  if (status == napi_ok) {
    held.release();
    return buffer;
  }
  return napi_create_buffer_copy(env, held->size(), held->data(), nullptr, &buffer) == napi_ok ? buffer
                                                                                               : nullptr;
}

}  // namespace

std::vector<napi_property_descriptor> EngineObject::properties() {
  return {
      methodProperty("layers", asyncMethod<EngineObject, &EngineObject::layers>),
      methodProperty("createContext", asyncMethod<EngineObject, &EngineObject::createContext>),
      methodProperty("refittableWeights", asyncMethod<EngineObject, &EngineObject::refittableWeights>),
      methodProperty("refit", asyncMethod<EngineObject, &EngineObject::refit>),
      methodProperty("serialize", asyncMethod<EngineObject, &EngineObject::serialize>),
      closeProperty<EngineObject>(),
  };
}

bool EngineObject::describe(napi_env env, napi_value self) noexcept {
  return defineText(env, self, "info", target()->info());
}

Expected<napi_value> EngineObject::layers(Arguments& arguments) {
  if (!isOpen()) return disposed();
  const int32_t profile = arguments.int32(0, "profile");
  if (arguments.failed()) return arguments.status();
  return environment()->start(makeJob([engine = target(), profile] { return engine->layers(profile); },
                                      [](napi_env env, std::string& text) { return makeText(env, text); }),
                              strand_);
}

Expected<napi_value> EngineObject::createContext(Arguments& arguments) {
  FieldReader fields(env(), arguments[0], "options");
  runtime::ContextOptions options;
  options.profile = fields.int32("profile");
  const std::string memory = fields.string("memory");
  if (memory == "on-profile-change") {
    options.memory = runtime::ContextMemory::kOnProfileChange;
  } else if (memory == "user") {
    options.memory = runtime::ContextMemory::kUser;
  } else if (memory != "static") {
    fields.fail("memory", "'static', 'on-profile-change' or 'user'");
  }
  // Afterwards: a getter of the options may have closed the engine.
  if (!isOpen()) return disposed();
  if (!fields.status()) return fields.status();
  return startCreate<ContextObject, runtime::Context>(
      *environment(), module(), strand_,
      [engine = target(), options] { return engine->createContext(options); });
}

Expected<napi_value> EngineObject::refittableWeights(Arguments&) {
  if (!isOpen()) return disposed();
  auto take = [](napi_env env, std::vector<std::string>& names) -> napi_value {
    napi_value array = nullptr;
    if (napi_create_array_with_length(env, names.size(), &array) != napi_ok) return nullptr;
    for (uint32_t i = 0; i < names.size(); ++i) {
      napi_value name = makeText(env, names[i]);
      if (name == nullptr || napi_set_element(env, array, i, name) != napi_ok) return nullptr;
    }
    return array;
  };
  return environment()->start(makeJob([engine = target()] { return engine->refittableWeights(); }, take),
                              strand_);
}

Expected<napi_value> EngineObject::refit(Arguments& arguments) {
  Expected<std::vector<StagedWeights>> weights = readWeights(env(), arguments[0]);
  // Afterwards: a getter of the weights may have closed the engine.
  if (!isOpen()) {
    if (weights) dropSources(env(), *weights);
    return disposed();
  }
  if (!weights) return weights.status();
  return startRefit(*environment(), target(), strand_, *std::move(weights));
}

Expected<napi_value> EngineObject::serialize(Arguments&) {
  if (!isOpen()) return disposed();
  return environment()->start(
      makeJob([engine = target()] { return engine->serialize(); },
              [](napi_env env, std::vector<char>& plan) { return makeBuffer(env, plan); }),
      strand_);
}

}  // namespace nt::napi
