#include "cpu/model.h"

#include <algorithm>
#include <cmath>

namespace nt::cpu {

namespace {

// Reads weights once each: linear layers (or an embedding) with the same list of names share a matrix.
class WeightLoader {
 public:
  WeightLoader(const Graph& graph, const WeightFiles& files, ThreadPool& pool)
      : graph_(graph), files_(files), pool_(pool) {}

  Status matrix(const std::vector<std::string>& names, std::shared_ptr<const PackedMatrix>& out) {
    auto& shared = matrices_[names];
    if (shared == nullptr) {
      std::vector<TensorInfo> tensors;
      for (const std::string& name : names) {
        auto tensor = find(name);
        if (!tensor) return tensor.status();
        tensors.push_back(*tensor);
      }
      auto loaded = PackedMatrix::load(files_, tensors, pool_);
      if (!loaded) return loaded.status();
      shared = std::make_shared<const PackedMatrix>(std::move(*loaded));
      bytes_ += shared->bytes();
    }
    out = shared;
    return Status::ok();
  }

  // Appends the tensor to `out`.
  Status floats(const std::string& name, std::vector<float>& out) {
    const auto tensor = find(name);
    if (!tensor) return tensor.status();
    const size_t begin = out.size();
    out.resize(begin + tensor->bytes / sizeOf(tensor->dtype));
    bytes_ += (out.size() - begin) * sizeof(float);
    return readFloats(files_, *tensor, out.data() + begin);
  }

  uint64_t bytes() const noexcept { return bytes_; }

 private:
  Expected<TensorInfo> find(const std::string& name) const {
    const auto shape = graph_.weights.find(name);
    if (shape == graph_.weights.end()) {
      return Status("ERR_GRAPH_INVALID", "The graph gives no shape for weight '" + name + "'.");
    }
    return files_.find(name, shape->second);
  }

  const Graph& graph_;
  const WeightFiles& files_;
  ThreadPool& pool_;
  std::map<std::vector<std::string>, std::shared_ptr<const PackedMatrix>> matrices_;
  uint64_t bytes_ = 0;
};

Status loadWeights(const Node& node, WeightLoader& loader, CompiledNode& out) {
  if (const auto* embedding = std::get_if<EmbeddingOp>(&node.op))
    return loader.matrix({embedding->weight}, out.matrix);
  if (const auto* norm = std::get_if<RmsNormOp>(&node.op)) return loader.floats(norm->weight, out.norm);
  if (const auto* linear = std::get_if<LinearOp>(&node.op)) {
    if (Status status = loader.matrix(linear->weights, out.matrix); !status) return status;
    for (const std::string& name : linear->biases) {
      if (Status status = loader.floats(name, out.bias); !status) return status;
    }
    if (!out.bias.empty()) out.bias.resize(out.matrix->panels() * kPanelWidth, 0.0F);
    return Status::ok();
  }
  if (const auto* attention = std::get_if<AttentionOp>(&node.op);
      attention != nullptr && !attention->qNorm.empty()) {
    if (Status status = loader.floats(attention->qNorm, out.qNorm); !status) return status;
    return loader.floats(attention->kNorm, out.kNorm);
  }
  return Status::ok();
}

// Gives every value a buffer; one whose value is no longer used serves the next of the same width.
class BufferPlanner {
 public:
  BufferPlanner(Model& model, size_t gatherCapacity)
      : model_(model),
        graph_(model.graph),
        gatherCapacity_(gatherCapacity),
        buffer_(graph_.values.size(), SIZE_MAX) {}

  void plan() {
    findUses();
    for (size_t i = 0; i < graph_.nodes.size(); ++i) {
      if (i == model_.split) cross();
      place(i);
    }
    if (model_.split == graph_.nodes.size()) cross();
    model_.logits = buffer_[canonical(graph_.logits)];
  }

 private:
  static constexpr size_t kForever = SIZE_MAX;

  // gatherRows makes no value of its own: in the tail all rows are gathered.
  size_t canonical(ValueId value) const {
    for (;;) {
      const auto alias = aliases_.find(value);
      if (alias == aliases_.end()) return size_t(value);
      value = alias->second;
    }
  }

  void findUses() {
    lastUse_.assign(graph_.values.size(), 0);
    for (size_t i = 0; i < graph_.nodes.size(); ++i) {
      const Node& node = graph_.nodes[i];
      if (std::holds_alternative<GatherRowsOp>(node.op)) {
        aliases_[node.output] = node.inputs.front();
        continue;
      }
      for (const ValueId input : node.inputs) lastUse_[canonical(input)] = i;
    }
    lastUse_[canonical(graph_.logits)] = kForever;
  }

  size_t acquire(size_t stride, size_t rows) {
    auto& free = free_[{stride, rows}];
    if (!free.empty()) {
      const size_t buffer = free.back();
      free.pop_back();
      return buffer;
    }
    model_.buffers.push_back({stride, rows});
    return model_.buffers.size() - 1;
  }

  void release(size_t value) {
    const Buffer& buffer = model_.buffers[buffer_[value]];
    free_[{buffer.stride, buffer.rows}].push_back(buffer_[value]);
  }

  void place(size_t index) {
    const Node& node = graph_.nodes[index];
    if (std::holds_alternative<GatherRowsOp>(node.op)) return;
    CompiledNode& compiled = model_.nodes[index];
    const size_t output = canonical(node.output);
    const size_t rows = index < model_.split ? kHeadRows : kTailRows;
    buffer_[output] = acquire(rowStride(size_t(graph_.values[output].width)), rows);
    compiled.output = buffer_[output];
    for (const ValueId input : node.inputs) {
      if (input == kTokenIds) continue;
      compiled.inputs.push_back(buffer_[canonical(input)]);
    }
    for (size_t i = 0; i < node.inputs.size(); ++i) {
      const size_t input = canonical(node.inputs[i]);
      const bool again = std::find(node.inputs.begin(), node.inputs.begin() + long(i), node.inputs[i]) !=
                         node.inputs.begin() + long(i);
      // A value that crosses keeps its buffer: the next block of rows does not need it, but this block's
      // gathering does.
      if (node.inputs[i] != kTokenIds && !again && lastUse_[input] == index) release(input);
    }
  }

  void cross() {
    for (size_t value = 1; value < buffer_.size(); ++value) {
      const bool used = lastUse_[value] >= model_.split && (lastUse_[value] != 0);
      if (buffer_[value] == SIZE_MAX || !used) continue;
      const auto width = size_t(graph_.values[value].width);
      model_.buffers.push_back({rowStride(width), gatherCapacity_});
      model_.crossings.push_back({buffer_[value], model_.buffers.size() - 1, width});
      buffer_[value] = model_.buffers.size() - 1;
    }
    free_.clear();
  }

  Model& model_;
  const Graph& graph_;
  size_t gatherCapacity_;
  std::map<ValueId, ValueId> aliases_;
  std::vector<size_t> lastUse_;
  std::vector<size_t> buffer_;
  std::map<std::pair<size_t, size_t>, std::vector<size_t>> free_;
};

// Hugging Face's rounding: the angle is a float32 product, cos and sin of it are rounded to float32.
RopeTable makeRopeTable(const Rope& rope, size_t positions, ThreadPool& pool) {
  RopeTable table;
  table.half = rope.invFreq.size();
  table.cos.resize(positions * table.half);
  table.sin.resize(positions * table.half);
  constexpr size_t kPositionsPerTask = 64;
  pool.run((positions + kPositionsPerTask - 1) / kPositionsPerTask, [&](size_t task, int) {
    const size_t end = std::min(positions, (task + 1) * kPositionsPerTask);
    for (size_t position = task * kPositionsPerTask; position < end; ++position) {
      for (size_t i = 0; i < table.half; ++i) {
        const float angle = float(position) * rope.invFreq[i];
        table.cos[position * table.half + i] = float(std::cos(double(angle))) * rope.scale;
        table.sin[position * table.half + i] = float(std::sin(double(angle))) * rope.scale;
      }
    }
  });
  return table;
}

Status splitGraph(Model& model) {
  size_t gather = SIZE_MAX;
  for (size_t i = 0; i < model.graph.nodes.size(); ++i) {
    const auto& op = model.graph.nodes[i].op;
    if (std::holds_alternative<GatherRowsOp>(op)) gather = i;
    if (std::holds_alternative<AttentionOp>(op)) model.lastAttention = i;
  }
  if (gather == SIZE_MAX) return {"ERR_GRAPH_INVALID", "The graph has no gatherRows node."};
  if (model.lastAttention != SIZE_MAX && gather < model.lastAttention) {
    return {"ERR_GRAPH_INVALID", "The graph gathers rows before its last attention node."};
  }
  model.split = model.lastAttention == SIZE_MAX ? gather : model.lastAttention + 1;
  return Status::ok();
}

}  // namespace

Expected<std::unique_ptr<Model>> loadModel(std::string_view graphJson, const std::vector<std::string>& files,
                                           size_t gatherCapacity, ThreadPool& pool) {
  auto graph = parseGraph(graphJson);
  if (!graph) return graph.status();
  auto model = std::make_unique<Model>();
  model->graph = std::move(*graph);
  if (model->graph.headDim % 8 != 0) {
    return Status("ERR_MODEL_UNSUPPORTED",
                  "The CPU backend needs a head size that is a multiple of 8; this model's is " +
                      std::to_string(model->graph.headDim) + ".");
  }
  auto weights = WeightFiles::open(files);
  if (!weights) return weights.status();
  if (Status status = splitGraph(*model); !status) return status;

  WeightLoader loader(model->graph, **weights, pool);
  model->nodes.resize(model->graph.nodes.size());
  for (size_t i = 0; i < model->nodes.size(); ++i) {
    model->nodes[i].node = &model->graph.nodes[i];
    if (Status status = loadWeights(model->graph.nodes[i], loader, model->nodes[i]); !status) return status;
  }
  model->weightBytes = loader.bytes();
  BufferPlanner(*model, gatherCapacity).plan();
  return model;
}

void addRopeTables(Model& model, size_t kvTokens, ThreadPool& pool) {
  const size_t positions = std::min(size_t(model.graph.maxPositions), kvTokens);
  for (const Rope& rope : model.graph.ropes) model.ropes.push_back(makeRopeTable(rope, positions, pool));
}

}  // namespace nt::cpu
