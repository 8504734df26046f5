#include "tensorrt/step_tables.h"

#include <algorithm>

namespace nt {

TableLayout::TableLayout(int32_t rowCount, int32_t sequenceCount, int32_t entryCount) noexcept
    : rows(rowCount), sequences(sequenceCount), entries(entryCount) {
  size_t at = 0;
  const auto take = [&](int32_t count) {
    const size_t begin = at;
    at += static_cast<size_t>(count);
    return begin;
  };
  tokens = take(rows);
  positions = take(rows);
  batchIndices = take(rows);
  qIndptr = take(sequences + 1);
  wideIndptr = take(sequences + 1);
  kvIndptr = take(sequences + 1);
  lastPageLen = take(sequences);
  sequenceSlots = take(sequences);
  entryRows = take(entries);
  entrySlots = take(entries);
  entryTargets = take(entries);
  entryMasks = take(entries);
  kvIndices = at;
}

int32_t leadingSingles(const StepBatch& step) noexcept {
  const auto wide = std::find_if(step.sequences.begin(), step.sequences.end(),
                                 [](const StepSequence& sequence) { return sequence.tokens > 1; });
  return static_cast<int32_t>(wide - step.sequences.begin());
}

size_t fillTables(const StepBatch& step, std::span<const StepEntry> entries, const TableLayout& layout,
                  int32_t pageSize, int32_t* block) {
  std::copy(step.tokens.begin(), step.tokens.end(), block + layout.tokens);
  int32_t* positions = block + layout.positions;
  int32_t* batchIndices = block + layout.batchIndices;
  int32_t* qIndptr = block + layout.qIndptr;
  int32_t* kvIndptr = block + layout.kvIndptr;
  int32_t* lastPageLen = block + layout.lastPageLen;
  int32_t* slots = block + layout.sequenceSlots;
  int32_t* kvIndices = block + layout.kvIndices;
  int32_t row = 0;
  int32_t index = 0;
  qIndptr[0] = 0;
  kvIndptr[0] = 0;
  for (const StepSequence& sequence : step.sequences) {
    for (int32_t i = 0; i < sequence.tokens; ++i, ++row) {
      positions[row] = sequence.cached + i;
      batchIndices[row] = index;
    }
    // Pages beyond the sequence's end (reserved for later steps) are no affair of the kernels.
    const int32_t pages = (sequence.length() + pageSize - 1) / pageSize;
    std::copy_n(sequence.pages.begin(), pages, kvIndices + kvIndptr[index]);
    lastPageLen[index] = (sequence.length() - 1) % pageSize + 1;
    slots[index] = sequence.slot;
    qIndptr[index + 1] = row;
    kvIndptr[index + 1] = kvIndptr[index] + pages;
    ++index;
  }
  const int32_t singles = leadingSingles(step);
  for (int32_t i = singles; i <= index && singles < index; ++i) {
    block[layout.wideIndptr + static_cast<size_t>(i - singles)] = qIndptr[i] - singles;
  }
  const int32_t pagesListed = kvIndptr[index];
  for (; row < layout.rows; ++row) {
    block[layout.tokens + static_cast<size_t>(row)] = 0;
    positions[row] = 0;
    batchIndices[row] = -1;
  }
  const int32_t realRows = static_cast<int32_t>(step.tokens.size());
  for (; index < layout.sequences; ++index) {
    qIndptr[index + 1] = realRows;
    kvIndptr[index + 1] = pagesListed;
    lastPageLen[index] = 1;
    slots[index] = 0;
  }
  int32_t* entryRows = block + layout.entryRows;
  int32_t* entrySlots = block + layout.entrySlots;
  int32_t* entryTargets = block + layout.entryTargets;
  int32_t* entryMasks = block + layout.entryMasks;
  for (size_t e = 0; e < static_cast<size_t>(layout.entries); ++e) {
    const StepEntry entry = e < entries.size() ? entries[e] : StepEntry{};
    entryRows[e] = entry.row;
    entrySlots[e] = entry.slot;
    entryTargets[e] = entry.target;
    entryMasks[e] = entry.mask;
  }
  return layout.kvIndices + static_cast<size_t>(pagesListed);
}

size_t fillWarmUp(const TableLayout& layout, int32_t pageSize, int32_t singles, int32_t* block,
                  int32_t cached) {
  std::fill_n(block, layout.kvIndices, 0);
  const int32_t others = layout.sequences - singles;
  const int32_t left = layout.rows - singles;
  int32_t row = 0;
  int32_t pages = 0;
  for (int32_t i = 0; i < layout.sequences; ++i) {
    const auto at = static_cast<size_t>(i);
    const int32_t tokens = i < singles ? 1 : left / others + (i - singles < left % others ? 1 : 0);
    const int32_t begin = i < singles ? 0 : cached;
    const int32_t length = begin + tokens;
    for (int32_t position = begin; position < length; ++position, ++row) {
      block[layout.positions + static_cast<size_t>(row)] = position;
      block[layout.batchIndices + static_cast<size_t>(row)] = i;
    }
    pages += (length + pageSize - 1) / pageSize;
    block[layout.qIndptr + at + 1] = row;
    if (i >= singles) block[layout.wideIndptr + at + 1 - static_cast<size_t>(singles)] = row - singles;
    block[layout.kvIndptr + at + 1] = pages;
    block[layout.lastPageLen + at] = (length - 1) % pageSize + 1;
  }
  std::fill_n(block + layout.kvIndices, pages, 0);
  std::fill_n(block + layout.entrySlots, layout.entries, -1);
  std::fill_n(block + layout.entryTargets, layout.entries, -1);
  std::fill_n(block + layout.entryMasks, layout.entries, -1);
  return layout.kvIndices + static_cast<size_t>(pages);
}

}  // namespace nt
