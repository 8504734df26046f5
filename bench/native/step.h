// Fills a StepState: page lists, tables and plan of a step, as the backend will.
#pragma once

#include <cstdint>
#include <vector>

#include "cuda_util.h"
#include "llama_network.h"
#include "tensorrt/plugin/step_state.h"

namespace bench {

struct StepItem {
  int sequence;
  int32_t tokens;  // new ones; the sequence's cached length grows by commit()
};

class Steps {
 public:
  static constexpr int32_t kPageSize = 16;

  Steps(const LlamaShape& shape, int layers, int32_t pages, int64_t maxRows, cudaStream_t stream);
  ~Steps();
  Steps(const Steps&) = delete;

  nt::StepState& state() { return state_; }
  // Adds a sequence with `cached` tokens whose keys and values are whatever the pool holds.
  int addSequence(int32_t cached);
  // Sets the state up for the items, padded to `paddedRows` (0: no padding). A decode step has one row an
  // item, and one padding sequence without pages a padding row.
  void prepare(const std::vector<StepItem>& items, int64_t paddedRows, nt::AttentionPath path,
               bool cudaGraph);
  void commit(const std::vector<StepItem>& items);
  double planUs() const { return planUs_; }

 private:
  struct Sequence {
    int32_t cached = 0;
    std::vector<int32_t> pages;
  };
  void reserve(Sequence& sequence, int32_t tokens);

  LlamaShape shape_;
  cudaStream_t stream_;
  int32_t pages_;
  int32_t nextPage_ = 0;
  std::vector<Sequence> sequences_;
  DeviceBuffer pool_, cosSin_, tables_, floats_, ints_;
  void* intsHost_ = nullptr;
  int64_t maxRows_;
  const float* ropes_[1];
  nt::StepState state_;
  double planUs_ = 0;
};

}  // namespace bench
