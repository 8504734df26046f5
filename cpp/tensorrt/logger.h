// TensorRT's one logger. Its lines are kept for the error that follows them.
#pragma once

#include <NvInferRuntime.h>

#include <cstdint>
#include <string>

#include "core/runtime.h"

namespace nt {

// Lives for ever: TensorRT keeps the logger of the first factory call for the whole process.
nvinfer1::ILogger& tensorRtLogger() noexcept;

// See TensorRtModule.
void addLogSink(runtime::LogSink* sink) noexcept;
void removeLogSink(runtime::LogSink* sink) noexcept;

// Collects the warnings and errors that TensorRT logs during the scope. Lines of other threads count too (a
// builder has threads of its own), so two builds at once see each other's.
class LogScope {
 public:
  LogScope() noexcept;
  // The last errors of the scope (warnings where there is no error), oldest first, joined by "; ". "" where
  // nothing was logged.
  std::string text() const;

 private:
  uint64_t start_;
};

}  // namespace nt
