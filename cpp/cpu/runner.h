// Runs a model over the rows of a step: the head in blocks of rows, then the tail on the gathered rows.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "core/status.h"
#include "core/step_batch.h"
#include "cpu/kernels.h"
#include "cpu/memory.h"
#include "cpu/model.h"
#include "cpu/thread_pool.h"

namespace nt::cpu {

// Receives logits as they come.
class LogitsSink {
 public:
  virtual ~LogitsSink() = default;
  // Rows first, first + 1, ... of the gathered ones; `logits` is [rows][vocab], rows `stride` apart, valid
  // during the call.
  virtual void onLogits(size_t first, size_t rows, const float* logits, size_t stride) = 0;
  // The same of hidden states, before the logits of the same rows, where the model has them.
  virtual void onHidden(size_t first, size_t rows, const float* hidden, size_t stride) = 0;
  // Whether any of these rows' logits is wanted.
  virtual bool wantsLogits(size_t first, size_t rows) const noexcept = 0;
};

class Runner {
 public:
  // Allocates the KV pool, [layers][pages][keys | values] with keys [kvHeads][headDim][pageSize] and values
  // [kvHeads][pageSize][headDim] of float32. ERR_OUT_OF_MEMORY.
  static Expected<std::unique_ptr<Runner>> create(const Model& model, const Kernels& kernels,
                                                  ThreadPool& pool, int32_t pageSize, int32_t numPages,
                                                  int32_t maxStepTokens);

  // `tokens` has one id per row of the step; `gathered` are rows of the step, ascending.
  void forward(const StepBatch& step, std::span<const int32_t> tokens, std::span<const int32_t> gathered,
               LogitsSink& sink);

  uint64_t kvCacheBytes() const noexcept { return kvPool_.bytes(); }
  // Activations, and what attention computes in.
  uint64_t workspaceBytes() const noexcept;

 private:
  // Consecutive rows of one sequence that one attend works on.
  struct AttendTile {
    int32_t row;  // in the block
    int32_t rows;
    int32_t firstPosition;
    const int32_t* pages;
  };
  // The rows that a node works on.
  struct Rows {
    size_t count = 0;
    size_t first = 0;  // of the block, in buffers that hold all gathered rows
    const int32_t* tokens = nullptr;
    const int32_t* positions = nullptr;
  };

  Runner(const Model& model, const Kernels& kernels, ThreadPool& pool)
      : model_(model), kernels_(kernels), pool_(pool) {}

  void locateRows(const StepBatch& step);
  void tileBlock(const StepBatch& step, size_t begin, size_t end, std::span<const int32_t> gathered);
  void addTiles(const StepSequence& sequence, size_t blockBegin, size_t begin, size_t end,
                std::vector<AttendTile>& out);
  void collectGathered(size_t blockBegin, std::span<const int32_t> gathered, size_t firstGathered);

  void runNode(size_t index, const Rows& rows);
  void embed(const CompiledNode& node, const EmbeddingOp& op, const Rows& rows);
  void linear(const CompiledNode& node, const Rows& rows);
  void attention(const CompiledNode& node, const AttentionOp& op, const Rows& rows,
                 const std::vector<AttendTile>& tiles);
  void appendRow(const CompiledNode& node, const AttentionOp& op, float* qkv, int32_t position,
                 const int32_t* pages);

  // Runs f(row) for each of `count` rows, on more threads where `costPerRow` (multiply-adds) makes that worth
  // while.
  template <typename F>
  void forRows(size_t count, size_t costPerRow, F&& f);
  float* at(size_t buffer, const Rows& rows) const noexcept;
  float* pageOf(int32_t layer, int32_t page) const noexcept {
    return kvPool_.as<float>() + (size_t(layer) * size_t(numPages_) + size_t(page)) * pageFloats_;
  }

  const Model& model_;
  const Kernels& kernels_;
  ThreadPool& pool_;
  int32_t pageSize_ = 0;
  int32_t numPages_ = 0;
  size_t pageFloats_ = 0;  // of one layer, keys and values
  MappedMemory kvPool_;
  MappedMemory scratch_;  // [threads][scratchStride_]
  size_t scratchStride_ = 0;
  std::vector<MappedMemory> buffers_;

  // Of the running step.
  std::vector<int32_t> positions_;         // by row of the step
  std::vector<const int32_t*> pages_;      // block table, by row of the step
  size_t block_ = 0;                       // first row of the running block
  std::vector<AttendTile> tiles_;          // of the block
  std::vector<AttendTile> gatheredTiles_;  // of its gathered rows
};

}  // namespace nt::cpu
