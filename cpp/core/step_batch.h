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

enum StepFlags : int32_t { kSample = 1, kPromptLogprobs = 2, kLogits = 4, kAllStepFlags = 7 };

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

struct StepBatch {
  std::vector<int32_t> packed;  // owns what the spans look into
  int32_t stepId = 0;
  std::vector<StepSequence> sequences;
  std::span<const int32_t> tokens;  // [rows]
};

// Slots that are open at this point of the command order, as the caller's thread sees it.
class SlotSet {
 public:
  explicit SlotSet(int32_t maxSlots) : open_(static_cast<size_t>(maxSlots), false) {}
  Status open(int32_t slot);
  Status close(int32_t slot);
  bool isOpen(int32_t slot) const noexcept {
    return slot >= 0 && static_cast<size_t>(slot) < open_.size() && open_[static_cast<size_t>(slot)];
  }

 private:
  std::vector<bool> open_;
};

// Checks every count and every id against `info` and `slots`. ERR_INVALID_ARGUMENT (ERR_INVALID_TOKEN for a token id) says which
// sequence and what was expected. Work is proportional to the step, nothing is allocated per token.
Expected<StepBatch> parseStep(std::vector<int32_t> packed, const BackendInfo& info, const SlotSet& slots);

// Checks a slot's parameters and tokens (ranges, finite numbers, ids below vocabSize, lengths).
Status checkSlotInit(const SlotInit& init, const BackendInfo& info);

}  // namespace nt
