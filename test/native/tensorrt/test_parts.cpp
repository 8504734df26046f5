// The parts of the TensorRT backend that need no GPU: cutting graphs into segments, plan files, step tables,
// names of libraries.
#include <dlfcn.h>

#include <algorithm>
#include <fstream>
#include <iterator>

#include "check.h"
#include "core/graph.h"
#include "tensorrt/plan_file.h"
#include "tensorrt/search_path.h"
#include "tensorrt/segments.h"
#include "tensorrt/step_tables.h"

namespace {

using namespace nt;

// Appends and does not add: GCC 12 warns of string + at -O3.
std::string numbered(char letter, int number, const char* suffix = "") {
  std::string text(1, letter);
  text += std::to_string(number);
  text += suffix;
  return text;
}

// A decoder of `layers` layers, width 8, 4 heads on 2 of size 2, as JSON. `window(l)` and `extra(l)` vary the
// layers.
struct GraphText {
  int layers = 3;
  int oddWindow = 0;  // of layers 1, 3, ...
  bool biases = false;
  bool qkNorm = false;
  bool skip = false;       // the first layer's input is added again after the second
  bool sharedQkv = false;  // something else reads what an attention takes

  std::string text() const {
    std::string weights = R"("embed": [20, 8], "norm": [8])";
    std::string nodes = R"({"op": "embedding", "output": "x0", "weight": "embed", "scale": 1})";
    const auto add = [&](const std::string& node) { nodes += ",\n" + node; };
    const auto weight = [&](const std::string& name, const std::string& shape) {
      weights += ", \"" + name + "\": " + shape;
      return "\"" + name + "\"";
    };
    for (int l = 0; l < layers; ++l) {
      const std::string p = numbered('l', l, ".");
      const std::string in = numbered('x', l);
      const std::string out = numbered('x', l + 1);
      add(R"({"op": "rmsNorm", "input": ")" + in + R"(", "output": ")" + p + R"(n", "weight": )" +
          weight(p + "norm", "[8]") + R"(, "eps": 1e-5})");
      add(R"({"op": "linear", "input": ")" + p + R"(n", "output": ")" + p + R"(qkv", "weights": [)" +
          weight(p + "q", "[8, 8]") + ", " + weight(p + "k", "[4, 8]") + ", " + weight(p + "v", "[4, 8]") +
          R"(], "biases": [)" +
          (biases ? weight(p + "qb", "[8]") + ", " + weight(p + "kb", "[4]") + ", " + weight(p + "vb", "[4]")
                  : "") +
          "]}");
      const std::string norms = qkNorm ? R"({"q": )" + weight(p + "qn", "[2]") + R"(, "k": )" +
                                             weight(p + "kn", "[2]") + R"(, "eps": 1e-6})"
                                       : "null";
      add(R"({"op": "attention", "input": ")" + p + R"(qkv", "output": ")" + p + R"(a", "layer": )" +
          std::to_string(l) +
          R"(, "heads": 4, "kvHeads": 2, "headDim": 2, "scale": 0.5, "rope": "r", "window": )" +
          std::to_string(l % 2 == 1 ? oddWindow : 0) + R"(, "qkNorm": )" + norms + "}");
      add(R"({"op": "linear", "input": ")" + p + R"(a", "output": ")" + p + R"(o", "weights": [)" +
          weight(p + "o", "[8, 8]") + R"(], "biases": []})");
      add(R"({"op": "add", "inputs": [")" + in + R"(", ")" + p + R"(o"], "output": ")" + p + R"(h"})");
      add(R"({"op": "linear", "input": ")" + p + (sharedQkv ? "qkv" : "h") + R"(", "output": ")" + p +
          R"(gu", "weights": [)" + weight(p + "g", sharedQkv ? "[6, 16]" : "[6, 8]") + ", " +
          weight(p + "u", sharedQkv ? "[6, 16]" : "[6, 8]") + R"(], "biases": []})");
      add(R"({"op": "siluMul", "input": ")" + p + R"(gu", "output": ")" + p + R"(s"})");
      add(R"({"op": "linear", "input": ")" + p + R"(s", "output": ")" + p + R"(d", "weights": [)" +
          weight(p + "d", "[8, 6]") + R"(], "biases": []})");
      const std::string other = skip && l == 1 ? "x0" : p + "h";
      add(R"({"op": "add", "inputs": [")" + other + R"(", ")" + p + R"(d"], "output": ")" + out + R"("})");
    }
    add(R"({"op": "gatherRows", "input": "x)" + std::to_string(layers) + R"(", "output": "g"})");
    add(R"({"op": "rmsNorm", "input": "g", "output": "f", "weight": "norm", "eps": 1e-5})");
    add(R"({"op": "linear", "input": "f", "output": "logits", "weights": ["embed"], "biases": []})");
    return R"({"version": 1, "family": "test", "vocabSize": 20, "maxPositions": 64, "dtype": "BF16", "weights": {)" +
           weights + R"(}, "ropes": {"r": {"invFreq": [1.0], "scale": 1}}, "nodes": [)" + nodes +
           R"(], "logits": "logits"})";
  }
};

Expected<Partition> partitionOf(const GraphText& text) {
  const Expected<Graph> graph = parseGraph(text.text());
  if (!graph) {
    nt::test::fail(__FILE__, __LINE__, graph.status().message());
    return graph.status();
  }
  return partition(*graph);
}

}  // namespace

TEST(equalLayersShareAShape) {
  const Expected<Partition> parts = partitionOf({});
  REQUIRE(parts);
  REQUIRE(parts->shapes.size() == 2);
  CHECK_EQ(parts->shapes[0].name, std::string("layer"));
  CHECK_EQ(parts->shapes[1].name, std::string("head"));
  CHECK_EQ(parts->shapes[0].attentions, 1);
  CHECK_EQ(parts->shapes[1].attentions, 0);
  REQUIRE(parts->segments.size() == 4);
  for (size_t l = 0; l < 3; ++l) {
    const Segment& segment = parts->segments[l];
    CHECK_EQ(segment.shape, size_t{0});
    CHECK_EQ(segment.layer, static_cast<int32_t>(l));
    const std::string p = numbered('l', static_cast<int>(l), ".");
    REQUIRE(segment.weights.size() == 5);
    CHECK(segment.weights[1] == (WeightInput{{p + "q", p + "k", p + "v"}, {16, 8}}));
    CHECK(segment.weights[3] == (WeightInput{{p + "g", p + "u"}, {12, 8}}));
    CHECK(segment.weights[0] == (WeightInput{{p + "norm"}, {1, 8}}));
  }
  CHECK(parts->segments[3].weights[1] == (WeightInput{{"embed"}, {20, 8}}));
  CHECK_EQ(parts->headShape().outputWidth(), 20);
}

// Every node but the embedding and the gathering is in exactly one segment, and reads nothing from outside
// but its input.
TEST(segmentsCoverTheGraph) {
  for (const GraphText& text : {GraphText{}, GraphText{1}, GraphText{4, 16, true, true}}) {
    const Expected<Partition> parts = partitionOf(text);
    REQUIRE(parts);
    size_t nodes = 0;
    for (const Segment& segment : parts->segments) {
      const SegmentShape& shape = parts->shapes[segment.shape];
      nodes += shape.nodes.size();
      CHECK_EQ(segment.weights.size(), shape.weightShapes.size());
      for (size_t i = 0; i < shape.nodes.size(); ++i) {
        CHECK_EQ(shape.nodes[i].output, static_cast<ValueId>(i + 1));
        for (const ValueId input : shape.nodes[i].inputs)
          CHECK(input >= 0 && input <= static_cast<ValueId>(i));
      }
    }
    CHECK_EQ(nodes, static_cast<size_t>(text.layers) * 9 + 2);
  }
}

TEST(layersThatDifferHaveShapesOfTheirOwn) {
  const Expected<Partition> parts = partitionOf({4, 16});
  REQUIRE(parts);
  REQUIRE(parts->shapes.size() == 3);
  for (size_t l = 0; l < 4; ++l) CHECK_EQ(parts->segments[l].shape, l % 2);
  CHECK_EQ(parts->shapes[1].name, std::string("layer2"));
}

TEST(whatTheNetworkDependsOnIsInTheSignature) {
  std::vector<std::string> signatures;
  for (const GraphText& text : {GraphText{1}, GraphText{1, 0, true}, GraphText{1, 0, false, true}}) {
    const Expected<Partition> parts = partitionOf(text);
    REQUIRE(parts);
    signatures.push_back(parts->shapes[0].signature);
  }
  CHECK(signatures[0] != signatures[1] && signatures[1] != signatures[2] && signatures[0] != signatures[2]);
  const Expected<Partition> deeper = partitionOf({5});
  REQUIRE(deeper);
  CHECK_EQ(deeper->shapes[0].signature, signatures[0]);
}

TEST(aSkipAcrossLayersIsRefused) {
  GraphText text;
  text.skip = true;
  const Expected<Partition> parts = partitionOf(text);
  CHECK_EQ(parts.status().code(), std::string("ERR_MODEL_UNSUPPORTED"));
}

// It may be rotated in place.
TEST(aSecondReaderOfAnAttentionsInputIsRefused) {
  GraphText text;
  text.sharedQkv = true;
  const Expected<Partition> parts = partitionOf(text);
  CHECK_EQ(parts.status().code(), std::string("ERR_MODEL_UNSUPPORTED"));
  CHECK_CONTAINS(parts.status().message(), "something else reads what an attention takes");
}

TEST(planFilesComeBackAsTheyWere) {
  PlanFile file;
  file.header = {100600, 9, 0, DType::kF16, {{1, 8, 8}, {1, 64, 256}}, {{1, 1, 16}}};
  file.engines = {{"first", {'a', 'b', 'c'}}, {"second", std::vector<char>(1000, 'x')}};
  const std::vector<char> bytes = writePlanFile(file);
  const Expected<PlanFile> read = readPlanFile(bytes);
  REQUIRE(read);
  CHECK_EQ(read->header.libraryVersion, 100600);
  CHECK(read->header.dtype == DType::kF16);
  CHECK_EQ(read->header.layerProfiles.size(), size_t{2});
  CHECK_EQ(read->header.layerProfiles[1].opt, 64);
  REQUIRE(read->engines.size() == 2);
  CHECK_EQ(read->engines[1].signature, std::string("second"));
  CHECK(read->engines[0].plan == file.engines[0].plan);
  CHECK(writePlanFile(*read) == bytes);
}

TEST(damagedPlanFilesAreErrors) {
  PlanFile file;
  file.header = {100600, 9, 0, DType::kBF16, {{1, 8, 8}}, {{1, 8, 8}}};
  file.engines = {{"s", {'p', 'l', 'a', 'n'}}};
  const std::vector<char> good = writePlanFile(file);
  for (size_t length = 0; length < good.size(); ++length) {
    const Expected<PlanFile> read = readPlanFile(std::span(good).first(length));
    CHECK_EQ(read.status().code(), std::string("ERR_ENGINE_INVALID"));
  }
  std::vector<char> longer = good;
  longer.push_back('\0');
  CHECK(!readPlanFile(longer));
  // Any one byte may change: an error or another file, and no read outside (the sanitizers watch).
  for (size_t i = 0; i < good.size(); ++i) {
    for (const int bits : {0x01, 0x80, 0xff}) {
      std::vector<char> bad = good;
      bad[i] = static_cast<char>(bad[i] ^ bits);
      const Expected<PlanFile> read = readPlanFile(bad);
      if (read) CHECK(writePlanFile(*read) == bad);
    }
  }
}

TEST(profilesMustLeaveNoGap) {
  CHECK(checkProfiles("layer", {{1, 8, 8}, {9, 64, 64}, {1, 2048, 8192}}));
  for (const std::vector<RowProfile>& bad : {std::vector<RowProfile>{},
                                             {{0, 1, 1}},
                                             {{2, 2, 2}},
                                             {{1, 9, 8}},
                                             {{1, 8, 8}, {10, 64, 64}},
                                             {{1, 8, 8}, {1, 4, 4}}}) {
    CHECK(!checkProfiles("layer", bad));
  }
}

TEST(tablesOfAMixedStep) {
  StepBatch step;
  step.packed = {/*pages*/ 7, 3, 9, 5, /*tokens*/ 11, 12, 13, -1};
  const std::span<const int32_t> packed = step.packed;
  StepSequence prefill;
  prefill.slot = 2;
  prefill.tokens = 3;
  prefill.cached = 15;
  prefill.pages = packed.subspan(0, 3);  // one more than the step needs
  StepSequence decode;
  decode.slot = 4;
  decode.tokens = 1;
  decode.cached = 3;
  decode.firstRow = 3;
  decode.pages = packed.subspan(3, 1);
  step.sequences = {prefill, decode};
  step.tokens = packed.subspan(4);
  std::vector<StepEntry> entries = {{0, 2, 2, -1, 18, true, false, -1}, {1, 3, 4, -1, 4, true, false, -1}};
  entries[1].mask = 5;
  const TableLayout layout(6, 3, 4);
  std::vector<int32_t> block(layout.kvIndices + 16, -77);
  const size_t used = fillTables(step, entries, layout, 16, block.data());
  const auto at = [&](size_t offset, size_t count) {
    return std::vector<int32_t>(block.begin() + static_cast<long>(offset),
                                block.begin() + static_cast<long>(offset + count));
  };
  using Ints = std::vector<int32_t>;
  CHECK(at(layout.tokens, 6) == (Ints{11, 12, 13, -1, 0, 0}));
  CHECK(at(layout.positions, 6) == (Ints{15, 16, 17, 3, 0, 0}));
  CHECK(at(layout.batchIndices, 6) == (Ints{0, 0, 0, 1, -1, -1}));
  CHECK(at(layout.qIndptr, 4) == (Ints{0, 3, 4, 4}));
  CHECK(at(layout.kvIndptr, 4) == (Ints{0, 2, 3, 3}));
  CHECK(at(layout.kvIndices, 3) == (Ints{7, 3, 5}));
  CHECK(at(layout.lastPageLen, 2) == (Ints{2, 4}));
  CHECK(at(layout.sequenceSlots, 2) == (Ints{2, 4}));
  CHECK(at(layout.entryRows, 2) == (Ints{2, 3}));
  CHECK(at(layout.entrySlots, 4) == (Ints{2, 4, -1, -1}));
  CHECK(at(layout.entryMasks, 4) == (Ints{-1, 5, -1, -1}));
  CHECK_EQ(used, layout.kvIndices + 3);
  CHECK_EQ(block[used], -77);
}

TEST(sequencesOfPaddingHaveNeitherRowsNorPages) {
  StepBatch step;
  step.packed = {0, -1};
  const std::span<const int32_t> packed = step.packed;
  StepSequence sequence;
  sequence.tokens = 1;
  sequence.cached = 15;
  sequence.pages = packed.first(1);
  step.sequences = {sequence};
  step.tokens = packed.subspan(1);
  const TableLayout layout(4, 4, 4);
  std::vector<int32_t> block(layout.kvIndices + 4);
  fillTables(step, {}, layout, 16, block.data());
  for (size_t i = 0; i <= 4; ++i) {
    CHECK_EQ(block[layout.qIndptr + i], i == 0 ? 0 : 1);
    CHECK_EQ(block[layout.kvIndptr + i], i == 0 ? 0 : 1);
  }
  CHECK_EQ(block[layout.lastPageLen], 16);
  for (size_t i = 1; i < 4; ++i) CHECK_EQ(block[layout.batchIndices + i], -1);
}

TEST(sequencesBehindTheLeadingSinglesAreCountedFromTheirFirstRow) {
  StepBatch step;
  step.packed = {7, 3, 5, -1, -1, 11, 12, 13, 14, 15};
  const std::span<const int32_t> packed = step.packed;
  const auto sequence = [&](int32_t firstRow, int32_t tokens, size_t page) {
    StepSequence made;
    made.tokens = tokens;
    made.firstRow = firstRow;
    made.pages = packed.subspan(page, 1);
    return made;
  };
  step.sequences = {sequence(0, 1, 0), sequence(1, 1, 1), sequence(2, 3, 2), sequence(5, 1, 0),
                    sequence(6, 1, 1)};
  step.tokens = packed.subspan(3);
  CHECK_EQ(leadingSingles(step), 2);
  const TableLayout layout(7, 5, 0);
  std::vector<int32_t> block(layout.kvIndices + 8, -77);
  fillTables(step, {}, layout, 16, block.data());
  const std::vector<int32_t> expected = {0, 3, 4, 5, -77, -77};
  for (size_t i = 0; i < expected.size(); ++i) CHECK_EQ(block[layout.wideIndptr + i], expected[i]);
  step.sequences.erase(step.sequences.begin() + 2);
  CHECK_EQ(leadingSingles(step), 4);
}

TEST(warmUpOfAMixedStep) {
  const TableLayout layout(20, 3, 1);
  std::vector<int32_t> block(layout.kvIndices + 4, -77);
  CHECK_EQ(fillWarmUp(layout, 16, 1, block.data()), layout.kvIndices + 3);
  const std::vector<int32_t> rows = {0, 1, 11, 20};
  const std::vector<int32_t> wide = {0, 10, 19};
  for (size_t i = 0; i < rows.size(); ++i) CHECK_EQ(block[layout.qIndptr + i], rows[i]);
  for (size_t i = 0; i < wide.size(); ++i) CHECK_EQ(block[layout.wideIndptr + i], wide[i]);
}

TEST(warmUpSharesTheRowsOut) {
  const TableLayout layout(35, 2, 1);
  std::vector<int32_t> block(layout.kvIndices + 4, -77);
  CHECK_EQ(fillWarmUp(layout, 16, 0, block.data()), layout.kvIndices + 4);
  CHECK_EQ(block[layout.qIndptr + 1], 18);
  CHECK_EQ(block[layout.qIndptr + 2], 35);
  CHECK_EQ(block[layout.kvIndptr + 2], 4);
  CHECK_EQ(block[layout.lastPageLen], 2);
  CHECK_EQ(block[layout.lastPageLen + 1], 1);
  CHECK_EQ(block[layout.positions + 17], 17);
  CHECK_EQ(block[layout.positions + 18], 0);
  CHECK_EQ(block[layout.batchIndices + 34], 1);
  CHECK_EQ(block[layout.entrySlots], -1);
  for (size_t i = 0; i < 4; ++i) CHECK_EQ(block[layout.kvIndices + i], 0);
}

TEST(warmUpBehindCachedTokens) {
  const TableLayout layout(21, 2, 1);
  std::vector<int32_t> block(layout.kvIndices + 6, -77);
  CHECK_EQ(fillWarmUp(layout, 16, 1, block.data(), 30), layout.kvIndices + 5);
  CHECK_EQ(block[layout.positions], 0);
  CHECK_EQ(block[layout.positions + 1], 30);
  CHECK_EQ(block[layout.positions + 20], 49);
  CHECK_EQ(block[layout.kvIndptr + 1], 1);
  CHECK_EQ(block[layout.kvIndptr + 2], 5);
  CHECK_EQ(block[layout.lastPageLen], 1);
  CHECK_EQ(block[layout.lastPageLen + 1], 2);
}

// NT_STAND_IN_FOLDER holds a library that is on no search path.
TEST(aLibraryIsFoundByItsBareName) {
  const char* name = NT_STAND_IN_NAME;
  CHECK(dlopen(name, RTLD_LAZY) == nullptr);
  CHECK_CONTAINS(loadByName(NT_STAND_IN_FOLDER, "libnt-does-not-exist.so"), "libnt-does-not-exist.so");
  CHECK_EQ(loadByName(NT_STAND_IN_FOLDER, name), std::string());
  void* handle = dlopen(name, RTLD_LAZY);
  REQUIRE(handle != nullptr);
  CHECK(dlsym(handle, "getInferLibVersion") != nullptr);
  CHECK_CONTAINS(loadByName(NT_STAND_IN_FOLDER, "libnt-does-not-exist.so"), "libnt-does-not-exist.so");
}

TEST_MAIN()
