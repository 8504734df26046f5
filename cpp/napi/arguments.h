// Reads values that came from JavaScript. lib/ has validated them; here they are checked again, for nothing
// that a script can pass may reach the backend with a wrong type. What a number may be is for cpp/core to
// say.
#pragma once

#include <napi.h>

#include <cstdint>
#include <string>
#include <vector>

#include "core/backend.h"
#include "core/status.h"
#include "cpu/cpu_backend.h"

namespace nt::napi {

// Reads fields of one object. The first failure stays, later reads return zero values.
class FieldReader {
 public:
  FieldReader(napi_env env, napi_value object, std::string name);

  int32_t int32(const char* field);
  // A finite number that stays finite as a float.
  float float32(const char* field);
  // An integer in [0, 2^53).
  uint64_t uint53(const char* field);
  bool boolean(const char* field);
  std::string string(const char* field);
  std::vector<std::string> strings(const char* field);
  std::vector<int32_t> int32Array(const char* field);
  // A copy of a Buffer's bytes.
  std::vector<char> bytes(const char* field);
  std::vector<float> float32Array(const char* field);
  FieldReader object(const char* field);
  // Whether it is there: not undefined.
  bool has(const char* field);

  // The caller's own finding about a field.
  void fail(const char* field, const char* expected);

  const Status& status() const noexcept { return status_; }
  // Takes over the failure of a nested reader.
  void join(const FieldReader& nested) {
    if (status_.isOk()) status_ = nested.status_;
  }

 private:
  bool read(const char* field, napi_value* value);
  bool readNumber(const char* field, double* number);

  napi_env env_;
  napi_value object_;
  std::string name_;
  Status status_;
};

Expected<std::string> readString(napi_env env, napi_value value, const std::string& name);
// Copies, so that nothing can change or detach the data afterwards.
Expected<std::vector<int32_t>> readInt32Array(napi_env env, napi_value value, const std::string& name);
Expected<std::vector<float>> readFloat32Array(napi_env env, napi_value value, const std::string& name);
Expected<int32_t> readInt32(napi_env env, napi_value value, const std::string& name);
Expected<SlotInit> readSlotInit(napi_env env, napi_value value);
Expected<CpuOptions> readCpuOptions(napi_env env, napi_value value);

}  // namespace nt::napi
