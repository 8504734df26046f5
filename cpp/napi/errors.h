// Status -> JavaScript errors with `code` and `hint`, and the guard that keeps C++ exceptions inside this
// room.
#pragma once

#include <napi.h>

#include <exception>
#include <new>
#include <utility>

#include "core/status.h"

namespace nt::napi {

// An Error object; null when the environment cannot create one any more (it is being torn down).
napi_value makeError(napi_env env, const Status& status) noexcept;

// Throws `status`, unless an exception is pending already: a getter of the caller's that threw goes first.
void throwStatus(napi_env env, const Status& status) noexcept;

// The pending exception, which is cleared, else an error made of `status`; null as for makeError.
napi_value takeError(napi_env env, const Status& status) noexcept;

// A promise that is rejected with `takeError`.
napi_value makeRejected(napi_env env, const Status& status) noexcept;

void throwTypeError(napi_env env, const char* message) noexcept;

// Every callback from JavaScript runs inside this.
template <typename Body>
napi_value guarded(napi_env env, Body&& body) noexcept {
  try {
    return std::forward<Body>(body)();
  } catch (const std::bad_alloc&) {
    throwStatus(env, {"ERR_OUT_OF_MEMORY", "Out of memory in the native addon"});
  } catch (const std::exception& error) {
    throwStatus(env, {"ERR_INTERNAL", error.what()});
  }
  return nullptr;
}

}  // namespace nt::napi
