#include "core/step_batch.h"

#include <algorithm>
#include <cmath>
#include <new>
#include <string>
#include <tuple>
#include <utility>

namespace nt {

namespace {

constexpr uint64_t kMaxSeed = uint64_t{1} << 53;  // exclusive: JavaScript's exact integers

std::string number(int64_t value) {
  return std::to_string(value);
}

std::string nameOf(int32_t index, const StepSequence& sequence) {
  return "sequence " + number(index) + " (slot " + number(sequence.slot) + ")";
}

Status invalidToken(const std::string& where, int32_t token, int32_t vocabSize) {
  return {"ERR_INVALID_TOKEN",
          where + " is " + number(token) + ", token ids are 0 ... " + number(int64_t{vocabSize} - 1)};
}

// Index of the first id outside 0 ... vocabSize - 1, or the number of ids.
size_t firstBadToken(std::span<const int32_t> tokens, int32_t vocabSize) {
  const auto bad =
      std::find_if(tokens.begin(), tokens.end(), [&](int32_t id) { return id < 0 || id >= vocabSize; });
  return static_cast<size_t>(bad - tokens.begin());
}

Status checkTokenList(const char* name, std::span<const int32_t> tokens, int32_t vocabSize) {
  const size_t bad = firstBadToken(tokens, vocabSize);
  if (bad == tokens.size()) return {};
  return invalidToken(std::string(name) + "[" + std::to_string(bad) + "]", tokens[bad], vocabSize);
}

}  // namespace

Status SlotSet::checkRange(int32_t slot) const {
  if (has(slot)) return {};
  return Status::invalid("slot " + number(slot) + " does not exist, there are " +
                         std::to_string(slots_.size()));
}

Status SlotSet::open(int32_t slot) {
  if (Status status = checkRange(slot); !status) return status;
  Slot& state = slots_[static_cast<size_t>(slot)];
  if (state.open) return Status::invalid("slot " + number(slot) + " is open already", "Close it first");
  state = {true, false};
  return {};
}

Status SlotSet::requireOpen(int32_t slot) const {
  if (Status status = checkRange(slot); !status) return status;
  return isOpen(slot) ? Status::ok() : Status::invalid("slot " + number(slot) + " is not open");
}

Status SlotSet::close(int32_t slot) {
  if (Status status = requireOpen(slot); !status) return status;
  slots_[static_cast<size_t>(slot)] = {};
  return {};
}

StepParser::StepParser(const BackendInfo& info)
    : flags_(kSample | kPromptLogprobs | kLogits | (info.hiddenSize > 0 ? kHidden : 0) |
             (info.hiddenSize > 0 && info.hiddenRows ? kHiddenRows : 0)),
      vocabSize_(info.vocabSize),
      maxPositions_(info.maxPositions),
      pageSize_(std::max(info.pageSize, 1)),
      maxStepTokens_(info.maxStepTokens),
      pages_(static_cast<size_t>(std::max(info.numPages, 0))),
      slotEpochs_(static_cast<size_t>(std::max(info.maxSlots, 0))) {}

Expected<StepBatch> StepParser::parse(std::vector<int32_t> packed, SlotSet& slots) noexcept {
  try {
    return parseChecked(std::move(packed), slots);
  } catch (const std::bad_alloc&) {
    return Status("ERR_OUT_OF_MEMORY", "not enough memory for a step");
  }
}

Expected<StepBatch> StepParser::parseChecked(std::vector<int32_t> packed, SlotSet& slots) {
  if (packed.size() < kStepHeaderInts) {
    return Status::invalid("a step of " + std::to_string(packed.size()) + " int32s has no header of " +
                           std::to_string(kStepHeaderInts));
  }
  if (packed[0] != kStepVersion) {
    return Status::invalid("step version " + number(packed[0]) + ", this build reads " +
                           number(kStepVersion));
  }
  const int32_t count = packed[2];
  const int32_t rows = packed[3];
  const int32_t pages = packed[4];
  if ((packed[5] & ~kTimeParts) != 0)
    return Status::invalid("the step header's modes are " + number(packed[5]) + ", known are " +
                           number(kTimeParts));
  if (count < 1 || static_cast<size_t>(count) > slotEpochs_.size()) {
    return Status::invalid("a step of " + number(count) + " sequences, expected 1 ... " +
                           std::to_string(slotEpochs_.size()) + " (maxSlots)");
  }
  if (rows < count || rows > maxStepTokens_) {
    return Status::invalid("a step of " + number(rows) + " tokens for " + number(count) +
                           " sequences, expected one each at least and " + number(maxStepTokens_) +
                           " (maxStepTokens) at most");
  }
  if (pages < 0) return Status::invalid("a step with " + number(pages) + " pages");
  const int64_t expected = static_cast<int64_t>(kStepHeaderInts) +
                           int64_t{count} * int64_t{kStepSequenceInts} + int64_t{pages} + int64_t{rows};
  if (std::cmp_not_equal(packed.size(), expected)) {
    return Status::invalid("a step of " + std::to_string(packed.size()) + " int32s, its header says " +
                           number(expected));
  }

  StepBatch step;
  step.packed = std::move(packed);
  step.stepId = step.packed[1];
  step.timeParts = (step.packed[5] & kTimeParts) != 0;
  step.sequences.reserve(static_cast<size_t>(count));
  nextEpoch();
  const std::span<const int32_t> all(step.packed);
  const auto table = all.subspan(kStepHeaderInts, static_cast<size_t>(count) * kStepSequenceInts);
  const auto pageIds = all.subspan(kStepHeaderInts + table.size(), static_cast<size_t>(pages));
  step.tokens = all.subspan(kStepHeaderInts + table.size() + pageIds.size());

  int64_t firstRow = 0;
  int64_t firstPage = 0;
  for (int32_t i = 0; i < count; ++i) {
    const auto fields = table.subspan(static_cast<size_t>(i) * kStepSequenceInts, kStepSequenceInts);
    StepSequence sequence;
    sequence.slot = fields[0];
    sequence.tokens = fields[1];
    sequence.cached = fields[2];
    sequence.flags = fields[4];
    sequence.firstRow = static_cast<int32_t>(firstRow);
    const int64_t pageCount = fields[3];
    Status status = checkSequence(sequence, pageCount, slots);
    if (status && firstRow + sequence.tokens > rows) {
      status = Status::invalid("the sequences hold more tokens than the header's " + number(rows));
    }
    if (status && firstPage + pageCount > pages) {
      status = Status::invalid("the sequences list more pages than the header's " + number(pages));
    }
    if (status) {
      sequence.pages = pageIds.subspan(static_cast<size_t>(firstPage), static_cast<size_t>(pageCount));
      step.sequences.push_back(sequence);
      status = checkPages(step.sequences, i);
    }
    if (status) {
      const auto tokens =
          step.tokens.subspan(static_cast<size_t>(firstRow), static_cast<size_t>(sequence.tokens));
      status = checkTokens(sequence, tokens, slots);
    }
    if (!status) return Status(status.code(), nameOf(i, sequence) + ": " + status.message());
    firstRow += sequence.tokens;
    firstPage += pageCount;
  }
  if (firstRow != rows || firstPage != pages) {
    return Status::invalid("the sequences hold " + number(firstRow) + " tokens and " + number(firstPage) +
                           " pages, the header says " + number(rows) + " and " + number(pages));
  }
  for (const StepSequence& sequence : step.sequences) {
    if (sequence.sample()) slots.markSampled(sequence.slot);
  }
  return step;
}

void StepParser::nextEpoch() noexcept {
  if (++epoch_ != 0) return;
  std::fill(pages_.begin(), pages_.end(), PageMark{});
  std::fill(slotEpochs_.begin(), slotEpochs_.end(), 0U);
  epoch_ = 1;
}

Status StepParser::checkSequence(const StepSequence& sequence, int64_t pages, const SlotSet& slots) {
  if (!slots.isOpen(sequence.slot)) return Status::invalid("the slot is not open");
  uint32_t& slotEpoch = slotEpochs_[static_cast<size_t>(sequence.slot)];
  if (slotEpoch == epoch_) return Status::invalid("the slot is twice in the step");
  slotEpoch = epoch_;
  if (sequence.tokens < 1) return Status::invalid(number(sequence.tokens) + " tokens, expected 1 at least");
  if (sequence.cached < 0) return Status::invalid(number(sequence.cached) + " cached tokens");
  const int64_t length = int64_t{sequence.cached} + int64_t{sequence.tokens};
  if (length > maxPositions_) {
    return Status::invalid(number(length) + " tokens, the model's longest sequence has " +
                           number(maxPositions_));
  }
  const int64_t needed = (length + pageSize_ - 1) / pageSize_;
  const int64_t most = (int64_t{maxPositions_} + pageSize_ - 1) / pageSize_;
  if (pages < needed || pages > most) {
    return Status::invalid(number(pages) + " pages, expected " + number(needed) + " ... " + number(most) +
                           " for " + number(length) + " tokens");
  }
  if ((sequence.flags & ~flags_) != 0) return Status::invalid("unknown flags " + number(sequence.flags));
  return {};
}

Status StepParser::checkPages(const std::vector<StepSequence>& sequences, int32_t index) {
  const StepSequence& sequence = sequences[static_cast<size_t>(index)];
  const auto firstWritten = static_cast<size_t>(sequence.cached / pageSize_);
  const auto lastWritten = static_cast<size_t>((sequence.length() - 1) / pageSize_);
  for (size_t i = 0; i < sequence.pages.size(); ++i) {
    const int32_t page = sequence.pages[i];
    if (page < 0 || static_cast<size_t>(page) >= pages_.size()) {
      return Status::invalid("page " + number(page) + " does not exist, there are " +
                             std::to_string(pages_.size()));
    }
    PageMark& mark = pages_[static_cast<size_t>(page)];
    const bool writes = i >= firstWritten && i <= lastWritten;
    if (mark.epoch == epoch_) {
      if (mark.sequence == index) return Status::invalid("lists page " + number(page) + " twice");
      if (writes || mark.written) {
        const int32_t other = sequences[static_cast<size_t>(mark.sequence)].slot;
        return Status::invalid("page " + number(page) + " is also listed by slot " + number(other) +
                               ", and " + (writes ? "this one" : "that one") + " writes it");
      }
    }
    mark = {epoch_, index, writes};
  }
  return {};
}

Status StepParser::checkTokens(const StepSequence& sequence, std::span<const int32_t> tokens,
                               const SlotSet& slots) const {
  if (tokens.size() == 1 && tokens[0] == kLastSampledToken) {
    if (slots.hasSampled(sequence.slot)) return {};
    return {"ERR_INVALID_TOKEN",
            "stands for the slot's last sampled token, but no step has sampled the slot"};
  }
  const size_t bad = firstBadToken(tokens, vocabSize_);
  if (bad == tokens.size()) return {};
  const std::string where = "token " + std::to_string(bad);
  if (tokens[bad] == kLastSampledToken) {
    return {"ERR_INVALID_TOKEN",
            where + " is -1, which may only stand alone for the slot's last sampled token"};
  }
  return invalidToken(where, tokens[bad], vocabSize_);
}

namespace {

Status checkBias(const SamplingParams& sampling, int32_t vocabSize) {
  const auto& [ids, values] = std::tie(sampling.biasIds, sampling.biasValues);
  if (ids.size() != values.size()) {
    return Status::invalid("logitBias has " + std::to_string(ids.size()) + " tokens and " +
                           std::to_string(values.size()) + " values");
  }
  if (ids.size() > kMaxLogitBias) {
    return Status::invalid("logitBias has " + std::to_string(ids.size()) + " tokens, at most " +
                           std::to_string(kMaxLogitBias) + " are allowed");
  }
  if (Status status = checkTokenList("logitBias.ids", ids, vocabSize); !status) return status;
  std::vector<int32_t> sorted = ids;
  std::sort(sorted.begin(), sorted.end());
  if (std::adjacent_find(sorted.begin(), sorted.end()) != sorted.end())
    return Status::invalid("logitBias names a token twice");
  const bool small = std::all_of(values.begin(), values.end(),
                                 [](float value) { return std::abs(value) <= kMaxLogitBiasValue; });
  return small ? Status::ok() : Status::invalid("the values of logitBias must be in -1e6 ... 1e6");
}

}  // namespace

Status checkMask(std::vector<int32_t>& mask, int32_t vocabSize) noexcept {
  const size_t words = maskWords(vocabSize);
  if (mask.size() > words) {
    return Status::invalid("a mask of " + std::to_string(mask.size()) + " words, the vocabulary of " +
                           number(vocabSize) + " tokens has " + std::to_string(words));
  }
  try {
    mask.resize(words, 0);
  } catch (const std::bad_alloc&) {
    return {"ERR_OUT_OF_MEMORY", "not enough memory for a mask"};
  }
  if (vocabSize % 32 != 0) mask.back() &= static_cast<int32_t>((1U << (vocabSize % 32)) - 1);
  if (std::any_of(mask.begin(), mask.end(), [](int32_t word) { return word != 0; })) return {};
  return Status::invalid("the mask allows no token");
}

Status checkSlotInit(const SlotInit& init, const BackendInfo& info) {
  const auto range = [](const char* name, const char* expected) {
    return Status::invalid(std::string(name) + " must be " + expected);
  };
  if (init.slot < 0 || init.slot >= info.maxSlots) {
    return Status::invalid("slot " + number(init.slot) + " does not exist, there are " +
                           number(info.maxSlots));
  }
  // Comparisons are written so that NaN fails them.
  const SamplingParams& sampling = init.sampling;
  if (!(std::isfinite(sampling.temperature) && sampling.temperature >= 0)) {
    return range("temperature", "a finite number >= 0");
  }
  if (sampling.topK < 0) return range("topK", ">= 0");
  if (!(sampling.topP > 0 && sampling.topP <= 1)) return range("topP", "greater than 0 and at most 1");
  if (!(sampling.minP >= 0 && sampling.minP <= 1)) return range("minP", "in 0 ... 1");
  if (!(std::isfinite(sampling.repetitionPenalty) && sampling.repetitionPenalty > 0)) {
    return range("repetitionPenalty", "a finite number > 0");
  }
  if (!std::isfinite(sampling.presencePenalty)) return range("presencePenalty", "a finite number");
  if (!std::isfinite(sampling.frequencyPenalty)) return range("frequencyPenalty", "a finite number");
  if (sampling.seed >= kMaxSeed) return range("seed", "in 0 ... 2^53 - 1");
  if (sampling.logprobs < -1 || sampling.logprobs > info.vocabSize)
    return range("logprobs", "in -1 ... vocabSize");
  if (sampling.promptLogprobs < -1 || sampling.promptLogprobs > info.vocabSize) {
    return range("promptLogprobs", "in -1 ... vocabSize");
  }
  if (sampling.minTokens < 0) return range("minTokens", ">= 0");
  // Banning every token would leave none to sample.
  if (std::cmp_greater_equal(sampling.bannedTokens.size(), info.vocabSize)) {
    return range("bannedTokens", "fewer than the vocabulary has");
  }
  if (init.prompt.empty()) return range("prompt", "one token at least");
  if (init.prompt.size() > static_cast<size_t>(info.maxPositions) ||
      init.output.size() > static_cast<size_t>(info.maxPositions) - init.prompt.size()) {
    return Status::invalid("prompt and output have " + std::to_string(init.prompt.size()) + " + " +
                           std::to_string(init.output.size()) + " tokens, the model's longest sequence has " +
                           number(info.maxPositions));
  }
  if (Status status = checkTokenList("bannedTokens", sampling.bannedTokens, info.vocabSize); !status)
    return status;
  if (Status status = checkBias(sampling, info.vocabSize); !status) return status;
  if (Status status = checkTokenList("prompt", init.prompt, info.vocabSize); !status) return status;
  if (Status status = checkTokenList("output", init.output, info.vocabSize); !status) return status;
  return {};
}

}  // namespace nt
