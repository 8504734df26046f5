// Builds one JavaScript object, property by property.
#pragma once

#include <napi.h>

#include <cstdint>
#include <cstring>
#include <string>
#include <vector>

namespace nt::napi {

// After the first failure it does nothing, and `object` is null.
class ObjectWriter {
 public:
  explicit ObjectWriter(napi_env env) noexcept : env_(env) {
    ok_ = napi_create_object(env, &object_) == napi_ok;
  }

  void set(const char* name, double value) noexcept {
    napi_value number = nullptr;
    const napi_status created = napi_create_double(env_, value, &number);
    put(name, created, number);
  }
  void set(const char* name, int32_t value) noexcept {
    napi_value number = nullptr;
    const napi_status created = napi_create_int32(env_, value, &number);
    put(name, created, number);
  }
  void set(const char* name, bool value) noexcept {
    napi_value boolean = nullptr;
    const napi_status created = napi_get_boolean(env_, value, &boolean);
    put(name, created, boolean);
  }
  void set(const char* name, const std::string& value) noexcept {
    napi_value text = nullptr;
    const napi_status created = napi_create_string_utf8(env_, value.data(), value.size(), &text);
    put(name, created, text);
  }
  // Null means that it could not be made.
  void set(const char* name, napi_value value) noexcept {
    put(name, value == nullptr ? napi_generic_failure : napi_ok, value);
  }
  void setNull(const char* name) noexcept {
    napi_value null = nullptr;
    const napi_status created = napi_get_null(env_, &null);
    put(name, created, null);
  }
  // A Buffer with a copy of the bytes.
  void setBuffer(const char* name, const std::vector<char>& bytes) noexcept {
    napi_value buffer = nullptr;
    const napi_status created = napi_create_buffer_copy(env_, bytes.size(), bytes.data(), nullptr, &buffer);
    put(name, created, buffer);
  }
  // Calls fill(data) with memory for `count` elements of 4 bytes. The memory is V8's own: buffers that wrap
  // foreign memory are refused by runtimes with a pointer cage, such as Electron.
  template <typename Fill>
  void setArray(const char* name, napi_typedarray_type type, size_t count, Fill&& fill) noexcept {
    if (!ok_) return;
    void* data = nullptr;
    napi_value buffer = nullptr;
    napi_value array = nullptr;
    ok_ = napi_create_arraybuffer(env_, count * 4, &data, &buffer) == napi_ok;
    if (!ok_) return;
    if (count > 0) fill(data);
    const napi_status created = napi_create_typedarray(env_, type, count, buffer, 0, &array);
    put(name, created, array);
  }
  void set(const char* name, const std::vector<int32_t>& values) noexcept {
    setArray(name, napi_int32_array, values.size(),
             [&](void* to) { std::memcpy(to, values.data(), values.size() * sizeof(int32_t)); });
  }
  void set(const char* name, const std::vector<float>& values) noexcept {
    setArray(name, napi_float32_array, values.size(),
             [&](void* to) { std::memcpy(to, values.data(), values.size() * sizeof(float)); });
  }
  // An array of what makeElement(item) returns, a napi_value each; null means that it could not be made.
  template <typename Item, typename MakeElement>
  void setList(const char* name, const std::vector<Item>& items, MakeElement&& makeElement) noexcept {
    napi_value array = nullptr;
    ok_ = ok_ && napi_create_array_with_length(env_, items.size(), &array) == napi_ok;
    for (uint32_t i = 0; ok_ && i < items.size(); ++i) {
      napi_value element = makeElement(items[i]);
      ok_ = element != nullptr && napi_set_element(env_, array, i, element) == napi_ok;
    }
    put(name, napi_ok, array);
  }

  napi_value object() const noexcept { return ok_ ? object_ : nullptr; }

 private:
  void put(const char* name, napi_status created, napi_value value) noexcept {
    ok_ = ok_ && created == napi_ok && napi_set_named_property(env_, object_, name, value) == napi_ok;
  }

  napi_env env_;
  napi_value object_ = nullptr;
  bool ok_ = false;
};

}  // namespace nt::napi
