// What the tests of the CPU backend share: graphs, random checkpoints, and a driver that runs steps one by
// one.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "core/backend.h"
#include "core/dtype.h"
#include "core/step_batch.h"
#include "cpu/cpu_backend.h"

namespace nt::test {

struct LlamaShape {
  int32_t vocab = 97;
  int32_t width = 40;
  int32_t inner = 72;
  int32_t layers = 2;
  int32_t heads = 4;
  int32_t kvHeads = 2;
  int32_t headDim = 16;
  int32_t positions = 256;
  int32_t window = 0;
  float theta = 10000.0F;
  float eps = 1e-5F;
  bool tied = true;
  bool qkNorm = false;
  bool bias = false;
  bool gelu = false;

  std::map<std::string, std::vector<int64_t>> weights() const;
  // The same graph that lib/models makes of a Llama config.
  std::string graph() const;
};

// Deterministic values for all of a shape's weights; keeps them for the reference, as the file's type rounds
// them.
struct Checkpoint {
  std::string file;
  std::map<std::string, std::vector<float>> values;
  ~Checkpoint();
};
std::unique_ptr<Checkpoint> writeCheckpoint(const LlamaShape& shape, DType dtype, uint64_t seed = 1);

struct SequenceStep {
  int32_t slot = 0;
  std::vector<int32_t> tokens;
  int32_t cached = 0;
  int32_t flags = kSample;
  std::vector<int32_t> pages;
};

std::vector<int32_t> packStep(int32_t id, const std::vector<SequenceStep>& sequences);

// Collects results; `take` waits for the next.
class Results final : public ResultSink {
 public:
  void onStep(StepResult&& result) noexcept override;
  StepResult take();
  // From now on the next result waits, and with it the executor's thread, until it is let go.
  void hold();
  // Waits for that result.
  void awaitHeld();
  void letGo();

 private:
  std::mutex mutex_;
  std::condition_variable arrived_;
  std::vector<StepResult> results_;
  size_t taken_ = 0;
  bool holds_ = false;
  bool held_ = false;
};

// A backend, run step by step.
class Session {
 public:
  explicit Session(const CpuOptions& options);
  ~Session();

  bool ok() const { return backend != nullptr; }
  // Opens the slot; its pages are firstPage, firstPage + 1, ...
  Status open(int32_t slot, std::vector<int32_t> prompt, SamplingParams sampling = {},
              std::vector<int32_t> output = {});
  StepResult step(const std::vector<SequenceStep>& sequences);
  // As many pages as `tokens` need, starting at `first`.
  std::vector<int32_t> pages(int32_t first, int32_t tokens) const;
  // Prompt in chunks of `chunk`, then greedy or sampled tokens one by one.
  std::vector<int32_t> generate(int32_t slot, const std::vector<int32_t>& prompt, int32_t count,
                                int32_t firstPage, SamplingParams sampling = {}, int32_t chunk = 1 << 20);

  Status status;
  Results results;
  std::unique_ptr<Backend> backend;

 private:
  int32_t nextStep_ = 1;
};

}  // namespace nt::test
