// From a row of logits to a token and its log-probabilities.
//
// Order (vLLM's): mask, bias, penalties and banned tokens, then greedy, or temperature, min_p, top_k, top_p
// and a draw. Where the mask leaves banned tokens alone, the ban gives way. Equal logits are ordered by token
// id, the lowest first, everywhere. Log-probabilities are those of the raw logits.
#pragma once

#include <cstdint>
#include <span>
#include <unordered_map>
#include <vector>

#include "core/backend.h"
#include "cpu/kernels.h"

namespace nt::cpu {

// Distinct tokens of a sequence, with how often each is in the output. Kept up to date token by token.
class TokenCounts {
 public:
  struct Entry {
    int32_t token;
    int32_t outputs;  // 0: in the prompt only
  };
  void addPrompt(int32_t token) { find(token); }
  void addOutput(int32_t token) { ++find(token).outputs; }
  const std::vector<Entry>& entries() const noexcept { return entries_; }

 private:
  Entry& find(int32_t token) {
    const auto [at, isNew] = index_.try_emplace(token, entries_.size());
    if (isNew) entries_.push_back({token, 0});
    return entries_[at->second];
  }
  std::vector<Entry> entries_;
  std::unordered_map<int32_t, size_t> index_;
};

// What a backend keeps of a resident sequence.
struct SlotState {
  explicit SlotState(SlotInit init);

  SamplingParams params;
  std::vector<int32_t> prompt;
  int32_t outputs = 0;        // tokens generated so far
  int32_t lastToken = -1;     // the last of them
  TokenCounts counts;         // empty unless a penalty needs it
  std::vector<int32_t> mask;  // of the whole vocabulary; empty: all tokens are allowed

  bool penalised() const noexcept {
    return params.repetitionPenalty != 1.0F || params.presencePenalty != 0.0F ||
           params.frequencyPenalty != 0.0F;
  }
  // Takes note of a sampled token.
  void commit(int32_t token);
};

struct TokenLogprob {
  float logprob = 0;
  int32_t rank = 0;  // 1 = most probable
  std::vector<int32_t> topIds;
  std::vector<float> topLogprobs;
};

// Works on one row at a time; one sampler per thread.
class Sampler {
 public:
  Sampler(const Kernels& kernels, size_t vocab);

  // False where the logits are not finite enough to mean anything: a NaN, or no finite maximum.
  bool isUsable(const float* logits) const noexcept;
  // The next token of a sequence in state `slot`, or kNothingAllowed. The logits must be usable. A pure
  // function of its arguments.
  int32_t sample(const float* logits, const SlotState& slot);
  // Of `token` in the distribution of the raw logits, with the `top` most probable tokens.
  TokenLogprob logprob(const float* logits, int32_t token, int32_t top);

 private:
  // Fills `work_`.
  void adjust(const float* logits, const SlotState& slot, bool ban);
  // The k largest, in order. Fewer where bound excludes more.
  std::span<const int32_t> selectTop(const float* x, size_t k, float bound);
  int32_t drawFromAll(const float* x, float max, float inverseTemperature, float bound, double uniform);
  int32_t drawFromTop(std::span<const int32_t> ids, const float* x, float max, float inverseTemperature,
                      float topP, double total, double uniform);
  int32_t drawNucleus(const float* x, float max, float inverseTemperature, float bound, float topP,
                      double uniform);

  const Kernels& kernels_;
  size_t vocab_;
  std::vector<float> work_;      // adjusted logits
  std::vector<float> weights_;   // exponentials
  std::vector<float> blocks_;    // sums or maxima of blocks
  std::vector<int32_t> ids_;     // candidates
  std::vector<float> gathered_;  // their exponents
};

}  // namespace nt::cpu
