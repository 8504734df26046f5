// Cuts a graph into the parts that become engines: embedding | one segment per attention layer | head.
//
// A segment takes one row tensor and gives one; its weights are inputs. Segments that are alike but for their
// weights and their place in the KV pool share a shape, and each shape becomes one engine, however deep the
// model: building takes seconds, weights load by plain copies.
#pragma once

#include <string>
#include <vector>

#include "core/graph.h"

namespace nt {

// One weight input of a segment: the concatenation, along the first dimension, of checkpoint tensors.
struct WeightInput {
  std::vector<std::string> names;
  std::vector<int64_t> shape;  // of the network's input; one dimension in the checkpoint becomes [1, n]

  bool operator==(const WeightInput&) const = default;
};

// Nodes with their values renumbered: 0 is the segment's input, node i defines value i + 1, the last node's
// is the output. Names of weights are those of the first segment that has the shape.
struct SegmentShape {
  std::string name;  // "layer", "layer2" ..., "head"
  std::string
      signature;  // equal for equal shapes, across models: operations, attributes, widths, shapes of weights
  std::vector<Node> nodes;
  std::vector<int32_t> widths;  // of each value
  std::vector<std::vector<int64_t>> weightShapes;
  int32_t attentions = 0;  // 1, or 0 for the head

  int32_t inputWidth() const noexcept { return widths.front(); }
  int32_t outputWidth() const noexcept { return widths.back(); }
};

struct Segment {
  size_t shape = 0;                  // index into Partition::shapes
  int32_t layer = -1;                // in the KV pool; -1 for the head
  std::vector<WeightInput> weights;  // as many as the shape's weightShapes
};

struct Partition {
  EmbeddingOp embedding;
  std::vector<int64_t> embeddingShape;  // [vocab, width]
  std::vector<SegmentShape> shapes;     // the head's is the last
  std::vector<Segment> segments;  // in order of execution; the head is the last and runs on gathered rows

  const SegmentShape& headShape() const noexcept { return shapes.back(); }
};

// ERR_MODEL_UNSUPPORTED where the graph is no chain of such segments: something beside the residual stream
// crosses from one layer to the next, the embedding is not the first node, or the layers differ in width.
Expected<Partition> partition(const Graph& graph);

}  // namespace nt
