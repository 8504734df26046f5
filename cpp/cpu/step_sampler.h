// Turns the logits of a step into its result: which rows are wanted, what is sampled from them,
// log-probabilities, raw rows.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "core/backend.h"
#include "core/step_batch.h"
#include "cpu/runner.h"
#include "cpu/sampler.h"
#include "cpu/thread_pool.h"

namespace nt::cpu {

class StepSampler final : public LogitsSink {
 public:
  // `width` = of a hidden state, 0 for a model that has none.
  StepSampler(const Kernels& kernels, ThreadPool& pool, size_t vocab, size_t width);

  // Collects the rows of the step whose logits are wanted; ascending. `slots[s]` is the state of the step's
  // sequence s.
  std::span<const int32_t> begin(const StepBatch& step, std::span<SlotState* const> slots);
  void onLogits(size_t first, size_t rows, const float* logits, size_t stride) override;
  void onHidden(size_t first, size_t rows, const float* hidden, size_t stride) override;
  bool wantsLogits(size_t first, size_t rows) const noexcept override;
  // Fills the result and lets the slots take note of what they sampled. ERR_STEP_FAILED where a row's logits
  // were not finite, ERR_OUT_OF_MEMORY: then no slot has changed.
  Status finish(StepResult& result);

 private:
  struct Wanted {
    int32_t sequence = 0;
    bool sample = false;
    bool logits = false;
    bool hidden = false;
    int32_t promptToken = -1;  // whose log-probability is asked for
    int32_t promptPosition = 0;
    // Filled by onLogits.
    bool usable = true;
    bool hiddenUsable = true;
    bool outOfMemory = false;
    int32_t token = -1;
    TokenLogprob promptLogprob;
    TokenLogprob sampledLogprob;

    bool needsLogits() const noexcept { return sample || logits || promptToken >= 0; }
  };

  void work(Wanted& wanted, const float* logits, Sampler& sampler) const noexcept;
  void report(StepResult& result, const Wanted& wanted, int32_t position, int32_t token,
              const TokenLogprob& row) const;

  ThreadPool& pool_;
  size_t vocab_;
  size_t width_;
  std::vector<Sampler> samplers_;  // by thread
  std::span<SlotState* const> slots_;
  std::vector<Wanted> wanted_;
  std::vector<int32_t> rows_;
  std::vector<float> logits_;  // raw rows that were asked for
  std::vector<float> hidden_;  // likewise
};

}  // namespace nt::cpu
