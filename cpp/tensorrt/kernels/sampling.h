// Sampling on the device: masks, bias, penalties, temperature, min_p, top_k, top_p, log-probabilities, and
// the slots' state between steps.
//
// Order as in the CPU backend: mask, bias, penalties and banned tokens, then greedy, or min_p, top_k, top_p
// and a draw. Equal logits are ordered by token id, the lowest first. Weights are integers (2^-40 of the
// largest token's), so sums do not depend on the order of threads: the same logits and seed give the same
// token, whatever else is in the batch.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "core/dtype.h"

namespace nt::kernels {

// What a request may ask for at the API, and no less: a slot that is refused ends the backend. 1024 stop
// tokens of its own, and the model's end-of-sequence tokens.
inline constexpr int32_t kMaxBannedTokens = 1280;
inline constexpr int32_t kMaxTopLogprobs = 256;
inline constexpr int32_t kMaxBias = 1024;  // kMaxLogitBias of core/step_batch.h

// In place of a token: logits that are not finite, or a mask that left none that is.
inline constexpr int32_t kUnusableLogits = -1;
inline constexpr int32_t kNoneAllowed = -2;

struct SlotParams {
  float temperature = 0;
  float topP = 1;
  float minP = 0;
  float repetitionPenalty = 1;
  float presencePenalty = 0;
  float frequencyPenalty = 0;
  int32_t topK = 0;
  int32_t logprobs = -1;
  int32_t promptLogprobs = -1;
  int32_t minTokens = 0;
  int32_t bannedCount = 0;
  int32_t penalised = 0;  // counts are kept
  int32_t biasCount = 0;
  uint64_t seed = 0;
  int32_t banned[kMaxBannedTokens] = {};  // ascending
};

struct SlotBias {
  int32_t ids[kMaxBias] = {};  // ascending
  float values[kMaxBias] = {};
};

// The slots' state, in device memory.
struct SlotTable {
  SlotParams* params = nullptr;     // [slots]
  int32_t* lastTokens = nullptr;    // [slots]; -1: none yet
  int32_t* outputCounts = nullptr;  // [slots] tokens generated so far
  uint32_t* tokenCounts =
      nullptr;  // [slots, vocab] how often a token is in the output; bit 31: it is in the prompt
  SlotBias* biases = nullptr;  // [slots]; the first SlotParams::biasCount of each are set
  int32_t vocab = 0;
};

// Sets a slot. The parameters travel as the kernel's argument: no copy, no buffer to keep.
cudaError_t openSlot(const SlotTable& table, int32_t slot, const SlotParams& params, int32_t lastToken,
                     int32_t outputCount, cudaStream_t stream) noexcept;

// Sets the bias of a slot that was opened with a biasCount.
cudaError_t setBias(const SlotTable& table, int32_t slot, const SlotBias& bias, cudaStream_t stream) noexcept;

// Counts a penalised slot's tokens afresh: `prompt`, then `outputs` of them, at `tokens` (device).
cudaError_t countTokens(const SlotTable& table, int32_t slot, const int32_t* tokens, int32_t prompt,
                        int32_t outputs, cudaStream_t stream) noexcept;

// One entry per gathered row.
struct SampleArgs {
  const void* logits = nullptr;    // [entries, vocab]
  const int32_t* slots = nullptr;  // [entries]; -1: nothing to do
  const int32_t* targets =
      nullptr;  // [entries] -1: sample; else the prompt's next token, whose log-probability is wanted
  const int32_t* maskRows = nullptr;  // [entries] row of `masks`; -1: all tokens are allowed
  const uint32_t* masks = nullptr;  // [rows, ceil(vocab / 32)]; bit i % 32 of word i / 32: token i is allowed
  int32_t entries = 0;
  SlotTable table;
  // Results, each [entries]. Tokens are the sampled ones or the targets, kUnusableLogits or kNoneAllowed.
  int32_t* tokens = nullptr;
  int32_t* ranks = nullptr;
  float* logprobs = nullptr;
  int32_t* topIds = nullptr;     // [entries, kMaxTopLogprobs], as many as the slot asks for are set
  float* topLogprobs = nullptr;  // likewise
};
cudaError_t sample(DType type, const SampleArgs& args, cudaStream_t stream) noexcept;

}  // namespace nt::kernels
