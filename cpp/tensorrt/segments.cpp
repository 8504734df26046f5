#include "tensorrt/segments.h"

#include <algorithm>
#include <bit>
#include <map>

namespace nt {

namespace {

template <class... Fns>
struct Overloaded : Fns... {
  using Fns::operator()...;
};

Status unsupported(const std::string& what) {
  return {"ERR_MODEL_UNSUPPORTED", "The TensorRT backend cannot split this graph into layers: " + what,
          "The CPU backend runs it"};
}

// Writes a signature: every number in a fixed form, so that equal text means equal networks.
class Signature {
 public:
  Signature& op(const char* name) {
    text_ += text_.empty() ? name : std::string("\n") + name;
    return *this;
  }
  Signature& integer(int64_t value) {
    text_ += ' ' + std::to_string(value);
    return *this;
  }
  Signature& real(float value) { return integer(std::bit_cast<int32_t>(value)); }
  Signature& shape(const std::vector<int64_t>& dims) {
    text_ += " [";
    for (const int64_t n : dims) integer(n);
    text_ += " ]";
    return *this;
  }
  std::string take() { return std::move(text_); }

 private:
  std::string text_;
};

class SegmentBuilder {
 public:
  SegmentBuilder(const Graph& graph, size_t begin, size_t end, ValueId input) : graph_(graph) {
    number(input);
    for (size_t i = begin; i < end; ++i) add(graph.nodes[i]);
    signature_.op("out").integer(shape_.widths.back());
    shape_.signature = signature_.take();
    for (const WeightInput& weight : segment_.weights) shape_.weightShapes.push_back(weight.shape);
  }

  SegmentShape& shape() { return shape_; }
  Segment& segment() { return segment_; }

 private:
  void number(ValueId value) {
    local_[value] = static_cast<ValueId>(shape_.widths.size());
    shape_.widths.push_back(graph_.values[static_cast<size_t>(value)].width);
  }

  std::vector<int64_t> checkpointShape(const std::string& name) const { return graph_.weights.at(name); }

  // `leading`: 1s that the network wants before a vector's own dimension, so that it broadcasts over rows.
  void weight(const std::vector<std::string>& names, size_t rank) {
    WeightInput input{names, checkpointShape(names.front())};
    for (size_t i = 1; i < names.size(); ++i) input.shape.front() += checkpointShape(names[i]).front();
    while (input.shape.size() < rank) input.shape.insert(input.shape.begin(), 1);
    signature_.shape(input.shape);
    segment_.weights.push_back(std::move(input));
  }

  void add(const Node& node) {
    std::visit(Overloaded{
                   [&](const EmbeddingOp&) { signature_.op("embedding"); },
                   [&](const RmsNormOp& op) {
                     signature_.op("rmsNorm").real(op.eps);
                     weight({op.weight}, 2);
                   },
                   [&](const LinearOp& op) {
                     signature_.op("linear");
                     weight(op.weights, 2);
                     if (!op.biases.empty()) weight(op.biases, 2);
                   },
                   [&](const AttentionOp& op) {
                     signature_.op("attention")
                         .integer(op.heads)
                         .integer(op.kvHeads)
                         .integer(op.headDim)
                         .real(op.scale);
                     signature_.integer(op.rope).integer(op.window);
                     if (!op.qNorm.empty()) {
                       signature_.op("qkNorm").real(op.qkNormEps);
                       weight({op.qNorm}, 3);
                       weight({op.kNorm}, 3);
                     }
                     segment_.layer = op.layer;
                     ++shape_.attentions;
                   },
                   [&](const GatedActivationOp& op) {
                     signature_.op(op.gate == Gate::kSilu ? "siluMul" : "geluMul");
                   },
                   [&](const AddOp&) { signature_.op("add"); },
                   [&](const GatherRowsOp&) { signature_.op("gatherRows"); },
               },
               node.op);
    Node local = node;
    for (ValueId& input : local.inputs) {
      input = local_.at(input);
      signature_.integer(input);
    }
    number(node.output);
    local.output = local_.at(node.output);
    signature_.integer(shape_.widths.back());
    shape_.nodes.push_back(std::move(local));
  }

  const Graph& graph_;
  std::map<ValueId, ValueId> local_;
  SegmentShape shape_;
  Segment segment_;
  Signature signature_;
};

// What crosses the border before node `at`: the values defined before it that are used by it or later.
class Borders {
 public:
  explicit Borders(const Graph& graph)
      : definedAt_(graph.values.size(), -1), lastUse_(graph.values.size(), -1), nodes_(graph.nodes.size()) {
    for (size_t i = 0; i < nodes_; ++i) {
      definedAt_[static_cast<size_t>(graph.nodes[i].output)] = static_cast<int64_t>(i);
      for (const ValueId input : graph.nodes[i].inputs)
        lastUse_[static_cast<size_t>(input)] = static_cast<int64_t>(i);
    }
    lastUse_[static_cast<size_t>(graph.logits)] = static_cast<int64_t>(nodes_);
  }

  // The one value that crosses, or -1 where there are more or none.
  ValueId single(size_t at) const {
    ValueId found = -1;
    for (size_t v = 0; v < definedAt_.size(); ++v) {
      if (definedAt_[v] >= static_cast<int64_t>(at) || lastUse_[v] < static_cast<int64_t>(at)) continue;
      if (found >= 0) return -1;
      found = static_cast<ValueId>(v);
    }
    return found;
  }

 private:
  std::vector<int64_t> definedAt_;  // -1: the token ids
  std::vector<int64_t> lastUse_;
  size_t nodes_;
};

}  // namespace

Expected<Partition> partition(const Graph& graph) {
  Partition result;
  const auto is = [&]<class Op>(size_t i, const Op*) {
    return std::holds_alternative<Op>(graph.nodes[i].op);
  };
  const size_t nodes = graph.nodes.size();
  std::vector<size_t> attentions;
  size_t gather = nodes;
  for (size_t i = 0; i < nodes; ++i) {
    if (i > 0 && is(i, static_cast<EmbeddingOp*>(nullptr)))
      return unsupported("it has more than one embedding");
    if (is(i, static_cast<AttentionOp*>(nullptr))) attentions.push_back(i);
    if (is(i, static_cast<GatherRowsOp*>(nullptr))) gather = i;
  }
  if (nodes == 0 || !is(0, static_cast<EmbeddingOp*>(nullptr)))
    return unsupported("it does not begin with the embedding");
  if (attentions.empty() || gather < attentions.back())
    return unsupported("it has no attention before it gathers rows");
  if (gather + 1 >= nodes) return unsupported("nothing follows the gathering of rows");
  if (graph.logits != graph.nodes.back().output)
    return unsupported("the logits are not what the last node gives");
  for (const size_t attention : attentions) {
    const ValueId input = graph.nodes[attention].inputs[0];
    const auto reads = [&](const Node& node) {
      return std::find(node.inputs.begin(), node.inputs.end(), input) != node.inputs.end();
    };
    // Attention may rotate it in place.
    if (std::count_if(graph.nodes.begin(), graph.nodes.end(), reads) != 1)
      return unsupported("something else reads what an attention takes");
  }
  result.embedding = std::get<EmbeddingOp>(graph.nodes.front().op);
  result.embeddingShape = graph.weights.at(result.embedding.weight);

  const Borders borders(graph);
  std::vector<size_t> starts = {1};
  for (size_t k = 1; k < attentions.size(); ++k) {
    size_t at = attentions[k];
    while (at > attentions[k - 1] && borders.single(at) < 0) --at;
    if (at == attentions[k - 1]) {
      return unsupported("more than one value crosses from attention " + std::to_string(k - 1) +
                         " to the next");
    }
    starts.push_back(at);
  }
  starts.push_back(gather);
  const ValueId gathered = graph.nodes[gather].output;
  if (borders.single(gather) < 0 || borders.single(gather + 1) != gathered) {
    return unsupported("more than one value crosses the gathering of rows");
  }

  const auto append = [&](size_t begin, size_t end, ValueId input, const char* name) {
    SegmentBuilder builder(graph, begin, end, input);
    const auto known =
        std::find_if(result.shapes.begin(), result.shapes.end(),
                     [&](const SegmentShape& shape) { return shape.signature == builder.shape().signature; });
    builder.segment().shape = static_cast<size_t>(known - result.shapes.begin());
    if (known == result.shapes.end()) {
      builder.shape().name = name;
      if (!result.shapes.empty() && builder.shape().attentions > 0) {
        builder.shape().name += std::to_string(result.shapes.size() + 1);
      }
      result.shapes.push_back(std::move(builder.shape()));
    }
    result.segments.push_back(std::move(builder.segment()));
  };
  const auto width = static_cast<int32_t>(result.embeddingShape.at(1));
  for (size_t k = 0; k + 1 < starts.size(); ++k) {
    const ValueId input = borders.single(starts[k]);
    const ValueId output = borders.single(starts[k + 1]);
    if (graph.values[static_cast<size_t>(input)].width != width ||
        graph.values[static_cast<size_t>(output)].width != width) {
      return unsupported("the residual stream changes its width");
    }
    // The output must be the last node's: a value that only passes through would have no engine output of its
    // own.
    if (graph.nodes[starts[k + 1] - 1].output != output) {
      return unsupported("node " + std::to_string(starts[k + 1] - 1) + " is not on the way to the logits");
    }
    append(starts[k], starts[k + 1], input, "layer");
  }
  append(gather + 1, nodes, gathered, "head");
  return result;
}

}  // namespace nt
