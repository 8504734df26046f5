#include <algorithm>
#include <limits>
#include <vector>

#include "check.h"
#include "core/step_batch.h"
#include "mutate.h"

namespace nt {
namespace {

BackendInfo limits() {
  BackendInfo info;
  info.vocabSize = 100;
  info.maxPositions = 50;
  info.pageSize = 4;
  info.numPages = 20;
  info.maxSlots = 5;
  info.maxStepTokens = 32;
  return info;
}

struct Row {
  int32_t slot = 0;
  int32_t cached = 0;
  int32_t flags = 0;
  std::vector<int32_t> pages;
  std::vector<int32_t> tokens;
};

std::vector<int32_t> pack(const std::vector<Row>& rows, int32_t stepId = 7) {
  std::vector<int32_t> packed(kStepHeaderInts, 0);
  for (const Row& row : rows) {
    packed.insert(packed.end(), {row.slot, static_cast<int32_t>(row.tokens.size()), row.cached,
                                 static_cast<int32_t>(row.pages.size()), row.flags});
    packed[3] += static_cast<int32_t>(row.tokens.size());
    packed[4] += static_cast<int32_t>(row.pages.size());
  }
  for (const Row& row : rows) packed.insert(packed.end(), row.pages.begin(), row.pages.end());
  for (const Row& row : rows) packed.insert(packed.end(), row.tokens.begin(), row.tokens.end());
  packed[0] = kStepVersion;
  packed[1] = stepId;
  packed[2] = static_cast<int32_t>(rows.size());
  return packed;
}

// Slots 0 ... 3 are open, 4 is not.
struct Fixture {
  BackendInfo info = limits();
  SlotSet slots{info.maxSlots};
  StepParser parser{info};

  Fixture() {
    for (int32_t slot = 0; slot < 4; ++slot) CHECK(slots.open(slot).isOk());
  }
  Status parsePacked(std::vector<int32_t> packed) { return parser.parse(std::move(packed), slots).status(); }
  Status parse(const std::vector<Row>& rows) { return parsePacked(pack(rows)); }
};

TEST(parsesAMixedStep) {
  Fixture f;
  CHECK(f.parse({{2, 8, kSample, {5, 6, 7}, {1}}}).isOk());
  auto step = f.parser.parse(pack({{1, 0, 0, {0, 1}, {10, 11, 12, 13, 14}},
                                   {2, 9, kSample, {5, 6, 7}, {kLastSampledToken}},
                                   {3, 4, kSample | kPromptLogprobs | kLogits, {0, 9, 8}, {99, 0}}},
                                  -3),
                             f.slots);
  // Pages 0 and 1 are written by slot 1, so slot 3 may not list 0.
  CHECK(!step);
  step = f.parser.parse(pack({{1, 4, 0, {0, 1, 2}, {10, 11, 12, 13, 14}},
                              {2, 9, kSample, {5, 6, 7}, {kLastSampledToken}},
                              {3, 4, kSample | kPromptLogprobs | kLogits, {0, 9, 8}, {99, 0}}},
                             -3),
                        f.slots);
  CHECK_EQ(step.status().message(), "");
  REQUIRE(step);
  const StepBatch batch = *std::move(step);
  CHECK_EQ(batch.stepId, -3);
  REQUIRE(batch.sequences.size() == 3 && batch.tokens.size() == 8);
  const StepSequence& last = batch.sequences[2];
  CHECK_EQ(last.slot, 3);
  CHECK_EQ(last.firstRow, 6);
  CHECK_EQ(last.tokens, 2);
  CHECK_EQ(last.cached, 4);
  CHECK_EQ(last.length(), 6);
  CHECK(last.sample());
  CHECK((std::vector<int32_t>(last.pages.begin(), last.pages.end()) == std::vector<int32_t>{0, 9, 8}));
  CHECK_EQ(batch.tokens[5], kLastSampledToken);
  CHECK_EQ(batch.tokens[6], 99);
  CHECK(!batch.sequences[0].sample());
}

TEST(checksTheHeader) {
  Fixture f;
  const std::vector<int32_t> good = pack({{0, 0, kSample, {0}, {1, 2}}, {1, 0, kSample, {1}, {3}}});
  CHECK(f.parsePacked(good).isOk());
  const auto with = [&](size_t index, int32_t value) {
    auto packed = good;
    packed[index] = value;
    return f.parsePacked(packed).message();
  };
  CHECK_CONTAINS(f.parsePacked(std::vector<int32_t>{}).message(), "has no header");
  CHECK_CONTAINS(f.parsePacked(std::vector<int32_t>{1, 0, 0, 0, 0}).message(), "has no header");
  CHECK_CONTAINS(f.parsePacked(std::vector<int32_t>{1, 0, 0, 0, 0, 0}).message(), "0 sequences");
  CHECK_CONTAINS(with(0, 2), "step version 2");
  CHECK_CONTAINS(with(2, 0), "expected 1 ... 5");
  CHECK_CONTAINS(with(2, -1), "expected 1 ... 5");
  CHECK_CONTAINS(with(2, 6), "expected 1 ... 5");
  CHECK_CONTAINS(with(2, 1), "its header says");
  CHECK_CONTAINS(with(3, 1), "one each at least");
  CHECK_CONTAINS(with(3, 33), "32 (maxStepTokens) at most");
  CHECK_CONTAINS(with(3, INT32_MAX), "at most");
  CHECK_CONTAINS(with(4, -1), "-1 pages");
  CHECK_CONTAINS(with(4, INT32_MAX), "its header says");
  CHECK_CONTAINS(with(5, 2), "modes are 2");
  CHECK(with(5, kTimeParts).empty());
  auto longer = good;
  longer.push_back(0);
  CHECK_CONTAINS(f.parsePacked(longer).message(), "its header says");
  auto shorter = good;
  shorter.pop_back();
  CHECK_CONTAINS(f.parsePacked(shorter).message(), "its header says");
  CHECK_CONTAINS(with(7, 3), "more tokens than the header's 3");
  CHECK_CONTAINS(with(7, 1), "hold 2 tokens and 2 pages, the header says 3 and 2");
  CHECK_CONTAINS(with(9, 3), "more pages than the header's 2");
  CHECK(f.parsePacked(good).isOk());
}

TEST(checksEachSequence) {
  Fixture f;
  const auto message = [&](const Row& row) { return f.parse({row}).message(); };
  CHECK_CONTAINS(message({4, 0, 0, {0}, {1}}), "sequence 0 (slot 4): the slot is not open");
  CHECK_CONTAINS(message({-1, 0, 0, {0}, {1}}), "not open");
  CHECK_CONTAINS(message({INT32_MIN, 0, 0, {0}, {1}}), "not open");
  CHECK_CONTAINS(message({5, 0, 0, {0}, {1}}), "not open");
  CHECK_CONTAINS(message({0, -1, 0, {0}, {1}}), "-1 cached");
  CHECK_CONTAINS(message({0, 50, 0, {0}, {1}}), "51 tokens, the model's longest sequence has 50");
  CHECK_CONTAINS(message({0, INT32_MAX, 0, {0}, {1}}), "2147483648 tokens");
  CHECK_CONTAINS(message({0, 4, 0, {0}, {1}}), "1 pages, expected 2 ... 13 for 5 tokens");
  CHECK_CONTAINS(message({0, 0, 0, {}, {1}}), "0 pages, expected 1 ... 13");
  CHECK_CONTAINS(message({0, 0, 0, {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13}, {1}}), "14 pages");
  CHECK_CONTAINS(message({0, 0, 8, {0}, {1}}), "unknown flags 8");
  CHECK_CONTAINS(message({0, 0, -1, {0}, {1}}), "unknown flags -1");
  CHECK_CONTAINS(message({0, 0, 0, {20}, {1}}), "page 20 does not exist, there are 20");
  CHECK_CONTAINS(message({0, 0, 0, {-1}, {1}}), "page -1 does not exist");
  CHECK_CONTAINS(message({0, 0, 0, {3, 3}, {1}}), "lists page 3 twice");
  // The longest sequence, its last row.
  CHECK(f.parse({{0, 49, kSample, {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12}, {1}}}).isOk());
  auto none = pack({{0, 0, 0, {0}, {1}}, {1, 0, 0, {1}, {1}}});
  none[7] = 0;
  CHECK_CONTAINS(f.parsePacked(none).message(), "0 tokens, expected 1 at least");
  none[7] = INT32_MIN;
  CHECK_CONTAINS(f.parsePacked(none).message(), "expected 1 at least");
  CHECK_CONTAINS(f.parse({{0, 0, 0, {0}, {1}}, {0, 0, 0, {1}, {1}}}).message(),
                 "sequence 1 (slot 0): the slot is twice in the step");
}

TEST(keepsWrittenPagesApart) {
  Fixture f;
  // Both read page 0 (positions 0 ... 3) and write pages of their own.
  CHECK(f.parse({{0, 4, 0, {0, 1}, {1}}, {1, 4, 0, {0, 2}, {1}}, {2, 5, 0, {0, 3}, {1}}}).isOk());
  // The reader comes after the writer, and before it.
  CHECK_CONTAINS(f.parse({{0, 4, 0, {0, 1}, {1}}, {1, 4, 0, {1, 2}, {1}}}).message(),
                 "sequence 1 (slot 1): page 1 is also listed by slot 0, and that one writes it");
  CHECK_CONTAINS(f.parse({{1, 4, 0, {1, 2}, {1}}, {0, 4, 0, {0, 1}, {1}}}).message(),
                 "sequence 1 (slot 0): page 1 is also listed by slot 1, and this one writes it");
  CHECK_CONTAINS(f.parse({{0, 0, 0, {1}, {1}}, {1, 0, 0, {1}, {1}}}).message(), "page 1");
  // A page in reserve counts as listed.
  CHECK_CONTAINS(f.parse({{0, 0, 0, {1}, {1}}, {1, 0, 0, {2, 1}, {1}}}).message(), "that one writes it");
  // A chunk that ends on a page's edge does not write the next page; one token more does.
  CHECK(f.parse({{0, 4, 0, {0, 1, 2}, {1, 2, 3, 4}}, {1, 12, 0, {5, 6, 2, 7}, {1}}}).isOk());
  CHECK(!f.parse({{0, 4, 0, {0, 1, 2}, {1, 2, 3, 4, 5}}, {1, 12, 0, {5, 6, 2, 7}, {1}}}).isOk());
  // Marks of the steps before, failed ones too, don't count.
  CHECK(f.parse({{1, 0, 0, {1}, {1}}, {0, 0, 0, {2}, {1}}}).isOk());
}

TEST(checksTokens) {
  Fixture f;
  const auto status = [&](std::vector<int32_t> tokens) {
    return f.parse({{0, 4, 0, {0, 1}, std::move(tokens)}});
  };
  CHECK(status({0, 99}).isOk());
  for (const int32_t bad : {100, -2, INT32_MAX, INT32_MIN}) {
    CHECK_EQ(status({1, bad}).code(), "ERR_INVALID_TOKEN");
    CHECK_CONTAINS(status({1, bad}).message(), "sequence 0 (slot 0): token 1 is " + std::to_string(bad));
  }
  CHECK_CONTAINS(status({-1}).message(), "no step has sampled the slot");
  CHECK(f.parse({{0, 3, kSample, {0}, {5}}}).isOk());
  CHECK(status({-1}).isOk());
  CHECK_CONTAINS(status({-1, 1}).message(), "may only stand alone");
  CHECK_CONTAINS(status({1, -1}).message(), "may only stand alone");
  CHECK_EQ(status({1, -1}).code(), "ERR_INVALID_TOKEN");
}

TEST(lastTokenNeedsAnAcceptedSample) {
  Fixture f;
  const Row next{0, 1, kSample, {0}, {kLastSampledToken}};
  // Neither a step without SAMPLE nor one that was refused gives the slot a token.
  CHECK(f.parse({{0, 0, 0, {0}, {5}}}).isOk());
  CHECK(!f.parse({next}).isOk());
  CHECK(!f.parse({{0, 0, kSample, {0}, {5}}, {1, 0, 0, {1}, {100}}}).isOk());
  CHECK(!f.parse({next}).isOk());
  CHECK(f.parse({{0, 0, kSample, {0}, {5}}}).isOk());
  CHECK(f.parse({next}).isOk());
  // A new life of the slot starts without one.
  CHECK(f.slots.close(0).isOk());
  CHECK(f.slots.open(0).isOk());
  CHECK(!f.parse({next}).isOk());
}

TEST(slotsOpenAndClose) {
  SlotSet slots(2);
  CHECK(!slots.isOpen(0));
  CHECK_CONTAINS(slots.close(0).message(), "slot 0 is not open");
  CHECK(slots.open(0).isOk());
  CHECK_CONTAINS(slots.open(0).message(), "slot 0 is open already");
  CHECK(slots.isOpen(0) && !slots.isOpen(1));
  CHECK(slots.close(0).isOk());
  CHECK(!slots.isOpen(0));
  for (const int32_t slot : {-1, 2, INT32_MAX, INT32_MIN}) {
    CHECK_CONTAINS(slots.open(slot).message(), "does not exist, there are 2");
    CHECK_CONTAINS(slots.close(slot).message(), "does not exist");
    CHECK(!slots.isOpen(slot));
  }
}

SlotInit goodInit() {
  SlotInit init;
  init.slot = 4;
  init.prompt = {1, 2, 3};
  init.output = {4};
  init.sampling.bannedTokens = {0};
  return init;
}

TEST(checksSlotParameters) {
  const BackendInfo info = limits();
  CHECK_EQ(checkSlotInit(goodInit(), info).message(), "");
  const float nan = std::numeric_limits<float>::quiet_NaN();
  const float infinity = std::numeric_limits<float>::infinity();
  struct Field {
    const char* name;
    float SamplingParams::* member;
    std::vector<float> good;
    std::vector<float> bad;
  };
  const Field floats[] = {
      {"temperature", &SamplingParams::temperature, {0, 0.7F, 100}, {nan, infinity, -infinity, -0.1F}},
      {"topP", &SamplingParams::topP, {1, 1e-6F}, {nan, infinity, 0, -1, 1.01F}},
      {"minP", &SamplingParams::minP, {0, 1}, {nan, infinity, -0.01F, 1.01F}},
      {"repetitionPenalty", &SamplingParams::repetitionPenalty, {1, 0.5F, 2}, {nan, infinity, 0, -1}},
      {"presencePenalty", &SamplingParams::presencePenalty, {0, -2, 2}, {nan, infinity, -infinity}},
      {"frequencyPenalty", &SamplingParams::frequencyPenalty, {0, -2, 2}, {nan, infinity, -infinity}},
  };
  for (const Field& field : floats) {
    SlotInit init = goodInit();
    for (const float value : field.good) {
      init.sampling.*field.member = value;
      CHECK_EQ(checkSlotInit(init, info).message(), "");
    }
    for (const float value : field.bad) {
      init.sampling.*field.member = value;
      CHECK_EQ(checkSlotInit(init, info).code(), "ERR_INVALID_ARGUMENT");
      CHECK_CONTAINS(checkSlotInit(init, info).message(), field.name);
    }
  }
  struct IntField {
    const char* name;
    int32_t SamplingParams::* member;
    std::vector<int32_t> good;
    std::vector<int32_t> bad;
  };
  const IntField integers[] = {
      {"topK", &SamplingParams::topK, {0, 1, INT32_MAX}, {-1, INT32_MIN}},
      {"logprobs", &SamplingParams::logprobs, {-1, 0, 100}, {-2, 101, INT32_MAX}},
      {"promptLogprobs", &SamplingParams::promptLogprobs, {-1, 0, 100}, {-2, 101, INT32_MAX}},
      {"minTokens", &SamplingParams::minTokens, {0, INT32_MAX}, {-1}},
  };
  for (const IntField& field : integers) {
    SlotInit init = goodInit();
    for (const int32_t value : field.good) {
      init.sampling.*field.member = value;
      CHECK_EQ(checkSlotInit(init, info).message(), "");
    }
    for (const int32_t value : field.bad) {
      init.sampling.*field.member = value;
      CHECK_CONTAINS(checkSlotInit(init, info).message(), field.name);
    }
  }
  SlotInit init = goodInit();
  init.sampling.seed = (uint64_t{1} << 53) - 1;
  CHECK(checkSlotInit(init, info).isOk());
  init.sampling.seed = uint64_t{1} << 53;
  CHECK_CONTAINS(checkSlotInit(init, info).message(), "seed");
}

TEST(checksLogitBias) {
  const auto codeOf = [](std::vector<int32_t> ids, std::vector<float> values) {
    SlotInit init;
    init.slot = 1;
    init.prompt = {1};
    init.sampling.biasIds = std::move(ids);
    init.sampling.biasValues = std::move(values);
    return checkSlotInit(init, limits()).code();
  };
  CHECK_EQ(codeOf({}, {}), std::string());
  CHECK_EQ(codeOf({99, 0, 4}, {1e6F, -1e6F, 0}), std::string());
  CHECK_EQ(codeOf({1, 2}, {0}), std::string("ERR_INVALID_ARGUMENT"));
  CHECK_EQ(codeOf({1, 2, 1}, {0, 0, 0}), std::string("ERR_INVALID_ARGUMENT"));
  CHECK_EQ(codeOf({100}, {0}), std::string("ERR_INVALID_TOKEN"));
  CHECK_EQ(codeOf({-1}, {0}), std::string("ERR_INVALID_TOKEN"));
  const float infinity = std::numeric_limits<float>::infinity();
  for (const float value : {1.1e6F, -1.1e6F, infinity, -infinity, std::numeric_limits<float>::quiet_NaN()})
    CHECK_EQ(codeOf({5}, {value}), std::string("ERR_INVALID_ARGUMENT"));
  CHECK_EQ(codeOf(std::vector<int32_t>(kMaxLogitBias + 1), std::vector<float>(kMaxLogitBias + 1)),
           std::string("ERR_INVALID_ARGUMENT"));
}

TEST(completesMasks) {
  const auto complete = [](std::vector<int32_t> mask, int32_t vocab) {
    const Status status = checkMask(mask, vocab);
    return status ? mask : std::vector<int32_t>{};
  };
  CHECK(complete({1}, 100) == (std::vector<int32_t>{1, 0, 0, 0}));
  CHECK(complete({-1, -1, -1, -1}, 100) == (std::vector<int32_t>{-1, -1, -1, 15}));
  CHECK(complete({0, -1}, 64) == (std::vector<int32_t>{0, -1}));
  CHECK(complete({0, 1}, 33) == (std::vector<int32_t>{0, 1}));
  CHECK(complete({}, 100).empty());
  CHECK(complete({0, 0, 0, 0}, 100).empty());
  CHECK(complete({0, 0, 0, 16}, 100).empty());  // token 100
  CHECK(complete({0, 2}, 33).empty());
  CHECK(complete({1, 0, 0, 0, 0}, 100).empty());
}

TEST(hiddenStatesAreForThoseThatHaveThem) {
  for (const int32_t hiddenSize : {0, 8}) {
    BackendInfo info = limits();
    info.hiddenSize = hiddenSize;
    SlotSet slots(info.maxSlots);
    CHECK(slots.open(0).isOk());
    StepParser parser(info);
    CHECK_EQ(parser.parse(pack({{0, 0, kHidden, {3}, {1}}}), slots).status().isOk(), hiddenSize > 0);
    CHECK(!parser.parse(pack({{0, 0, kHiddenRows, {3}, {1}}}), slots));
    info.hiddenRows = true;
    StepParser ofRows(info);
    CHECK_EQ(ofRows.parse(pack({{0, 0, kHiddenRows, {3}, {1}}}), slots).status().isOk(), hiddenSize > 0);
    CHECK(!ofRows.parse(pack({{0, 0, 32, {3}, {1}}}), slots));
  }
}

TEST(checksSlotTokens) {
  const BackendInfo info = limits();
  const auto status = [&](auto change) {
    SlotInit init = goodInit();
    change(init);
    return checkSlotInit(init, info);
  };
  for (const int32_t slot : {-1, 5, INT32_MAX}) {
    CHECK_CONTAINS(status([&](SlotInit& init) { init.slot = slot; }).message(),
                   "does not exist, there are 5");
  }
  for (const int32_t bad : {-1, 100, INT32_MAX, INT32_MIN}) {
    const std::string shown = "is " + std::to_string(bad);
    const Status prompt = status([&](SlotInit& init) { init.prompt[2] = bad; });
    CHECK_EQ(prompt.code(), "ERR_INVALID_TOKEN");
    CHECK_CONTAINS(prompt.message(), "prompt[2] " + shown);
    CHECK_CONTAINS(status([&](SlotInit& init) { init.output[0] = bad; }).message(), "output[0] " + shown);
    CHECK_CONTAINS(status([&](SlotInit& init) { init.sampling.bannedTokens[0] = bad; }).message(),
                   "bannedTokens[0] " + shown);
  }
  CHECK_CONTAINS(status([](SlotInit& init) { init.prompt.clear(); }).message(),
                 "prompt must be one token at least");
  CHECK(status([](SlotInit& init) { init.prompt.resize(49); }).isOk());
  CHECK_CONTAINS(status([](SlotInit& init) { init.prompt.resize(50); }).message(), "longest sequence has 50");
  CHECK_CONTAINS(status([](SlotInit& init) { init.prompt.resize(500); }).message(), "500 + 1 tokens");
  CHECK(status([](SlotInit& init) { init.sampling.bannedTokens.resize(99); }).isOk());
  CHECK_CONTAINS(status([](SlotInit& init) { init.sampling.bannedTokens.resize(100); }).message(),
                 "bannedTokens");
}

// What survives the damage must still keep the promises that a backend indexes by.
TEST(survivesDamage) {
  Fixture f;
  CHECK(f.parse({{2, 8, kSample, {5, 6, 7}, {1}}}).isOk());
  const std::vector<int32_t> valid = pack({{1, 4, 0, {0, 1, 2}, {10, 11, 12, 13, 14}},
                                           {2, 9, kSample, {5, 6, 7}, {kLastSampledToken}},
                                           {3, 4, kSample, {0, 9, 8}, {99, 0}}});
  nt::test::Mutator mutator(3);
  const int32_t values[] = {-1, 0, 1, 2, 3, 4, 5, 7, 12, 31, 99, 100, -2, INT32_MAX, INT32_MIN, 1 << 30};
  int accepted = 0;
  for (int i = 0; i < 200'000; ++i) {
    auto packed = valid;
    for (uint64_t edits = 1 + mutator.below(3); edits > 0; --edits) {
      const size_t at = mutator.below(packed.size());
      switch (mutator.below(8)) {
        case 0:
          packed.resize(at + 1);
          break;
        case 1:
          packed.insert(packed.begin() + static_cast<std::ptrdiff_t>(at),
                        values[mutator.below(std::size(values))]);
          break;
        case 2:
          packed[at] = static_cast<int32_t>(mutator.below(uint64_t{1} << 32));
          break;
        default:
          packed[at] = values[mutator.below(std::size(values))];
      }
    }
    const auto step = f.parser.parse(std::move(packed), f.slots);
    if (!step) {
      CHECK(step.status().code() == "ERR_INVALID_ARGUMENT" || step.status().code() == "ERR_INVALID_TOKEN");
      continue;
    }
    ++accepted;
    size_t rows = 0;
    std::vector<int> writers(20, 0);
    for (const StepSequence& sequence : step->sequences) {
      CHECK(f.slots.isOpen(sequence.slot));
      CHECK_EQ(static_cast<size_t>(sequence.firstRow), rows);
      rows += static_cast<size_t>(sequence.tokens);
      CHECK(sequence.tokens > 0 && sequence.cached >= 0 && sequence.length() <= 50);
      CHECK(sequence.pages.size() * 4 >= static_cast<size_t>(sequence.length()));
      for (size_t page = 0; page < sequence.pages.size(); ++page) {
        const int32_t id = sequence.pages[page];
        REQUIRE(id >= 0 && id < 20);
        const bool writes = static_cast<int32_t>(page * 4 + 4) > sequence.cached &&
                            static_cast<int32_t>(page * 4) < sequence.length();
        if (writes) ++writers[static_cast<size_t>(id)];
      }
    }
    CHECK_EQ(rows, step->tokens.size());
    for (const StepSequence& sequence : step->sequences) {
      for (const int32_t id : sequence.pages) {
        const bool shared =
            std::count_if(step->sequences.begin(), step->sequences.end(), [&](const StepSequence& other) {
              return std::find(other.pages.begin(), other.pages.end(), id) != other.pages.end();
            }) > 1;
        CHECK(!shared || writers[static_cast<size_t>(id)] == 0);
      }
    }
  }
  CHECK(accepted > 1000 && accepted < 190'000);
}

}  // namespace
}  // namespace nt

TEST_MAIN()
