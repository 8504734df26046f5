// A step's tables: one block of int32s that travels to the device in one copy.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "core/step_batch.h"

namespace nt {

// A row whose logits or hidden state are wanted.
struct StepEntry {
  int32_t sequence = 0;  // in the step
  int32_t row = 0;       // in the step
  int32_t slot = -1;     // -1: nothing is sampled or reported
  int32_t target = -1;   // the prompt's next token, whose log-probability is wanted; -1: sample
  int32_t position = 0;  // of the token that is sampled or reported, in prompt + output
  bool sample = false;
  bool logits = false;
  int32_t top = -1;  // log-probabilities wanted, as in SamplingParams::logprobs
  bool hidden = false;
  int32_t mask = -1;  // row of the step's masks; -1: all tokens are allowed

  bool needsLogits() const noexcept { return slot >= 0 || logits; }
};

// Where the tables lie in the block, in int32s. Depends on the counts alone, so a captured graph finds them
// again.
struct TableLayout {
  TableLayout(int32_t rowCount, int32_t sequenceCount, int32_t entryCount) noexcept;

  int32_t rows;
  int32_t sequences;
  int32_t entries;
  size_t tokens;         // [rows]
  size_t positions;      // [rows]
  size_t batchIndices;   // [rows] sequence, negative for padding
  size_t qIndptr;        // [sequences + 1]
  size_t wideIndptr;     // [sequences + 1] of the sequences behind the leading ones of one row, counted from
                         // their first row; written where there are both
  size_t kvIndptr;       // [sequences + 1]
  size_t lastPageLen;    // [sequences]
  size_t sequenceSlots;  // [sequences]
  size_t entryRows;      // [entries]
  size_t entrySlots;     // [entries]
  size_t entryTargets;   // [entries]
  size_t entryMasks;     // [entries]
  size_t kvIndices;      // the rest
};

// Sequences of one row at the head of the step: generated tokens, as a scheduler plans them first.
int32_t leadingSingles(const StepBatch& step) noexcept;

// Writes the tables of a step to `block`, padded to the layout's counts, and returns the number of int32s
// used. Sequences of padding have no rows.
size_t fillTables(const StepBatch& step, std::span<const StepEntry> entries, const TableLayout& layout,
                  int32_t pageSize, int32_t* block);

// The same for a step of made-up sequences, all their pages being page 0: to run a shape before there is work
// for it. The first `singles` have one row each, the others share the rest out evenly (rows >= sequences),
// behind `cached` tokens each.
size_t fillWarmUp(const TableLayout& layout, int32_t pageSize, int32_t singles, int32_t* block,
                  int32_t cached = 0);

}  // namespace nt
