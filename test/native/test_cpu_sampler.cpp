// Sampling against a plain implementation of the same definition, and against the distribution it stands for.
#include <algorithm>
#include <cmath>
#include <limits>
#include <map>
#include <numeric>
#include <set>
#include <string>
#include <vector>

#include "check.h"
#include "core/random.h"
#include "core/step_batch.h"
#include "cpu/processor.h"
#include "cpu/sampler.h"
#include "cpu/step_sampler.h"

// The tests name the parameters that they are about.
#pragma GCC diagnostic ignored "-Wmissing-field-initializers"

namespace {

using namespace nt;
using namespace nt::cpu;

std::vector<const Kernels*> allKernels() {
  std::vector<const Kernels*> out;
  for (const char* name : {"portable", "avx2", "avx512"}) {
    if (const auto kernels = kernelsFor(name, detectProcessor())) out.push_back(*kernels);
  }
  return out;
}

const Kernels& best() {
  return **kernelsFor("", detectProcessor());
}

std::vector<float> randomLogits(size_t vocab, uint64_t seed, float range = 6) {
  std::vector<float> out(vocab);
  for (size_t i = 0; i < vocab; ++i) out[i] = float(uniform(seed, i, 1) * 2 - 1) * range;
  return out;
}

SlotState makeSlot(const SamplingParams& params, std::vector<int32_t> prompt = {0},
                   std::vector<int32_t> output = {}) {
  SlotInit init;
  init.slot = 0;
  init.sampling = params;
  init.prompt = std::move(prompt);
  init.output = std::move(output);
  return SlotState(std::move(init));
}

// Probability of each token, straight from the definition: sort everything, in double precision.
std::vector<double> naiveDistribution(const std::vector<float>& logits, const SlotState& slot,
                                      const std::vector<int32_t>& output) {
  const SamplingParams& p = slot.params;
  std::vector<double> x(logits.begin(), logits.end());
  constexpr double kNever = -std::numeric_limits<double>::infinity();
  for (size_t i = 0; i < x.size() && !slot.mask.empty(); ++i) {
    if ((slot.mask[i / 32] >> (i % 32) & 1) == 0) x[i] = kNever;
  }
  for (size_t i = 0; i < p.biasIds.size(); ++i) x[size_t(p.biasIds[i])] += double(p.biasValues[i]);
  std::set<int32_t> seen(slot.prompt.begin(), slot.prompt.end());
  std::map<int32_t, int> counts;
  for (const int32_t token : output) {
    seen.insert(token);
    ++counts[token];
  }
  for (const int32_t token : seen) {
    double& v = x[size_t(token)];
    v = v > 0 ? v / double(p.repetitionPenalty) : v * double(p.repetitionPenalty);
  }
  for (const auto& [token, count] : counts) {
    x[size_t(token)] -= double(p.frequencyPenalty) * count + double(p.presencePenalty);
  }
  if (slot.outputs < p.minTokens) {
    for (const int32_t token : p.bannedTokens) x[size_t(token)] = kNever;
  }
  std::vector<int32_t> order(x.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(),
                   [&](int32_t a, int32_t b) { return x[size_t(a)] > x[size_t(b)]; });
  std::vector<double> out(x.size(), 0);
  if (p.temperature == 0) {
    out[size_t(order[0])] = 1;
    return out;
  }
  const double max = x[size_t(order[0])];
  std::vector<int32_t> kept;
  for (const int32_t id : order) {
    const double relative = std::exp((x[size_t(id)] - max) / double(p.temperature));
    if (relative < double(p.minP) || relative == 0) continue;
    if (p.topK > 0 && kept.size() == size_t(p.topK)) break;
    kept.push_back(id);
    out[size_t(id)] = relative;
  }
  double total = 0;
  for (const double v : out) total += v;
  double mass = 0;
  for (const int32_t id : kept) {
    double& v = out[size_t(id)];
    if (p.topP < 1 && mass >= double(p.topP) * total) v = 0;
    mass += v;
  }
  total = std::accumulate(out.begin(), out.end(), 0.0);
  for (double& v : out) v /= total;
  return out;
}

// Draws many tokens and compares their frequencies with the expected distribution by a chi-square test.
void checkDistribution(const char* name, const std::vector<float>& logits, SamplingParams params,
                       int draws = 40000, const std::vector<int32_t>& mask = {}) {
  Sampler sampler(best(), logits.size());
  SlotState slot = makeSlot(params);
  slot.mask = mask;
  const auto expected = naiveDistribution(logits, slot, {});
  std::vector<int> counts(logits.size(), 0);
  for (int i = 0; i < draws; ++i) {
    slot.outputs = i;
    ++counts[size_t(sampler.sample(logits.data(), slot))];
  }
  double chi = 0;
  int cells = 0;
  double restExpected = 0;
  double restSeen = 0;
  for (size_t i = 0; i < counts.size(); ++i) {
    const double e = expected[i] * draws;
    if (expected[i] == 0 && counts[i] > 0) {
      nt::test::fail(__FILE__, __LINE__,
                     std::string(name) + ": token " + std::to_string(i) + " must not be drawn");
    }
    if (e < 8) {
      restExpected += e;
      restSeen += counts[i];
      continue;
    }
    ++cells;
    chi += (counts[i] - e) * (counts[i] - e) / e;
  }
  if (restExpected >= 8) {
    ++cells;
    chi += (restSeen - restExpected) * (restSeen - restExpected) / restExpected;
  }
  const double freedom = std::max(1, cells - 1);
  // Wilson-Hilferty: the cube root of chi / freedom is near normal. 4.5 sigma: once in 300,000 runs; but the
  // draws are fixed.
  const double z = (std::cbrt(chi / freedom) - (1 - 2 / (9 * freedom))) / std::sqrt(2 / (9 * freedom));
  if (!(z < 4.5)) nt::test::fail(__FILE__, __LINE__, std::string(name) + ": z = " + std::to_string(z));
}

TEST(drawsFollowTheDistribution) {
  for (const size_t vocab : {5, 40, 300, 1500}) {
    const auto logits = randomLogits(vocab, vocab, 3);
    checkDistribution("plain", logits, {.temperature = 1});
    checkDistribution("hot", logits, {.temperature = 5, .seed = 3});
    checkDistribution("cold", logits, {.temperature = 0.3F});
    checkDistribution("min_p", logits, {.temperature = 1.3F, .minP = 0.2F});
    checkDistribution("top_k", logits, {.temperature = 1, .topK = 7});
    checkDistribution("top_p", logits, {.temperature = 1, .topP = 0.6F});
    checkDistribution("top_p almost all", logits, {.temperature = 2, .topP = 0.999F});
    checkDistribution("all three", logits, {.temperature = 1.5F, .topK = 30, .topP = 0.8F, .minP = 0.05F});
    checkDistribution("min_p and top_p", logits, {.temperature = 1.5F, .topP = 0.7F, .minP = 0.1F});
  }
}

TEST(flatAndPeakedDistributions) {
  checkDistribution("flat", std::vector<float>(600, 1.5F), {.temperature = 1});
  checkDistribution("flat top_p", std::vector<float>(600, 1.5F), {.temperature = 1, .topP = 0.5F});
  checkDistribution("flat top_k", std::vector<float>(600, 1.5F), {.temperature = 1, .topK = 5});
  auto peaked = randomLogits(600, 1, 1);
  peaked[77] = 60;
  checkDistribution("peaked", peaked, {.temperature = 1});
  checkDistribution("peaked top_p", peaked, {.temperature = 1, .topP = 0.01F});
}

TEST(greedyTakesTheLowestOfEquals) {
  std::vector<float> logits(1000, 1.0F);
  logits[412] = logits[77] = logits[999] = 2;
  Sampler sampler(best(), logits.size());
  CHECK_EQ(sampler.sample(logits.data(), makeSlot({})), 77);
  CHECK_EQ(sampler.sample(logits.data(), makeSlot({.temperature = 1e-7F})), 77);
  CHECK_EQ(sampler.sample(logits.data(), makeSlot({.temperature = 1, .topK = 1})), 77);
}

TEST(penaltiesAsDefined) {
  for (uint64_t round = 0; round < 200; ++round) {
    const auto logits = randomLogits(64, round, 2);
    const auto draw = [&](uint64_t i) { return uniform(round, i, 9); };
    SamplingParams params;
    params.repetitionPenalty = float(0.5 + draw(0) * 1.5);
    params.presencePenalty = float(draw(1) * 4 - 2);
    params.frequencyPenalty = float(draw(2) * 2 - 1);
    params.minTokens = round % 3 == 0 ? 100 : 0;
    params.bannedTokens = {5, 6, 7, 8};
    std::vector<int32_t> prompt;
    std::vector<int32_t> output;
    for (uint64_t i = 0; i < 20; ++i) prompt.push_back(int32_t(draw(10 + i) * 64));
    for (uint64_t i = 0; i < 30; ++i) output.push_back(int32_t(draw(40 + i) * 64));
    // Half of the output came before a preemption, the other half is committed one by one.
    SlotState slot = makeSlot(params, prompt, {output.begin(), output.begin() + 15});
    for (size_t i = 15; i < 30; ++i) slot.commit(output[i]);
    CHECK_EQ(slot.outputs, 30);
    CHECK_EQ(slot.lastToken, output.back());
    Sampler sampler(best(), logits.size());
    const auto expected = naiveDistribution(logits, slot, output);
    CHECK_EQ(expected[size_t(sampler.sample(logits.data(), slot))], 1.0);
  }
}

// Allows every `step`-th token.
std::vector<int32_t> everyNth(size_t vocab, size_t step) {
  std::vector<int32_t> mask(maskWords(int32_t(vocab)), 0);
  for (size_t i = 0; i < vocab; i += step) mask[i / 32] |= int32_t(1U << (i % 32));
  return mask;
}

TEST(masksAndBiasesAsDefined) {
  // Vocabularies around the borders of words, and of the kernels' blocks.
  for (const size_t vocab : {31, 32, 33, 500, 4099}) {
    for (const size_t step : {1, 2, 3, 31, 32, 97}) {
      const auto mask = everyNth(vocab, step);
      for (uint64_t seed = 0; seed < 4; ++seed) {
        const auto logits = randomLogits(vocab, seed * 100 + step);
        const auto last = int32_t(vocab - 1);
        for (const SamplingParams& params :
             {SamplingParams{}, SamplingParams{.biasIds = {last, 0}, .biasValues = {3.5F, -20}},
              SamplingParams{.repetitionPenalty = 1.7F,
                             .presencePenalty = 0.5F,
                             .biasIds = {2, 5},
                             .biasValues = {4, -3}}}) {
          SlotState slot = makeSlot(params, {2, 3}, {5});
          slot.mask = mask;
          const auto expected = naiveDistribution(logits, slot, {5});
          const auto best = int32_t(std::max_element(expected.begin(), expected.end()) - expected.begin());
          for (const Kernels* kernels : allKernels())
            CHECK_EQ(Sampler(*kernels, vocab).sample(logits.data(), slot), best);
        }
      }
    }
  }
}

TEST(maskedDrawsFollowTheDistribution) {
  const auto logits = randomLogits(800, 21, 3);
  const auto mask = everyNth(800, 7);
  checkDistribution("mask", logits, {.temperature = 1, .seed = 1}, 40000, mask);
  checkDistribution("mask, top-k", logits, {.temperature = 1.3F, .topK = 12, .seed = 2}, 40000, mask);
  checkDistribution("mask, top-k of more than it allows", logits,
                    {.temperature = 1.3F, .topK = 400, .seed = 3}, 40000, mask);
  checkDistribution("mask, top-p", logits, {.temperature = 1.2F, .topP = 0.7F, .seed = 4}, 40000, mask);
  checkDistribution("mask, min-p", logits, {.temperature = 1.2F, .minP = 0.05F, .seed = 5}, 40000, mask);
  checkDistribution("mask, bias", logits,
                    {.temperature = 1, .seed = 6, .biasIds = {0, 7, 8}, .biasValues = {2, -1, 50}}, 40000,
                    mask);
  checkDistribution("bias", logits, {.temperature = 1, .seed = 7, .biasIds = {0, 799}, .biasValues = {5, 4}});
}

TEST(biasComesBeforePenalties) {
  std::vector<float> logits(40, -1.0F);
  // (2 + 6) / 4 = 2 is below 3. The other way round it would be 2 / 4 + 6.
  logits[7] = 2;
  logits[9] = 3;
  Sampler sampler(best(), logits.size());
  const SamplingParams params{.repetitionPenalty = 4, .biasIds = {7}, .biasValues = {6}};
  CHECK_EQ(sampler.sample(logits.data(), makeSlot(params, {7})), 9);
  CHECK_EQ(sampler.sample(logits.data(), makeSlot(params, {8})), 7);
}

TEST(theMaskWinsOverTheBan) {
  const auto logits = randomLogits(100, 31);
  Sampler sampler(best(), logits.size());
  for (const float temperature : {0.0F, 1.0F}) {
    SlotState slot = makeSlot({.temperature = temperature, .minTokens = 3, .bannedTokens = {40, 41}});
    slot.mask.assign(4, 0);
    slot.mask[1] = 1 << 8;  // token 40
    CHECK_EQ(sampler.sample(logits.data(), slot), 40);
    slot.mask[2] = 1 << 1;  // and 65
    CHECK_EQ(sampler.sample(logits.data(), slot), 65);
    slot.outputs = 3;
    slot.mask[2] = 0;
    CHECK_EQ(sampler.sample(logits.data(), slot), 40);
  }
}

TEST(aMaskThatLeavesNothingFiniteSamplesNothing) {
  auto logits = randomLogits(100, 32);
  for (const int32_t token : {3, 4}) logits[size_t(token)] = -std::numeric_limits<float>::infinity();
  Sampler sampler(best(), logits.size());
  for (const float temperature : {0.0F, 1.0F}) {
    for (const std::vector<int32_t>& banned : {std::vector<int32_t>{}, std::vector<int32_t>{3, 7}}) {
      SlotState slot = makeSlot({.temperature = temperature, .minTokens = 1, .bannedTokens = banned});
      slot.mask = {0b11000, 0, 0, 0};
      CHECK_EQ(sampler.sample(logits.data(), slot), kNothingAllowed);
      slot.commit(kNothingAllowed);
      CHECK(slot.outputs == 0 && slot.lastToken == -1);
    }
  }
}

// The rest of the step is as it should be.
TEST(nothingAllowedConcernsItsSequenceAlone) {
  constexpr size_t kVocab = 64;
  BackendInfo info;
  info.vocabSize = kVocab;
  info.maxPositions = info.maxStepTokens = info.numPages = info.pageSize = 8;
  info.maxSlots = 2;
  SlotSet open(2);
  CHECK(open.open(0).isOk() && open.open(1).isOk());
  StepParser parser(info);
  auto step =
      parser.parse({kStepVersion, 1, 2, 2, 2, 0, 0, 1, 0, 1, kSample, 1, 1, 0, 1, kSample, 0, 1, 5, 6}, open);
  REQUIRE(bool(step));
  auto pool = ThreadPool::create(1);
  REQUIRE(bool(pool));
  StepSampler sampler(best(), **pool, kVocab, 0);
  SlotState masked = makeSlot({.logprobs = 0});
  SlotState other = makeSlot({.logprobs = 0});
  masked.mask = {1, 0};
  std::vector<float> logits(2 * kVocab, 1.0F);
  logits[0] = -std::numeric_limits<float>::infinity();
  logits[kVocab + 9] = 2;
  const std::vector<SlotState*> slots = {&masked, &other};
  CHECK_EQ(sampler.begin(*step, slots).size(), size_t{2});
  sampler.onLogits(0, 2, logits.data(), kVocab);
  StepResult result;
  CHECK(sampler.finish(result).isOk());
  CHECK(result.tokens == (std::vector<int32_t>{kNothingAllowed, 9}));
  REQUIRE(result.logprobs.size() == 1);
  CHECK_EQ(result.logprobs[0].sequence, 1);
  CHECK(masked.outputs == 0 && other.outputs == 1);
}

TEST(bannedUntilMinTokens) {
  std::vector<float> logits(50, 0.0F);
  logits[3] = 9;
  logits[4] = 8;
  Sampler sampler(best(), logits.size());
  SamplingParams params{.minTokens = 2, .bannedTokens = {3}};
  SlotState slot = makeSlot(params);
  std::vector<int32_t> tokens;
  for (int i = 0; i < 4; ++i) {
    tokens.push_back(sampler.sample(logits.data(), slot));
    slot.commit(tokens.back());
  }
  CHECK(tokens == (std::vector<int32_t>{4, 4, 3, 3}));
}

TEST(seedAndIndexDecideAlone) {
  const auto logits = randomLogits(5000, 2);
  for (const SamplingParams& params :
       {SamplingParams{.temperature = 1, .seed = 5}, SamplingParams{.temperature = 1, .topK = 50, .seed = 5},
        SamplingParams{.temperature = 1, .topP = 0.9F, .seed = 5},
        SamplingParams{.temperature = 0.8F, .topP = 0.9F, .minP = 0.01F, .seed = 1ULL << 52}}) {
    std::vector<std::vector<int32_t>> runs;
    for (const Kernels* kernels : allKernels()) {
      Sampler sampler(*kernels, logits.size());
      SlotState slot = makeSlot(params);
      runs.emplace_back();
      for (int i = 0; i < 50; ++i) {
        runs.back().push_back(sampler.sample(logits.data(), slot));
        slot.commit(runs.back().back());
      }
      // Preempted after 20 tokens and resumed: the same continuation.
      SlotState resumed = makeSlot(params, {0}, {runs.back().begin(), runs.back().begin() + 20});
      for (size_t i = 20; i < 50; ++i) {
        const int32_t token = sampler.sample(logits.data(), resumed);
        CHECK_EQ(token, runs.back()[i]);
        resumed.commit(token);
      }
    }
    for (const auto& run : runs) CHECK(run == runs.front());
    SamplingParams other = params;
    other.seed += 1;
    Sampler sampler(best(), logits.size());
    SlotState slot = makeSlot(other);
    int same = 0;
    for (int i = 0; i < 50; ++i) {
      const int32_t token = sampler.sample(logits.data(), slot);
      same += token == runs.front()[size_t(i)];
      slot.commit(token);
    }
    CHECK(same < 25);
  }
}

TEST(logProbabilities) {
  for (const size_t vocab : {3, 100, 4096, 5001}) {
    auto logits = randomLogits(vocab, 8);
    logits[vocab - 1] = logits[0];
    double total = 0;
    for (const float v : logits) total += std::exp(double(v));
    std::vector<int32_t> order(vocab);
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(),
                     [&](int32_t a, int32_t b) { return logits[size_t(a)] > logits[size_t(b)]; });
    for (const Kernels* kernels : allKernels()) {
      Sampler sampler(*kernels, vocab);
      for (const int32_t top : {0, 1, 2, 20, 300}) {
        for (const size_t place : {size_t{0}, vocab / 3, vocab - 1}) {
          const TokenLogprob row = sampler.logprob(logits.data(), order[place], top);
          CHECK(std::abs(double(row.logprob) - (double(logits[size_t(order[place])]) - std::log(total))) <
                2e-6);
          CHECK_EQ(row.rank, int32_t(place + 1));
          const size_t count = std::min(size_t(top), vocab);
          REQUIRE(row.topIds.size() == count && row.topLogprobs.size() == count);
          for (size_t i = 0; i < count; ++i) {
            CHECK_EQ(row.topIds[i], order[i]);
            CHECK(std::abs(double(row.topLogprobs[i]) -
                           (double(logits[size_t(order[i])]) - std::log(total))) < 2e-6);
          }
        }
      }
    }
  }
}

TEST(unusableLogits) {
  auto logits = randomLogits(100, 3);
  Sampler sampler(best(), logits.size());
  CHECK(sampler.isUsable(logits.data()));
  for (const float bad : {std::nanf(""), std::numeric_limits<float>::infinity()}) {
    auto damaged = logits;
    damaged[99] = bad;
    CHECK(!sampler.isUsable(damaged.data()));
  }
  std::fill(logits.begin(), logits.end(), -std::numeric_limits<float>::infinity());
  CHECK(!sampler.isUsable(logits.data()));
}

// Values that the checks let through, but at the end of what they let through: any token will do, as long as
// it is one.
TEST(extremeParametersGiveATokenAnyway) {
  const auto logits = randomLogits(300, 4, 80);
  Sampler sampler(best(), logits.size());
  for (const float temperature : {0.0F, 1e-38F, 1e-5F, 1.0F, 1e30F, 3e38F}) {
    for (const float minP : {0.0F, 1e-38F, 1.0F}) {
      for (const float topP : {1e-38F, 0.5F, 1.0F}) {
        for (const int32_t topK : {0, 1, 299, 300, 2147483647}) {
          for (const float penalty : {1e-38F, 1.0F, 1e38F}) {
            SamplingParams params{.temperature = temperature,
                                  .topK = topK,
                                  .topP = topP,
                                  .minP = minP,
                                  .repetitionPenalty = penalty};
            const int32_t token = sampler.sample(logits.data(), makeSlot(params, {1, 2, 3}, {4, 5}));
            CHECK(token >= 0 && token < 300);
          }
        }
      }
    }
  }
  std::vector<int32_t> all(300);
  std::iota(all.begin(), all.end(), 0);
  for (const float temperature : {0.0F, 1.0F}) {
    const int32_t token = sampler.sample(
        logits.data(), makeSlot({.temperature = temperature, .minTokens = 5, .bannedTokens = all}));
    CHECK(token >= 0 && token < 300);
  }
}

}  // namespace

TEST_MAIN()
