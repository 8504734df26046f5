// A packed step (layout: lib/scheduler/executor.ts), parsed and checked.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "core/backend.h"
#include "core/status.h"

namespace nt {

inline constexpr int32_t kStepVersion = 1;
inline constexpr size_t kStepHeaderInts = 6;
inline constexpr size_t kStepSequenceInts = 5;
inline constexpr int32_t kLastSampledToken = -1;

inline constexpr int32_t kNothingAllowed = -1;
inline constexpr size_t kMaxLogitBias = 1024;
inline constexpr float kMaxLogitBiasValue = 1e6F;

// Of the whole step, in its header.
enum StepModes : int32_t { kTimeParts = 1 };

enum StepFlags : int32_t { kSample = 1, kPromptLogprobs = 2, kLogits = 4, kHidden = 8, kHiddenRows = 16 };

struct StepSequence {
  int32_t slot = 0;
  int32_t tokens = 0;  // rows in this step
  int32_t cached = 0;  // position of the first row
  int32_t flags = 0;
  int32_t firstRow = 0;
  std::span<const int32_t> pages;

  int32_t length() const noexcept { return cached + tokens; }
  bool sample() const noexcept { return (flags & kSample) != 0; }
};

// Moves only: a copy's spans would look into the original.
struct StepBatch {
  StepBatch() = default;
  StepBatch(StepBatch&&) = default;
  StepBatch& operator=(StepBatch&&) = default;
  StepBatch(const StepBatch&) = delete;
  StepBatch& operator=(const StepBatch&) = delete;

  std::vector<int32_t> packed;  // owns what the spans look into
  int32_t stepId = 0;
  bool timeParts = false;
  std::vector<StepSequence> sequences;
  std::span<const int32_t> tokens;  // [rows]
};

// Slots that are open at this point of the command order, as the caller's thread sees it.
class SlotSet {
 public:
  explicit SlotSet(int32_t maxSlots) : slots_(maxSlots > 0 ? static_cast<size_t>(maxSlots) : 0) {}
  // ERR_INVALID_ARGUMENT: no such slot, open already, not open.
  Status open(int32_t slot);
  Status close(int32_t slot);
  Status requireOpen(int32_t slot) const;
  bool isOpen(int32_t slot) const noexcept { return has(slot) && slots_[static_cast<size_t>(slot)].open; }
  // Whether a step since `open` samples this slot, so that "its last sampled token" means something.
  bool hasSampled(int32_t slot) const noexcept {
    return isOpen(slot) && slots_[static_cast<size_t>(slot)].sampled;
  }
  // The slot must be open.
  void markSampled(int32_t slot) noexcept { slots_[static_cast<size_t>(slot)].sampled = true; }

 private:
  struct Slot {
    bool open = false;
    bool sampled = false;
  };
  bool has(int32_t slot) const noexcept { return slot >= 0 && static_cast<size_t>(slot) < slots_.size(); }
  Status checkRange(int32_t slot) const;

  std::vector<Slot> slots_;
};

// Parses and checks packed steps. Keeps scratch between calls, one mark per page and slot of the backend, so
// that a call's work is proportional to the step alone. Not thread-safe.
class StepParser {
 public:
  explicit StepParser(const BackendInfo& info);

  // Checks every count and every id against the backend's limits and `slots`, and on success alone notes
  // there which slots the step samples. ERR_INVALID_ARGUMENT (ERR_INVALID_TOKEN for a token id) says which
  // sequence and what was expected; ERR_OUT_OF_MEMORY. Stricter than the layout needs: a step has at least
  // one sequence, a sequence lists no page twice and no more pages than the longest sequence needs, and the
  // reserved int is 0.
  Expected<StepBatch> parse(std::vector<int32_t> packed, SlotSet& slots) noexcept;

 private:
  struct PageMark {
    uint32_t epoch = 0;
    int32_t sequence = 0;  // the last one that lists the page
    bool written = false;
  };

  Expected<StepBatch> parseChecked(std::vector<int32_t> packed, SlotSet& slots);
  void nextEpoch() noexcept;
  Status checkSequence(const StepSequence& sequence, int64_t pages, const SlotSet& slots);
  Status checkPages(const std::vector<StepSequence>& sequences, int32_t index);
  Status checkTokens(const StepSequence& sequence, std::span<const int32_t> tokens,
                     const SlotSet& slots) const;

  int32_t flags_;  // that a sequence may have
  int32_t vocabSize_;
  int32_t maxPositions_;
  int32_t pageSize_;
  int32_t maxStepTokens_;
  // A mark counts only if it carries the current step's epoch: nothing is cleared between steps.
  uint32_t epoch_ = 0;
  std::vector<PageMark> pages_;
  std::vector<uint32_t> slotEpochs_;
};

// Checks a slot's number, parameters and tokens (ranges, finite numbers, ids below vocabSize, 1 <= prompt,
// prompt + output <= maxPositions). ERR_INVALID_ARGUMENT, or ERR_INVALID_TOKEN for a token id.
Status checkSlotInit(const SlotInit& init, const BackendInfo& info);

// Words of a mask of the vocabulary; bit i % 32 of word i / 32 stands for token i.
inline size_t maskWords(int32_t vocabSize) noexcept {
  return (static_cast<size_t>(vocabSize) + 31) / 32;
}
inline bool maskAllows(const int32_t* mask, size_t token) noexcept {
  return (static_cast<uint32_t>(mask[token / 32]) >> (token % 32) & 1U) != 0;
}
// Completes a mask: words that are missing forbid, and so do bits beyond the vocabulary.
// ERR_INVALID_ARGUMENT where it is longer than the vocabulary or allows nothing, ERR_OUT_OF_MEMORY.
Status checkMask(std::vector<int32_t>& mask, int32_t vocabSize) noexcept;

}  // namespace nt
