// Runs a model through nt-tensorrt.so with nothing else around it: builds the engine, loads it, prefills and
// decodes prompts, and writes what came out as JSON lines (trt_llm_smoke.py compares them with reference
// outputs).
//
// usage: trt_llm_smoke MODULE LIBRARY-FOLDER GRAPH PROMPTS OUT f32|f16|bf16 SAFETENSORS...
//   PROMPTS has one prompt a line, as token ids. Each is decoded greedily, 64 tokens: alone, all at once, all
//   at once without CUDA graphs, and twice with a temperature and one seed. At the end a step faults on the
//   device, for good.
#include <dlfcn.h>

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <iterator>
#include <mutex>
#include <sstream>

#include "core/module.h"
#include "core/step_batch.h"

namespace {

using Clock = std::chrono::steady_clock;

constexpr int32_t kPageSize = 16;
constexpr int32_t kNewTokens = 64;

[[noreturn]] void die(const std::string& what) {
  std::fprintf(stderr, "%s\n", what.c_str());
  std::exit(1);
}

template <class T>
T valueOf(nt::Expected<T> expected, const char* what) {
  const nt::Status status = expected.status();
  if (!status)
    die(std::string(what) + ": [" + status.code() + "] " + status.message() + " (" + status.hint() + ")");
  return *std::move(expected);
}

void check(const nt::Status& status, const char* what) {
  if (!status) die(std::string(what) + ": [" + status.code() + "] " + status.message());
}

std::string readFile(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  if (!in) die("cannot read " + path);
  return {std::istreambuf_iterator<char>(in), {}};
}

double secondsSince(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

class Listener final : public nt::BuildListener {
 public:
  void onProgress(int32_t, int32_t, std::string_view, int32_t, int32_t) noexcept override {}
  bool isCancelled() noexcept override { return false; }
};

class Sink final : public nt::ResultSink {
 public:
  void onStep(nt::StepResult&& result) noexcept override {
    const std::lock_guard lock(mutex_);
    results_.push_back(std::move(result));
    arrived_.notify_one();
  }
  nt::StepResult take() {
    std::unique_lock lock(mutex_);
    arrived_.wait(lock, [this] { return !results_.empty(); });
    nt::StepResult result = std::move(results_.front());
    results_.erase(results_.begin());
    return result;
  }

 private:
  std::mutex mutex_;
  std::condition_variable arrived_;
  std::vector<nt::StepResult> results_;
};

struct Sequence {
  int32_t slot = 0;
  int32_t cached = 0;
  std::vector<int32_t> prompt;
  std::vector<int32_t> pages;
  std::vector<int32_t> output;
  std::vector<float> promptLogprobs;
  std::vector<float> logits;  // behind the prompt
};

std::vector<int32_t> packStep(int32_t id, const std::vector<Sequence*>& sequences, bool prefill) {
  std::vector<int32_t> pages;
  std::vector<int32_t> tokens;
  std::vector<int32_t> table;
  for (Sequence* s : sequences) {
    const int32_t count = prefill ? static_cast<int32_t>(s->prompt.size()) : 1;
    const int32_t used = (s->cached + count + kPageSize - 1) / kPageSize;
    table.insert(table.end(), {s->slot, count, s->cached, used,
                               prefill ? nt::kSample | nt::kPromptLogprobs | nt::kLogits : nt::kSample});
    pages.insert(pages.end(), s->pages.begin(), s->pages.begin() + used);
    if (prefill) {
      tokens.insert(tokens.end(), s->prompt.begin(), s->prompt.end());
    } else {
      tokens.push_back(nt::kLastSampledToken);
    }
    s->cached += count;
  }
  std::vector<int32_t> step = {nt::kStepVersion,
                               id,
                               static_cast<int32_t>(sequences.size()),
                               static_cast<int32_t>(tokens.size()),
                               static_cast<int32_t>(pages.size()),
                               0};
  step.insert(step.end(), table.begin(), table.end());
  step.insert(step.end(), pages.begin(), pages.end());
  step.insert(step.end(), tokens.begin(), tokens.end());
  return step;
}

class Session {
 public:
  explicit Session(nt::TensorRtModule& module, const nt::TensorRtOptions& options) {
    const auto start = Clock::now();
    backend_ = valueOf(module.createBackend(options), "createBackend");
    const nt::BackendInfo& info = backend_->info();
    std::printf("loaded in %.2f s: %s, %d pages, KV cache %.1f MB, weights %.1f MB\n", secondsSince(start),
                info.device.c_str(), info.numPages, static_cast<double>(info.kvCacheBytes) / 1e6,
                static_cast<double>(info.weightBytes) / 1e6);
    backend_->start(&sink_);
  }
  ~Session() {
    backend_->requestStop();
    backend_->join();
  }

  // Prefills the prompts in one step where `together`, else in a step each, and decodes them all at once.
  std::vector<Sequence> generate(const std::vector<std::vector<int32_t>>& prompts,
                                 const nt::SamplingParams& sampling) {
    std::vector<Sequence> sequences(prompts.size());
    std::vector<Sequence*> all;
    int32_t nextPage = 0;
    for (size_t i = 0; i < prompts.size(); ++i) {
      Sequence& s = sequences[i];
      s.slot = static_cast<int32_t>(i);
      s.prompt = prompts[i];
      const auto length = static_cast<int32_t>(s.prompt.size()) + kNewTokens;
      for (int32_t p = 0; p * kPageSize < length; ++p) s.pages.push_back(nextPage++);
      nt::SlotInit init;
      init.slot = s.slot;
      init.sampling = sampling;
      init.prompt = s.prompt;
      check(backend_->openSlot(std::move(init)), "openSlot");
      all.push_back(&s);
    }
    check(backend_->submit(packStep(nextStep_++, all, true)), "submit");
    take(all, true);
    const auto start = Clock::now();
    for (int32_t i = 1; i < kNewTokens; ++i)
      check(backend_->submit(packStep(nextStep_++, all, false)), "submit");
    for (int32_t i = 1; i < kNewTokens; ++i) take(all, false);
    decodeMs_ = secondsSince(start) * 1e3 / (kNewTokens - 1);
    for (const Sequence& s : sequences) check(backend_->closeSlot(s.slot), "closeSlot");
    return sequences;
  }
  // Submits the prompt and `steps` decode steps; the codes of their results, "" for success.
  std::vector<std::string> codesOf(const std::vector<int32_t>& prompt, int steps) {
    Sequence s;
    s.prompt = prompt;
    for (int32_t p = 0; p * kPageSize < static_cast<int32_t>(prompt.size()) + steps; ++p)
      s.pages.push_back(p);
    nt::SlotInit init;
    init.slot = 0;
    init.prompt = prompt;
    check(backend_->openSlot(std::move(init)), "openSlot");
    for (int i = 0; i <= steps; ++i) check(backend_->submit(packStep(nextStep_++, {&s}, i == 0)), "submit");
    std::vector<std::string> codes;
    for (int i = 0; i <= steps; ++i) codes.push_back(sink_.take().status.code());
    return codes;
  }
  // Milliseconds of a decode step of the last generate().
  double decodeMs() const { return decodeMs_; }

 private:
  void take(const std::vector<Sequence*>& sequences, bool prefill) {
    const nt::StepResult result = sink_.take();
    check(result.status, "step");
    if (result.tokens.size() != sequences.size()) die("a step gave the wrong number of tokens");
    for (size_t i = 0; i < sequences.size(); ++i) sequences[i]->output.push_back(result.tokens[i]);
    if (!prefill) return;
    for (const nt::LogprobRow& row : result.logprobs) {
      Sequence& s = *sequences[static_cast<size_t>(row.sequence)];
      if (static_cast<size_t>(row.position) < s.prompt.size()) s.promptLogprobs.push_back(row.logprob);
    }
    const auto vocab = static_cast<size_t>(backend_->info().vocabSize);
    for (size_t i = 0; i < sequences.size(); ++i) {
      const auto begin = result.logits.begin() + static_cast<std::ptrdiff_t>(i * vocab);
      sequences[i]->logits.assign(begin, begin + static_cast<std::ptrdiff_t>(vocab));
    }
  }

  Sink sink_;
  std::unique_ptr<nt::Backend> backend_;
  int32_t nextStep_ = 0;
  double decodeMs_ = 0;
};

template <class T>
void writeArray(std::FILE* out, const char* name, const std::vector<T>& values) {
  std::fprintf(out, ", \"%s\": [", name);
  for (size_t i = 0; i < values.size(); ++i)
    std::fprintf(out, "%s%.9g", i == 0 ? "" : ", ", static_cast<double>(values[i]));
  std::fputc(']', out);
}

void write(std::FILE* out, const char* mode, size_t prompt, const Sequence& s, bool logits) {
  std::fprintf(out, "{\"mode\": \"%s\", \"prompt\": %zu", mode, prompt);
  writeArray(out, "ids", s.output);
  writeArray(out, "promptLogprobs", s.promptLogprobs);
  if (logits) writeArray(out, "logits", s.logits);
  std::fputs("}\n", out);
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 8)
    die("usage: trt_llm_smoke MODULE LIBRARY-FOLDER GRAPH PROMPTS OUT f32|f16|bf16 SAFETENSORS...");
  void* handle = dlopen(argv[1], RTLD_NOW | RTLD_LOCAL);
  if (handle == nullptr) die(dlerror());
  auto* entry = reinterpret_cast<nt::ModuleEntryPoint*>(dlsym(handle, nt::kModuleEntryPoint));
  nt::TensorRtModule* module = entry == nullptr ? nullptr : entry(nt::kModuleAbi);
  if (module == nullptr) die("the module is of another build");

  const nt::ModuleFacts facts = module->probe(argv[2]);
  check(facts.driver, "driver");
  check(facts.library, "library");
  std::printf(
      "%s, CUDA %d, %s %d, builder resource %s\n", facts.gpus[0].name.c_str(), facts.driverCuda,
      facts.libraryPath.c_str(), facts.libraryVersion,
      facts.builderResource ? facts.builderResourcePath.c_str() : facts.builderResource.message().c_str());

  const std::string type = argv[6];
  nt::BuildOptions build;
  build.graph = readFile(argv[3]);
  build.libraryPath = argv[2];
  build.dtype = type == "f32" ? nt::DType::kF32 : type == "f16" ? nt::DType::kF16 : nt::DType::kBF16;
  build.layerProfiles = {{1, 8, 8}, {1, 64, 64}, {1, 256, 256}, {1, 2048, 4096}};
  build.headProfiles = {{1, 8, 8}, {1, 64, 64}, {1, 256, 256}};
  Listener listener;
  auto start = Clock::now();
  nt::BuildResult built = valueOf(module->build(build, &listener), "build");
  std::printf("built in %.1f s, plan %.2f MB:", secondsSince(start),
              static_cast<double>(built.plan.size()) / 1e6);
  for (const auto& part : built.parts)
    std::printf(" %s %.1f s", part.name.c_str(), static_cast<double>(part.seconds));
  std::printf("\n");
  start = Clock::now();
  build.timingCache = std::move(built.timingCache);
  built = valueOf(module->build(build, nullptr), "build again");
  std::printf("built again with the timing cache in %.1f s\n", secondsSince(start));

  std::vector<std::vector<int32_t>> prompts;
  std::istringstream lines(readFile(argv[4]));
  for (std::string line; std::getline(lines, line);) {
    std::istringstream ids(line);
    prompts.emplace_back(std::istream_iterator<int32_t>(ids), std::istream_iterator<int32_t>());
  }

  nt::TensorRtOptions options;
  options.graph = build.graph;
  options.plan = built.plan;
  options.libraryPath = argv[2];
  for (int i = 7; i < argc; ++i) options.files.emplace_back(argv[i]);
  options.pageSize = kPageSize;
  options.numPages = 4096;
  options.maxSlots = 64;
  options.maxStepTokens = 4096;

  std::FILE* out = std::fopen(argv[5], "w");
  if (out == nullptr) die(std::string("cannot write ") + argv[5]);
  nt::SamplingParams greedy;
  greedy.logprobs = 0;
  greedy.promptLogprobs = 0;
  nt::SamplingParams warm = greedy;
  warm.temperature = 0.8F;
  warm.topP = 0.9F;
  warm.topK = 50;
  warm.repetitionPenalty = 1.1F;
  warm.seed = 1234;
  {
    Session session(*module, options);
    for (size_t i = 0; i < prompts.size(); ++i)
      write(out, "solo", i, session.generate({prompts[i]}, greedy)[0], true);
    std::printf("decode, 1 sequence: %.3f ms a step\n", session.decodeMs());
    const auto together = session.generate(prompts, greedy);
    std::printf("decode, %zu sequences: %.3f ms a step\n", prompts.size(), session.decodeMs());
    for (size_t i = 0; i < prompts.size(); ++i) write(out, "batch", i, together[i], true);
    for (const char* mode : {"seed1", "seed2"}) {
      const auto sampled = session.generate(prompts, warm);
      std::printf("sampled, %zu sequences: %.3f ms a step\n", prompts.size(), session.decodeMs());
      for (size_t i = 0; i < prompts.size(); ++i) write(out, mode, i, sampled[i], false);
    }
  }
  options.cudaGraphs = false;
  {
    Session session(*module, options);
    const auto together = session.generate(prompts, greedy);
    std::printf("decode without graphs, %zu sequences: %.3f ms a step\n", prompts.size(), session.decodeMs());
    for (size_t i = 0; i < prompts.size(); ++i) write(out, "nograph", i, together[i], false);
  }
  std::fclose(out);
  options.cudaGraphs = true;
  options.faultAtStep = 4;
  {
    Session session(*module, options);
    std::printf("codes of 8 steps, the fourth faults:");
    for (const std::string& code : session.codesOf(prompts[0], 7))
      std::printf(" %s", code.empty() ? "ok" : code.c_str());
    std::printf("\n");
  }
  std::printf("load after the fault: [%s]\n", module->createBackend(options).status().code().c_str());
  return 0;
}
