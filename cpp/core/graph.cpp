#include "core/graph.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <initializer_list>
#include <limits>
#include <new>
#include <optional>
#include <utility>

#include "core/json.h"
#include "core/text.h"

namespace nt {

namespace {

constexpr int64_t kInt32Max = std::numeric_limits<int32_t>::max();
constexpr size_t kMaxRank = 8;
// Elements of one weight: its bytes then fit into int64 with room to spare.
constexpr int64_t kMaxElements = int64_t{1} << 56;

// Reads the fields of one JSON object. The first failure is kept, and every later read gives a default:
// callers read all fields and check `ok` once.
class Fields {
 public:
  Fields(JsonValue object, std::string where) : object_(object), where_(std::move(where)) {
    if (!object.isObject()) fail("expected an object");
  }

  bool ok() const noexcept { return error_.isOk(); }
  Status error() const { return error_; }
  const std::string& where() const noexcept { return where_; }

  void fail(const std::string& what) {
    if (error_.isOk()) error_ = Status("ERR_GRAPH_INVALID", where_ + ": " + what);
  }

  void adopt(Status error) {
    if (error_.isOk()) error_ = std::move(error);
  }

  // A field that this version doesn't know would be ignored in silence, and the model would compute something
  // else.
  void allowOnly(std::initializer_list<std::string_view> known) {
    for (const auto& [name, value] : object_.members()) {
      if (std::find(known.begin(), known.end(), name) == known.end()) fail("unknown field " + quoted(name));
    }
  }

  std::optional<JsonValue> field(std::string_view name) {
    if (!ok()) return std::nullopt;
    const auto value = object_.find(name);
    if (!value) fail("field " + quoted(name) + " is missing");
    return value;
  }

  std::string string(std::string_view name) {
    const auto value = field(name);
    if (!value) return {};
    const auto text = value->string();
    if (text && !text->empty()) return std::string(*text);
    fail(quoted(name) + " must be a string that is not empty");
    return {};
  }

  int32_t integer(std::string_view name, int64_t lowest) {
    const auto value = field(name);
    if (!value) return 0;
    const auto number = value->integer();
    if (number && *number >= lowest && *number <= kInt32Max) return static_cast<int32_t>(*number);
    fail(quoted(name) + " must be an integer of at least " + std::to_string(lowest) +
         " that fits into 32 bits");
    return 0;
  }

  // Finite as float32 too.
  float real(std::string_view name) {
    const auto value = field(name);
    if (!value) return 0;
    if (const auto number = finiteFloat(*value)) return *number;
    fail(quoted(name) + " must be a finite number within float32");
    return 0;
  }

  float positive(std::string_view name) {
    const float value = real(name);
    if (ok() && !(value > 0)) fail(quoted(name) + " must be greater than 0");
    return value;
  }

  std::vector<std::string> strings(std::string_view name) {
    const auto value = field(name);
    if (!value) return {};
    std::vector<std::string> result;
    if (!value->isArray()) fail(quoted(name) + " must be an array of strings");
    for (const JsonValue element : value->elements()) {
      const auto text = element.string();
      if (!text || text->empty()) {
        fail(quoted(name) + " must be an array of strings that are not empty");
        return {};
      }
      result.emplace_back(*text);
    }
    return result;
  }

  static std::optional<float> finiteFloat(JsonValue value) {
    const auto number = value.number();
    if (!number || !(std::fabs(*number) <= static_cast<double>(std::numeric_limits<float>::max())))
      return std::nullopt;
    return static_cast<float>(*number);
  }

 private:
  JsonValue object_;
  std::string where_;
  Status error_;
};

class GraphParser {
 public:
  Expected<Graph> parse(JsonValue root) {
    Fields fields(root, "graph");
    // The version first: another version may have other fields.
    if (fields.ok()) {
      const auto version = root.find("version");
      const auto number = version ? version->integer() : std::nullopt;
      if (number != kGraphVersion) {
        return Status("ERR_GRAPH_INVALID",
                      "graph: this build reads version " + std::to_string(kGraphVersion) +
                          (number ? ", not " + std::to_string(*number) : ", and the graph names none"),
                      "Use the graph, the addon and the JavaScript of one release of node-tensorrt");
      }
    }
    fields.allowOnly(
        {"version", "family", "vocabSize", "maxPositions", "dtype", "weights", "ropes", "nodes", "logits"});
    graph_.family = fields.string("family");
    graph_.vocabSize = fields.integer("vocabSize", 1);
    graph_.maxPositions = fields.integer("maxPositions", 1);
    const std::string dtype = fields.string("dtype");
    const std::string logits = fields.string("logits");
    const auto weights = fields.field("weights");
    const auto ropes = fields.field("ropes");
    const auto nodes = fields.field("nodes");
    if (fields.ok() && !parseDType(dtype))
      fields.fail("'dtype' must be F32, F16 or BF16, not " + quoted(dtype));
    if (fields.ok() && !weights->isObject()) fields.fail("'weights' must be an object");
    if (fields.ok() && !ropes->isObject()) fields.fail("'ropes' must be an object");
    if (fields.ok() && !nodes->isArray()) fields.fail("'nodes' must be an array");
    if (!fields.ok()) return fields.error();
    graph_.dtype = *parseDType(dtype);

    if (Status status = parseWeights(*weights); !status) return status;
    if (Status status = parseRopes(*ropes); !status) return status;
    // Not in `ids_`: no node refers to it by name, embedding takes it implicitly.
    graph_.values.push_back({"token ids", 1, false});
    graph_.nodes.reserve(nodes->size());
    size_t index = 0;
    for (const JsonValue node : nodes->elements()) {
      if (Status status = parseNode(node, index++); !status) return status;
    }
    if (Status status = checkWhole(logits); !status) return status;
    return std::move(graph_);
  }

 private:
  static Status invalid(const std::string& message) { return {"ERR_GRAPH_INVALID", message}; }

  Status parseWeights(JsonValue object) {
    for (const auto& [name, value] : object.members()) {
      const std::string where = "graph: weight " + quoted(name);
      if (name.empty() || !value.isArray() || value.size() == 0 || value.size() > kMaxRank) {
        return invalid(where + ": expected a name and a shape of 1 to " + std::to_string(kMaxRank) +
                       " dimensions");
      }
      std::vector<int64_t> shape;
      int64_t elements = 1;
      for (const JsonValue element : value.elements()) {
        const int64_t dimension = element.integer().value_or(0);
        if (dimension < 1 || dimension > kInt32Max || elements > kMaxElements / dimension) {
          return invalid(where + ": dimensions must be positive 32-bit integers with a product below 2^56");
        }
        elements *= dimension;
        shape.push_back(dimension);
      }
      graph_.weights.emplace(name, std::move(shape));
    }
    return {};
  }

  Status parseRopes(JsonValue object) {
    for (const auto& [name, value] : object.members()) {
      Fields fields(value, "graph: rope " + quoted(name));
      fields.allowOnly({"invFreq", "scale"});
      Rope rope;
      rope.scale = fields.positive("scale");
      const auto frequencies = fields.field("invFreq");
      if (fields.ok() && (!frequencies->isArray() || frequencies->size() == 0)) {
        fields.fail("'invFreq' must be an array of numbers");
      }
      if (!fields.ok()) return fields.error();
      rope.invFreq.reserve(frequencies->size());
      for (const JsonValue element : frequencies->elements()) {
        const auto frequency = Fields::finiteFloat(element);
        if (!frequency || *frequency < 0)
          return invalid(fields.where() + ": 'invFreq' must hold finite numbers >= 0");
        rope.invFreq.push_back(*frequency);
      }
      ropeIds_.emplace(name, static_cast<int32_t>(graph_.ropes.size()));
      graph_.ropes.push_back(std::move(rope));
    }
    return {};
  }

  Status parseNode(JsonValue object, size_t index) {
    std::string where = "graph: node " + std::to_string(index);
    if (object.isObject()) {
      for (const std::string_view name : {"op", "output"}) {
        const auto value = object.find(name);
        const auto text = value ? value->string() : std::nullopt;
        if (text) where += " " + quoted(*text);
      }
    }
    Fields node(object, where);
    const std::string op = node.string("op");
    if (!node.ok()) return node.error();
    using Method = void (GraphParser::*)(Fields&, Node&, Value&);
    static constexpr std::array<std::pair<std::string_view, Method>, 8> kOps{{
        {"embedding", &GraphParser::embedding},
        {"rmsNorm", &GraphParser::rmsNorm},
        {"linear", &GraphParser::linear},
        {"attention", &GraphParser::attention},
        {"siluMul", &GraphParser::siluMul},
        {"geluMul", &GraphParser::geluMul},
        {"add", &GraphParser::add},
        {"gatherRows", &GraphParser::gatherRows},
    }};
    const auto* known =
        std::find_if(kOps.begin(), kOps.end(), [&](const auto& entry) { return entry.first == op; });
    if (known == kOps.end()) {
      node.fail("unknown op");
      return node.error();
    }
    Node result;
    Value output;
    output.name = node.string("output");
    if (node.ok()) (this->*known->second)(node, result, output);
    if (node.ok() && ids_.contains(output.name)) node.fail("the output's name is defined twice");
    if (!node.ok()) return node.error();
    result.output = static_cast<ValueId>(graph_.values.size());
    ids_.emplace(output.name, result.output);
    graph_.values.push_back(std::move(output));
    graph_.nodes.push_back(std::move(result));
    return {};
  }

  // The value of that name; the token ids, after a failure, where there is none.
  const Value& use(Fields& node, Node& result, const std::string& name) {
    const auto found = ids_.find(name);
    if (node.ok() && found == ids_.end()) node.fail("input " + quoted(name) + " is not defined before");
    result.inputs.push_back(node.ok() ? found->second : kTokenIds);
    return graph_.values[static_cast<size_t>(result.inputs.back())];
  }

  // Resolves the field "input"; the output takes its rows over.
  const Value& input(Fields& node, Node& result, Value& output) {
    const Value& value = use(node, result, node.string("input"));
    output.gathered = value.gathered;
    return value;
  }

  // The shape of a weight; -1 stands for any size. Returns the first dimension, 0 after a failure.
  int64_t weight(Fields& node, const std::string& name, std::initializer_list<int64_t> expected) {
    if (!node.ok()) return 0;
    const auto found = graph_.weights.find(name);
    if (found == graph_.weights.end()) {
      node.fail("weight " + quoted(name) + " is not in 'weights'");
      return 0;
    }
    const auto& shape = found->second;
    const bool fits = std::equal(shape.begin(), shape.end(), expected.begin(), expected.end(),
                                 [](int64_t has, int64_t wants) { return wants == -1 || has == wants; });
    if (fits) return shape[0];
    std::string wanted = shapeText(std::vector<int64_t>(expected));
    if (const size_t any = wanted.find("-1"); any != std::string::npos) wanted.replace(any, 2, "any");
    node.fail("weight " + quoted(name) + " has shape " + shapeText(shape) + ", the op needs " + wanted);
    return 0;
  }

  void embedding(Fields& node, Node& result, Value& output) {
    node.allowOnly({"op", "output", "weight", "scale"});
    EmbeddingOp op;
    op.weight = node.string("weight");
    op.scale = node.positive("scale");
    const auto found = graph_.weights.find(op.weight);
    const int64_t width = found != graph_.weights.end() && found->second.size() == 2 ? found->second[1] : -1;
    weight(node, op.weight, {graph_.vocabSize, width});
    result.inputs.push_back(kTokenIds);
    output.width = static_cast<int32_t>(width);
    result.op = std::move(op);
  }

  void rmsNorm(Fields& node, Node& result, Value& output) {
    node.allowOnly({"op", "input", "output", "weight", "eps"});
    RmsNormOp op;
    output.width = input(node, result, output).width;
    op.weight = node.string("weight");
    op.eps = node.positive("eps");
    weight(node, op.weight, {output.width});
    result.op = std::move(op);
  }

  void linear(Fields& node, Node& result, Value& output) {
    node.allowOnly({"op", "input", "output", "weights", "biases"});
    LinearOp op;
    const int64_t in = input(node, result, output).width;
    op.weights = node.strings("weights");
    op.biases = node.strings("biases");
    if (op.weights.empty()) node.fail("'weights' must not be empty");
    if (!op.biases.empty() && op.biases.size() != op.weights.size())
      node.fail("needs as many biases as weights, or none");
    int64_t width = 0;
    for (size_t i = 0; i < op.weights.size() && node.ok(); ++i) {
      const int64_t out = weight(node, op.weights[i], {-1, in});
      if (!op.biases.empty()) weight(node, op.biases[i], {out});
      width += out;
      if (width > kInt32Max) node.fail("the output is wider than 2^31 - 1");
    }
    if (node.ok()) output.width = static_cast<int32_t>(width);
    result.op = std::move(op);
  }

  void attention(Fields& node, Node& result, Value& output) {
    node.allowOnly({"op", "input", "output", "layer", "heads", "kvHeads", "headDim", "scale", "rope",
                    "window", "qkNorm"});
    AttentionOp op;
    const Value& from = input(node, result, output);
    op.layer = node.integer("layer", 0);
    op.heads = node.integer("heads", 1);
    op.kvHeads = node.integer("kvHeads", 1);
    op.headDim = node.integer("headDim", 2);
    op.scale = node.positive("scale");
    op.window = node.integer("window", 0);
    const std::string rope = node.string("rope");
    const auto qkNorm = node.field("qkNorm");
    if (!node.ok()) return;

    if (from.gathered)
      node.fail("attention must come before gatherRows, or keys of the other rows would be lost");
    if (op.heads % op.kvHeads != 0) node.fail("'heads' must be a multiple of 'kvHeads'");
    if (op.headDim % 2 != 0) node.fail("'headDim' must be even");
    const int64_t heads = int64_t{op.heads} + 2 * int64_t{op.kvHeads};
    if (heads > kInt32Max / op.headDim || heads * op.headDim != from.width) {
      node.fail("the input is " + std::to_string(from.width) +
                " wide, expected (heads + 2 * kvHeads) * headDim = (" + std::to_string(op.heads) + " + 2 * " +
                std::to_string(op.kvHeads) + ") * " + std::to_string(op.headDim));
    }
    const auto table = ropeIds_.find(rope);
    if (table == ropeIds_.end()) {
      node.fail("rope " + quoted(rope) + " is not in 'ropes'");
    } else {
      op.rope = table->second;
      const size_t pairs = graph_.ropes[static_cast<size_t>(op.rope)].invFreq.size();
      if (pairs != static_cast<size_t>(op.headDim / 2)) {
        node.fail("rope " + quoted(rope) + " has " + std::to_string(pairs) +
                  " frequencies, expected headDim / 2 = " + std::to_string(op.headDim / 2));
      }
    }
    if (!qkNorm->isNull()) {
      Fields norm(*qkNorm, node.where() + " 'qkNorm'");
      norm.allowOnly({"q", "k", "eps"});
      op.qNorm = norm.string("q");
      op.kNorm = norm.string("k");
      op.qkNormEps = norm.positive("eps");
      weight(norm, op.qNorm, {op.headDim});
      weight(norm, op.kNorm, {op.headDim});
      if (!norm.ok()) node.adopt(norm.error());
    }
    if (node.ok()) output.width = op.heads * op.headDim;
    result.op = std::move(op);
  }

  void siluMul(Fields& node, Node& result, Value& output) {
    gatedActivation(node, result, output, Gate::kSilu);
  }
  void geluMul(Fields& node, Node& result, Value& output) {
    gatedActivation(node, result, output, Gate::kGelu);
  }

  void gatedActivation(Fields& node, Node& result, Value& output, Gate gate) {
    node.allowOnly({"op", "input", "output"});
    const int32_t width = input(node, result, output).width;
    if (width % 2 != 0) node.fail("the input is " + std::to_string(width) + " wide, expected an even width");
    output.width = width / 2;
    result.op = GatedActivationOp{gate};
  }

  void add(Fields& node, Node& result, Value& output) {
    node.allowOnly({"op", "inputs", "output"});
    const std::vector<std::string> names = node.strings("inputs");
    if (names.size() != 2) node.fail("'inputs' must be two names");
    if (!node.ok()) return;
    const Value& a = use(node, result, names[0]);
    const Value& b = use(node, result, names[1]);
    if (a.width != b.width) {
      node.fail("the inputs are " + std::to_string(a.width) + " and " + std::to_string(b.width) + " wide");
    }
    if (a.gathered != b.gathered) node.fail("one input holds all rows, the other the gathered ones");
    output.width = a.width;
    output.gathered = a.gathered;
    result.op = AddOp{};
  }

  void gatherRows(Fields& node, Node& result, Value& output) {
    node.allowOnly({"op", "input", "output"});
    output.width = input(node, result, output).width;
    if (output.gathered) node.fail("the rows are gathered already");
    if (gathers_++ > 0) node.fail("a graph has one gatherRows");
    output.gathered = true;
    result.op = GatherRowsOp{};
  }

  Status checkWhole(const std::string& logits) {
    if (gathers_ == 0) return invalid("graph: has no gatherRows");
    if (Status status = checkGeometry(); !status) return status;
    const auto found = ids_.find(logits);
    if (found == ids_.end())
      return invalid("graph: 'logits' names " + quoted(logits) + ", which no node defines");
    const Value& value = graph_.values[static_cast<size_t>(found->second)];
    if (!value.gathered || value.width != graph_.vocabSize) {
      return invalid("graph: logits " + quoted(logits) + " must hold gathered rows " +
                     std::to_string(graph_.vocabSize) + " wide (vocabSize); they are " +
                     std::to_string(value.width) + " wide" + (value.gathered ? "" : " and not gathered"));
    }
    graph_.logits = found->second;
    return {};
  }

  // The KV pool is indexed by layer: 0 ... n - 1, each once, of equal page size.
  Status checkGeometry() {
    std::vector<int32_t> layers;
    for (const Node& node : graph_.nodes) {
      const auto* op = std::get_if<AttentionOp>(&node.op);
      if (op == nullptr) continue;
      if (layers.empty()) {
        graph_.kvHeads = op->kvHeads;
        graph_.headDim = op->headDim;
      } else if (op->kvHeads != graph_.kvHeads || op->headDim != graph_.headDim) {
        return invalid("graph: node " + quoted(graph_.values[static_cast<size_t>(node.output)].name) +
                       " has " + std::to_string(op->kvHeads) + " KV heads of " + std::to_string(op->headDim) +
                       ", the attention before " + std::to_string(graph_.kvHeads) + " of " +
                       std::to_string(graph_.headDim));
      }
      layers.push_back(op->layer);
    }
    if (layers.empty()) return invalid("graph: has no attention");
    std::sort(layers.begin(), layers.end());
    for (size_t i = 0; i < layers.size(); ++i) {
      if (layers[i] != static_cast<int32_t>(i)) {
        return invalid("graph: " + std::to_string(layers.size()) +
                       " attention nodes must use the layers 0 ... " + std::to_string(layers.size() - 1) +
                       ", each once");
      }
    }
    graph_.layers = static_cast<int32_t>(layers.size());
    return {};
  }

  Graph graph_;
  std::map<std::string, ValueId, std::less<>> ids_;
  std::map<std::string, int32_t, std::less<>> ropeIds_;
  int gathers_ = 0;
};

}  // namespace

Expected<Graph> parseGraph(std::string_view json) {
  try {
    const Expected<JsonDocument> document = parseJson(json);
    if (!document) {
      const Status status = document.status();
      if (status.code() != "ERR_INVALID_ARGUMENT") return status;
      return Status("ERR_GRAPH_INVALID", "graph: not valid JSON: " + status.message());
    }
    return GraphParser().parse(document->root());
  } catch (const std::bad_alloc&) {
    return Status("ERR_OUT_OF_MEMORY", "not enough memory to read the graph");
  }
}

int32_t Graph::hiddenSize() const noexcept {
  if (nodes.empty()) return 0;
  const Node& last = nodes.back();
  if (last.output != logits || !std::holds_alternative<LinearOp>(last.op)) return 0;
  const auto norm = std::find_if(nodes.begin(), nodes.end(),
                                 [&](const Node& node) { return node.output == last.inputs.front(); });
  if (norm == nodes.end() || !std::holds_alternative<RmsNormOp>(norm->op)) return 0;
  return values[static_cast<size_t>(norm->output)].width;
}

}  // namespace nt
