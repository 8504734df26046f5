// What the attention layers of a step need and the TensorRT graph does not carry: the cache, the step's
// tables, the plan.
//
// TensorRT neither copies nor bounds the pool (it may exceed 2^31 elements), and the batch is no dimension of
// the graph. The owner of an execution context makes the state, sets it for the thread while it creates the
// context (StepStateScope), and fills it before each enqueue. Contexts that run on one stream may share one
// state.
#pragma once

#include <array>
#include <cstdint>

#include "tensorrt/kernels/attention.h"
#include "tensorrt/step_marks.h"

namespace nt {

// Sequences of a step, in a row, that one kernel takes.
struct AttentionPart {
  AttentionPath path = AttentionPath::kPrefill;
  uint32_t firstSequence = 0;
  uint32_t sequences = 0;
  uint32_t firstRow = 0;
  uint32_t rows = 0;
  const int32_t* qIndptr = nullptr;  // device, [sequences + 1], counted from firstRow
  kernels::Plan plan;
  kernels::Workspace workspace;
};

struct StepState {
  // The pool: [layers, pages, 2, pageSize, kvHeads, headDim]; K is entry 0 of a page, V entry 1.
  void* pool = nullptr;
  int64_t layerBytes = 0;
  int32_t pageSize = 0;
  int32_t layers = 0;

  // Rotary tables, one per AttentionOp::rope: [maxPositions, headDim] float32, cosines then sines.
  const float* const* cosSin = nullptr;
  int32_t ropes = 0;

  // The step's tables (device). See kernels::PagedKv and kernels::AttentionArgs.
  const int32_t* batchIndices = nullptr;  // [rows], negative for padding
  const int32_t* positions = nullptr;     // [rows]
  const int32_t* kvIndptr = nullptr;      // [batch + 1]
  const int32_t* kvIndices = nullptr;
  const int32_t* lastPageLen = nullptr;  // [batch]
  uint32_t rows = 0;                     // rows of the graph, padding included
  uint32_t batch = 0;                    // sequences, padding included

  // Together all rows. A second one where generated tokens and prompts share a step: what is fast for one row
  // a sequence is slow for many, and the reverse.
  std::array<AttentionPart, 2> parts;
  uint32_t partCount = 1;
  // See kernels::RopeAppendArgs.
  bool overlap = false;
  // Takes the plain kernels even where FlashInfer has the shape. To be set before contexts are created.
  bool plainKernels = false;

  // Takes the times of a step's parts; null where nobody asked.
  StepMarks* marks = nullptr;

  // The layer of an engine that holds one layer for all (its plugin says kLayerFromState); read at each
  // enqueue.
  int32_t layer = 0;

  // Living plugin instances that took this state over. TensorRT attaches one for each attention layer and
  // optimization profile when a context is created: (layers x profiles) is what the owner must find. The
  // state must outlive its contexts.
  int32_t attached = 0;
};

// The state that plugins attached on this thread take over, for the lifetime of the scope. Scopes nest.
class StepStateScope {
 public:
  explicit StepStateScope(StepState* state) noexcept;
  ~StepStateScope();
  StepStateScope(const StepStateScope&) = delete;
  StepStateScope& operator=(const StepStateScope&) = delete;

  static StepState* current() noexcept;

 private:
  StepState* previous_;
};

}  // namespace nt
