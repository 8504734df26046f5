#include "napi/runtime_object.h"

#include <string>

namespace nt::napi {
namespace {

// Random; tells our objects from those of other addons, whose wrapped pointers mean something else. One for
// all classes, as they share a base that knows the class.
constexpr napi_type_tag kTypeTag = {0x3d0a6b1f97e24c58ULL, 0xb6f14c0d2e7a8935ULL};

}  // namespace

NativeObject::NativeObject(RuntimeEnvironment& environment, ObjectKind kind) noexcept
    : env_(environment.env()), environment_(&environment), kind_(kind) {
  next_ = environment.objects_;
  previous_ = &environment.objects_;
  if (next_ != nullptr) next_->previous_ = &next_;
  environment.objects_ = this;
}

NativeObject::~NativeObject() {
  if (closed_ != nullptr) napi_delete_reference(env_, closed_);
  if (environment_ == nullptr) return;
  *previous_ = next_;
  if (next_ != nullptr) next_->previous_ = previous_;
}

void NativeObject::abandon() noexcept {
  *previous_ = next_;
  if (next_ != nullptr) next_->previous_ = previous_;
  environment_ = nullptr;
  letGo(nullptr);
}

NativeObject* NativeObject::unwrap(napi_env env, napi_value value) noexcept {
  napi_valuetype type = napi_undefined;
  bool ours = false;
  void* object = nullptr;
  // Asked first: of undefined and null, the tag's check throws.
  if (napi_typeof(env, value, &type) != napi_ok || type != napi_object ||
      napi_check_object_type_tag(env, value, &kTypeTag, &ours) != napi_ok || !ours ||
      napi_unwrap(env, value, &object) != napi_ok) {
    return nullptr;
  }
  return static_cast<NativeObject*>(object);
}

Status NativeObject::disposed() const {
  return {"ERR_DISPOSED", std::string("The ") + className(kind_) + " is closed"};
}

Expected<napi_value> NativeObject::close(Arguments&) {
  napi_value promise = nullptr;
  if (closed_ != nullptr) {
    if (napi_get_reference_value(env_, closed_, &promise) == napi_ok && promise != nullptr) return promise;
    return Status("ERR_INTERNAL", "The promise of the close is gone");
  }
  if (environment_ == nullptr) return disposed();
  Expected<CompletionChannel::Begun> begun =
      environment_->completions().begin(std::make_unique<StatusCompletion>());
  if (!begun) return begun.status();
  if (napi_create_reference(env_, begun->promise, 1, &closed_) != napi_ok) {
    return Status("ERR_INTERNAL", "Could not reference a promise");
  }
  letGo(std::move(begun->ticket));
  return begun->promise;
}

bool NativeObject::defineText(napi_env env, napi_value self, const char* name,
                              const std::string& text) noexcept {
  napi_value value = nullptr;
  if (napi_create_string_utf8(env, text.data(), text.size(), &value) != napi_ok) return false;
  const napi_property_descriptor property = {name,    nullptr, nullptr,         nullptr,
                                             nullptr, value,   napi_enumerable, nullptr};
  return napi_define_properties(env, self, 1, &property) == napi_ok;
}

napi_value NativeObject::construct(napi_env env, napi_callback_info info) noexcept {
  return guarded(env, [&]() -> napi_value {
    RuntimeEnvironment* environment = RuntimeEnvironment::find(env);
    napi_value self = nullptr;
    if (environment == nullptr || !environment->underConstruction_ ||
        napi_get_cb_info(env, info, nullptr, nullptr, &self, nullptr) != napi_ok) {
      throwTypeError(env,
                     "Objects of the native runtime cannot be constructed: they come from createRuntime()");
      return nullptr;
    }
    std::unique_ptr<NativeObject> object = std::move(environment->underConstruction_);
    if (!object->describe(env, self) || napi_type_tag_object(env, self, &kTypeTag) != napi_ok ||
        napi_wrap(env, self, object.get(), &NativeObject::finalize, nullptr, nullptr) != napi_ok) {
      throwStatus(env, {"ERR_INTERNAL", "Could not wrap an object of the native runtime"});
      return nullptr;
    }
    object.release();
    return self;
  });
}

void NativeObject::finalize(napi_env, void* data, void*) noexcept {
  delete static_cast<NativeObject*>(data);
}

}  // namespace nt::napi
