// The backend as its caller sees it: order, failures, limits, the end; and its thread pool.
#include <atomic>
#include <chrono>
#include <cstdio>
#include <ctime>
#include <fstream>
#include <limits>
#include <string>
#include <thread>
#include <vector>

#include "check.h"
#include "core/random.h"
#include "cpu/memory.h"
#include "cpu/thread_pool.h"
#include "cpu_harness.h"

namespace {

using namespace nt;
using namespace nt::test;

CpuOptions optionsFor(const LlamaShape& shape, const Checkpoint& checkpoint) {
  CpuOptions options;
  options.graph = shape.graph();
  options.files = {checkpoint.file};
  options.numPages = 64;
  options.maxSlots = 8;
  options.maxStepTokens = 256;
  options.threads = 2;
  return options;
}

std::string codeOf(const CpuOptions& options) {
  const auto backend = createCpuBackend(options);
  return backend ? "" : backend.status().code();
}

TEST(optionsAndFilesAreChecked) {
  const LlamaShape shape{};
  const auto checkpoint = writeCheckpoint(shape, DType::kBF16);
  const CpuOptions good = optionsFor(shape, *checkpoint);
  CHECK_EQ(codeOf(good), std::string());
  for (int32_t CpuOptions::* field :
       {&CpuOptions::pageSize, &CpuOptions::numPages, &CpuOptions::maxSlots, &CpuOptions::maxStepTokens}) {
    for (const int32_t value : {0, -1, std::numeric_limits<int32_t>::min()}) {
      CpuOptions bad = good;
      bad.*field = value;
      CHECK_EQ(codeOf(bad), std::string("ERR_INVALID_ARGUMENT"));
    }
  }
  CpuOptions bad = good;
  bad.threads = -1;
  CHECK_EQ(codeOf(bad), std::string("ERR_INVALID_ARGUMENT"));
  bad.threads = 1 << 30;
  CHECK_EQ(codeOf(bad), std::string("ERR_INVALID_ARGUMENT"));
  bad = good;
  bad.simd = "neon";
  CHECK_EQ(codeOf(bad), std::string("ERR_INVALID_ARGUMENT"));
  bad = good;
  bad.graph = "{}";
  CHECK_EQ(codeOf(bad), std::string("ERR_GRAPH_INVALID"));
  bad = good;
  bad.files = {"/nowhere/model.safetensors"};
  CHECK(!codeOf(bad).empty());
  bad = good;
  bad.files = {};
  CHECK(!codeOf(bad).empty());
  // A graph of another size than the file's tensors, and one with a tensor more.
  bad = good;
  bad.graph = LlamaShape{.inner = 80}.graph();
  CHECK_EQ(codeOf(bad), std::string("ERR_MODEL_INVALID"));
  bad.graph = LlamaShape{.layers = 3}.graph();
  CHECK_EQ(codeOf(bad), std::string("ERR_WEIGHTS_MISSING"));
}

TEST(tooLargeACacheIsRefused) {
  const LlamaShape shape{};
  const auto checkpoint = writeCheckpoint(shape, DType::kBF16);
  CpuOptions options = optionsFor(shape, *checkpoint);
  constexpr int32_t kMax = std::numeric_limits<int32_t>::max();
  options.numPages = kMax;
  CHECK_EQ(codeOf(options), std::string("ERR_OUT_OF_MEMORY"));
  options.pageSize = kMax;
  CHECK_EQ(codeOf(options), std::string("ERR_OUT_OF_MEMORY"));
  CHECK(!cpu::MappedMemory::allocate(std::numeric_limits<size_t>::max(), "a test"));
  CHECK(!cpu::MappedMemory::allocate(cpu::memoryLimit() + 1, "a test"));
}

TEST(infoTellsTheTruth) {
  const LlamaShape shape{};
  const auto checkpoint = writeCheckpoint(shape, DType::kF32);
  Session session(optionsFor(shape, *checkpoint));
  REQUIRE(session.ok());
  const BackendInfo& info = session.backend->info();
  CHECK_EQ(info.name, std::string("cpu"));
  CHECK_CONTAINS(info.device, "2 threads");
  CHECK(info.batchInvariant);
  CHECK_EQ(info.vocabSize, shape.vocab);
  CHECK_EQ(info.maxPositions, shape.positions);
  CHECK_EQ(info.kvCacheBytes, uint64_t(64) * 16 * 2 * 2 * 2 * 16 * 4);
  CHECK(info.weightBytes > 0);
}

TEST(commandsTakeEffectInOrder) {
  const LlamaShape shape{};
  const auto checkpoint = writeCheckpoint(shape, DType::kF32);
  Session session(optionsFor(shape, *checkpoint));
  REQUIRE(session.ok());
  const std::vector<int32_t> prompt = {1, 2, 3};
  const auto expected = session.generate(0, prompt, 12, 0);
  // All at once, nothing waited for: the steps feed each other on the executor's thread, and the slot is used
  // twice.
  for (int round = 0; round < 2; ++round) {
    REQUIRE(bool(session.open(0, prompt)));
    REQUIRE(bool(session.backend->submit(packStep(round * 100, {{0, prompt, 0, kSample, {7, 9}}}))));
    for (int32_t i = 1; i < 12; ++i) {
      REQUIRE(bool(session.backend->submit(
          packStep(round * 100 + i, {{0, {kLastSampledToken}, 2 + i, kSample, {7, 9}}}))));
    }
    REQUIRE(bool(session.backend->closeSlot(0)));
  }
  for (int round = 0; round < 2; ++round) {
    for (int32_t i = 0; i < 12; ++i) {
      const StepResult result = session.results.take();
      CHECK_EQ(result.stepId, round * 100 + i);
      REQUIRE(result.tokens.size() == 1);
      CHECK_EQ(result.tokens[0], expected[size_t(i)]);
      CHECK(result.runUs > 0 && result.queueUs >= 0);
    }
  }
}

TEST(misuseIsRefusedAndHarmsNobody) {
  const LlamaShape shape{};
  const auto checkpoint = writeCheckpoint(shape, DType::kF32);
  Session session(optionsFor(shape, *checkpoint));
  REQUIRE(session.ok());
  const auto expected = session.generate(1, {4, 5}, 8, 0);
  REQUIRE(bool(session.open(1, {4, 5})));
  std::vector<int32_t> tokens = session.step({{1, {4, 5}, 0, kSample, {0}}}).tokens;
  CHECK(!session.open(1, {4}));
  CHECK(!session.open(8, {4}));
  CHECK(!session.open(2, {shape.vocab}));
  CHECK(!session.backend->closeSlot(3));
  CHECK(!session.step({{3, {1}, 0, kSample, {5}}}).status);
  CHECK(!session.step({{1, {1}, 2, kSample, {64}}}).status);
  CHECK(!session.step({{1, {1, 2, 3}, 15, kSample, {0}}}).status);
  CHECK(!session.backend->submit({}));
  CHECK(!session.backend->submit({1, 1, 1 << 30, 1 << 30, 1 << 30, 0}));
  REQUIRE(bool(session.open(2, {7})));
  CHECK(!session.step({{2, {kLastSampledToken}, 0, kSample, {5}}}).status);
  REQUIRE(bool(session.backend->closeSlot(2)));
  for (int32_t i = 1; i < 8; ++i) {
    const StepResult result = session.step({{1, {kLastSampledToken}, 1 + i, kSample, {0}}});
    REQUIRE(result.tokens.size() == 1);
    tokens.push_back(result.tokens[0]);
  }
  CHECK(tokens == expected);
}

// The matrix of the vocabulary, in double precision, over the hidden state.
TEST(hiddenStatesMakeTheLogits) {
  for (const LlamaShape& shape : {LlamaShape{}, LlamaShape{.tied = false}, LlamaShape{.qkNorm = true},
                                  LlamaShape{.bias = true, .gelu = true}}) {
    const auto checkpoint = writeCheckpoint(shape, DType::kBF16);
    Session session(optionsFor(shape, *checkpoint));
    REQUIRE(session.ok());
    CHECK_EQ(session.backend->info().hiddenSize, shape.width);
    const auto& head = checkpoint->values.at(shape.tied ? "model.embed_tokens.weight" : "lm_head.weight");
    const std::vector<int32_t> prompt = {1, 2, 3, 4, 5, 6, 7};
    for (int32_t slot = 0; slot < 3; ++slot) REQUIRE(bool(session.open(slot, prompt)));
    // Beside others, and in one row behind a chunk.
    const StepResult first = session.step({{1, {1, 2, 3}, 0, 0, {1}},
                                           {0, prompt, 0, kHidden | kLogits | kSample, {0}},
                                           {2, prompt, 0, kHidden, {2}}});
    REQUIRE(first.status.isOk());
    const auto width = size_t(shape.width);
    REQUIRE(first.hidden.size() == 2 * width && first.logits.size() == size_t(shape.vocab));
    CHECK_EQ(first.tokens.size(), size_t{1});
    for (size_t token = 0; token < size_t(shape.vocab); ++token) {
      double sum = 0;
      for (size_t i = 0; i < width; ++i) sum += double(head[token * width + i]) * double(first.hidden[i]);
      CHECK(std::abs(sum - double(first.logits[token])) < 1e-4 * (1 + std::abs(sum)));
    }
    const StepResult second = session.step({{1, {4, 5, 6, 7}, 3, kHidden, {1}}});
    REQUIRE(second.hidden.size() == width);
    CHECK(second.logits.empty() && second.tokens.empty());
    for (size_t i = 0; i < width; ++i) {
      CHECK_EQ(second.hidden[i], first.hidden[i]);
      CHECK_EQ(first.hidden[width + i], first.hidden[i]);
    }
  }
}

TEST(masksTakeEffectInOrder) {
  const LlamaShape shape{};
  const auto checkpoint = writeCheckpoint(shape, DType::kF32);
  Session session(optionsFor(shape, *checkpoint));
  REQUIRE(session.ok());
  const auto only = [](int32_t token) {
    std::vector<int32_t> mask(size_t(token / 32 + 1), 0);
    mask.back() = int32_t(1U << (token % 32));
    return mask;
  };
  const std::vector<int32_t> prompt = {4, 5};
  const auto expected = session.generate(1, prompt, 2, 0);
  REQUIRE(bool(session.open(1, prompt)));
  Backend& backend = *session.backend;
  // The whole sequence of commands before the first result.
  REQUIRE(bool(backend.setMask(1, only(96))));
  REQUIRE(bool(backend.submit(packStep(1, {{1, prompt, 0, kSample, {0}}}))));
  REQUIRE(bool(backend.setMask(1, only(31))));
  REQUIRE(bool(backend.submit(packStep(2, {{1, {kLastSampledToken}, 2, kSample, {0}}}))));
  REQUIRE(bool(backend.submit(packStep(3, {{1, {kLastSampledToken}, 3, kSample, {0}}}))));
  REQUIRE(bool(backend.closeSlot(1)));
  REQUIRE(bool(session.open(1, prompt)));
  REQUIRE(bool(backend.submit(packStep(4, {{1, prompt, 0, kSample, {0}}}))));
  REQUIRE(bool(backend.setMask(1, only(2))));
  REQUIRE(bool(backend.setMask(1, std::nullopt)));
  REQUIRE(bool(backend.submit(packStep(5, {{1, {kLastSampledToken}, 2, kSample, {0}}}))));
  for (const int32_t token : {96, 31, 31, expected[0], expected[1]}) {
    const StepResult result = session.results.take();
    REQUIRE(result.tokens.size() == 1);
    CHECK_EQ(result.tokens[0], token);
  }
  for (const int32_t slot : {-1, 0, 8, 1 << 30})
    CHECK_EQ(backend.setMask(slot, only(1)).code(), std::string("ERR_INVALID_ARGUMENT"));
  CHECK_EQ(backend.setMask(1, std::vector<int32_t>{}).code(), std::string("ERR_INVALID_ARGUMENT"));
  CHECK_EQ(backend.setMask(1, std::vector<int32_t>(5, -1)).code(), std::string("ERR_INVALID_ARGUMENT"));
}

TEST(notANumberFailsTheStepAlone) {
  const LlamaShape shape{};
  auto checkpoint = writeCheckpoint(shape, DType::kF32);
  // Token 9's embedding becomes a NaN; logits of other tokens are untouched where the head is its own matrix.
  const LlamaShape untied{.tied = false};
  checkpoint = writeCheckpoint(untied, DType::kF32);
  {
    std::fstream file(checkpoint->file, std::ios::binary | std::ios::in | std::ios::out);
    uint64_t header = 0;
    file.read(reinterpret_cast<char*>(&header), sizeof(header));
    std::string text(header, ' ');
    file.read(text.data(), std::streamsize(header));
    const size_t at = text.find("\"data_offsets\":[", text.find("embed_tokens"));
    const auto offset = std::stoull(text.substr(at + 16));
    const float nan = std::numeric_limits<float>::quiet_NaN();
    file.seekp(std::streamoff(8 + header + offset + size_t(9 * untied.width) * sizeof(float)));
    file.write(reinterpret_cast<const char*>(&nan), sizeof(nan));
  }
  Session session(optionsFor(untied, *checkpoint));
  REQUIRE(session.ok());
  REQUIRE(bool(session.open(0, {1, 2})));
  REQUIRE(bool(session.open(1, {9})));
  const StepResult failed = session.step({{0, {1, 2}, 0, kSample, {0}}, {1, {9}, 0, kSample, {1}}});
  CHECK_EQ(failed.status.code(), std::string("ERR_STEP_FAILED"));
  CHECK(!failed.retryable);
  CHECK(failed.tokens.empty());
  CHECK_CONTAINS(failed.status.message(), "sequence 1");
  // The other sequence goes on; the failed one has no last token.
  const StepResult good = session.step({{0, {1, 2}, 0, kSample, {0}}});
  CHECK(good.status.isOk());
  CHECK_EQ(good.tokens.size(), size_t{1});
  const StepResult orphan = session.step({{1, {kLastSampledToken}, 1, kSample, {1}}});
  CHECK_EQ(orphan.status.code(), std::string("ERR_STEP_FAILED"));
}

TEST(stopReportsWhatIsQueued) {
  const LlamaShape shape{.layers = 4, .positions = 300};
  const auto checkpoint = writeCheckpoint(shape, DType::kF32);
  Session session(optionsFor(shape, *checkpoint));
  REQUIRE(session.ok());
  std::vector<int32_t> prompt(250, 3);
  REQUIRE(bool(session.open(0, prompt)));
  session.results.hold();
  for (int32_t i = 0; i < 50; ++i) {
    CHECK(session.backend->submit(packStep(i, {{0, prompt, 0, kSample, session.pages(0, 250)}})));
  }
  session.results.awaitHeld();
  session.backend->requestStop();
  session.backend->requestStop();
  CHECK_EQ(session.backend->submit(packStep(99, {{0, {1}, 0, kSample, {0}}})).code(),
           std::string("ERR_DISPOSED"));
  CHECK_EQ(session.open(1, {1}).code(), std::string("ERR_DISPOSED"));
  CHECK_EQ(session.backend->closeSlot(0).code(), std::string("ERR_DISPOSED"));
  session.results.letGo();
  session.backend->join();
  session.backend->join();
  int disposed = 0;
  for (int32_t i = 0; i < 50; ++i) {
    const StepResult result = session.results.take();
    CHECK_EQ(result.stepId, i);
    if (result.status.code() == "ERR_DISPOSED") {
      ++disposed;
    } else {
      CHECK_EQ(disposed, 0);
    }
  }
  CHECK_EQ(disposed, 49);
}

TEST(backendsComeAndGo) {
  const LlamaShape shape{};
  const auto checkpoint = writeCheckpoint(shape, DType::kF32);
  for (int i = 0; i < 20; ++i) {
    auto backend = createCpuBackend(optionsFor(shape, *checkpoint));
    REQUIRE(bool(backend));
    if (i % 2 == 0) continue;  // never started
    Results results;
    (*backend)->start(&results);
    (*backend)->requestStop();
    (*backend)->join();
  }
}

TEST(poolRunsEachTaskOnce) {
  for (const int threads : {1, 2, 5}) {
    auto pool = cpu::ThreadPool::create(threads);
    REQUIRE(bool(pool));
    for (int round = 0; round < 300; ++round) {
      const auto tasks = size_t(round % 7 == 0 ? 70000 : round % 50);
      std::vector<int> runs(tasks, 0);
      std::atomic<bool> badThread{false};
      (*pool)->run(tasks, [&](size_t task, int thread) {
        ++runs[task];
        if (thread < 0 || thread >= threads) badThread = true;
      });
      CHECK(!badThread);
      bool once = true;
      for (const int count : runs) once = once && count == 1;
      CHECK(once);
      // Long enough for the helpers to fall asleep every now and then.
      if (round % 60 == 59) std::this_thread::sleep_for(std::chrono::milliseconds(2));
    }
  }
}

TEST(idleThreadsSleep) {
  const LlamaShape shape{};
  const auto checkpoint = writeCheckpoint(shape, DType::kF32);
  Session session(optionsFor(shape, *checkpoint));
  REQUIRE(session.ok());
  session.generate(0, {1, 2, 3}, 20, 0);
  // Of the processor, so others that are busy do not count; but a thread that they held up may still be on
  // its way to sleep.
  double busyMs = 1e9;
  for (int i = 0; i < 20 && busyMs >= 20; ++i) {
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
    const auto before = std::clock();
    std::this_thread::sleep_for(std::chrono::milliseconds(500));
    busyMs = double(std::clock() - before) * 1000 / CLOCKS_PER_SEC;
  }
  CHECK(busyMs < 20);
}

}  // namespace

TEST_MAIN()
