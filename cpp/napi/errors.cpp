#include "napi/errors.h"

#include <string>

namespace nt::napi {
namespace {

napi_value makeString(napi_env env, const std::string& text) noexcept {
  napi_value value = nullptr;
  napi_create_string_utf8(env, text.data(), text.size(), &value);
  return value;
}

}  // namespace

napi_value makeError(napi_env env, const Status& status) noexcept {
  napi_value code = makeString(env, status.code());
  napi_value message = makeString(env, status.message());
  napi_value error = nullptr;
  if (code == nullptr || message == nullptr || napi_create_error(env, code, message, &error) != napi_ok) {
    return nullptr;
  }
  if (!status.hint().empty()) {
    if (napi_value hint = makeString(env, status.hint()); hint != nullptr) {
      napi_set_named_property(env, error, "hint", hint);
    }
  }
  return error;
}

void throwStatus(napi_env env, const Status& status) noexcept {
  bool pending = false;
  if (napi_is_exception_pending(env, &pending) != napi_ok || pending) return;
  if (napi_value error = makeError(env, status); error != nullptr) napi_throw(env, error);
}

napi_value takeError(napi_env env, const Status& status) noexcept {
  bool pending = false;
  napi_value error = nullptr;
  if (napi_is_exception_pending(env, &pending) == napi_ok && pending) {
    napi_get_and_clear_last_exception(env, &error);
    return error;
  }
  return makeError(env, status);
}

napi_value makeRejected(napi_env env, const Status& status) noexcept {
  napi_deferred deferred = nullptr;
  napi_value promise = nullptr;
  napi_value error = takeError(env, status);
  if (error == nullptr || napi_create_promise(env, &deferred, &promise) != napi_ok) return nullptr;
  napi_reject_deferred(env, deferred, error);
  return promise;
}

void throwTypeError(napi_env env, const char* message) noexcept {
  napi_throw_type_error(env, "ERR_INVALID_ARGUMENT", message);
}

}  // namespace nt::napi
