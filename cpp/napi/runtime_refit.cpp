#include "napi/runtime_refit.h"

#include <algorithm>
#include <array>
#include <chrono>
#include <cstring>
#include <string_view>
#include <thread>
#include <utility>

#include "napi/arguments.h"

namespace nt::napi {
namespace {

constexpr size_t kBytesPerTurn = 8 << 20;  // about a millisecond
constexpr uint32_t kMaxWeights = 65536;

// Of one value; 0 = the name is unknown. Of int4, two share a byte.
size_t bitsOf(std::string_view dtype) noexcept {
  constexpr std::array<std::pair<std::string_view, size_t>, 10> sizes = {{{"float32", 32},
                                                                          {"float16", 16},
                                                                          {"bfloat16", 16},
                                                                          {"float8", 8},
                                                                          {"int8", 8},
                                                                          {"uint8", 8},
                                                                          {"int32", 32},
                                                                          {"int64", 64},
                                                                          {"bool", 8},
                                                                          {"int4", 4}}};
  const auto* found =
      std::find_if(sizes.begin(), sizes.end(), [&](const auto& entry) { return entry.first == dtype; });
  return found == sizes.end() ? 0 : found->second;
}

// The array's bytes as they are now; false where it is no Uint8Array.
bool lookAt(napi_env env, napi_value array, const std::byte** data, size_t* bytes) noexcept {
  bool isTyped = false;
  napi_typedarray_type type = napi_int8_array;
  void* at = nullptr;
  if (napi_is_typedarray(env, array, &isTyped) != napi_ok || !isTyped ||
      napi_get_typedarray_info(env, array, &type, bytes, &at, nullptr, nullptr) != napi_ok ||
      type != napi_uint8_array) {
    return false;
  }
  *data = static_cast<const std::byte*>(at);
  return true;
}

Status readOne(napi_env env, napi_value element, const std::string& name, StagedWeights& weights) {
  FieldReader fields(env, element, name);
  weights.name = fields.string("name");
  weights.dtype = fields.string("dtype");
  const uint64_t count = fields.uint53("count");
  if (!fields.status()) return fields.status();
  const size_t bits = bitsOf(weights.dtype);
  const std::byte* data = nullptr;
  napi_value values = nullptr;
  if (bits == 0)
    return Status::invalid(name + ".dtype must be the name of a type, not '" + weights.dtype + "'");
  if (napi_get_named_property(env, element, "values", &values) != napi_ok ||
      !lookAt(env, values, &data, &weights.bytes)) {
    return Status::invalid(name + ".values must be a Uint8Array");
  }
  // A count below 2^53 by 64 bits overflows nothing that a real array could be compared with.
  if (count > weights.bytes * 2 || (count * bits + 7) / 8 != weights.bytes) {
    return Status::invalid(name + " (" + weights.name + ") has " + std::to_string(weights.bytes) +
                           " bytes for " + std::to_string(count) + " values of " + weights.dtype);
  }
  weights.count = static_cast<int64_t>(count);
  if (napi_create_reference(env, values, 1, &weights.source) != napi_ok) {
    return {"ERR_INTERNAL", "Could not reference an array"};
  }
  return Status::ok();
}

struct Refit {
  RuntimeEnvironment& environment;
  std::shared_ptr<runtime::Engine> engine;
  std::shared_ptr<Strand> strand;
  std::vector<StagedWeights> weights;
  StatusCompletion* completion;
  std::shared_ptr<Ticket> ticket;

  void end(Status status) noexcept {
    if (!ticket->claim()) return;
    completion->result = std::move(status);
    ticket->post();
  }
};

class RefitJob final : public Job {
 public:
  explicit RefitJob(std::shared_ptr<Refit> refit) : refit_(std::move(refit)) {}

  void run() noexcept override {
    std::vector<runtime::NamedWeights> named;
    Status status;
    try {
      for (const StagedWeights& weights : refit_->weights) {
        named.push_back({weights.name, weights.dtype, weights.values.get(), weights.count});
      }
      status = refit_->engine->refit(named);
    } catch (const std::bad_alloc&) {
      status = {"ERR_OUT_OF_MEMORY", "Out of memory in the native addon"};
    }
    refit_->engine.reset();
    refit_->weights.clear();
    refit_->end(std::move(status));
    refit_.reset();
  }

  napi_value settle(napi_env env, Status& status) noexcept override {
    return StatusCompletion().settle(env, status);
  }

 private:
  std::shared_ptr<Refit> refit_;
};

// True when all is copied.
Expected<bool> copySome(napi_env env, std::vector<StagedWeights>& weights) {
  size_t left = kBytesPerTurn;
  for (StagedWeights& one : weights) {
    if (one.copied == one.bytes) continue;
    napi_value array = nullptr;
    const std::byte* data = nullptr;
    size_t bytes = 0;
    if (napi_get_reference_value(env, one.source, &array) != napi_ok || array == nullptr ||
        !lookAt(env, array, &data, &bytes) || bytes != one.bytes) {
      return Status::invalid("The array of weights '" + one.name +
                             "' was detached or resized while it was read");
    }
    if (!one.values) one.values = std::make_unique_for_overwrite<std::byte[]>(one.bytes);
    const size_t size = std::min(left, one.bytes - one.copied);
    std::memcpy(one.values.get() + one.copied, data + one.copied, size);
    one.copied += size;
    left -= size;
    if (one.copied < one.bytes || left == 0) break;
  }
  return std::all_of(weights.begin(), weights.end(),
                     [](const StagedWeights& one) { return one.copied == one.bytes; });
}

// By way of the pool, so that the event loop gets to other things between the turns.
class CopyTurn final : public Job {
 public:
  explicit CopyTurn(std::shared_ptr<Refit> refit) : refit_(std::move(refit)) {}

  // A thread-safe function that is called while it runs goes on in the same turn of the event loop: this call
  // comes later.
  void run() noexcept override { std::this_thread::sleep_for(std::chrono::milliseconds(1)); }

  napi_value settle(napi_env env, Status& status) noexcept override {
    guarded(env, [&]() -> napi_value {
      go(env, std::move(refit_));
      return nullptr;
    });
    napi_value error = nullptr;
    bool pending = false;
    if (napi_is_exception_pending(env, &pending) == napi_ok && pending) {
      napi_get_and_clear_last_exception(env, &error);
    }
    return StatusCompletion().settle(env, status);
  }

  static void go(napi_env env, std::shared_ptr<Refit> refit) {
    Expected<bool> all = copySome(env, refit->weights);
    if (!all || *all) dropSources(env, refit->weights);
    Status status = all.status();
    if (all && *all) {
      status = refit->environment.start(std::make_unique<RefitJob>(refit), refit->strand).status();
    } else if (all) {
      status = refit->environment.start(std::make_unique<CopyTurn>(refit)).status();
    }
    if (!status) refit->end(std::move(status));
  }

 private:
  std::shared_ptr<Refit> refit_;
};

}  // namespace

Expected<std::vector<StagedWeights>> readWeights(napi_env env, napi_value value) {
  bool isArray = false;
  uint32_t length = 0;
  if (napi_is_array(env, value, &isArray) != napi_ok || !isArray ||
      napi_get_array_length(env, value, &length) != napi_ok || length > kMaxWeights) {
    return Status::invalid("weights must be an array of at most " + std::to_string(kMaxWeights) + " weights");
  }
  std::vector<StagedWeights> weights(length);
  Status status;
  for (uint32_t i = 0; i < length && status.isOk(); ++i) {
    napi_value element = nullptr;
    const std::string name = "weights[" + std::to_string(i) + "]";
    status = napi_get_element(env, value, i, &element) == napi_ok
                 ? readOne(env, element, name, weights[i])
                 : Status::invalid(name + " must be readable");
  }
  if (status) return weights;
  dropSources(env, weights);
  return status;
}

void dropSources(napi_env env, std::vector<StagedWeights>& weights) noexcept {
  for (StagedWeights& one : weights) {
    if (one.source != nullptr) napi_delete_reference(env, std::exchange(one.source, nullptr));
  }
}

Expected<napi_value> startRefit(RuntimeEnvironment& environment, std::shared_ptr<runtime::Engine> engine,
                                std::shared_ptr<Strand> strand, std::vector<StagedWeights> weights) {
  auto owned = std::make_unique<StatusCompletion>();
  StatusCompletion* completion = owned.get();
  Expected<CompletionChannel::Begun> begun = environment.completions().begin(std::move(owned));
  if (!begun) return begun.status();
  CopyTurn::go(environment.env(),
               std::make_shared<Refit>(environment, std::move(engine), std::move(strand), std::move(weights),
                                       completion, std::move(begun->ticket)));
  return begun->promise;
}

}  // namespace nt::napi
