#include "napi/runtime_arguments.h"

#include <cmath>
#include <limits>
#include <utility>

#include "napi/errors.h"
#include "napi/runtime_object.h"

namespace nt::napi {
namespace {

constexpr double kMaxSafeInteger = 9007199254740991.0;  // 2^53 - 1

// False for NaN and infinities, for they compare to nothing and are above it.
bool isInteger(double number, double min, double max) noexcept {
  return number >= min && number <= max && number == std::trunc(number);
}

std::string numberText(double number) {
  if (std::isnan(number)) return "NaN";
  if (std::isinf(number)) return number > 0 ? "Infinity" : "-Infinity";
  if (isInteger(number, -kMaxSafeInteger, kMaxSafeInteger))
    return std::to_string(static_cast<int64_t>(number));
  return std::to_string(number);
}

}  // namespace

std::string describeValue(napi_env env, napi_value value) {
  napi_valuetype type = napi_undefined;
  double number = 0;
  if (napi_typeof(env, value, &type) != napi_ok) return "an unknown value";
  switch (type) {
    case napi_undefined:
      return "undefined";
    case napi_null:
      return "null";
    case napi_boolean:
      return "a boolean";
    case napi_number:
      return napi_get_value_double(env, value, &number) == napi_ok ? numberText(number) : "a number";
    case napi_string:
      return "a string";
    case napi_symbol:
      return "a symbol";
    case napi_function:
      return "a function";
    case napi_bigint:
      return "a bigint";
    default:
      break;
  }
  const NativeObject* object = NativeObject::unwrap(env, value);
  if (object != nullptr) return std::string("a ") + className(object->kind());
  bool isArray = false;
  return napi_is_array(env, value, &isArray) == napi_ok && isArray ? "an array" : "an object";
}

Arguments::Arguments(napi_env env, napi_callback_info info) noexcept : env_(env) {
  size_t count = values_.size();
  napi_get_cb_info(env, info, &count, values_.data(), &self_, nullptr);
}

NativeObject* Arguments::self(ObjectKind kind) noexcept {
  NativeObject* object = self_ == nullptr ? nullptr : NativeObject::unwrap(env_, self_);
  if (object != nullptr && object->kind() == kind) return object;
  throwTypeError(env_, (std::string("Illegal invocation: 'this' is not a ") + className(kind)).c_str());
  return nullptr;
}

void Arguments::fail(size_t index, const char* name, const char* expected) {
  if (failure_) return;
  failure_ = std::make_unique<Status>(Status::invalid(std::string(name) + " must be " + expected + ", not " +
                                                      describeValue(env_, values_[index])));
}

void Arguments::failForeign(const char* name) {
  if (failure_) return;
  failure_ = std::make_unique<Status>(
      Status::invalid(std::string(name) + " comes from another TensorRT backend module"));
}

uint64_t Arguments::uint53(size_t index, const char* name) {
  double number = 0;
  if (napi_get_value_double(env_, values_[index], &number) == napi_ok &&
      isInteger(number, 0, kMaxSafeInteger)) {
    return static_cast<uint64_t>(number);
  }
  fail(index, name, "an integer in [0, 2^53)");
  return 0;
}

int32_t Arguments::int32(size_t index, const char* name) {
  double number = 0;
  if (napi_get_value_double(env_, values_[index], &number) == napi_ok &&
      isInteger(number, std::numeric_limits<int32_t>::min(), std::numeric_limits<int32_t>::max())) {
    return static_cast<int32_t>(number);
  }
  fail(index, name, "a 32-bit integer");
  return 0;
}

bool Arguments::boolean(size_t index, const char* name) {
  bool value = false;
  if (napi_get_value_bool(env_, values_[index], &value) != napi_ok) fail(index, name, "true or false");
  return value;
}

std::vector<int64_t> Arguments::integers(size_t index, const char* name, uint32_t limit) {
  bool isArray = false;
  uint32_t length = 0;
  if (failed()) return {};
  if (napi_is_array(env_, values_[index], &isArray) != napi_ok || !isArray ||
      napi_get_array_length(env_, values_[index], &length) != napi_ok || length > limit) {
    fail(index, name, ("an array of at most " + std::to_string(limit) + " integers").c_str());
    return {};
  }
  std::vector<int64_t> numbers;
  numbers.reserve(length);
  for (uint32_t i = 0; i < length; ++i) {
    napi_value element = nullptr;
    double number = 0;
    if (napi_get_element(env_, values_[index], i, &element) != napi_ok ||
        napi_get_value_double(env_, element, &number) != napi_ok ||
        !isInteger(number, -kMaxSafeInteger, kMaxSafeInteger)) {
      const std::string given = element == nullptr ? "" : ", not " + describeValue(env_, element);
      failure_ = std::make_unique<Status>(Status::invalid(std::string(name) + "[" + std::to_string(i) +
                                                          "] must be an integer below 2^53" + given));
      return {};
    }
    numbers.push_back(static_cast<int64_t>(number));
  }
  return numbers;
}

NativeObject* Arguments::object(size_t index, const char* name, ObjectKind kind) {
  NativeObject* object = NativeObject::unwrap(env_, values_[index]);
  if (object == nullptr || object->kind() != kind) {
    fail(index, name, (std::string("a ") + className(kind)).c_str());
    return nullptr;
  }
  if (object->isOpen()) return object;
  if (!failure_) {
    failure_ = std::make_unique<Status>("ERR_DISPOSED",
                                        std::string(name) + " is a " + className(kind) + " that was closed");
  }
  return nullptr;
}

bool Arguments::isNull(size_t index) const noexcept {
  napi_valuetype type = napi_undefined;
  return napi_typeof(env_, values_[index], &type) == napi_ok && type == napi_null;
}

napi_value makeNumbers(napi_env env, const std::vector<int64_t>& numbers) noexcept {
  napi_value array = nullptr;
  if (napi_create_array_with_length(env, numbers.size(), &array) != napi_ok) return nullptr;
  for (uint32_t i = 0; i < numbers.size(); ++i) {
    napi_value number = nullptr;
    if (napi_create_double(env, static_cast<double>(numbers[i]), &number) != napi_ok ||
        napi_set_element(env, array, i, number) != napi_ok) {
      return nullptr;
    }
  }
  return array;
}

}  // namespace nt::napi
