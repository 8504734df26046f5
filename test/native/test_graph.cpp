#include <string>
#include <variant>

#include "check.h"
#include "core/graph.h"
#include "mutate.h"

namespace nt {
namespace {

// Two layers of width 8: 2 heads and 1 KV head of 4, so q | k | v is 16 wide. Each op occurs.
const std::string kGraph = R"({
"version": 1, "family": "test", "vocabSize": 32, "maxPositions": 64, "dtype": "BF16",
"weights": {"embed": [32, 8], "norm": [8], "q": [8, 8], "k": [4, 8], "v": [4, 8], "qb": [8], "kb": [4], "vb": [4],
  "qn": [4], "kn": [4], "o": [8, 8], "gate": [12, 8], "up": [12, 8], "down": [8, 12], "head": [32, 8]},
"ropes": {"local": {"invFreq": [1, 0.1], "scale": 1}, "global": {"invFreq": [1, 0.01], "scale": 0.5}},
"nodes": [
{"op": "embedding", "output": "x0", "weight": "embed", "scale": 1},
{"op": "rmsNorm", "input": "x0", "output": "n0", "weight": "norm", "eps": 1e-5},
{"op": "linear", "input": "n0", "output": "qkv0", "weights": ["q", "k", "v"], "biases": ["qb", "kb", "vb"]},
{"op": "attention", "input": "qkv0", "output": "a0", "layer": 0, "heads": 2, "kvHeads": 1, "headDim": 4, "scale": 0.5,
  "rope": "local", "window": 16, "qkNorm": {"q": "qn", "k": "kn", "eps": 1e-6}},
{"op": "linear", "input": "a0", "output": "o0", "weights": ["o"], "biases": []},
{"op": "add", "inputs": ["x0", "o0"], "output": "x1"},
{"op": "linear", "input": "x1", "output": "gu", "weights": ["gate", "up"], "biases": []},
{"op": "siluMul", "input": "gu", "output": "act"},
{"op": "geluMul", "input": "gu", "output": "act2"},
{"op": "linear", "input": "act", "output": "d", "weights": ["down"], "biases": []},
{"op": "add", "inputs": ["x1", "d"], "output": "x2"},
{"op": "linear", "input": "x2", "output": "qkv1", "weights": ["q", "k", "v"], "biases": []},
{"op": "attention", "input": "qkv1", "output": "a1", "layer": 1, "heads": 2, "kvHeads": 1, "headDim": 4, "scale": 0.5,
  "rope": "global", "window": 0, "qkNorm": null},
{"op": "add", "inputs": ["x2", "a1"], "output": "x3"},
{"op": "gatherRows", "input": "x3", "output": "rows"},
{"op": "linear", "input": "rows", "output": "logits", "weights": ["head"], "biases": []}
], "logits": "logits"})";

std::string replaced(std::string text, const std::string& from, const std::string& to) {
  const size_t at = text.find(from);
  CHECK(at != std::string::npos);
  if (at != std::string::npos) text.replace(at, from.size(), to);
  return text;
}

TEST(parsesEveryOp) {
  const auto graph = parseGraph(kGraph);
  CHECK_EQ(graph.status().message(), "");
  REQUIRE(graph);
  CHECK_EQ(graph->family, "test");
  CHECK_EQ(graph->vocabSize, 32);
  CHECK_EQ(graph->maxPositions, 64);
  CHECK_EQ(graph->dtype, DType::kBF16);
  CHECK_EQ(graph->layers, 2);
  CHECK_EQ(graph->kvHeads, 1);
  CHECK_EQ(graph->headDim, 4);
  CHECK_EQ(graph->pageBytes(16, 4), size_t{2 * 2 * 16 * 1 * 4 * 4});
  CHECK((graph->weights.at("gate") == std::vector<int64_t>{12, 8}));
  REQUIRE(graph->nodes.size() == 16);
  REQUIRE(graph->values.size() == 17);
  CHECK_EQ(graph->logits, 16);

  const Node& embedding = graph->nodes[0];
  REQUIRE(std::holds_alternative<EmbeddingOp>(embedding.op));
  CHECK((embedding.inputs == std::vector<ValueId>{kTokenIds}));
  CHECK_EQ(embedding.output, 1);
  CHECK_EQ(graph->values[1].name, "x0");

  const auto* attention = std::get_if<AttentionOp>(&graph->nodes[3].op);
  REQUIRE(attention != nullptr);
  CHECK_EQ(attention->heads, 2);
  CHECK_EQ(attention->window, 16);
  CHECK_EQ(attention->qNorm, "qn");
  CHECK_EQ(attention->qkNormEps, 1e-6F);
  CHECK_EQ(graph->ropes[static_cast<size_t>(attention->rope)].invFreq[1], 0.1F);
  const auto* second = std::get_if<AttentionOp>(&graph->nodes[12].op);
  REQUIRE(second != nullptr);
  CHECK_EQ(graph->ropes[static_cast<size_t>(second->rope)].scale, 0.5F);
  CHECK_EQ(second->qNorm, "");

  REQUIRE(std::holds_alternative<GatedActivationOp>(graph->nodes[8].op));
  CHECK_EQ(std::get<GatedActivationOp>(graph->nodes[8].op).gate, Gate::kGelu);
  CHECK((graph->nodes[10].inputs == std::vector<ValueId>{6, 10}));
  const auto width = [&](size_t value) { return graph->values[value].width; };
  CHECK_EQ(width(3), 16);
  CHECK_EQ(width(4), 8);
  CHECK_EQ(width(7), 24);
  CHECK_EQ(width(8), 12);
  CHECK_EQ(width(16), 32);
  CHECK(!graph->values[14].gathered);
  CHECK(graph->values[15].gathered && graph->values[16].gathered);
}

struct Damage {
  const char* from;
  const char* to;
  const char* message;
};

TEST(namesWhatIsWrong) {
  const Damage cases[] = {
      {"\"version\": 1", "\"version\": 2", "this build reads version 1, not 2"},
      {"\"version\": 1, ", "", "the graph names none"},
      {"\"version\": 1", "\"version\": \"1\"", "the graph names none"},
      {"\"family\"", "\"surprise\": 1, \"family\"", "unknown field 'surprise'"},
      {"\"vocabSize\": 32", "\"vocabSize\": 0", "'vocabSize' must be an integer of at least 1"},
      {"\"vocabSize\": 32", "\"vocabSize\": 2147483648", "'vocabSize'"},
      {"\"vocabSize\": 32", "\"vocabSize\": 31",
       "node 0 'embedding' 'x0': weight 'embed' has shape [32, 8], the op needs [31, 8]"},
      {"\"maxPositions\": 64, ", "", "field 'maxPositions' is missing"},
      {"\"BF16\"", "\"F64\"", "'dtype' must be F32, F16 or BF16, not 'F64'"},
      {"[32, 8], \"norm\"", "[], \"norm\"", "weight 'embed'"},
      {"[32, 8], \"norm\"", "[32, -8], \"norm\"", "weight 'embed'"},
      {"[32, 8], \"norm\"", "[32, 8.5], \"norm\"", "weight 'embed'"},
      {"[32, 8], \"norm\"", "[2147483647, 2147483647, 4], \"norm\"", "weight 'embed'"},
      {"[32, 8], \"norm\"", "[256], \"norm\"", "the op needs [32, any]"},
      {"\"norm\": [8]", "\"norm\": [9]",
       "node 1 'rmsNorm' 'n0': weight 'norm' has shape [9], the op needs [8]"},
      {"\"eps\": 1e-5", "\"eps\": 0", "'eps' must be greater than 0"},
      {"\"eps\": 1e-5", "\"eps\": 1e-60", "'eps' must be greater than 0"},
      {"\"eps\": 1e-5", "\"eps\": 1e39", "'eps' must be a finite number within float32"},
      {"\"eps\": 1e-5", "\"eps\": null", "'eps'"},
      {"\"op\": \"rmsNorm\"", "\"op\": \"layerNorm\"", "node 1 'layerNorm' 'n0': unknown op"},
      {"\"op\": \"rmsNorm\", ", "", "node 1 'n0': field 'op' is missing"},
      {"\"input\": \"x0\", \"output\": \"n0\"", "\"input\": \"qkv0\", \"output\": \"n0\"",
       "input 'qkv0' is not defined before"},
      {"\"output\": \"n0\"", "\"output\": \"x0\"", "the output's name is defined twice"},
      {"\"input\": \"x0\", \"output\": \"n0\"", "\"input\": \"token ids\", \"output\": \"n0\"",
       "not defined before"},
      {"[\"q\", \"k\", \"v\"]", "[\"q\", \"k\", \"w\"]", "weight 'w' is not in 'weights'"},
      {"[\"q\", \"k\", \"v\"]", "[]", "node 2 'linear' 'qkv0': 'weights' must not be empty"},
      {"[\"q\", \"k\", \"v\"]", "[\"q\", \"k\", 5]", "'weights' must be an array of strings"},
      {"[\"qb\", \"kb\", \"vb\"]", "[\"qb\", \"kb\"]", "as many biases as weights"},
      {"[\"qb\", \"kb\", \"vb\"]", "[\"kb\", \"qb\", \"vb\"]", "weight 'kb' has shape [4], the op needs [8]"},
      {"\"k\": [4, 8]", "\"k\": [5, 8]", "needs [5]"},
      {"\"heads\": 2", "\"heads\": 3",
       "the input is 16 wide, expected (heads + 2 * kvHeads) * headDim = (3 + 2 * 1) * 4"},
      {"\"heads\": 2", "\"heads\": 2147483647", "the input is 16 wide"},
      {"\"kvHeads\": 1", "\"kvHeads\": 3", "'heads' must be a multiple of 'kvHeads'"},
      {"\"headDim\": 4", "\"headDim\": 3", "'headDim' must be even"},
      {"\"scale\": 0.5,\n", "\"scale\": -0.5,\n", "'scale' must be greater than 0"},
      {"\"rope\": \"local\"", "\"rope\": \"none\"", "rope 'none' is not in 'ropes'"},
      {"[1, 0.1]", "[1]", "rope 'local' has 1 frequencies, expected headDim / 2 = 2"},
      {"[1, 0.1]", "[1, -0.1]", "rope 'local': 'invFreq' must hold finite numbers >= 0"},
      {"[1, 0.1]", "[1, 1e40]", "rope 'local'"},
      {"\"window\": 16", "\"window\": -1", "'window' must be an integer of at least 0"},
      {"\"k\": \"kn\"", "\"k\": \"q\"", "'qkNorm': weight 'q' has shape [8, 8], the op needs [4]"},
      {"{\"q\": \"qn\", \"k\": \"kn\", \"eps\": 1e-6}", "false", "'qkNorm': expected an object"},
      {", \"qkNorm\": null", "", "node 12 'attention' 'a1': field 'qkNorm' is missing"},
      {"\"layer\": 1", "\"layer\": 0", "must use the layers 0 ... 1, each once"},
      {"\"layer\": 1", "\"layer\": 2", "must use the layers 0 ... 1, each once"},
      {"[\"x0\", \"o0\"]", "[\"x0\"]", "'inputs' must be two names"},
      {"[\"x1\", \"d\"]", "[\"x1\", \"gu\"]", "the inputs are 8 and 24 wide"},
      {"\"gate\": [12, 8]", "\"gate\": [13, 8]",
       "node 7 'siluMul' 'act': the input is 25 wide, expected an even width"},
      {"\"op\": \"gatherRows\", \"input\"", "\"op\": \"gatherRows\", \"rows\": 3, \"input\"",
       "unknown field 'rows'"},
      {"{\"op\": \"gatherRows\", \"input\": \"x3\", \"output\": \"rows\"},", "",
       "input 'rows' is not defined"},
      {"{\"op\": \"gatherRows\", \"input\": \"x3\", \"output\": \"rows\"},",
       "{\"op\": \"gatherRows\", \"input\": \"x3\", \"output\": \"r\"},{\"op\": \"gatherRows\", \"input\": "
       "\"r\", \"output\": \"rows\"},",
       "the rows are gathered already"},
      {"{\"op\": \"gatherRows\", \"input\": \"x3\", \"output\": \"rows\"},",
       "{\"op\": \"gatherRows\", \"input\": \"x3\", \"output\": \"r\"},{\"op\": \"gatherRows\", \"input\": "
       "\"x3\", \"output\": \"rows\"},",
       "a graph has one gatherRows"},
      {"{\"op\": \"gatherRows\", \"input\": \"x3\", \"output\": \"rows\"},",
       "{\"op\": \"gatherRows\", \"input\": \"x3\", \"output\": \"rows\"},{\"op\": \"add\", \"inputs\": "
       "[\"x3\", \"rows\"], \"output\": \"s\"},",
       "one input holds all rows"},
      {"{\"op\": \"linear\", \"input\": \"x2\", \"output\": \"qkv1\"",
       "{\"op\": \"gatherRows\", \"input\": \"x2\", \"output\": \"early\"},{\"op\": \"linear\", \"input\": "
       "\"early\", \"output\": \"qkv1\"",
       "attention must come before gatherRows"},
      {"\"logits\": \"logits\"", "\"logits\": \"nothing\"",
       "'logits' names 'nothing', which no node defines"},
      {"\"logits\": \"logits\"", "\"logits\": \"rows\"",
       "must hold gathered rows 32 wide (vocabSize); they are 8 wide"},
      {"\"logits\": \"logits\"", "\"logits\": \"x3\"", "8 wide and not gathered"},
      {"\"logits\": \"logits\"}", "\"logits\": \"logits\"", "not valid JSON"},
      {"\"nodes\": [", "\"nodes\": [7, ", "node 0: expected an object"},
  };
  for (const Damage& damage : cases) {
    const auto graph = parseGraph(replaced(kGraph, damage.from, damage.to));
    if (graph) nt::test::fail(__FILE__, __LINE__, std::string("accepted: ") + damage.to);
    CHECK_EQ(graph.status().code(), "ERR_GRAPH_INVALID");
    CHECK_CONTAINS(graph.status().message(), damage.message);
  }
}

TEST(addsOfGatheredRowsStayGathered) {
  const std::string tail = R"({"op": "linear", "input": "rows", "output": "logits")";
  const auto graph =
      parseGraph(replaced(kGraph, tail, R"({"op": "add", "inputs": ["rows", "rows"], "output": "twice"},
    {"op": "linear", "input": "twice", "output": "logits")"));
  CHECK_EQ(graph.status().message(), "");
  REQUIRE(graph);
  CHECK(graph->values[16].gathered);
}

TEST(wantsOneGeometry) {
  // The second attention with 2 heads of 2 and the first with 1 KV head of 4.
  std::string text = replaced(kGraph, "\"layer\": 1, \"heads\": 2, \"kvHeads\": 1, \"headDim\": 4",
                              "\"layer\": 1, \"heads\": 4, \"kvHeads\": 2, \"headDim\": 2");
  text = replaced(text, "[1, 0.01]", "[1]");
  const auto graph = parseGraph(text);
  CHECK_CONTAINS(graph.status().message(), "node 'a1' has 2 KV heads of 2, the attention before 1 of 4");
}

TEST(wantsAttentionAndGather) {
  const std::string head =
      R"({"version":1,"family":"t","vocabSize":4,"maxPositions":8,"dtype":"F32","weights":{"e":[4,4]},)"
      R"("ropes":{},"logits":"x","nodes":[)";
  CHECK_CONTAINS(parseGraph(head + "]}").status().message(), "has no gatherRows");
  CHECK_CONTAINS(parseGraph(head + R"({"op":"embedding","output":"e","weight":"e","scale":1},)"
                                   R"({"op":"gatherRows","input":"e","output":"x"}]})")
                     .status()
                     .message(),
                 "has no attention");
}

TEST(survivesDamage) {
  nt::test::Mutator mutator(2);
  int accepted = 0;
  for (int i = 0; i < 20'000; ++i) {
    const auto graph = parseGraph(mutator.mutate(kGraph));
    if (!graph) {
      CHECK_EQ(graph.status().code(), "ERR_GRAPH_INVALID");
      continue;
    }
    ++accepted;
    // What a backend relies on.
    for (const Node& node : graph->nodes) {
      CHECK(node.output > 0 && static_cast<size_t>(node.output) < graph->values.size());
      for (const ValueId input : node.inputs) CHECK(input >= 0 && input < node.output);
      if (const auto* op = std::get_if<AttentionOp>(&node.op)) {
        CHECK(op->layer < graph->layers && static_cast<size_t>(op->rope) < graph->ropes.size());
      }
    }
    for (const Value& value : graph->values) CHECK(value.width > 0);
  }
  CHECK(accepted > 100 && accepted < 19'000);
}

}  // namespace
}  // namespace nt

TEST_MAIN()
