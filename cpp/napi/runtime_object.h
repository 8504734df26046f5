// Base of the generic runtime's JavaScript objects: NativeRuntime and its kin of lib/native/runtime_addon.ts.
#pragma once

#include <napi.h>

#include <cstdint>
#include <memory>
#include <string>
#include <type_traits>
#include <utility>

#include "core/runtime.h"
#include "napi/errors.h"
#include "napi/runtime_arguments.h"
#include "napi/runtime_environment.h"
#include "napi/runtime_releases.h"

namespace nt::napi {

// Lives on the event loop, and as long as its JavaScript object. Open until `close`, the environment's
// teardown or its collection; what it held is let go of by the module then, so that none of them blocks.
class NativeObject {
 public:
  NativeObject(RuntimeEnvironment& environment, ObjectKind kind) noexcept;
  virtual ~NativeObject();
  NativeObject(const NativeObject&) = delete;
  NativeObject& operator=(const NativeObject&) = delete;

  ObjectKind kind() const noexcept { return kind_; }
  virtual bool isOpen() const noexcept = 0;
  // Null once the environment is gone.
  RuntimeEnvironment* environment() const noexcept { return environment_; }

  // The wrapped object; null for values that are none of ours.
  static NativeObject* unwrap(napi_env env, napi_value value) noexcept;

  // Properties that stay, defined while the object is made.
  virtual bool describe(napi_env, napi_value) noexcept { return true; }

  // Idempotent: a promise of the end of this object's own hold.
  Expected<napi_value> close(Arguments& arguments);
  // The environment ends.
  void abandon() noexcept;

 protected:
  // Lets go of what the object holds, and settles the ticket (which may be null) then.
  virtual void letGo(std::shared_ptr<Ticket> ticket) noexcept = 0;

  napi_env env() const noexcept { return env_; }
  Status disposed() const;
  static bool defineText(napi_env env, napi_value self, const char* name, const std::string& text) noexcept;

 private:
  friend class RuntimeEnvironment;
  static napi_value construct(napi_env env, napi_callback_info info) noexcept;
  static void finalize(napi_env env, void* data, void* hint) noexcept;

  napi_env env_;
  RuntimeEnvironment* environment_;
  ObjectKind kind_;
  napi_ref closed_ = nullptr;  // the promise
  // Of the environment's list.
  NativeObject* next_ = nullptr;
  NativeObject** previous_ = nullptr;
};

// One that holds a T of the module's.
template <class T, ObjectKind kKindOf>
class TypedObject : public NativeObject {
 public:
  static constexpr ObjectKind kKind = kKindOf;

  TypedObject(RuntimeEnvironment& environment, Owned<T>&& target) noexcept
      : NativeObject(environment, kKind), target_(std::move(target)) {}
  ~TypedObject() override { target_.letGo(nullptr); }

  bool isOpen() const noexcept override { return target_.get() != nullptr; }
  // Null once closed.
  const std::shared_ptr<T>& target() const noexcept { return target_.get(); }
  // Stays after `close`.
  TensorRtModule* module() const noexcept { return module_; }

 protected:
  void letGo(std::shared_ptr<Ticket> ticket) noexcept override { target_.letGo(std::move(ticket)); }

  Owned<T> target_;

 private:
  TensorRtModule* module_ = target_.module();
};

// A method of a class: `Status (Class::*)(Arguments&)`, or Expected<napi_value> where there is a result.
template <class Class, auto Method>
napi_value method(napi_env env, napi_callback_info info) noexcept {
  return guarded(env, [&]() -> napi_value {
    Arguments arguments(env, info);
    Class* self = arguments.self<Class>();
    if (self == nullptr) return nullptr;
    auto result = (self->*Method)(arguments);
    if constexpr (std::is_same_v<decltype(result), Status>) {
      if (!result) throwStatus(env, result);
      return nullptr;
    } else {
      if (result) return *result;
      throwStatus(env, result.status());
      return nullptr;
    }
  });
}

// One that returns a promise: failures of the call reject it.
template <class Class, auto Method>
napi_value asyncMethod(napi_env env, napi_callback_info info) noexcept {
  Status failure = Status::ok();
  napi_value promise = guarded(env, [&]() -> napi_value {
    Arguments arguments(env, info);
    Class* self = arguments.self<Class>();
    if (self == nullptr) return nullptr;
    Expected<napi_value> result = (self->*Method)(arguments);
    if (result) return *result;
    failure = result.status();
    return nullptr;
  });
  return promise != nullptr ? promise : makeRejected(env, failure);
}

inline napi_property_descriptor methodProperty(const char* name, napi_callback callback) noexcept {
  return {name, nullptr, callback, nullptr, nullptr, nullptr, napi_default_method, nullptr};
}

inline napi_property_descriptor getterProperty(const char* name, napi_callback getter) noexcept {
  return {name, nullptr, nullptr, getter, nullptr, nullptr, napi_enumerable, nullptr};
}

template <class Class>
napi_property_descriptor closeProperty() noexcept {
  return methodProperty("close", asyncMethod<Class, &Class::close>);
}

}  // namespace nt::napi
