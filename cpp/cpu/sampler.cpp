#include "cpu/sampler.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <utility>

#include "core/random.h"
#include "core/step_batch.h"

namespace nt::cpu {

namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
// Below, dividing by the temperature would overflow before it could change the outcome: greedy (vLLM draws
// the same line).
constexpr float kGreedyTemperature = 1e-5F;
constexpr size_t kMaxBlock = 16;
constexpr size_t kSumBlock = 256;

size_t ceilDiv(size_t a, size_t b) {
  return (a + b - 1) / b;
}

// Larger first, among equals the lower id.
auto byLogit(const float* x) {
  return [x](int32_t a, int32_t b) { return x[a] > x[b] || (x[a] == x[b] && a < b); };
}

}  // namespace

SlotState::SlotState(SlotInit init)
    : params(std::move(init.sampling)), prompt(std::move(init.prompt)), outputs(int32_t(init.output.size())) {
  if (!init.output.empty()) lastToken = init.output.back();
  if (!penalised()) return;
  for (const int32_t token : prompt) counts.addPrompt(token);
  for (const int32_t token : init.output) counts.addOutput(token);
}

void SlotState::commit(int32_t token) {
  lastToken = token;
  if (token == kNothingAllowed) return;
  ++outputs;
  if (penalised()) counts.addOutput(token);
}

Sampler::Sampler(const Kernels& kernels, size_t vocab)
    : kernels_(kernels),
      vocab_(vocab),
      work_(vocab),
      weights_(vocab),
      blocks_(ceilDiv(vocab, kMaxBlock)),
      ids_(vocab),
      gathered_(vocab) {}

bool Sampler::isUsable(const float* logits) const noexcept {
  bool hasNan = false;
  const float max = kernels_.max(logits, vocab_, &hasNan);
  return !hasNan && std::isfinite(max);
}

void Sampler::adjust(const float* logits, const SlotState& slot, bool ban) {
  const SamplingParams& params = slot.params;
  std::copy_n(logits, vocab_, work_.begin());
  for (size_t word = 0; word < slot.mask.size(); ++word) {
    if (slot.mask[word] == -1) continue;
    const size_t end = std::min(vocab_, (word + 1) * 32);
    for (size_t i = word * 32; i < end; ++i) {
      if (!maskAllows(slot.mask.data(), i)) work_[i] = -kInfinity;
    }
  }
  for (size_t i = 0; i < params.biasIds.size(); ++i) work_[size_t(params.biasIds[i])] += params.biasValues[i];
  for (const auto& [token, outputs] : slot.counts.entries()) {
    float& logit = work_[size_t(token)];
    logit = logit > 0 ? logit / params.repetitionPenalty : logit * params.repetitionPenalty;
    if (outputs == 0) continue;
    logit -= params.frequencyPenalty * float(outputs);
    logit -= params.presencePenalty;
  }
  if (!ban) return;
  for (const int32_t token : params.bannedTokens) work_[size_t(token)] = -kInfinity;
}

int32_t Sampler::sample(const float* logits, const SlotState& slot) {
  const SamplingParams& params = slot.params;
  const bool ban = slot.outputs < params.minTokens && !params.bannedTokens.empty();
  const float* x = logits;
  if (ban || !slot.mask.empty() || !params.biasIds.empty() || !slot.counts.entries().empty()) {
    adjust(logits, slot, ban);
    x = work_.data();
  }
  bool hasNan = false;
  float max = kernels_.max(x, vocab_, &hasNan);
  if (!slot.mask.empty() && !(max > -kInfinity)) {
    adjust(logits, slot, false);
    max = kernels_.max(x, vocab_, &hasNan);
    if (!(max > -kInfinity)) return kNothingAllowed;
  }
  if (params.temperature < kGreedyTemperature || !std::isfinite(max)) {
    return int32_t(std::min(kernels_.firstAtLeast(x, vocab_, max), vocab_ - 1));
  }
  const double uniform = nt::uniform(params.seed, uint64_t(slot.outputs));
  const float inverseTemperature = 1.0F / params.temperature;
  // p >= minP * pMax, in logits. Everything passes log(0).
  const float bound = params.minP > 0 ? max + params.temperature * std::log(params.minP) : -kInfinity;
  if (params.topK > 0 && size_t(params.topK) < vocab_) {
    const auto top = selectTop(x, size_t(params.topK), bound);
    return drawFromTop(top, x, max, inverseTemperature, params.topP, -1, uniform);
  }
  if (params.topP < 1.0F) return drawNucleus(x, max, inverseTemperature, bound, params.topP, uniform);
  return drawFromAll(x, max, inverseTemperature, bound, uniform);
}

std::span<const int32_t> Sampler::selectTop(const float* x, size_t k, float bound) {
  k = std::min(k, vocab_);
  const size_t blocks = ceilDiv(vocab_, kMaxBlock);
  // At least k elements are as large as the k-th largest of the blocks' maxima: a bound that few others
  // reach.
  if (k <= blocks) {
    kernels_.blockMax(x, vocab_, blocks_.data());
    std::nth_element(blocks_.begin(), blocks_.begin() + long(k - 1), blocks_.begin() + long(blocks),
                     std::greater<>());
    bound = std::max(bound, blocks_[k - 1]);
  }
  const size_t count = kernels_.collectAtLeast(x, vocab_, bound, ids_.data());
  k = std::min(k, count);
  std::partial_sort(ids_.begin(), ids_.begin() + long(k), ids_.begin() + long(count), byLogit(x));
  return {ids_.data(), k};
}

int32_t Sampler::drawFromAll(const float* x, float max, float inverseTemperature, float bound,
                             double uniform) {
  kernels_.expBlocks(x, vocab_, max, inverseTemperature, bound, weights_.data(), blocks_.data());
  const size_t blocks = ceilDiv(vocab_, kSumBlock);
  double total = 0;
  for (size_t b = 0; b < blocks; ++b) total += double(blocks_[b]);
  double rest = uniform * total;
  size_t block = 0;
  while (block + 1 < blocks && rest >= double(blocks_[block])) rest -= double(blocks_[block++]);
  // Rounding may carry past the block's end; its last token with any weight is the answer then.
  size_t chosen = vocab_;
  const size_t end = std::min(vocab_, (block + 1) * kSumBlock);
  for (size_t i = block * kSumBlock; i < end; ++i) {
    if (weights_[i] <= 0) continue;
    chosen = i;
    rest -= double(weights_[i]);
    if (rest < 0) break;
  }
  return int32_t(chosen < vocab_ ? chosen : kernels_.firstAtLeast(x, vocab_, max));
}

// `ids` in order of weight. `total` = the weight of all, where ids are only the first of them; negative: ids
// are all.
int32_t Sampler::drawFromTop(std::span<const int32_t> ids, const float* x, float max,
                             float inverseTemperature, float topP, double total, double uniform) {
  for (size_t i = 0; i < ids.size(); ++i) gathered_[i] = (x[ids[i]] - max) * inverseTemperature;
  kernels_.exp(gathered_.data(), ids.size(), gathered_.data());
  if (total < 0) {
    total = 0;
    for (size_t i = 0; i < ids.size(); ++i) total += double(gathered_[i]);
  }
  size_t kept = ids.size();
  double mass = 0;
  if (topP < 1.0F) {
    kept = 0;
    while (kept < ids.size() && (kept == 0 || mass < double(topP) * total)) mass += double(gathered_[kept++]);
  } else {
    mass = total;
  }
  double rest = uniform * mass;
  size_t i = 0;
  for (; i + 1 < kept; ++i) {
    rest -= double(gathered_[i]);
    if (rest < 0) break;
  }
  while (i > 0 && gathered_[i] <= 0) --i;
  return ids[i];
}

int32_t Sampler::drawNucleus(const float* x, float max, float inverseTemperature, float bound, float topP,
                             double uniform) {
  kernels_.expBlocks(x, vocab_, max, inverseTemperature, bound, weights_.data(), blocks_.data());
  double total = 0;
  for (size_t b = 0; b < ceilDiv(vocab_, kSumBlock); ++b) total += double(blocks_[b]);
  // Tokens below this weight add up to less than 1 - topP, even all of them: the nucleus is complete before
  // the first.
  const double floor = total * (1.0 - double(topP)) / double(vocab_);
  const float least = std::max(float(floor * (1 - 1e-3)), std::numeric_limits<float>::min());
  const size_t count = kernels_.collectAtLeast(weights_.data(), vocab_, least, ids_.data());
  // Sort in growing portions until the sorted ones hold enough: a peaked distribution needs a handful of
  // thousands.
  size_t sorted = 0;
  double mass = 0;
  for (size_t portion = 64; sorted < count && mass < double(topP) * total; portion *= 8) {
    const size_t end = std::min(count, sorted + portion);
    std::partial_sort(ids_.begin() + long(sorted), ids_.begin() + long(end), ids_.begin() + long(count),
                      byLogit(x));
    for (; sorted < end; ++sorted) mass += double(weights_[size_t(ids_[sorted])]);
  }
  return drawFromTop({ids_.data(), sorted}, x, max, inverseTemperature, topP, total, uniform);
}

TokenLogprob Sampler::logprob(const float* logits, int32_t token, int32_t top) {
  bool hasNan = false;
  const float max = kernels_.max(logits, vocab_, &hasNan);
  const float logTotal = std::log(kernels_.sumExp(logits, vocab_, max, 1.0F));
  const auto of = [&](int32_t id) { return logits[id] - max - logTotal; };
  TokenLogprob out;
  out.logprob = of(token);
  const size_t count = kernels_.collectAtLeast(logits, vocab_, logits[token], ids_.data());
  const auto before = byLogit(logits);
  out.rank = 1 + int32_t(std::count_if(ids_.begin(), ids_.begin() + long(count),
                                       [&](int32_t id) { return before(id, token); }));
  if (top > 0) {
    const auto ids = selectTop(logits, size_t(top), -kInfinity);
    out.topIds.assign(ids.begin(), ids.end());
    out.topLogprobs.reserve(ids.size());
    for (const int32_t id : ids) out.topLogprobs.push_back(of(id));
  }
  return out;
}

}  // namespace nt::cpu
