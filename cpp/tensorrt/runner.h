// Runs steps on the GPU: everything of a model that lives there, and what a step enqueues. Knows nothing of
// threads or queues; all calls come from one thread at a time.
#pragma once

#include <array>
#include <map>
#include <memory>
#include <optional>
#include <vector>

#include "core/backend.h"
#include "core/module.h"
#include "tensorrt/cuda.h"
#include "tensorrt/engine.h"
#include "tensorrt/kernel_segment.h"
#include "tensorrt/kernels/sampling.h"
#include "tensorrt/step_tables.h"
#include "tensorrt/weights.h"

namespace nt {

// Host memory of one step in flight. Its content may be written again once `done` has passed.
struct StepBuffers {
  PinnedBuffer tables;   // see step_tables.h
  PinnedBuffer plans;    // FlashInfer's, one part per attention plan
  PinnedBuffer results;  // by entry: tokens, ranks, log-probabilities, top ids, top log-probabilities; see
                         // Runner::resultsOf
  PinnedBuffer logits;   // raw rows, in the engine's type
  PinnedBuffer hidden;   // likewise
  PinnedBuffer masks;    // [masked entries, words]
  StepMarks marks;       // of a step whose parts are timed
  bool timed = false;
  Event begun;  // before the step's first command; both take the device's time
  Event done;

  std::vector<StepEntry> entries;
  std::vector<const int32_t*> entryMasks;  // by StepEntry::mask, each of the whole vocabulary
  int32_t logitRows = 0;
  int32_t hiddenRows = 0;
};

// Results of a step that is done, [entries] each, or [entries, kMaxTopLogprobs].
struct StepResults {
  const int32_t* tokens;
  const int32_t* ranks;
  const float* logprobs;
  const int32_t* topIds;
  const float* topLogprobs;
};

class Runner {
 public:
  // Loads the model onto the options' device, sizes the KV pool and captures the graphs. See
  // TensorRtModule::createBackend.
  static Expected<std::unique_ptr<Runner>> create(const TensorRtOptions& options);
  ~Runner();

  const BackendInfo& info() const noexcept { return info_; }
  DType dtype() const noexcept { return dtype_; }
  int32_t device() const noexcept { return device_; }
  int32_t layers() const noexcept { return state_.layers; }

  Expected<StepBuffers> createBuffers() const;

  // Takes effect for the steps enqueued after it.
  Status openSlot(const SlotInit& init);
  // Enqueues the step of `buffers.entries`, which copies the masks; `buffers.done` is recorded behind it. The
  // step must have been checked against info().
  Status run(const StepBatch& step, StepBuffers& buffers);
  static StepResults resultsOf(const StepBuffers& buffers) noexcept;
  // Waits until nothing that was enqueued is left. The stream alone: a wait for the whole device would end a
  // capture of another Runner.
  Status drain() const;

 private:
  // Rows a sequence, on average, from which tiles of 128 query rows are well filled.
  static constexpr uint32_t kWideRows = 64;
  // Rows from which generated tokens take the decode kernel. Up to 8 the linear layers overlap with attention
  // (kernels/few_rows.h), and find no room beside a kernel that fills each multiprocessor: one stream of
  // Llama-3-8B's shape falls from 238 to 190 tokens/s (docs/performance.md).
  static constexpr uint32_t kLeastDecodeRows = 9;

  // Layers that share heads and window share a plan; each part of each has a piece of the workspace.
  struct AttentionPlan {
    int32_t heads = 0;
    int32_t window = 0;
    std::array<AttentionPart, 2> parts;  // of the step that was planned last
  };
  struct Layer {
    SegmentEngine* engine = nullptr;
    const KernelSegment* kernels = nullptr;  // null where they do not cover the segment
    size_t plan = 0;

    // Which of the two runs a step of so many rows.
    bool runsKernels(int32_t rows) const noexcept { return kernels != nullptr && kernels->runs(rows); }
  };

  Runner() = default;
  Status load(const TensorRtOptions& options);
  Status loadEngines(const TensorRtOptions& options, const Graph& graph, const Partition& parts,
                     const GpuFacts& gpu);
  Status allocate(const TensorRtOptions& options, const Graph& graph);
  Status allocatePool(const TensorRtOptions& options, const Graph& graph);
  Status makeRopeTables(const Graph& graph);
  Status warmUp(StepBuffers& buffers);
  // `cached`: tokens that each sequence of more than one row already has.
  Status warmUp(StepBuffers& buffers, int32_t rows, int32_t singles, int32_t cached = 0);
  Status captureGraphs(StepBuffers& buffers);
  // `invalidated`: it failed because of what another thread did, and may be tried again.
  Status capture(int32_t bucket, StepBuffers& buffers, bool& invalidated);

  // `singles`: sequences of one row at the step's head.
  Status planAttention(const TableLayout& layout, const StepBuffers& buffers, int32_t singles,
                       bool cudaGraph);
  Status planPart(const TableLayout& layout, const StepBuffers& buffers, const AttentionPlan& plan,
                  bool cudaGraph, AttentionPart& part);
  void setState(const TableLayout& layout);
  Status reserveRows(StepBuffers& buffers) const;
  Status sendMasks(StepBuffers& buffers);
  Status sendTables(const StepBuffers& buffers, size_t ints);
  // Embedding, layers, head and sampling, on the engines' dedicated contexts or the others; `buffers`, where
  // given, receives the results chunk by chunk.
  Status enqueueModel(const TableLayout& layout, StepBuffers* buffers, bool dedicated);
  // Ends a part of a step whose parts are timed.
  Status mark(int32_t part);
  Status enqueueSegment(size_t index, int32_t rows, const void* x, void* y, bool dedicated,
                        const KeptRows* kept = nullptr);
  // `x`: all of the step's rows, or null where the entries' are gathered already. `logits`: not the hidden
  // states alone.
  Status enqueueHead(const TableLayout& layout, int32_t first, int32_t count, const void* x, bool logits,
                     bool dedicated);
  Status copyResults(StepBuffers& buffers, int32_t first, int32_t count);
  Status copyHidden(StepBuffers& buffers, int32_t first, int32_t count);
  int32_t* table(size_t offset) const noexcept { return tables_.as<int32_t>() + offset; }

  BackendInfo info_;
  DType dtype_ = DType::kBF16;
  int32_t device_ = 0;
  int32_t width_ = 0;
  int32_t kvHeads_ = 0;
  int32_t maxPagesListed_ = 0;
  int32_t rowCapacity_ = 0;  // rows of the largest step, padding included
  float embeddingScale_ = 1;
  AttentionPath decodePath_ = AttentionPath::kDecode;
  bool widePrefill_ = false;  // whether the device has kernels for it
  float normEps_ = 0;         // of the norm before the logits, where info_.hiddenSize is set
  const kernels::AttentionKernels* attention_ = nullptr;
  int64_t steps_ = 0;
  int32_t faultAtStep_ = 0;

  // Freed in the reverse order: contexts before what they point to, the stream last.
  Stream stream_;
  DeviceWeights weights_;
  DeviceBuffer pool_, tables_, floats_, ints_, ropes_, activations_, x_[2], gathered_, logits_, normed_,
      masks_, results_, slots_, history_;
  PinnedBuffer historyHost_;
  Event historySent_;
  std::vector<const float*> ropeTables_;
  kernels::SlotTable slotTable_;
  StepState state_;
  std::vector<AttentionPlan> plans_;
  std::unique_ptr<nvinfer1::IRuntime> runtime_;
  std::vector<std::unique_ptr<SegmentEngine>> engines_;  // by shape
  std::unique_ptr<CublasLinear> cublas_;                 // null where it is not installed
  std::vector<std::unique_ptr<KernelSegment>> kernels_;  // by shape; null where there is none
  std::vector<Layer> layers_;                            // by segment, the head last
  std::map<int32_t, GraphExec> graphs_;                  // by number of sequences
};

}  // namespace nt
