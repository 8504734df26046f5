#include "cpu/step_sampler.h"

#include <algorithm>
#include <cmath>
#include <new>
#include <string>
#include <utility>

namespace nt::cpu {

StepSampler::StepSampler(const Kernels& kernels, ThreadPool& pool, size_t vocab, size_t width)
    : pool_(pool), vocab_(vocab), width_(width) {
  samplers_.reserve(size_t(pool.threads()));
  for (int i = 0; i < pool.threads(); ++i) samplers_.emplace_back(kernels, vocab);
}

std::span<const int32_t> StepSampler::begin(const StepBatch& step, std::span<SlotState* const> slots) {
  slots_ = slots;
  wanted_.clear();
  rows_.clear();
  logits_.clear();
  hidden_.clear();
  for (size_t s = 0; s < step.sequences.size(); ++s) {
    const StepSequence& sequence = step.sequences[s];
    const SlotState& slot = *slots[s];
    const bool prompt = (sequence.flags & kPromptLogprobs) != 0 && slot.params.promptLogprobs >= 0;
    const bool hiddenRows = (sequence.flags & kHiddenRows) != 0;
    for (int32_t i = prompt || hiddenRows ? 0 : sequence.tokens - 1; i < sequence.tokens; ++i) {
      Wanted wanted;
      wanted.sequence = int32_t(s);
      wanted.hidden = hiddenRows;
      const auto next = size_t(sequence.cached + i + 1);
      if (prompt && next < slot.prompt.size()) {
        wanted.promptToken = slot.prompt[next];
        wanted.promptPosition = int32_t(next);
      }
      if (i == sequence.tokens - 1) {
        wanted.sample = sequence.sample();
        wanted.logits = (sequence.flags & kLogits) != 0;
        wanted.hidden = hiddenRows || (sequence.flags & kHidden) != 0;
      }
      if (!wanted.hidden && !wanted.needsLogits()) continue;
      wanted_.push_back(std::move(wanted));
      rows_.push_back(sequence.firstRow + i);
    }
  }
  return rows_;
}

void StepSampler::work(Wanted& wanted, const float* logits, Sampler& sampler) const noexcept {
  if (!wanted.needsLogits()) return;
  try {
    wanted.usable = sampler.isUsable(logits);
    if (!wanted.usable) return;
    const SlotState& slot = *slots_[size_t(wanted.sequence)];
    if (wanted.promptToken >= 0) {
      wanted.promptLogprob = sampler.logprob(logits, wanted.promptToken, slot.params.promptLogprobs);
    }
    if (!wanted.sample) return;
    wanted.token = sampler.sample(logits, slot);
    if (slot.params.logprobs >= 0 && wanted.token != kNothingAllowed)
      wanted.sampledLogprob = sampler.logprob(logits, wanted.token, slot.params.logprobs);
  } catch (const std::bad_alloc&) {
    wanted.outOfMemory = true;
  }
}

bool StepSampler::wantsLogits(size_t first, size_t rows) const noexcept {
  const auto begin = wanted_.begin() + long(first);
  return std::any_of(begin, begin + long(rows), [](const Wanted& wanted) { return wanted.needsLogits(); });
}

void StepSampler::onHidden(size_t first, size_t rows, const float* hidden, size_t stride) {
  for (size_t row = 0; row < rows; ++row) {
    Wanted& wanted = wanted_[first + row];
    if (!wanted.hidden) continue;
    const float* source = hidden + row * stride;
    wanted.hiddenUsable = std::all_of(source, source + width_, [](float x) { return std::isfinite(x); });
    hidden_.insert(hidden_.end(), source, source + width_);
  }
}

void StepSampler::onLogits(size_t first, size_t rows, const float* logits, size_t stride) {
  for (size_t row = 0; row < rows; ++row) {
    const float* source = logits + row * stride;
    if (wanted_[first + row].logits) logits_.insert(logits_.end(), source, source + vocab_);
  }
  // A greedy row of a small vocabulary takes less time than waking another thread.
  constexpr size_t kSerialElements = size_t{16} << 10;
  const auto one = [&](size_t row, int thread) {
    work(wanted_[first + row], logits + row * stride, samplers_[size_t(thread)]);
  };
  if (rows * vocab_ <= kSerialElements) {
    for (size_t row = 0; row < rows; ++row) one(row, 0);
  } else {
    pool_.run(rows, one);
  }
}

void StepSampler::report(StepResult& result, const Wanted& wanted, int32_t position, int32_t token,
                         const TokenLogprob& row) const {
  LogprobRow out;
  out.sequence = wanted.sequence;
  out.position = position;
  out.token = token;
  out.rank = row.rank;
  out.topCount = int32_t(row.topIds.size());
  out.logprob = row.logprob;
  result.logprobs.push_back(out);
  result.topIds.insert(result.topIds.end(), row.topIds.begin(), row.topIds.end());
  result.topLogprobs.insert(result.topLogprobs.end(), row.topLogprobs.begin(), row.topLogprobs.end());
}

Status StepSampler::finish(StepResult& result) {
  for (size_t i = 0; i < wanted_.size(); ++i) {
    if (wanted_[i].outOfMemory) return {"ERR_OUT_OF_MEMORY", "No memory left for log-probabilities."};
    if (wanted_[i].usable && wanted_[i].hiddenUsable) continue;
    return {"ERR_STEP_FAILED",
            std::string(wanted_[i].usable ? "The numbers of the hidden state" : "The logits") +
                " of sequence " + std::to_string(wanted_[i].sequence) + " (row " + std::to_string(rows_[i]) +
                ") are not finite.",
            "the weights may be damaged, or overflow float32"};
  }
  for (const Wanted& wanted : wanted_) {
    const SlotState& slot = *slots_[size_t(wanted.sequence)];
    if (wanted.promptToken >= 0) {
      report(result, wanted, wanted.promptPosition, wanted.promptToken, wanted.promptLogprob);
    }
    if (!wanted.sample) continue;
    result.tokens.push_back(wanted.token);
    if (slot.params.logprobs >= 0 && wanted.token != kNothingAllowed) {
      report(result, wanted, int32_t(slot.prompt.size()) + slot.outputs, wanted.token, wanted.sampledLogprob);
    }
  }
  result.logits = std::move(logits_);
  logits_ = {};
  result.hidden = std::move(hidden_);
  hidden_ = {};
  for (const Wanted& wanted : wanted_) {
    if (wanted.sample) slots_[size_t(wanted.sequence)]->commit(wanted.token);
  }
  return Status::ok();
}

}  // namespace nt::cpu
