#include "napi/results.h"

#include <cstring>

#include "napi/object_writer.h"

namespace nt::napi {
namespace {

constexpr size_t kLogprobRowInts = 5;

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
  out.set("hidden", result.hidden);
  out.set("queueUs", static_cast<double>(result.queueUs));
  out.set("runUs", static_cast<double>(result.runUs));
  out.set("deviceUs", static_cast<double>(result.deviceUs));
  out.set("partUs", result.partUs);
  return out.object();
}

napi_value makeBackendInfo(napi_env env, const BackendInfo& info) noexcept {
  ObjectWriter out(env);
  out.set("name", info.name);
  out.set("device", info.device);
  out.set("batchInvariant", info.batchInvariant);
  out.set("vocabSize", info.vocabSize);
  out.set("hiddenSize", info.hiddenSize);
  out.set("hiddenRows", info.hiddenRows);
  out.set("maxPositions", info.maxPositions);
  out.set("pageSize", info.pageSize);
  out.set("numPages", info.numPages);
  out.set("maxSlots", info.maxSlots);
  out.set("maxStepTokens", info.maxStepTokens);
  out.set("kvCacheBytes", static_cast<double>(info.kvCacheBytes));
  out.set("weightBytes", static_cast<double>(info.weightBytes));
  out.set("workspaceBytes", static_cast<double>(info.workspaceBytes));
  out.set("linearLibrary", info.linearLibrary);
  napi_value object = out.object();
  return object != nullptr && napi_object_freeze(env, object) == napi_ok ? object : nullptr;
}

}  // namespace nt::napi
