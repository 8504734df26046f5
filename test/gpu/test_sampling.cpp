// The sampling kernels against a plain computation in double precision. Needs a GPU.
#include <algorithm>
#include <cmath>
#include <map>
#include <numeric>
#include <random>
#include <vector>

#include "check.h"
#include "tensorrt/cuda.h"
#include "tensorrt/kernels/sampling.h"

namespace {

using namespace nt;
using kernels::SlotParams;

constexpr int32_t kSlots = 256;
constexpr int32_t kVocab = 4099;  // no multiple of a warp or a block
constexpr size_t kWords = (kVocab + 31) / 32;

void cuda(cudaError_t error) {
  if (error != cudaSuccess) throw std::runtime_error(cudaGetErrorString(error));
}

// Device arrays of a batch in which entry i belongs to slot i, all with the same logits.
class Device {
 public:
  Device() {
    const auto make = [&](auto*& pointer, size_t count) {
      auto memory = DeviceBuffer::allocate(count * sizeof(*pointer), "test");
      if (!memory) throw std::runtime_error(memory.status().message());
      pointer = memory->as<std::remove_reference_t<decltype(*pointer)>>();
      cuda(cudaMemset(pointer, 0, count * sizeof(*pointer)));
      memory_.push_back(*std::move(memory));
    };
    make(logits_, size_t{kSlots} * kVocab);
    make(slots_, kSlots);
    make(targets_, kSlots);
    make(maskRows_, kSlots);
    make(masks_, size_t{kSlots} * kWords);
    make(history_, 1 << 16);
    make(table_.params, kSlots);
    make(table_.lastTokens, kSlots);
    make(table_.outputCounts, kSlots);
    make(table_.tokenCounts, size_t{kSlots} * kVocab);
    make(table_.biases, kSlots);
    table_.vocab = kVocab;
    make(args_.tokens, kSlots);
    make(args_.ranks, kSlots);
    make(args_.logprobs, kSlots);
    make(args_.topIds, size_t{kSlots} * kernels::kMaxTopLogprobs);
    make(args_.topLogprobs, size_t{kSlots} * kernels::kMaxTopLogprobs);
    args_.logits = logits_;
    args_.slots = slots_;
    args_.targets = targets_;
    args_.maskRows = maskRows_;
    args_.masks = masks_;
    args_.entries = kSlots;
    args_.table = table_;
    std::vector<int32_t> slots(kSlots);
    std::iota(slots.begin(), slots.end(), 0);
    put(slots_, slots);
    put(targets_, std::vector<int32_t>(kSlots, -1));
    put(maskRows_, std::vector<int32_t>(kSlots, -1));
  }

  // Masks of the entries that have one; an empty one: none. The rows lie in reverse order.
  void setMasks(const std::vector<std::vector<uint32_t>>& masks) {
    std::vector<int32_t> rows(kSlots, -1);
    int32_t row = kSlots;
    for (size_t i = 0; i < masks.size(); ++i) {
      if (masks[i].empty()) continue;
      rows[i] = --row;
      cuda(cudaMemcpy(masks_ + size_t(row) * kWords, masks[i].data(), kWords * sizeof(uint32_t),
                      cudaMemcpyHostToDevice));
    }
    put(maskRows_, rows);
  }

  void setLogits(const std::vector<float>& logits) {
    for (int32_t i = 0; i < kSlots; ++i) {
      cuda(cudaMemcpy(logits_ + size_t(i) * kVocab, logits.data(), kVocab * sizeof(float),
                      cudaMemcpyHostToDevice));
    }
  }
  void setTargets(const std::vector<int32_t>& targets) { put(targets_, targets); }
  void open(int32_t slot, const SlotParams& params, const std::vector<int32_t>& prompt = {},
            const std::vector<int32_t>& output = {}, const kernels::SlotBias& bias = {}) {
    cuda(kernels::openSlot(table_, slot, params, -1, static_cast<int32_t>(output.size()), nullptr));
    if (params.biasCount > 0) cuda(kernels::setBias(table_, slot, bias, nullptr));
    if (params.penalised == 0) return;
    std::vector<int32_t> all = prompt;
    all.insert(all.end(), output.begin(), output.end());
    put(history_, all);
    cuda(kernels::countTokens(table_, slot, history_, static_cast<int32_t>(prompt.size()),
                              static_cast<int32_t>(output.size()), nullptr));
  }
  std::vector<int32_t> sample() {
    cuda(kernels::sample(DType::kF32, args_, nullptr));
    return get(args_.tokens, kSlots);
  }
  std::vector<int32_t> ranks() { return get(args_.ranks, kSlots); }
  std::vector<float> logprobs() { return get(args_.logprobs, kSlots); }
  std::vector<int32_t> topIds() { return get(args_.topIds, kernels::kMaxTopLogprobs); }
  std::vector<float> topLogprobs() { return get(args_.topLogprobs, kernels::kMaxTopLogprobs); }
  std::vector<int32_t> lastTokens() { return get(table_.lastTokens, kSlots); }

 private:
  template <class T>
  static void put(T* to, const std::vector<T>& from) {
    cuda(cudaMemcpy(to, from.data(), from.size() * sizeof(T), cudaMemcpyHostToDevice));
  }
  template <class T>
  static std::vector<T> get(const T* from, size_t count) {
    std::vector<T> to(count);
    cuda(cudaMemcpy(to.data(), from, count * sizeof(T), cudaMemcpyDeviceToHost));
    return to;
  }

  std::vector<DeviceBuffer> memory_;
  float* logits_ = nullptr;
  int32_t* slots_ = nullptr;
  int32_t* targets_ = nullptr;
  int32_t* maskRows_ = nullptr;
  uint32_t* masks_ = nullptr;
  int32_t* history_ = nullptr;
  kernels::SlotTable table_;
  kernels::SampleArgs args_;
};

std::vector<float> randomLogits(uint32_t seed, bool ties) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal(0, 3);
  std::vector<float> logits(kVocab);
  // Steps of a quarter, as 16-bit logits have them: many are equal.
  for (float& x : logits) x = ties ? std::round(normal(random) * 4) / 4 : normal(random);
  return logits;
}

std::vector<int32_t> byLogit(const std::vector<float>& logits) {
  std::vector<int32_t> ids(logits.size());
  std::iota(ids.begin(), ids.end(), 0);
  std::sort(ids.begin(), ids.end(), [&](int32_t a, int32_t b) {
    return logits[size_t(a)] > logits[size_t(b)] || (logits[size_t(a)] == logits[size_t(b)] && a < b);
  });
  return ids;
}

// id -> probability, of the tokens that may be drawn.
std::map<int32_t, double> distribution(const std::vector<float>& logits, const SlotParams& params) {
  const std::vector<int32_t> ids = byLogit(logits);
  const double max = logits[size_t(ids[0])];
  const auto weight = [&](int32_t id) { return std::exp((logits[size_t(id)] - max) / params.temperature); };
  std::vector<int32_t> kept;
  for (const int32_t id : ids) {
    if (params.topK > 0 && kept.size() == size_t(params.topK)) break;
    if (params.minP > 0 && logits[size_t(id)] < float(max) + params.temperature * std::log(params.minP))
      break;
    kept.push_back(id);
  }
  double total = 0;
  for (const int32_t id : kept) total += weight(id);
  std::map<int32_t, double> result;
  double mass = 0;
  for (const int32_t id : kept) {
    if (!result.empty() && mass >= double(params.topP) * total) break;
    result[id] = weight(id);
    mass += weight(id);
  }
  for (auto& [id, p] : result) p /= mass;
  return result;
}

// Draws 64 * 256 tokens and tests them. The bound is far out (z = 5): a right sampler passes always, a wrong
// one does not.
// `logits` are those after mask and bias, `raw` before them.
void checkDistribution(const std::vector<float>& logits, SlotParams params, const std::vector<float>& raw,
                       const std::vector<std::vector<uint32_t>>& masks, const kernels::SlotBias& bias) {
  Device device;
  device.setLogits(raw);
  device.setMasks(masks);
  std::map<int32_t, int64_t> seen;
  int64_t draws = 0;
  for (int32_t i = 0; i < kSlots; ++i) {
    params.seed = 1000 + uint64_t(i);
    device.open(i, params, {}, {}, bias);
  }
  for (int round = 0; round < 64; ++round) {
    for (const int32_t token : device.sample()) {
      ++seen[token];
      ++draws;
    }
  }
  const auto expected = distribution(logits, params);
  for (const auto& [token, count] : seen) {
    // A token at the nucleus' very end may be in or out by rounding; then its probability is tiny or its
    // border is near.
    if (!expected.contains(token)) CHECK(double(count) / double(draws) < 1e-3);
  }
  double chi = 0;
  double freedom = -1;
  double restExpected = 0;
  double restSeen = 0;
  const auto add = [&](double want, double got) {
    chi += (got - want) * (got - want) / want;
    freedom += 1;
  };
  for (const auto& [token, p] : expected) {
    const double want = p * double(draws);
    const double got = seen.contains(token) ? double(seen[token]) : 0;
    if (want >= 10) {
      add(want, got);
    } else {
      restExpected += want;
      restSeen += got;
    }
  }
  if (restExpected >= 10) add(restExpected, restSeen);
  if (freedom >= 1) CHECK((chi - freedom) / std::sqrt(2 * freedom) < 5);
}

void checkDistribution(const std::vector<float>& logits, const SlotParams& params) {
  checkDistribution(logits, params, logits, {}, {});
}

SlotParams at(float temperature, int32_t topK = 0, float topP = 1, float minP = 0) {
  SlotParams params;
  params.temperature = temperature;
  params.topK = topK;
  params.topP = topP;
  params.minP = minP;
  return params;
}

}  // namespace

TEST(greedyTakesTheFirstLargest) {
  for (const bool ties : {false, true}) {
    Device device;
    const auto logits = randomLogits(1, ties);
    device.setLogits(logits);
    for (int32_t i = 0; i < kSlots; ++i) device.open(i, {});
    for (const int32_t token : device.sample()) CHECK_EQ(token, byLogit(logits)[0]);
    CHECK_EQ(device.lastTokens()[17], byLogit(logits)[0]);
  }
}

TEST(drawsFollowTheDistribution) {
  for (const bool ties : {false, true}) {
    const auto logits = randomLogits(2, ties);
    checkDistribution(logits, at(1));
    checkDistribution(logits, at(0.5F));
    checkDistribution(logits, at(1, 5));
    checkDistribution(logits, at(1, 40));
    checkDistribution(logits, at(1, 0, 0.5F));
    checkDistribution(logits, at(1.3F, 0, 0.9F));
    checkDistribution(logits, at(1, 0, 1, 0.1F));
    checkDistribution(logits, at(0.9F, 100, 0.8F, 0.02F));
  }
}

TEST(topKAmongEqualsTakesTheLowestIds) {
  Device device;
  std::vector<float> logits(kVocab, 0);
  logits[4000] = 1;
  device.setLogits(logits);
  SlotParams params = at(100, 4);
  for (int32_t i = 0; i < kSlots; ++i) {
    params.seed = uint64_t(i);
    device.open(i, params);
  }
  std::map<int32_t, int> seen;
  for (int round = 0; round < 8; ++round) {
    for (const int32_t token : device.sample()) ++seen[token];
  }
  CHECK_EQ(seen.size(), size_t{4});
  for (const int32_t token : {0, 1, 2, 4000}) CHECK(seen.contains(token));
}

TEST(sameSeedSameTokens) {
  std::vector<int32_t> first;
  for (int run = 0; run < 2; ++run) {
    Device device;
    device.setLogits(randomLogits(3, true));
    SlotParams params = at(1, 50, 0.95F);
    // In the second run in other slots, among other neighbours.
    for (int32_t i = 0; i < kSlots; ++i) {
      const int32_t slot = run == 0 ? i : kSlots - 1 - i;
      params.seed = uint64_t(i / 2);
      params.topK = i % 2 == 0 ? 50 : 0;
      device.open(slot, params);
    }
    auto tokens = device.sample();
    if (run == 1) std::reverse(tokens.begin(), tokens.end());
    if (run == 0) first = tokens;
    CHECK(tokens == first);
  }
}

TEST(penaltiesAndBans) {
  Device device;
  std::vector<float> logits(kVocab, -1);
  logits[10] = 5;
  logits[11] = 4;
  logits[12] = 3.5F;
  device.setLogits(logits);
  SlotParams params;
  params.penalised = 1;
  params.repetitionPenalty = 2;
  device.open(0, params, {10}, {});  // 5 / 2 < 4
  params.repetitionPenalty = 1;
  params.presencePenalty = 1.25F;
  device.open(1, params, {10}, {10});  // 5 - 1.25 < 4
  device.open(2, params, {10}, {});    // the prompt does not count
  params.presencePenalty = 0;
  params.frequencyPenalty = 0.4F;
  device.open(3, params, {}, {10, 10, 10});  // 5 - 1.2 < 4
  device.open(4, params, {}, {10, 10});      // 5 - 0.8 > 4
  SlotParams banned;
  banned.minTokens = 2;
  banned.bannedCount = 2;
  banned.banned[0] = 10;
  banned.banned[1] = 11;
  device.open(5, banned);
  for (int32_t i = 6; i < kSlots; ++i) device.open(i, {});
  auto tokens = device.sample();
  CHECK_EQ(tokens[0], 11);
  CHECK_EQ(tokens[1], 11);
  CHECK_EQ(tokens[2], 10);
  CHECK_EQ(tokens[3], 11);
  CHECK_EQ(tokens[4], 10);
  CHECK_EQ(tokens[5], 12);
  tokens = device.sample();
  CHECK_EQ(tokens[4], 11);  // 10 has been drawn a third time
  CHECK_EQ(tokens[5], 12);
  CHECK_EQ(device.sample()[5], 10);  // two tokens are out
}

TEST(masksLeaveTheRestAlone) {
  for (const bool ties : {false, true}) {
    Device device;
    const auto logits = randomLogits(11, ties);
    device.setLogits(logits);
    const auto ids = byLogit(logits);
    std::vector<std::vector<uint32_t>> masks(kSlots);
    std::vector<int32_t> expected(kSlots, ids[0]);
    std::mt19937 random(5);
    for (int32_t i = 0; i < kSlots; ++i) {
      device.open(i, i % 2 == 0 ? SlotParams{} : at(1e-4F));
      if (i % 5 == 4) continue;
      auto& mask = masks[size_t(i)];
      mask.assign(kWords, 0);
      // From one token to nearly all of them.
      const uint32_t share = 1U << (random() % 13);
      for (int32_t token = 0; token < kVocab; ++token) {
        if (random() % share == 0 || token == i * 16) mask[size_t(token) / 32] |= 1U << (token % 32);
      }
      expected[size_t(i)] = *std::find_if(
          ids.begin(), ids.end(), [&](int32_t id) { return (mask[size_t(id) / 32] >> (id % 32) & 1U) != 0; });
    }
    device.setMasks(masks);
    const auto tokens = device.sample();
    for (int32_t i = 0; i < kSlots; ++i) {
      if (i % 2 == 0) CHECK_EQ(tokens[size_t(i)], expected[size_t(i)]);
      CHECK_EQ(logits[size_t(tokens[size_t(i)])], logits[size_t(expected[size_t(i)])]);
    }
  }
}

TEST(masksThatLeaveNothingFinite) {
  Device device;
  auto logits = randomLogits(12, false);
  for (const size_t token : {7, 4098}) logits[token] = -INFINITY;
  device.setLogits(logits);
  SlotParams banned = at(1);
  banned.minTokens = 5;
  banned.bannedCount = 2;
  banned.banned[0] = 7;
  banned.banned[1] = 40;
  device.open(0, {});
  device.open(1, at(1));
  device.open(2, banned);
  device.open(3, banned);
  for (int32_t i = 4; i < kSlots; ++i) device.open(i, {});
  std::vector<std::vector<uint32_t>> masks(kSlots);
  for (size_t i = 0; i < 4; ++i) masks[i].assign(kWords, 0);
  for (size_t i = 0; i < 3; ++i) {
    masks[i][0] = 1U << 7;
    masks[i][kWords - 1] = 1U << (4098 % 32);
  }
  // The ban gives way.
  masks[3][1] = 1U << (40 % 32);
  device.setMasks(masks);
  const auto tokens = device.sample();
  for (size_t i = 0; i < 3; ++i) {
    CHECK_EQ(tokens[i], kernels::kNoneAllowed);
    CHECK_EQ(device.lastTokens()[i], -1);
  }
  CHECK_EQ(tokens[3], 40);
  for (size_t i = 4; i < kSlots; ++i) CHECK_EQ(tokens[i], byLogit(logits)[0]);
  // Behind a mask, too, a NaN is one.
  logits[100] = NAN;
  device.setLogits(logits);
  for (const int32_t token : device.sample()) CHECK_EQ(token, kernels::kUnusableLogits);
}

TEST(maskedAndBiasedDraws) {
  const auto logits = randomLogits(13, true);
  std::vector<uint32_t> mask(kWords, 0);
  auto left = logits;
  for (int32_t token = 0; token < kVocab; ++token) {
    if (token % 9 == 4) {
      mask[size_t(token) / 32] |= 1U << (token % 32);
    } else {
      left[size_t(token)] = -1e9F;  // weighs nothing, and comes last
    }
  }
  SlotParams params = at(1.3F, 0, 0.9F);
  kernels::SlotBias bias;
  params.biasCount = kernels::kMaxBias;
  for (int32_t i = 0; i < kernels::kMaxBias; ++i) {
    bias.ids[i] = 4 * i + 1;
    bias.values[i] = static_cast<float>(i % 7) / 2;
    left[size_t(bias.ids[i])] += bias.values[i];
  }
  for (const int32_t topK : {0, 30, 2000}) {
    params.topK = topK;
    checkDistribution(left, params, logits, std::vector<std::vector<uint32_t>>(kSlots, mask), bias);
  }
}

TEST(biasComesBeforePenalties) {
  Device device;
  std::vector<float> logits(kVocab, -1);
  logits[7] = 2;
  logits[9] = 3;
  device.setLogits(logits);
  SlotParams params;
  params.penalised = 1;
  params.repetitionPenalty = 4;
  params.biasCount = 1;
  kernels::SlotBias bias;
  bias.ids[0] = 7;
  bias.values[0] = 6;
  device.open(0, params, {7}, {}, bias);  // (2 + 6) / 4 < 3
  device.open(1, params, {8}, {}, bias);
  for (int32_t i = 2; i < kSlots; ++i) device.open(i, {});
  const auto tokens = device.sample();
  CHECK_EQ(tokens[0], 9);
  CHECK_EQ(tokens[1], 7);
  CHECK_EQ(tokens[2], 9);
}

TEST(logprobsRanksAndTops) {
  Device device;
  const auto logits = randomLogits(4, true);
  device.setLogits(logits);
  const auto ids = byLogit(logits);
  double total = 0;
  for (const float x : logits) total += std::exp(double(x));
  SlotParams params;
  params.logprobs = 20;
  params.promptLogprobs = 0;
  std::vector<int32_t> targets(kSlots, -1);
  for (int32_t i = 0; i < kSlots; ++i) {
    device.open(i, params);
    if (i > 0) targets[size_t(i)] = (i * 37) % kVocab;
  }
  device.setTargets(targets);
  const auto tokens = device.sample();
  const auto logprobs = device.logprobs();
  const auto ranks = device.ranks();
  CHECK_EQ(tokens[0], ids[0]);
  for (size_t i = 0; i < size_t{kSlots}; ++i) {
    if (i > 0) CHECK_EQ(tokens[i], targets[i]);
    CHECK(std::abs(logprobs[i] - (logits[size_t(tokens[i])] - std::log(total))) < 1e-4);
    CHECK_EQ(ids[size_t(ranks[i] - 1)], tokens[i]);
  }
  const auto topIds = device.topIds();
  const auto topLogprobs = device.topLogprobs();
  for (size_t k = 0; k < 20; ++k) {
    CHECK_EQ(topIds[k], ids[k]);
    CHECK(std::abs(topLogprobs[k] - (logits[size_t(ids[k])] - std::log(total))) < 1e-4);
  }
}

TEST(logitsThatAreNotFinite) {
  for (const float bad : {NAN, INFINITY}) {
    Device device;
    auto logits = randomLogits(5, false);
    logits[kVocab - 1] = bad;
    device.setLogits(logits);
    for (int32_t i = 0; i < kSlots; ++i) device.open(i, at(i % 2 == 0 ? 0.0F : 1.0F));
    for (const int32_t token : device.sample()) CHECK_EQ(token, -1);
  }
}

TEST_MAIN()
