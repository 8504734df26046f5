#include "napi/results.h"

#include <cstring>
#include <string>
#include <vector>

namespace nt::napi {
namespace {

constexpr size_t kLogprobRowInts = 5;

// Sets properties on one object; after the first failure it does nothing.
class ObjectWriter {
 public:
  explicit ObjectWriter(napi_env env) noexcept : env_(env) { ok_ = napi_create_object(env, &object_) == napi_ok; }

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
  // Calls fill(data) with memory for `count` elements of 4 bytes. The memory is V8's own: buffers that wrap foreign memory
  // are refused by runtimes with a pointer cage, such as Electron.
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

  napi_value object() const noexcept { return ok_ ? object_ : nullptr; }

 private:
  void put(const char* name, napi_status created, napi_value value) noexcept {
    ok_ = ok_ && created == napi_ok && napi_set_named_property(env_, object_, name, value) == napi_ok;
  }

  napi_env env_;
  napi_value object_ = nullptr;
  bool ok_ = false;
};

}  // namespace

napi_value makeStepResult(napi_env env, const StepResult& result) noexcept {
  ObjectWriter out(env);
  out.set("stepId", result.stepId);
  out.set("errorCode", result.status.code());
  out.set("errorMessage", result.status.message());
  out.set("retryable", result.retryable);
  out.set("tokens", result.tokens);
  const size_t rows = result.logprobs.size();
  out.setArray("logprobRows", napi_int32_array, rows * kLogprobRowInts, [&](void* data) {
    auto* to = static_cast<int32_t*>(data);
    for (const LogprobRow& row : result.logprobs) {
      const int32_t values[kLogprobRowInts] = {row.sequence, row.position, row.token, row.rank, row.topCount};
      std::memcpy(to, values, sizeof(values));
      to += kLogprobRowInts;
    }
  });
  out.setArray("logprobValues", napi_float32_array, rows, [&](void* data) {
    auto* to = static_cast<float*>(data);
    for (const LogprobRow& row : result.logprobs) *to++ = row.logprob;
  });
  out.set("topIds", result.topIds);
  out.set("topLogprobs", result.topLogprobs);
  out.set("logits", result.logits);
  out.set("queueUs", static_cast<double>(result.queueUs));
  out.set("runUs", static_cast<double>(result.runUs));
  return out.object();
}

napi_value makeBackendInfo(napi_env env, const BackendInfo& info) noexcept {
  ObjectWriter out(env);
  out.set("name", info.name);
  out.set("device", info.device);
  out.set("batchInvariant", info.batchInvariant);
  out.set("vocabSize", info.vocabSize);
  out.set("maxPositions", info.maxPositions);
  out.set("pageSize", info.pageSize);
  out.set("numPages", info.numPages);
  out.set("maxSlots", info.maxSlots);
  out.set("maxStepTokens", info.maxStepTokens);
  out.set("kvCacheBytes", static_cast<double>(info.kvCacheBytes));
  out.set("weightBytes", static_cast<double>(info.weightBytes));
  napi_value object = out.object();
  return object != nullptr && napi_object_freeze(env, object) == napi_ok ? object : nullptr;
}

}  // namespace nt::napi
