// The model of the project against what transformers computed from it in float32
// (test/fixtures/tiny-storyteller-goldens).
#include <algorithm>
#include <cmath>
#include <cstring>
#include <fstream>
#include <iostream>
#include <sstream>

#include "check.h"
#include "core/json.h"
#include "core/safetensors.h"
#include "cpu_harness.h"

namespace {

using namespace nt;
using namespace nt::test;

constexpr double kTolerance = 1e-3;

LlamaShape storyteller() {
  return {.vocab = 4096,
          .width = 192,
          .inner = 512,
          .layers = 6,
          .heads = 4,
          .kvHeads = 2,
          .headDim = 64,
          .positions = 1024};
}

CpuOptions options(const char* simd = "") {
  CpuOptions options;
  options.graph = storyteller().graph();
  options.files = {NT_SOURCE_DIR "/models/tiny-storyteller/model.safetensors"};
  options.numPages = 256;
  options.simd = simd;
  return options;
}

struct Golden {
  std::string name;
  std::vector<int32_t> ids;
  std::vector<double> promptLogprobs;  // from the second token on
  std::vector<std::pair<int32_t, double>> top20;
  std::vector<int32_t> greedy;
  std::vector<double> greedyLogprobs;
  size_t stable = 0;
};

std::vector<int32_t> integers(const JsonValue& array) {
  std::vector<int32_t> out;
  for (const JsonValue value : array.elements()) out.push_back(int32_t(*value.integer()));
  return out;
}

std::vector<Golden> readGoldens() {
  std::ifstream file(NT_SOURCE_DIR "/test/fixtures/tiny-storyteller-goldens/goldens.json");
  std::stringstream text;
  text << file.rdbuf();
  const std::string content = text.str();
  const auto document = parseJson(content);
  std::vector<Golden> out;
  if (!document) return out;
  for (const JsonValue prompt : document->root().find("prompts")->elements()) {
    Golden golden;
    golden.name = *prompt.find("name")->string();
    golden.ids = integers(*prompt.find("ids"));
    for (const JsonValue value : prompt.find("prompt_logprobs")->elements()) {
      if (!value.isNull()) golden.promptLogprobs.push_back(*value.number());
    }
    for (const JsonValue pair : prompt.find("top20")->elements()) {
      auto at = pair.elements().begin();
      const auto id = int32_t(*(*at).integer());
      ++at;
      golden.top20.emplace_back(id, *(*at).number());
    }
    const auto greedy = *prompt.find("greedy");
    golden.greedy = integers(*greedy.find("ids"));
    for (const JsonValue value : greedy.find("logprobs")->elements())
      golden.greedyLogprobs.push_back(*value.number());
    golden.stable = size_t(*greedy.find("stable_len")->integer());
    out.push_back(std::move(golden));
  }
  return out;
}

void checkPrompts(const char* simd) {
  const auto goldens = readGoldens();
  REQUIRE(goldens.size() == 24);
  const auto full =
      WeightFiles::open({NT_SOURCE_DIR "/test/fixtures/tiny-storyteller-goldens/goldens.safetensors"});
  REQUIRE(bool(full));
  Session session(options(simd));
  if (!session.ok()) std::cout << "# " << session.status.message() << "\n";
  REQUIRE(session.ok());
  double worstLogit = 0;
  double worstLogprob = 0;
  size_t fullRows = 0;
  for (const Golden& golden : goldens) {
    SamplingParams sampling;
    sampling.promptLogprobs = 0;
    sampling.logprobs = 0;
    REQUIRE(bool(session.open(0, golden.ids, sampling)));
    const StepResult result = session.step({{0, golden.ids, 0, kSample | kPromptLogprobs | kLogits | kHidden,
                                             session.pages(0, int32_t(golden.ids.size()))}});
    REQUIRE(bool(result.status));
    REQUIRE(bool(session.backend->closeSlot(0)));
    CHECK_EQ(result.logits.size(), size_t{4096});
    CHECK_EQ(result.logprobs.size(), golden.promptLogprobs.size() + 1);
    for (size_t i = 0; i < golden.promptLogprobs.size(); ++i) {
      CHECK_EQ(result.logprobs[i].token, golden.ids[i + 1]);
      CHECK_EQ(result.logprobs[i].position, int32_t(i + 1));
      worstLogprob =
          std::max(worstLogprob, std::abs(double(result.logprobs[i].logprob) - golden.promptLogprobs[i]));
    }
    for (const auto& [id, logit] : golden.top20) {
      worstLogit = std::max(worstLogit, std::abs(double(result.logits[size_t(id)]) - logit));
    }
    const auto tensor = (*full)->tensors().find(golden.name);
    if (tensor == (*full)->tensors().end()) continue;
    ++fullRows;
    std::vector<float> logits(4096);
    REQUIRE(bool((*full)->read(tensor->second, 0, logits.size() * sizeof(float), logits.data())));
    for (size_t i = 0; i < logits.size(); ++i) {
      worstLogit = std::max(worstLogit, std::abs(double(result.logits[i]) - double(logits[i])));
    }
  }
  CHECK_EQ(fullRows, size_t{6});
  std::cout << "# " << session.backend->info().device << ": logits within " << worstLogit
            << ", log-probabilities within " << worstLogprob << "\n";
  CHECK(worstLogit < kTolerance);
  CHECK(worstLogprob < kTolerance);
}

TEST(goldenPrompts) {
  checkPrompts("");
}

TEST(goldenPromptsOfEveryInstructionSet) {
  for (const std::string& simd : cpuFeatures().simd) checkPrompts(simd.c_str());
}

TEST(goldenGreedy) {
  Session session(options());
  REQUIRE(session.ok());
  size_t compared = 0;
  for (const Golden& golden : readGoldens()) {
    const auto tokens = session.generate(0, golden.ids, int32_t(golden.greedy.size()), 0);
    REQUIRE(bool(session.status));
    const auto same =
        std::mismatch(golden.greedy.begin(), golden.greedy.end(), tokens.begin(), tokens.end()).first -
        golden.greedy.begin();
    if (size_t(same) < golden.stable)
      fail(__FILE__, __LINE__, golden.name + " differs at token " + std::to_string(same));
    compared += golden.stable;
  }
  std::cout << "# " << compared << " tokens equal\n";
  CHECK(compared > 500);
}

}  // namespace

TEST_MAIN()
