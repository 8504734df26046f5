// A graph with its weights, laid out for the CPU: which nodes run on all rows and which on gathered rows
// alone, and the buffers between them.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "core/graph.h"
#include "core/safetensors.h"
#include "core/status.h"
#include "cpu/packed_matrix.h"
#include "cpu/thread_pool.h"

namespace nt::cpu {

// Rows that pass through the head, and gathered rows that pass through the tail, at a time: large enough to
// use each weight often, small enough for the caches. No result depends on them.
inline constexpr size_t kHeadRows = 256;
inline constexpr size_t kTailRows = 64;

// Distance of rows of `width` floats: whole panels, and no power of two, for the sake of the caches' sets.
constexpr size_t rowStride(size_t width) {
  return (width + kPanelWidth - 1) / kPanelWidth * kPanelWidth + 16;
}

struct CompiledNode {
  const Node* node = nullptr;
  std::shared_ptr<const PackedMatrix> matrix;  // embedding, linear
  std::vector<float> bias;                     // linear: [panels * 32], or empty
  std::vector<float> norm;                     // rmsNorm
  std::vector<float> qNorm, kNorm;             // attention: [headDim], or empty
  std::vector<size_t> inputs;                  // buffers; none for an embedding
  size_t output = 0;
};

struct Buffer {
  size_t stride = 0;  // floats
  size_t rows = 0;
};

// A value made by the head and used by the tail: gathered rows of `from` are collected in `to`.
struct Crossing {
  size_t from = 0;
  size_t to = 0;
  size_t width = 0;
};

struct RopeTable {
  std::vector<float> cos, sin;  // [positions][half]
  size_t half = 0;
};

struct Model {
  Graph graph;
  std::vector<CompiledNode> nodes;
  // Nodes before `split` end with the last attention and run on all rows. Those after work row by row, and so
  // only on rows that somebody wants the logits of, wherever the graph says that it gathers them.
  size_t split = 0;
  size_t lastAttention = SIZE_MAX;  // its queries need to run for gathered rows alone
  std::vector<Buffer> buffers;
  std::vector<Crossing> crossings;
  size_t logits = 0;             // buffer
  std::vector<RopeTable> ropes;  // none before addRopeTables
  uint64_t weightBytes = 0;
};

// ERR_GRAPH_INVALID, ERR_WEIGHTS_*, ERR_MODEL_*, ERR_IO, ERR_OUT_OF_MEMORY. `gatherCapacity` = most gathered
// rows of a step.
Expected<std::unique_ptr<Model>> loadModel(std::string_view graphJson, const std::vector<std::string>& files,
                                           size_t gatherCapacity, ThreadPool& pool);

// The model cannot run without them. No sequence has more positions than the KV cache has tokens, however
// long a context the model's config names. Throws std::bad_alloc.
void addRopeTables(Model& model, size_t kvTokens, ThreadPool& pool);

}  // namespace nt::cpu
