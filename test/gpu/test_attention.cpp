// Rotation and append, and a layer's attention, against plain computations in double precision. Needs a GPU
// of compute capability 9.0.
#include <cstdio>
#include <numeric>
#include <string>

#include "attention_problem.h"
#include "check.h"
#include "tensorrt/plugin/paged_attention.h"

namespace {

using namespace nt;
using namespace nt::test;
using kernels::AttentionKernels;
using kernels::RopeAppendArgs;

template <class T>
bool sameBits(const T* a, const T* b, size_t count) {
  return std::memcmp(a, b, count * sizeof(T)) == 0;
}

// The largest difference of a rotated head from its exact values, 1 = what one rounding may take.
template <class T>
double rotationError(const T* in, const T* got, const float* angles, uint32_t size) {
  const uint32_t half = size / 2;
  double worst = 0;
  for (uint32_t i = 0; i < size; ++i) {
    const uint32_t pair = i % half;
    const double cosine = static_cast<double>(angles[pair]);
    const double sine = static_cast<double>(angles[half + pair]);
    const double a = valueOf(in[pair]);
    const double b = valueOf(in[half + pair]);
    const double want = i < half ? a * cosine - b * sine : b * cosine + a * sine;
    // The last term: float16 has numbers below its normal ones.
    const double limit =
        Traits<T>::kRounding * 1.001 * std::abs(want) + 4e-7 * (std::abs(a) + std::abs(b)) + 4e-8;
    worst = std::max(worst, std::abs(valueOf(got[i]) - want) / limit);
  }
  return worst;
}

// What the pool should hold: v as it is, k within its rounding, all else untouched.
template <class T>
void checkPool(const Problem<T>& problem, const std::vector<T>& got) {
  const Heads& heads = problem.heads;
  std::vector<T> expected = problem.pool;
  const size_t width = size_t{heads.kvHeads} * heads.size;
  double worst = 0;
  size_t wrongValues = 0;
  for (size_t row = 0; row < problem.tables.rows(); ++row) {
    const int32_t sequence = problem.tables.batchIndices[row];
    if (sequence < 0) continue;
    const int32_t position = problem.tables.positions[row];
    const size_t place = problem.place(static_cast<size_t>(sequence), position);
    const T* k = problem.qkv.data() + row * problem.rowWidth + size_t{heads.heads} * heads.size;
    for (uint32_t head = 0; head < heads.kvHeads; ++head) {
      const size_t offset = size_t{head} * heads.size;
      worst =
          std::max(worst, rotationError(k + offset, got.data() + place + offset,
                                        problem.cosSin.data() + static_cast<size_t>(position) * heads.size,
                                        heads.size));
    }
    if (!sameBits(k + width, got.data() + place + problem.pageElements / 2, width)) ++wrongValues;
    std::copy_n(got.data() + place, width, expected.data() + place);
    std::copy_n(k + width, width, expected.data() + place + problem.pageElements / 2);
  }
  CHECK(worst <= 1);
  CHECK_EQ(wrongValues, size_t{0});
  CHECK(sameBits(expected.data(), got.data(), got.size()));
}

// q [rows, heads, size], rows `stride` apart; rows of padding hold what `before` does.
template <class T>
void checkQueries(const Problem<T>& problem, const std::vector<T>& got, size_t stride,
                  const std::vector<T>& before) {
  const Heads& heads = problem.heads;
  double worst = 0;
  for (size_t row = 0; row < problem.tables.rows(); ++row) {
    const T* out = got.data() + row * stride;
    if (problem.tables.batchIndices[row] < 0) {
      CHECK(sameBits(out, before.data() + row * stride, size_t{heads.heads} * heads.size));
      continue;
    }
    const auto position = static_cast<size_t>(problem.tables.positions[row]);
    for (uint32_t head = 0; head < heads.heads; ++head) {
      worst = std::max(
          worst, rotationError(problem.qkv.data() + row * problem.rowWidth + size_t{head} * heads.size,
                               out + size_t{head} * heads.size, problem.cosSin.data() + position * heads.size,
                               heads.size));
    }
  }
  CHECK(worst <= 1);
}

template <class T>
void checkRotation(Heads heads, std::vector<Sequence> sequences, int32_t padding, std::mt19937& random) {
  Problem<T> problem(heads, std::move(sequences), padding, random);
  const AttentionKernels* kernels = kernels::findAttentionKernels(Traits<T>::kType, heads.size);
  REQUIRE(kernels != nullptr);
  const size_t packed = size_t{heads.heads} * heads.size;
  const size_t rows = problem.tables.rows();
  const std::vector<T> sentinel = randomValues<T>(rows * packed, random);

  DeviceBuffer rotated = toDevice(sentinel);
  RopeAppendArgs args = problem.ropeAppend();
  args.qOut = rotated.as<>();
  args.overlap = true;
  cuda(kernels->ropeAppend(args, nullptr));
  cuda(cudaDeviceSynchronize());
  const auto queries = toHost<T>(rotated.as<>(), sentinel.size());
  const auto pool = toHost<T>(problem.poolDevice.template as<>(), problem.pool.size());
  checkQueries(problem, queries, packed, sentinel);
  checkPool(problem, pool);
  CHECK(sameBits(problem.qkv.data(), toHost<T>(problem.qkvDevice.template as<>(), problem.qkv.size()).data(),
                 problem.qkv.size()));

  problem.restore();
  args.qOut = const_cast<void*>(args.q);
  args.qOutStride = args.rowStride;
  args.kOut = const_cast<void*>(args.k);
  cuda(kernels->ropeAppend(args, nullptr));
  cuda(cudaDeviceSynchronize());
  const auto qkv = toHost<T>(problem.qkvDevice.template as<>(), problem.qkv.size());
  CHECK(
      sameBits(pool.data(), toHost<T>(problem.poolDevice.template as<>(), pool.size()).data(), pool.size()));
  for (size_t row = 0; row < rows; ++row) {
    const int32_t sequence = problem.tables.batchIndices[row];
    const T* got = qkv.data() + row * problem.rowWidth;
    const T* before = problem.qkv.data() + row * problem.rowWidth;
    if (sequence < 0) {
      CHECK(sameBits(got, before, problem.rowWidth));
      continue;
    }
    const size_t width = size_t{heads.kvHeads} * heads.size;
    const size_t place = problem.place(static_cast<size_t>(sequence), problem.tables.positions[row]);
    CHECK(sameBits(got, queries.data() + row * packed, packed));
    CHECK(sameBits(got + packed, pool.data() + place, width));
    CHECK(sameBits(got + packed + width, before + packed + width, width));
  }
}

template <class T>
void checkRotations() {
  std::mt19937 random(3);
  for (const Heads heads :
       {Heads{32, 32, 128}, {32, 8, 128}, {24, 8, 128}, {3, 1, 128}, {32, 8, 64}, {5, 5, 64}, {8, 1, 64}}) {
    checkRotation<T>(heads, {{0, 1}}, 0, random);
    checkRotation<T>(heads, {{17, 1}, {2047, 1}, {0, 1}, {15, 1}}, 4, random);
    checkRotation<T>(heads, {{0, 33}, {5, 1}, {16, 300}, {31, 2}}, 1, random);
  }
  checkRotation<T>({32, 32, 128}, std::vector<Sequence>(256, {500, 1}), 0, random);
  checkRotation<T>({32, 8, 128}, {{0, 2048}}, 0, random);
}

TEST(RotationBFloat16) {
  checkRotations<__nv_bfloat16>();
}

TEST(RotationFloat16) {
  checkRotations<__half>();
}

struct Part {
  AttentionPath path;
  uint32_t first;  // sequence
  uint32_t count;
};

// A row and head of attention in double precision, against the rows that the device rotated and stored. 1 =
// what the type's roundings may take.
template <class T>
double attentionError(const Problem<T>& problem, const std::vector<T>& pool, size_t row, const T* query,
                      uint32_t head, const T* got, double scale, int32_t window) {
  const uint32_t size = problem.heads.size;
  const auto sequence = static_cast<size_t>(problem.tables.batchIndices[row]);
  const int32_t last = problem.tables.positions[row];
  const int32_t first = window > 0 ? std::max(0, last + 1 - window) : 0;
  const size_t kvHead = size_t{head / (problem.heads.heads / problem.heads.kvHeads)} * size;
  std::vector<double> q(size), scores, sum(size, 0), absolute(size, 0);
  for (uint32_t d = 0; d < size; ++d) q[d] = valueOf(query[d]) * scale;
  double largest = -INFINITY;
  for (int32_t position = first; position <= last; ++position) {
    const T* k = pool.data() + problem.place(sequence, position) + kvHead;
    double score = 0;
    for (uint32_t d = 0; d < size; ++d) score += q[d] * valueOf(k[d]);
    scores.push_back(score);
    largest = std::max(largest, score);
  }
  double total = 0;
  for (int32_t position = first; position <= last; ++position) {
    const T* v = pool.data() + problem.place(sequence, position) + problem.pageElements / 2 + kvHead;
    const double weight = std::exp(scores[static_cast<size_t>(position - first)] - largest);
    total += weight;
    for (uint32_t d = 0; d < size; ++d) {
      const double x = weight * valueOf(v[d]);
      sum[d] += x;
      absolute[d] += std::abs(x);
    }
  }
  double worst = 0;
  for (uint32_t d = 0; d < size; ++d) {
    const double want = sum[d] / total;
    // Weights are rounded to the type before they are multiplied, the sum at the end; exponents are float32.
    const double limit = Traits<T>::kRounding * (std::abs(want) + absolute[d] / total) + 2e-4;
    const double error = std::abs(valueOf(got[d]) - want) / limit;
    if (!(error <= worst)) worst = error;  // NaN as well
  }
  return worst;
}

// Runs a layer's attention as a step does and checks rows of it: all heads of some, one head of every other.
template <class T>
void checkStep(const std::string& name, Heads heads, std::vector<Sequence> sequences, std::vector<Part> parts,
               int32_t window, std::mt19937& random) {
  static const Workspaces workspaces;
  Problem<T> problem(heads, std::move(sequences), 0, random);
  const Tables& tables = problem.tables;
  const AttentionKernels* kernels = kernels::findAttentionKernels(Traits<T>::kType, heads.size);
  REQUIRE(kernels != nullptr);
  REQUIRE(parts.size() <= 2);
  const float* const cosSin[] = {problem.cosSinDevice.template as<float>()};

  StepState step;
  step.pool = problem.poolDevice.template as<>();
  step.layerBytes = static_cast<int64_t>(problem.layerElements * sizeof(T));
  step.pageSize = kPageSize;
  step.layers = 2;
  step.layer = 1;
  step.cosSin = cosSin;
  step.ropes = 1;
  step.batchIndices = tables.at(0);
  step.positions = tables.at(1);
  step.kvIndptr = tables.at(3);
  step.lastPageLen = tables.at(4);
  step.kvIndices = tables.at(5);
  step.rows = tables.rows();
  step.batch = tables.batch();
  step.overlap = true;
  step.partCount = static_cast<uint32_t>(parts.size());
  std::vector<DeviceBuffer> indptrs;
  bool inPlace = false;
  for (size_t p = 0; p < parts.size(); ++p) {
    const Part& part = parts[p];
    inPlace = inPlace || part.path == AttentionPath::kFreshPrefill;
    std::vector<int32_t> qIndptr(tables.qIndptr.begin() + part.first,
                                 tables.qIndptr.begin() + part.first + part.count + 1);
    const int32_t firstRow = qIndptr.front();
    for (int32_t& row : qIndptr) row -= firstRow;
    indptrs.push_back(toDevice(qIndptr));
    AttentionPart& to = step.parts[p];
    to.path = part.path;
    to.firstSequence = part.first;
    to.sequences = part.count;
    to.firstRow = static_cast<uint32_t>(firstRow);
    to.rows = static_cast<uint32_t>(qIndptr.back());
    to.qIndptr = indptrs.back().as<int32_t>();
    to.workspace = workspaces.part(p);
    kernels::PlanArgs plan;
    plan.qIndptr = qIndptr.data();
    plan.kvIndptr = tables.kvIndptr.data() + part.first;
    plan.lastPageLen = tables.lastPageLen.data() + part.first;
    plan.rows = to.rows;
    plan.batch = part.count;
    plan.heads = heads.heads;
    plan.kvHeads = heads.kvHeads;
    plan.pageSize = kPageSize;
    plan.window = window;
    const auto make = (*kernels)[part.path].plan;
    REQUIRE(make != nullptr);
    cuda(make(to.workspace, plan, &to.plan, nullptr));
  }
  PagedAttentionParams params;
  params.heads = static_cast<int32_t>(heads.heads);
  params.kvHeads = static_cast<int32_t>(heads.kvHeads);
  params.headDim = static_cast<int32_t>(heads.size);
  params.scale = 1 / std::sqrt(static_cast<float>(heads.size));
  params.window = window;

  const size_t packed = size_t{heads.heads} * heads.size;
  const size_t rows = tables.rows();
  const auto out = allocate<DeviceBuffer>(rows * packed * sizeof(T));
  const auto rotated = allocate<DeviceBuffer>(rows * packed * sizeof(T));
  const auto attend = [&] {
    cuda(cudaMemset(out.template as<void>(), 0xFF, rows * packed * sizeof(T)));  // NaN
    CHECK_EQ(runPagedAttention(params, step, Traits<T>::kType, static_cast<uint32_t>(rows),
                               problem.qkvDevice.template as<>(), out.template as<>(), rotated.template as<>(),
                               nullptr),
             0);
    cuda(cudaDeviceSynchronize());
  };
  const bool keepsQueries = parts.size() == 1 && parts[0].path == AttentionPath::kDecode;
  if (keepsQueries) {
    // It leaves the rotated queries nowhere.
    RopeAppendArgs args = problem.ropeAppend();
    args.qOut = rotated.template as<>();
    cuda(kernels->ropeAppend(args, nullptr));
    cuda(cudaDeviceSynchronize());
    problem.restore();
  }
  attend();
  if (parts[0].path == AttentionPath::kDecode) {
    // As the next layer does, with the same plan.
    const auto first = toHost<T>(out.template as<>(), rows * packed);
    if (inPlace) problem.restore();
    attend();
    CHECK(sameBits(first.data(), toHost<T>(out.template as<>(), rows * packed).data(), first.size()));
  }
  const auto got = toHost<T>(out.template as<>(), rows * packed);
  const auto pool = toHost<T>(problem.poolDevice.template as<>(), problem.pool.size());
  const size_t stride = inPlace ? problem.rowWidth : packed;
  const auto queries =
      toHost<T>(inPlace ? problem.qkvDevice.template as<>() : rotated.template as<>(), rows * stride);
  checkPool(problem, pool);
  checkQueries(problem, queries, stride, queries);

  double worst = 0;
  size_t worstRow = 0;
  const size_t every = std::max<size_t>(1, rows / 2000);
  for (size_t row = 0; row < rows; ++row) {
    const int32_t position = tables.positions[row];
    const bool isEdge = row + 1 == rows || tables.positions[row + 1] != position + 1 || position % 128 == 0;
    // Long rows are dear here.
    if (!isEdge && (row % every != 0 || (position > 400 && row % 61 != 0))) continue;
    for (uint32_t i = 0; i < heads.heads; ++i) {
      if (i != row % heads.heads && !(isEdge && position < 300)) continue;
      const size_t at = row * packed + size_t{i} * heads.size;
      const double error =
          attentionError(problem, pool, row, queries.data() + row * stride + size_t{i} * heads.size, i,
                         got.data() + at, static_cast<double>(params.scale), window);
      if (!(error <= worst)) {
        worst = error;
        worstRow = row;
      }
    }
  }
  CHECK(worst <= 1);
  std::printf("# %-28s %u/%u x %u %s: %.2f of what roundings may take", name.c_str(), heads.heads,
              heads.kvHeads, heads.size, Traits<T>::kType == DType::kF16 ? "float16" : "bfloat16", worst);
  if (!(worst <= 1)) {
    std::printf(" (row %zu, sequence %d, position %d)", worstRow, tables.batchIndices[worstRow],
                tables.positions[worstRow]);
  }
  std::printf("\n");
}

template <class T>
void checkSteps() {
  std::mt19937 random(5);
  std::vector<Sequence> ragged;
  for (const int32_t length :
       {1, 2, 15, 16, 17, 63, 64, 65, 127, 128, 129, 191, 192, 193, 255, 256, 257, 300, 2048, 3})
    ragged.push_back({0, length});
  const auto all = static_cast<uint32_t>(ragged.size());
  std::vector<Sequence> continued;
  for (const int32_t length : {1, 20, 64, 129, 300}) continued.push_back({7 * length % 97 + 1, length});
  // Generated tokens, then prompts.
  const std::vector<Sequence> mixed = {{40, 1}, {500, 1}, {16, 1}, {0, 70}, {0, 130}, {0, 300}};
  const std::vector<Sequence> mixedLater = {{40, 1}, {500, 1}, {16, 1}, {48, 70}, {0, 130}, {333, 300}};
  for (const uint32_t size : {64U, 128U}) {
    for (const uint32_t group : {1U, 2U, 3U, 4U, 8U}) {
      const Heads heads{2 * group, 2, size};
      checkStep<T>("prompts", heads, ragged, {{AttentionPath::kFreshPrefill, 0, all}}, 0, random);
      checkStep<T>("later parts", heads, continued, {{AttentionPath::kWidePrefill, 0, 5}}, 0, random);
      for (const AttentionPath single : {AttentionPath::kPrefill, AttentionPath::kDecode}) {
        checkStep<T>("tokens and prompts", heads, mixed,
                     {{single, 0, 3}, {AttentionPath::kFreshPrefill, 3, 3}}, 0, random);
        checkStep<T>("tokens and later parts", heads, mixedLater,
                     {{single, 0, 3}, {AttentionPath::kWidePrefill, 3, 3}}, 0, random);
        checkStep<T>("tokens and windows", heads, mixedLater,
                     {{single, 0, 3}, {AttentionPath::kPrefill, 3, 3}}, 50, random);
      }
    }
    std::vector<Sequence> lengths;
    for (int32_t length = 1; length <= 300; ++length) lengths.push_back({0, length});
    std::shuffle(lengths.begin(), lengths.end(), random);
    checkStep<T>("prompts of 1 to 300", {4, 1, size}, lengths, {{AttentionPath::kFreshPrefill, 0, 300}}, 0,
                 random);
  }
}

// Steps of generated tokens alone, cut among warps and not, which rotate and append themselves.
template <class T>
void checkTokens() {
  std::mt19937 random(7);
  std::vector<Sequence> ragged;
  for (const int32_t cached : {0, 1, 14, 15, 16, 17, 31, 100, 127, 500, 1023, 2047, 4095, 9001})
    ragged.push_back({cached, 1});
  std::vector<Sequence> even(700, {191, 1});
  std::vector<Sequence> mostlyShort(100, {20, 1});
  mostlyShort.push_back({12000, 1});
  const auto check = [&](const char* name, Heads heads, const std::vector<Sequence>& list, int32_t window) {
    checkStep<T>(name, heads, list, {{AttentionPath::kDecode, 0, static_cast<uint32_t>(list.size())}},
                 window, random);
  };
  for (const uint32_t size : {64U, 128U}) {
    for (const uint32_t group : {1U, 2U, 3U, 4U, 5U, 6U, 7U, 8U}) {
      check("tokens", {2 * group, 2, size}, ragged, 0);
      check("tokens in a window", {2 * group, 2, size}, ragged, 50);
    }
    check("one token", {32, 8, size}, {{2000, 1}}, 0);
    check("the first token", {32, 8, size}, {{0, 1}}, 0);
    check("many tokens", {32, 8, size}, even, 0);
    check("a long one among short ones", {12, 3, size}, mostlyShort, 0);
    check("as many KV heads as heads", {32, 32, size}, mostlyShort, 0);
  }
}

TEST(TokensBFloat16) {
  checkTokens<__nv_bfloat16>();
}

TEST(TokensFloat16) {
  checkTokens<__half>();
}

TEST(StepsBFloat16) {
  checkSteps<__nv_bfloat16>();
}

TEST(StepsFloat16) {
  checkSteps<__half>();
}

}  // namespace

TEST_MAIN()
