// Progress of a build, out of the phases that TensorRT tells of.
#pragma once

#include <NvInfer.h>

#include <mutex>
#include <string>
#include <vector>

#include "core/module.h"

namespace nt {

// Phases nest: one that starts within a step of its parent accounts for that step. Called on TensorRT's
// threads, also several at once.
class PhaseProgress final : public nvinfer1::IProgressMonitor {
 public:
  static constexpr int32_t kSteps = 1000;

  explicit PhaseProgress(BuildListener* listener) : listener_(listener) {}

  void phaseStart(const char* name, const char* parent, int32_t steps) noexcept override;
  bool stepComplete(const char* name, int32_t step) noexcept override;
  void phaseFinish(const char* name) noexcept override;

  // Of the whole, in 0 ... 1. Never falls.
  double fraction() const noexcept;

 private:
  struct Phase {
    std::string name;
    std::string parent;
    int32_t steps = 1;
    int32_t done = 0;
  };
  double fractionOf(const Phase& phase, size_t depth) const noexcept;
  void update(const std::string& phase) noexcept;

  BuildListener* listener_;
  mutable std::mutex mutex_;
  std::vector<Phase> phases_;  // those that run, in the order of their start
  double reached_ = 0;
};

}  // namespace nt
