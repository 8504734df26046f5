// How a decode step's keys are shared out: every tile once, few cuts, and no worker with much more than the
// others.
#include <algorithm>
#include <map>
#include <random>
#include <vector>

#include "check.h"
#include "tensorrt/kernels/decode_plan.h"

namespace {

using namespace nt::kernels;

struct Step {
  std::vector<int32_t> lengths;  // 0: padding
  int32_t workers = 132;
  int32_t window = 0;
  int32_t pageSize = 16;
  int32_t mostPartials = 1 << 20;

  DecodePlan plan() const {
    // Page lists do not begin at 0 in the second part of a step.
    std::vector<int32_t> indptr = {7};
    std::vector<int32_t> lastPageLen;
    for (const int32_t length : lengths) {
      indptr.push_back(indptr.back() + (length + pageSize - 1) / pageSize);
      lastPageLen.push_back(length == 0 ? 1 : (length - 1) % pageSize + 1);
    }
    DecodePlanArgs args;
    args.kvIndptr = indptr.data();
    args.lastPageLen = lastPageLen.data();
    args.rows = static_cast<int32_t>(lengths.size());
    args.pageSize = pageSize;
    args.window = window;
    args.workers = workers;
    args.mostPartials = mostPartials;
    DecodePlan result;
    planDecodeChunks(args, &result);
    check(args, result);
    return result;
  }

  void check(const DecodePlanArgs& args, const DecodePlan& plan) const {
    REQUIRE(plan.begins.size() == static_cast<size_t>(workers) + 1);
    CHECK_EQ(plan.begins.front(), 0);
    CHECK(std::is_sorted(plan.begins.begin(), plan.begins.end()));
    CHECK_EQ(plan.begins.back(), static_cast<int32_t>(plan.chunks.size()));
    CHECK(plan.begins.back() <= mostDecodeChunks(args.rows, workers));
    CHECK(plan.partials <= mostPartials);
    std::map<int32_t, std::vector<DecodeChunk>> byRow;
    for (const DecodeChunk& chunk : plan.chunks) byRow[chunk.row].push_back(chunk);
    std::vector<int32_t> partials;
    for (int32_t row = 0; row < args.rows; ++row) {
      const int32_t length = lengths[static_cast<size_t>(row)];
      auto& chunks = byRow[row];
      std::sort(chunks.begin(), chunks.end(),
                [](const DecodeChunk& a, const DecodeChunk& b) { return a.begin < b.begin; });
      if (length == 0) {
        CHECK(chunks.empty());
        continue;
      }
      REQUIRE(!chunks.empty());
      const int32_t first = window > 0 ? std::max(0, length - window) : 0;
      CHECK_EQ(chunks.front().begin, first / kDecodeTile);
      CHECK_EQ(chunks.back().end, (length + kDecodeTile - 1) / kDecodeTile);
      for (size_t i = 0; i < chunks.size(); ++i) {
        const DecodeChunk& chunk = chunks[i];
        CHECK(chunk.begin < chunk.end);
        if (i > 0) CHECK_EQ(chunk.begin, chunks[i - 1].end);
        CHECK_EQ(chunk.length, length);
        CHECK_EQ(chunk.firstPage, args.kvIndptr[row]);
        if (chunks.size() == 1) {
          CHECK_EQ(chunk.partial, -1);
          continue;
        }
        CHECK_EQ(chunk.partials, static_cast<int32_t>(chunks.size()));
        CHECK_EQ(chunk.partial, chunk.firstPartial + static_cast<int32_t>(i));
        partials.push_back(chunk.partial);
      }
    }
    // Each has a place of its own, and no place is left out.
    std::sort(partials.begin(), partials.end());
    CHECK_EQ(static_cast<int32_t>(partials.size()), plan.partials);
    for (size_t i = 0; i < partials.size(); ++i) CHECK_EQ(partials[i], static_cast<int32_t>(i));
  }
};

// Tiles of the worker that has most, by what each would have if all had the same.
double imbalance(const DecodePlan& plan) {
  int64_t total = 0;
  int64_t most = 0;
  for (size_t w = 0; w + 1 < plan.begins.size(); ++w) {
    int64_t tiles = 0;
    for (int32_t c = plan.begins[w]; c < plan.begins[w + 1]; ++c) {
      const DecodeChunk& chunk = plan.chunks[static_cast<size_t>(c)];
      tiles += chunk.end - chunk.begin;
    }
    total += tiles;
    most = std::max(most, tiles);
  }
  return static_cast<double>(most) * static_cast<double>(plan.begins.size() - 1) / static_cast<double>(total);
}

TEST(NothingToDo) {
  const Step none;
  CHECK(none.plan().chunks.empty());
  const Step padding{{0, 0}};
  CHECK(padding.plan().chunks.empty());
}

TEST(ShortSequencesStayWhole) {
  const Step one{{1}};
  CHECK_EQ(one.plan().partials, 0);
  const Step same{std::vector<int32_t>(132, 200)};
  CHECK_EQ(same.plan().partials, 0);
  // Two for each worker but a few.
  const DecodePlan two = Step{std::vector<int32_t>(256, 192)}.plan();
  CHECK_EQ(two.partials, 0);
  CHECK(imbalance(two) < 1.05);
}

TEST(LongSequencesAreCut) {
  const Step single{{2000}};
  const DecodePlan one = single.plan();
  CHECK(one.partials >= 8);
  CHECK(one.partials <= 32);
  const Step longest{{100'000}};
  CHECK(longest.plan().partials <= 64);
  // Some workers have two, others one: those that have two read faster when the others are through.
  const Step uneven{std::vector<int32_t>(200, 1500)};
  CHECK_EQ(uneven.plan().partials, 0);
  // Much longer than the others, which alone would take most of the time.
  std::vector<int32_t> mostlyShort(100, 20);
  mostlyShort.push_back(12'000);
  const Step skewed{mostlyShort};
  const DecodePlan plan = skewed.plan();
  CHECK(plan.partials > 30);
  CHECK(imbalance(plan) < 3);
}

TEST(WindowsAndPadding) {
  Step step{{0, 5, 16, 17, 49, 50, 51, 500, 1, 4000, 0, 0}};
  for (const int32_t window : {0, 1, 16, 50, 4096}) {
    for (const int32_t pageSize : {16, 32, 64}) {
      step.window = window;
      step.pageSize = pageSize;
      step.plan();
    }
  }
}

TEST(WithoutRoomForPartialsNothingIsCut) {
  Step step{{2000, 5000}};
  step.mostPartials = 0;
  CHECK_EQ(step.plan().partials, 0);
}

TEST(AnyLengths) {
  std::mt19937 random(1);
  for (int round = 0; round < 200; ++round) {
    Step step;
    step.workers = std::uniform_int_distribution<int32_t>(1, 300)(random);
    const int32_t longest = std::uniform_int_distribution<int32_t>(1, 20'000)(random);
    step.lengths.resize(std::uniform_int_distribution<size_t>(1, 600)(random));
    for (int32_t& length : step.lengths) length = std::uniform_int_distribution<int32_t>(0, longest)(random);
    step.plan();
  }
}

TEST(SamePlanForSameLengths) {
  const Step step{std::vector<int32_t>(200, 1500)};
  const DecodePlan a = step.plan();
  const Step other{{9, 9000}};
  other.plan();
  const DecodePlan b = step.plan();
  REQUIRE(a.chunks.size() == b.chunks.size());
  for (size_t i = 0; i < a.chunks.size(); ++i) {
    CHECK_EQ(a.chunks[i].row, b.chunks[i].row);
    CHECK_EQ(a.chunks[i].begin, b.chunks[i].begin);
    CHECK_EQ(a.chunks[i].partial, b.chunks[i].partial);
  }
}

}  // namespace

TEST_MAIN()
