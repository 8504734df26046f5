// Whole models: against double precision, and bit for bit however the same tokens are batched, cut, paged and
// threaded.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <string>
#include <vector>

#include "check.h"
#include "core/random.h"
#include "cpu_harness.h"

namespace {

using namespace nt;
using namespace nt::test;

std::vector<int32_t> randomTokens(int32_t count, int32_t vocab, uint64_t seed) {
  std::vector<int32_t> out;
  for (int32_t i = 0; i < count; ++i) out.push_back(int32_t(randomBits(seed, uint64_t(i)) % uint64_t(vocab)));
  return out;
}

CpuOptions optionsFor(const LlamaShape& shape, const Checkpoint& checkpoint) {
  CpuOptions options;
  options.graph = shape.graph();
  options.files = {checkpoint.file};
  options.numPages = 128;
  options.maxSlots = 16;
  options.maxStepTokens = 1024;
  return options;
}

// The model in double precision, one token at a time; logits of the last.
class Reference {
 public:
  Reference(const LlamaShape& shape, const Checkpoint& checkpoint) : s_(shape), w_(checkpoint.values) {
    keys_.resize(size_t(s_.layers));
    values_.resize(size_t(s_.layers));
  }

  std::vector<double> run(int32_t token) {
    const auto width = size_t(s_.width);
    std::vector<double> x(width);
    const auto& embed = w_.at("model.embed_tokens.weight");
    for (size_t i = 0; i < width; ++i) x[i] = double(embed[size_t(token) * width + i]);
    for (int32_t layer = 0; layer < s_.layers; ++layer) runLayer(layer, x);
    ++position_;
    return linear(norm(x, "model.norm.weight"), s_.tied ? "model.embed_tokens.weight" : "lm_head.weight", "");
  }

 private:
  using Row = std::vector<double>;

  Row norm(const Row& x, const std::string& name) const {
    const auto& weight = w_.at(name);
    double square = 0;
    for (const double v : x) square += v * v;
    const double inverse = 1 / std::sqrt(square / double(x.size()) + double(s_.eps));
    Row out(x.size());
    for (size_t i = 0; i < x.size(); ++i) out[i] = x[i] * inverse * double(weight[i]);
    return out;
  }
  Row linear(const Row& x, const std::string& name, const std::string& bias) const {
    const auto& weight = w_.at(name);
    Row out(weight.size() / x.size());
    for (size_t n = 0; n < out.size(); ++n) {
      out[n] = bias.empty() ? 0 : double(w_.at(bias)[n]);
      for (size_t i = 0; i < x.size(); ++i) out[n] += double(weight[n * x.size() + i]) * x[i];
    }
    return out;
  }
  // Normalises (where the model does) and rotates each head.
  void turn(Row& heads, const std::string& normName) const {
    const auto dim = size_t(s_.headDim);
    for (size_t begin = 0; begin < heads.size(); begin += dim) {
      Row head(heads.begin() + long(begin), heads.begin() + long(begin + dim));
      if (s_.qkNorm) head = norm(head, normName);
      for (size_t i = 0; i < dim / 2; ++i) {
        const float frequency = 1.0F / std::pow(s_.theta, float(2 * i) / float(dim));
        const auto angle = double(float(position_) * frequency);
        heads[begin + i] = head[i] * std::cos(angle) - head[i + dim / 2] * std::sin(angle);
        heads[begin + i + dim / 2] = head[i + dim / 2] * std::cos(angle) + head[i] * std::sin(angle);
      }
    }
  }
  Row attend(int32_t layer, const Row& q) const {
    const auto dim = size_t(s_.headDim);
    const auto& keys = keys_[size_t(layer)];
    const auto& values = values_[size_t(layer)];
    const size_t start =
        s_.window > 0 && keys.size() > size_t(s_.window) ? keys.size() - size_t(s_.window) : 0;
    Row out(q.size());
    for (size_t h = 0; h < size_t(s_.heads); ++h) {
      const size_t kvHead = h / size_t(s_.heads / s_.kvHeads);
      Row weight;
      double max = -1e300;
      for (size_t t = start; t < keys.size(); ++t) {
        double dot = 0;
        for (size_t d = 0; d < dim; ++d) dot += q[h * dim + d] * keys[t][kvHead * dim + d];
        weight.push_back(dot / std::sqrt(double(dim)));
        max = std::max(max, weight.back());
      }
      double sum = 0;
      for (double& w : weight) sum += w = std::exp(w - max);
      for (size_t t = start; t < keys.size(); ++t) {
        for (size_t d = 0; d < dim; ++d)
          out[h * dim + d] += weight[t - start] / sum * values[t][kvHead * dim + d];
      }
    }
    return out;
  }
  void runLayer(int32_t layer, Row& x) {
    const std::string p = "model.layers." + std::to_string(layer) + ".";
    const auto bias = [&](const char* name) { return s_.bias ? p + name : std::string(); };
    const Row h = norm(x, p + "input_layernorm.weight");
    Row q = linear(h, p + "self_attn.q_proj.weight", bias("self_attn.q_proj.bias"));
    Row k = linear(h, p + "self_attn.k_proj.weight", bias("self_attn.k_proj.bias"));
    turn(q, p + "self_attn.q_norm.weight");
    turn(k, p + "self_attn.k_norm.weight");
    keys_[size_t(layer)].push_back(k);
    values_[size_t(layer)].push_back(linear(h, p + "self_attn.v_proj.weight", bias("self_attn.v_proj.bias")));
    const Row o = linear(attend(layer, q), p + "self_attn.o_proj.weight", "");
    for (size_t i = 0; i < x.size(); ++i) x[i] += o[i];
    const Row m = norm(x, p + "post_attention_layernorm.weight");
    Row gate = linear(m, p + "mlp.gate_proj.weight", "");
    const Row up = linear(m, p + "mlp.up_proj.weight", "");
    for (size_t i = 0; i < gate.size(); ++i) {
      const double g = gate[i];
      const double tanh = std::tanh(0.7978845608028654 * (g + 0.044715 * g * g * g));
      gate[i] = (s_.gelu ? 0.5 * g * (1 + tanh) : g / (1 + std::exp(-g))) * up[i];
    }
    const Row d = linear(gate, p + "mlp.down_proj.weight", "");
    for (size_t i = 0; i < x.size(); ++i) x[i] += d[i];
  }

  const LlamaShape& s_;
  const std::map<std::string, std::vector<float>>& w_;
  std::vector<std::vector<Row>> keys_, values_;
  int32_t position_ = 0;
};

void checkAgainstReference(const LlamaShape& shape, DType dtype) {
  const auto checkpoint = writeCheckpoint(shape, dtype);
  Session session(optionsFor(shape, *checkpoint));
  if (!session.ok()) std::cout << "# " << session.status.message() << "\n";
  REQUIRE(session.ok());
  Reference reference(shape, *checkpoint);
  const auto tokens = randomTokens(50, shape.vocab, 3);
  REQUIRE(bool(session.open(0, tokens)));
  double worst = 0;
  int32_t cached = 0;
  for (const int32_t count : {1, 17, 1, 30, 1}) {
    std::vector<double> expected;
    for (int32_t i = 0; i < count; ++i) expected = reference.run(tokens[size_t(cached + i)]);
    const StepResult result = session.step({{0,
                                             {tokens.begin() + cached, tokens.begin() + cached + count},
                                             cached,
                                             kLogits,
                                             session.pages(5, cached + count)}});
    REQUIRE(bool(result.status));
    REQUIRE(result.logits.size() == size_t(shape.vocab));
    for (size_t i = 0; i < expected.size(); ++i) {
      worst = std::max(worst, std::abs(expected[i] - double(result.logits[i])));
    }
    cached += count;
  }
  CHECK(worst < 1e-4);
  std::cout << "# within " << worst << "\n";
}

TEST(llamaAgainstDouble) {
  for (const DType dtype : {DType::kF32, DType::kF16, DType::kBF16}) checkAgainstReference({}, dtype);
}
TEST(untiedWithBias) {
  checkAgainstReference({.tied = false, .bias = true}, DType::kBF16);
}
TEST(queryKeyNorms) {
  checkAgainstReference({.qkNorm = true}, DType::kF32);
}
TEST(slidingWindow) {
  checkAgainstReference({.window = 13}, DType::kF32);
}
TEST(geluGate) {
  checkAgainstReference({.gelu = true}, DType::kF16);
}
TEST(oddSizes) {
  checkAgainstReference(
      {.vocab = 301, .width = 51, .inner = 37, .layers = 3, .heads = 6, .kvHeads = 1, .headDim = 24},
      DType::kBF16);
  checkAgainstReference({.heads = 10, .kvHeads = 1, .headDim = 8}, DType::kF32);
  checkAgainstReference({.layers = 1, .heads = 2, .kvHeads = 2, .headDim = 128}, DType::kF32);
}

// Logits of each position of `tokens`, run in chunks of `chunk` beside `company` other sequences.
std::vector<std::vector<float>> logitsOf(Session& session, const std::vector<int32_t>& tokens, int32_t chunk,
                                         int32_t company, std::vector<int32_t> pages, int32_t vocab) {
  const auto length = int32_t(tokens.size());
  std::vector<std::vector<float>> out(tokens.size());
  if (!session.open(0, tokens)) return out;
  std::vector<std::vector<int32_t>> others;
  std::vector<int32_t> othersDone(size_t(company), 0);
  for (int32_t i = 0; i < company; ++i) {
    others.push_back(randomTokens(200, vocab, uint64_t(100 + i)));
    if (!session.open(i + 1, others.back())) return out;
  }
  const int32_t pageSize = session.backend->info().pageSize;
  for (int32_t begin = 0; begin < length; begin += chunk) {
    const int32_t end = std::min(length, begin + chunk);
    std::vector<SequenceStep> step;
    for (int32_t i = 0; i < company; ++i) {
      const int32_t count = 1 + (i * 7 + begin) % 9;
      const int32_t cached = othersDone[size_t(i)];
      if (cached + count > 200) continue;
      auto& other = others[size_t(i)];
      step.push_back({i + 1,
                      {other.begin() + cached, other.begin() + cached + count},
                      cached,
                      i % 3 == 0 ? kSample : 0,
                      session.pages(30 + i * (220 / pageSize + 1), cached + count)});
      othersDone[size_t(i)] += count;
    }
    const size_t used = size_t((end + pageSize - 1) / pageSize);
    step.insert(step.begin() + long(step.size() / 2), {0,
                                                       {tokens.begin() + begin, tokens.begin() + end},
                                                       begin,
                                                       kLogits,
                                                       {pages.begin(), pages.begin() + long(used)}});
    const StepResult result = session.step(step);
    if (!result.status) {
      fail(__FILE__, __LINE__, result.status.message());
      return out;
    }
    out[size_t(end - 1)] = result.logits;
  }
  for (int32_t i = 0; i <= company; ++i) {
    if (!session.backend->closeSlot(i)) fail(__FILE__, __LINE__, "close");
  }
  return out;
}

void compareRows(const std::vector<std::vector<float>>& a, const std::vector<std::vector<float>>& b,
                 const std::string& what) {
  size_t compared = 0;
  for (size_t i = 0; i < a.size(); ++i) {
    if (a[i].empty() || b[i].empty()) continue;
    ++compared;
    if (a[i].size() != b[i].size() ||
        std::memcmp(a[i].data(), b[i].data(), a[i].size() * sizeof(float)) != 0) {
      fail(__FILE__, __LINE__, what + ": row " + std::to_string(i) + " differs");
      return;
    }
  }
  CHECK(compared > 0);
}

TEST(bitsDoNotDependOnTheCompany) {
  const LlamaShape shape{.vocab = 301,
                         .width = 72,
                         .inner = 200,
                         .layers = 2,
                         .heads = 4,
                         .kvHeads = 2,
                         .headDim = 32,
                         .window = 50};
  const auto checkpoint = writeCheckpoint(shape, DType::kBF16);
  const auto tokens = randomTokens(120, shape.vocab, 9);
  CpuOptions options = optionsFor(shape, *checkpoint);
  options.threads = 1;
  const auto expected = [&] {
    Session session(options);
    return logitsOf(session, tokens, 1, 0, session.pages(0, 120), shape.vocab);
  }();
  REQUIRE(expected.front().size() == 301 && expected.back().size() == 301);
  for (const std::string& simd : cpuFeatures().simd) {
    for (const int32_t threads : {1, 2, 3, 7}) {
      for (const int32_t pageSize : {16, 4, 10, 32}) {
        options.simd = simd;
        options.threads = threads;
        options.pageSize = pageSize;
        options.numPages = 1000;
        Session session(options);
        REQUIRE(session.ok());
        for (const int32_t chunk : {1, 3, 16, 50, 120}) {
          for (const int32_t company : {0, 5}) {
            if (simd == "portable" && (chunk < 16 || threads > 2)) continue;
            auto pages = session.pages(0, 120);
            std::reverse(pages.begin(), pages.end());
            const std::string what = simd + ", threads " + std::to_string(threads) + ", page " +
                                     std::to_string(pageSize) + ", chunk " + std::to_string(chunk) +
                                     ", company " + std::to_string(company);
            compareRows(logitsOf(session, tokens, chunk, company, pages, shape.vocab), expected, what);
          }
        }
      }
    }
  }
}

TEST(bitsDoNotDependOnTheBlocksOfRows) {
  // More rows than pass through the model at a time, prompt log-probabilities of all of them.
  const LlamaShape shape{.vocab = 64, .positions = 1024};
  const auto checkpoint = writeCheckpoint(shape, DType::kF32);
  Session session(optionsFor(shape, *checkpoint));
  REQUIRE(session.ok());
  const auto tokens = randomTokens(900, shape.vocab, 11);
  SamplingParams sampling;
  sampling.promptLogprobs = 2;
  std::vector<std::vector<LogprobRow>> runs;
  for (const int32_t chunk : {900, 333, 64}) {
    REQUIRE(bool(session.open(0, tokens, sampling)));
    runs.emplace_back();
    for (int32_t begin = 0; begin < 900; begin += chunk) {
      const int32_t end = std::min(900, begin + chunk);
      const StepResult result = session.step({{0,
                                               {tokens.begin() + begin, tokens.begin() + end},
                                               begin,
                                               kPromptLogprobs,
                                               session.pages(0, end)}});
      REQUIRE(bool(result.status));
      CHECK_EQ(result.topIds.size(), result.logprobs.size() * 2);
      runs.back().insert(runs.back().end(), result.logprobs.begin(), result.logprobs.end());
    }
    REQUIRE(bool(session.backend->closeSlot(0)));
    REQUIRE(runs.back().size() == 899);
    for (size_t i = 0; i < 899; ++i) {
      CHECK_EQ(runs.back()[i].position, int32_t(i + 1));
      CHECK_EQ(runs.back()[i].token, tokens[i + 1]);
      CHECK_EQ(runs.back()[i].logprob, runs.front()[i].logprob);
      CHECK_EQ(runs.back()[i].rank, runs.front()[i].rank);
    }
  }
}

TEST(cachedPrefixGivesTheSameBits) {
  const LlamaShape shape{};
  const auto checkpoint = writeCheckpoint(shape, DType::kBF16);
  Session session(optionsFor(shape, *checkpoint));
  REQUIRE(session.ok());
  const auto prompt = randomTokens(40, shape.vocab, 5);
  const auto solo = session.generate(0, prompt, 20, 0);
  CHECK_EQ(solo.size(), size_t{20});
  // Another slot takes over the first two pages and computes the rest into pages of its own.
  REQUIRE(bool(session.open(3, prompt)));
  std::vector<int32_t> pages = {0, 1, 90, 91};
  StepResult result = session.step({{3, {prompt.begin() + 32, prompt.end()}, 32, kSample, {0, 1, 90}}});
  REQUIRE(bool(result.status));
  std::vector<int32_t> tokens = result.tokens;
  for (int32_t i = 1; i < 20; ++i) {
    result = session.step(
        {{3, {kLastSampledToken}, 39 + i, kSample, {pages.begin(), pages.begin() + (39 + i) / 16 + 1}}});
    REQUIRE(bool(result.status));
    tokens.push_back(result.tokens.at(0));
  }
  CHECK(tokens == solo);
}

}  // namespace

TEST_MAIN()
