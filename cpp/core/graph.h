// The model IR: parsed from the JSON that lib/models writes (lib/models/graph.ts documents each field), and
// checked.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "core/dtype.h"
#include "core/status.h"

namespace nt {

inline constexpr int kGraphVersion = 1;

// Tensors are numbered in order of definition. Value 0 is the step's token ids.
using ValueId = int32_t;
inline constexpr ValueId kTokenIds = 0;

struct Rope {
  std::vector<float> invFreq;  // [headDim / 2]
  float scale = 1.0F;
};

struct EmbeddingOp {
  std::string weight;  // [vocab, width]
  float scale = 1.0F;
};
struct RmsNormOp {
  std::string weight;
  float eps = 0;
};
struct LinearOp {
  std::vector<std::string> weights;  // each [out_i, in]; concatenated along out
  std::vector<std::string> biases;   // each [out_i]; as many as weights, or none
};
struct AttentionOp {
  int32_t layer = 0;
  int32_t heads = 0;
  int32_t kvHeads = 0;
  int32_t headDim = 0;
  float scale = 0;
  int32_t rope = 0;    // index into Graph::ropes
  int32_t window = 0;  // tokens; 0 = none
  // RMS norm of each head of q and k before the rotation; both empty where there is none.
  std::string qNorm;
  std::string kNorm;
  float qkNormEps = 0;
};
enum class Gate : uint8_t { kSilu, kGelu };
struct GatedActivationOp {
  Gate gate = Gate::kSilu;
};
struct AddOp {};
struct GatherRowsOp {};

struct Node {
  std::variant<EmbeddingOp, RmsNormOp, LinearOp, AttentionOp, GatedActivationOp, AddOp, GatherRowsOp> op;
  std::vector<ValueId> inputs;
  ValueId output = -1;
};

struct Value {
  std::string name;
  int32_t width = 0;      // columns
  bool gathered = false;  // rows are the gathered ones
};

struct Graph {
  std::string family;
  int32_t vocabSize = 0;
  int32_t maxPositions = 0;
  DType dtype = DType::kF32;
  std::map<std::string, std::vector<int64_t>> weights;  // name -> shape that the checkpoint must have
  std::vector<Rope> ropes;
  std::vector<Value> values;
  std::vector<Node> nodes;
  ValueId logits = -1;

  // KV geometry, the same for every attention node.
  int32_t layers = 0;
  int32_t kvHeads = 0;
  int32_t headDim = 0;

  // Bytes that one page of `pageSize` tokens takes over all layers, K and V, at `elementSize` bytes.
  size_t pageBytes(int32_t pageSize, size_t elementSize) const noexcept {
    return size_t(layers) * 2 * size_t(pageSize) * size_t(kvHeads) * size_t(headDim) * elementSize;
  }

  // Width of the hidden states: what the final norm gives and the last node, a linear layer, makes logits of.
  // 0 where the graph does not end so.
  int32_t hiddenSize() const noexcept;
};

// Checks everything that can be checked without the weights: version, names defined before use and once,
// widths that fit, layers 0 ... n-1 each used once, one geometry, exactly one gatherRows, logits of vocabSize
// columns on gathered rows, finite numbers. ERR_GRAPH_INVALID names the node.
Expected<Graph> parseGraph(std::string_view json);

}  // namespace nt
