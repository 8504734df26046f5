// What a backend is to the addon. lib/scheduler/executor.ts documents the step and the rules of order; this
// is its C++ side.
//
// The TensorRT module implements the same interface behind a dlopen: pure virtual, no exceptions, and both
// sides are built from one source tree (kBackendAbi guards that).
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "core/status.h"

namespace nt {

inline constexpr uint32_t kBackendAbi = 4;

struct BackendInfo {
  std::string name;    // "cpu", "tensorrt"
  std::string device;  // for humans
  bool batchInvariant = false;
  int32_t vocabSize = 0;
  int32_t hiddenSize = 0;   // 0: gives no hidden states
  bool hiddenRows = false;  // takes kHiddenRows
  int32_t maxPositions = 0;
  int32_t pageSize = 0;
  int32_t numPages = 0;
  int32_t maxSlots = 0;
  int32_t maxStepTokens = 0;
  uint64_t kvCacheBytes = 0;
  uint64_t weightBytes = 0;
  uint64_t workspaceBytes = 0;  // activations, tables, buffers of a step; 0: not told
  std::string linearLibrary;    // that runs linear layers beside the engine: "cuBLASLt 13.1.0"; "" = none
};

struct SamplingParams {
  float temperature = 0;  // 0 = greedy
  int32_t topK = 0;       // 0 = off
  float topP = 1;
  float minP = 0;
  float repetitionPenalty = 1;
  float presencePenalty = 0;
  float frequencyPenalty = 0;
  uint64_t seed = 0;
  int32_t logprobs = -1;        // -1 none, 0 the token's own, k also the top k
  int32_t promptLogprobs = -1;  // the same for prompt rows
  int32_t minTokens = 0;
  std::vector<int32_t> bannedTokens;  // until minTokens
  std::vector<int32_t> biasIds;       // whose logits are added to
  std::vector<float> biasValues;      // as many
};

struct SlotInit {
  int32_t slot = -1;
  SamplingParams sampling;
  std::vector<int32_t> prompt;
  std::vector<int32_t> output;
};

struct LogprobRow {
  int32_t sequence = 0;  // in the step
  int32_t position = 0;
  int32_t token = 0;
  int32_t rank = 0;      // 1 = most probable
  int32_t topCount = 0;  // entries in StepResult::topIds that belong to this row
  float logprob = 0;
};

struct StepResult {
  int32_t stepId = 0;
  Status status;
  bool retryable = false;
  std::vector<int32_t> tokens;  // kNothingAllowed where a mask left none
  std::vector<LogprobRow> logprobs;
  std::vector<int32_t> topIds;
  std::vector<float> topLogprobs;
  std::vector<float> logits;
  std::vector<float> hidden;
  float queueUs = 0;
  float runUs = 0;
  float deviceUs = -1;  // by the device's own clock; -1 where it has none
  // Of a step flagged kTimeParts: microseconds of the embedding, of each layer's attention and of the rest of
  // it, of the head and of sampling. Empty where the backend cannot tell.
  std::vector<float> partUs;
};

// Called on a thread of the backend, once per step, in order. Must return quickly and never throw.
class ResultSink {
 public:
  virtual ~ResultSink() = default;
  virtual void onStep(StepResult&& result) noexcept = 0;
};

// All calls come from one thread (the addon's). None blocks on the device or on a step.
class Backend {
 public:
  virtual ~Backend() = default;
  virtual const BackendInfo& info() const noexcept = 0;
  // Before the first submit. The sink outlives the backend.
  virtual void start(ResultSink* sink) noexcept = 0;
  virtual Status openSlot(SlotInit init) noexcept = 0;
  virtual Status closeSlot(int32_t slot) noexcept = 0;
  // Of the slot's sampled tokens from the next step on; nullopt = all are allowed. See checkMask.
  virtual Status setMask(int32_t slot, std::optional<std::vector<int32_t>> mask) noexcept = 0;
  // Checks the packed step completely (core/step_batch.h) before it is queued.
  virtual Status submit(std::vector<int32_t> step) noexcept = 0;
  // Asks the threads to end: the running step completes, queued ones report ERR_DISPOSED. Returns at once;
  // `join` waits.
  virtual void requestStop() noexcept = 0;
  // Blocks until the threads have ended. Called off the event loop.
  virtual void join() noexcept = 0;
};

}  // namespace nt
