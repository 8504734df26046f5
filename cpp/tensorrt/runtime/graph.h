// Captured graphs.
#pragma once

#include <memory>
#include <utility>
#include <vector>

#include "core/runtime.h"
#include "tensorrt/cuda.h"
#include "tensorrt/runtime/context_run.h"
#include "tensorrt/runtime/device_state.h"

namespace nt::runtime {

// What a graph uses: kept until it is gone.
struct Captured {
  References held;
  std::vector<std::shared_ptr<RunnableContext>> contexts;  // each once
};

class GraphObject final : public Graph {
 public:
  GraphObject(DeviceState& device, GraphExec exec, Captured captured) noexcept
      : device_(device), captured_(std::move(captured)), exec_(std::move(exec)) {}
  ~GraphObject() override {
    const DeviceScope scope(device_.device());
    GraphExec(std::move(exec_));
  }

  DeviceState& deviceState() const noexcept { return device_; }
  cudaGraphExec_t exec() const noexcept { return exec_.get(); }
  const std::vector<std::shared_ptr<RunnableContext>>& contexts() const noexcept {
    return captured_.contexts;
  }

 private:
  DeviceState& device_;
  Captured captured_;
  GraphExec exec_;
};

}  // namespace nt::runtime
