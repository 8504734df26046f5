// Arguments of the generic runtime's methods, read without detours: some of these are called tens of
// thousands of times a second. Every one is checked, whatever lib/ has done.
#pragma once

#include <napi.h>

#include <array>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "core/status.h"
#include "napi/runtime_environment.h"

namespace nt::napi {

class NativeObject;

// The first failure stays; later reads return zero values.
class Arguments {
 public:
  Arguments(napi_env env, napi_callback_info info) noexcept;

  napi_env env() const noexcept { return env_; }
  napi_value operator[](size_t index) const noexcept { return values_[index]; }
  bool failed() const noexcept { return failure_ != nullptr; }
  Status status() const { return failure_ ? *failure_ : Status::ok(); }

  // `this`. Null, with a TypeError pending, where it is something else.
  template <class Class>
  Class* self() noexcept {
    return static_cast<Class*>(self(Class::kKind));
  }

  // An integer in [0, 2^53).
  uint64_t uint53(size_t index, const char* name);
  int32_t int32(size_t index, const char* name);
  bool boolean(size_t index, const char* name);
  // An array of at most `limit` integers in (-2^53, 2^53). Runs JavaScript where elements have getters.
  std::vector<int64_t> integers(size_t index, const char* name, uint32_t limit);
  // An open object of the class, of the module that `self` is of. Null on failure.
  template <class Class>
  Class* object(size_t index, const char* name, const TensorRtModule* module) {
    auto* found = static_cast<Class*>(object(index, name, Class::kKind));
    if (found == nullptr || found->module() == module) return found;
    failForeign(name);
    return nullptr;
  }
  bool isNull(size_t index) const noexcept;

  void fail(size_t index, const char* name, const char* expected);

 private:
  NativeObject* self(ObjectKind kind) noexcept;
  NativeObject* object(size_t index, const char* name, ObjectKind kind);
  void failForeign(const char* name);

  napi_env env_;
  napi_value self_ = nullptr;
  std::array<napi_value, 8> values_{};
  std::unique_ptr<Status> failure_;
};

// What was given, in a few words: '3.5', 'a string', 'null'.
std::string describeValue(napi_env env, napi_value value);

// Null where it cannot be made.
napi_value makeNumbers(napi_env env, const std::vector<int64_t>& numbers) noexcept;

}  // namespace nt::napi
