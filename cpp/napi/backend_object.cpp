#include "napi/backend_object.h"

#include <algorithm>
#include <array>
#include <optional>
#include <system_error>
#include <type_traits>
#include <utility>

#include "napi/addon_data.h"
#include "napi/arguments.h"
#include "napi/errors.h"
#include "napi/results.h"

namespace nt::napi {
namespace {

// Random; tells our objects from those of other addons, whose wrapped pointers mean something else.
constexpr napi_type_tag kTypeTag = {0x8f1c3b62d40e4a97ULL, 0xa5d27e0911c84f3bULL};

void endBackend(std::unique_ptr<Backend> backend) noexcept {
  backend->requestStop();
  backend->join();
}

}  // namespace

BackendObject::BackendObject(napi_env env, std::unique_ptr<Backend> backend)
    : env_(env), backend_(std::move(backend)), channel_(std::make_shared<ResultChannel>()) {}

BackendObject::~BackendObject() {
  if (self_ != nullptr) napi_delete_reference(env_, self_);
  if (closed_ != nullptr) napi_delete_reference(env_, closed_);
}

napi_status BackendObject::define(napi_env env) noexcept {
  AddonData* addon = AddonData::of(env);
  const auto method = [](const char* name, napi_callback callback) {
    return napi_property_descriptor{name,   nullptr, callback, nullptr, nullptr, nullptr, napi_default_method,
                                    nullptr};
  };
  const std::array properties = {
      method("start", call<&BackendObject::start>),
      method("openSlot", call<&BackendObject::openSlot>),
      method("closeSlot", call<&BackendObject::closeSlot>),
      method("setMask", call<&BackendObject::setMask>),
      method("submit", call<&BackendObject::submit>),
      method("close", call<&BackendObject::close>),
  };
  napi_value constructor = nullptr;
  napi_value description = nullptr;
  napi_value symbol = nullptr;
  napi_status status = napi_define_class(env, "NativeBackend", NAPI_AUTO_LENGTH, &BackendObject::construct,
                                         nullptr, properties.size(), properties.data(), &constructor);
  if (status == napi_ok) status = napi_create_reference(env, constructor, 1, &addon->backendClass);
  if (status == napi_ok) status = napi_create_string_utf8(env, "listener", NAPI_AUTO_LENGTH, &description);
  if (status == napi_ok) status = napi_create_symbol(env, description, &symbol);
  if (status != napi_ok) return status;

  // Node-API 8 references objects only, so the symbol travels in one.
  napi_value holder = nullptr;
  status = napi_create_object(env, &holder);
  if (status == napi_ok) status = napi_set_named_property(env, holder, "key", symbol);
  if (status == napi_ok) status = napi_create_reference(env, holder, 1, &addon->listenerKey);
  return status;
}

napi_value BackendObject::create(napi_env env, std::unique_ptr<Backend> backend) noexcept {
  AddonData* addon = AddonData::of(env);
  napi_value constructor = nullptr;
  napi_value object = nullptr;
  addon->underConstruction = std::move(backend);
  const bool made = napi_get_reference_value(env, addon->backendClass, &constructor) == napi_ok &&
                    napi_new_instance(env, constructor, 0, nullptr, &object) == napi_ok;
  if (made && !addon->underConstruction) return object;
  if (addon->underConstruction) endBackend(std::move(addon->underConstruction));
  throwStatus(env, {"ERR_INTERNAL", "Could not create the backend's object"});
  return nullptr;
}

napi_value BackendObject::construct(napi_env env, napi_callback_info info) noexcept {
  return guarded(env, [&]() -> napi_value {
    AddonData* addon = AddonData::of(env);
    napi_value self = nullptr;
    if (addon == nullptr || !addon->underConstruction ||
        napi_get_cb_info(env, info, nullptr, nullptr, &self, nullptr) != napi_ok) {
      throwTypeError(env, "NativeBackend cannot be constructed: use createCpuBackend()");
      return nullptr;
    }
    const napi_value description = makeBackendInfo(env, addon->underConstruction->info());
    const napi_property_descriptor property = {"info",  nullptr,     nullptr,         nullptr,
                                               nullptr, description, napi_enumerable, nullptr};
    if (description == nullptr || napi_define_properties(env, self, 1, &property) != napi_ok) return nullptr;

    std::unique_ptr<BackendObject> object(new BackendObject(env, std::move(addon->underConstruction)));
    if (Status status = object->channel_->open(env, object.get()); !status) {
      endBackend(std::move(object->backend_));
      throwStatus(env, status);
      return nullptr;
    }
    // From here on the environment's teardown, or the finalizer, ends the backend. Cleanup hooks run last
    // come first served: this one runs before that of the thread-safe function.
    napi_add_env_cleanup_hook(env, &BackendObject::onEnvironmentTeardown, object.get());
    if (napi_wrap(env, self, object.get(), &BackendObject::finalize, nullptr, &object->self_) != napi_ok) {
      finalize(env, object.release(), nullptr);
      throwStatus(env, {"ERR_INTERNAL", "Could not wrap the backend"});
      return nullptr;
    }
    object.release();
    if (napi_type_tag_object(env, self, &kTypeTag) != napi_ok) {
      throwStatus(env, {"ERR_INTERNAL", "Could not tag the backend"});
      return nullptr;
    }
    return self;
  });
}

template <auto Method>
napi_value BackendObject::call(napi_env env, napi_callback_info info) noexcept {
  return guarded(env, [&]() -> napi_value {
    // Those that were not given are undefined.
    std::array<napi_value, 2> arguments = {};
    size_t count = arguments.size();
    napi_value self = nullptr;
    bool ours = false;
    void* object = nullptr;
    if (napi_get_cb_info(env, info, &count, arguments.data(), &self, nullptr) != napi_ok) return nullptr;
    if (napi_check_object_type_tag(env, self, &kTypeTag, &ours) != napi_ok || !ours ||
        napi_unwrap(env, self, &object) != napi_ok) {
      throwTypeError(env, "Illegal invocation: 'this' is not a NativeBackend");
      return nullptr;
    }
    auto* backend = static_cast<BackendObject*>(object);
    if constexpr (std::is_invocable_v<decltype(Method), BackendObject*, napi_value, napi_value>) {
      return (backend->*Method)(self, arguments[0]);
    } else {
      return (backend->*Method)(self, arguments[0], arguments[1]);
    }
  });
}

bool BackendObject::throwUnlessOpen() {
  if (state_ == State::kOpen) return false;
  throwStatus(env_, {"ERR_DISPOSED", "The backend is closed"});
  return true;
}

napi_value BackendObject::start(napi_value self, napi_value listener) {
  if (throwUnlessOpen()) return nullptr;
  napi_valuetype type = napi_undefined;
  if (napi_typeof(env_, listener, &type) != napi_ok || type != napi_function) {
    throwStatus(env_, Status::invalid("onResult must be a function"));
    return nullptr;
  }
  if (started_) {
    throwStatus(env_, Status::invalid("The backend was started before"));
    return nullptr;
  }
  // A property and no reference: the listener's closure holds the object as a rule, and the collector sees
  // through properties only.
  napi_value holder = nullptr;
  napi_value key = nullptr;
  if (napi_get_reference_value(env_, AddonData::of(env_)->listenerKey, &holder) != napi_ok ||
      napi_get_named_property(env_, holder, "key", &key) != napi_ok) {
    return nullptr;
  }
  const napi_property_descriptor property = {nullptr, key,      nullptr,      nullptr,
                                             nullptr, listener, napi_default, nullptr};
  if (napi_define_properties(env_, self, 1, &property) != napi_ok) return nullptr;
  started_ = true;
  backend_->start(channel_.get());
  return nullptr;
}

napi_value BackendObject::openSlot(napi_value, napi_value init) {
  if (throwUnlessOpen()) return nullptr;
  Expected<SlotInit> slot = readSlotInit(env_, init);
  Status status = slot.status();
  // A getter of `init` may have closed the backend.
  if (status.isOk() && throwUnlessOpen()) return nullptr;
  if (status.isOk()) status = backend_->openSlot(*std::move(slot));
  if (!status) throwStatus(env_, status);
  return nullptr;
}

napi_value BackendObject::closeSlot(napi_value, napi_value slot) {
  if (throwUnlessOpen()) return nullptr;
  const Expected<int32_t> number = readInt32(env_, slot, "slot");
  Status status = number.status();
  if (status.isOk()) status = backend_->closeSlot(*number);
#ifdef NT_PLANT_LEAK
  // Two KiB a closed slot; through a volatile pointer, or the compiler sees that nobody reads them.
  char* volatile lost = new char[2048];
  std::fill_n(lost, 2048, '\1');
#endif
  if (!status) throwStatus(env_, status);
  return nullptr;
}

napi_value BackendObject::setMask(napi_value, napi_value slot, napi_value mask) {
  if (throwUnlessOpen()) return nullptr;
  const Expected<int32_t> number = readInt32(env_, slot, "slot");
  Status status = number.status();
  std::optional<std::vector<int32_t>> words;
  napi_valuetype type = napi_undefined;
  if (status.isOk() && (napi_typeof(env_, mask, &type) != napi_ok || type != napi_null)) {
    Expected<std::vector<int32_t>> array = readInt32Array(env_, mask, "mask");
    status = array.status();
    if (status.isOk()) words = *std::move(array);
  }
  if (status.isOk()) status = backend_->setMask(*number, std::move(words));
  if (!status) throwStatus(env_, status);
  return nullptr;
}

napi_value BackendObject::submit(napi_value, napi_value step) {
  if (throwUnlessOpen()) return nullptr;
  if (!started_) {
    throwStatus(env_, Status::invalid("start() comes before submit()"));
    return nullptr;
  }
  Expected<std::vector<int32_t>> packed = readInt32Array(env_, step, "step");
  if (!packed) {
    throwStatus(env_, packed.status());
    return nullptr;
  }
  channel_->reserve();
  if (Status status = backend_->submit(*std::move(packed)); !status) {
    channel_->unreserve();
    throwStatus(env_, status);
    return nullptr;
  }
  if (++inFlight_ == 1) hold();
  return nullptr;
}

napi_value BackendObject::close(napi_value, napi_value) {
  napi_value promise = nullptr;
  if (closed_ != nullptr) {
    napi_get_reference_value(env_, closed_, &promise);
    return promise;
  }
  if (throwUnlessOpen()) return nullptr;
  if (napi_create_promise(env_, &closing_, &promise) != napi_ok ||
      napi_create_reference(env_, promise, 1, &closed_) != napi_ok) {
    return nullptr;
  }
  state_ = State::kClosing;
  hold();
  backend_->requestStop();
  const auto finish = [this] {
    backend_->join();
    backend_.reset();
    channel_->end();
  };
  try {
    closer_ = std::thread(finish);
  } catch (const std::system_error&) {
    finish();  // no thread to be had: the event loop waits for the step that runs
  }
  return promise;
}

void BackendObject::hold() noexcept {
  if (++holds_ > 1) return;
  channel_->ref();
  napi_reference_ref(env_, self_, nullptr);
}

void BackendObject::letGo() noexcept {
  if (--holds_ > 0) return;
  channel_->unref();
  napi_reference_unref(env_, self_, nullptr);
}

void BackendObject::onResults(std::list<StepResult>&& results, bool ended) noexcept {
  napi_value self = nullptr;  // keeps the object, and so `this`, until the end of this call
  napi_value holder = nullptr;
  napi_value key = nullptr;
  napi_value listener = nullptr;
  if (napi_get_reference_value(env_, self_, &self) != napi_ok || self == nullptr) return;
  bool canRun = results.empty() ||
                (napi_get_reference_value(env_, AddonData::of(env_)->listenerKey, &holder) == napi_ok &&
                 napi_get_named_property(env_, holder, "key", &key) == napi_ok &&
                 napi_get_property(env_, self, key, &listener) == napi_ok);
  for (const StepResult& result : results) {
    if (inFlight_ > 0 && --inFlight_ == 0) letGo();
    if (!canRun) continue;
    napi_handle_scope scope = nullptr;
    if (napi_open_handle_scope(env_, &scope) != napi_ok) return;
    napi_value argument = makeStepResult(env_, result);
    const bool delivered =
        argument != nullptr && napi_call_function(env_, self, listener, 1, &argument, nullptr) == napi_ok;
    if (!delivered) {
      // A listener that throws is a bug of the program's: report it as uncaught, then go on, for the other
      // steps' results are owed. Where nothing is pending the environment is terminating.
      bool pending = false;
      napi_value error = nullptr;
      canRun = napi_is_exception_pending(env_, &pending) == napi_ok && pending &&
               napi_get_and_clear_last_exception(env_, &error) == napi_ok &&
               napi_fatal_exception(env_, error) == napi_ok;
    }
    napi_close_handle_scope(env_, scope);
  }
  if (ended && state_ == State::kClosing) finishClose();
}

void BackendObject::finishClose() noexcept {
  if (closer_.joinable()) closer_.join();
  state_ = State::kClosed;
  napi_remove_env_cleanup_hook(env_, &BackendObject::onEnvironmentTeardown, this);
  if (inFlight_ > 0) {
    inFlight_ = 0;
    letGo();
  }
  letGo();
  channel_->drop();
  channel_->release();
  napi_value undefined = nullptr;
  napi_get_undefined(env_, &undefined);
  napi_resolve_deferred(env_, closing_, undefined);
}

// Runs on the event loop's thread when a Worker is terminated or the environment ends otherwise: JavaScript
// can run no more.
void BackendObject::onEnvironmentTeardown(void* data) noexcept {
  auto* object = static_cast<BackendObject*>(data);
  object->channel_->drop();
  if (object->state_ == State::kOpen) endBackend(std::move(object->backend_));
  if (object->closer_.joinable()) object->closer_.join();
  object->channel_->release();
  object->state_ = State::kClosed;
}

void BackendObject::finalize(napi_env env, void* data, void*) noexcept {
  std::unique_ptr<BackendObject> object(static_cast<BackendObject*>(data));
  if (object->state_ == State::kClosed) return;
  napi_remove_env_cleanup_hook(env, &BackendObject::onEnvironmentTeardown, data);
  object->channel_->drop();
  object->channel_->release();
  object->state_ = State::kClosed;
  if (AddonData* addon = AddonData::of(env); addon != nullptr) {
    addon->backendReaper.end(env, std::move(object->backend_), std::move(object->channel_));
  } else {
    endBackend(std::move(object->backend_));
  }
}

}  // namespace nt::napi
