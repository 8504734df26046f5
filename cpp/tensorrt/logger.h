// TensorRT's one logger. Its lines go to the sinks that were added, and are kept for the error that follows
// them.
#pragma once

#include <NvInferRuntime.h>

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <utility>

#include "core/runtime.h"
#include "core/status.h"

namespace nt {

// Lives for ever: TensorRT keeps the logger of the first factory call for the whole process.
nvinfer1::ILogger& tensorRtLogger() noexcept;

// See TensorRtModule. Not to be called from within onLine.
void addLogSink(runtime::LogSink* sink) noexcept;
void removeLogSink(runtime::LogSink* sink) noexcept;

// An error that TensorRT handed to an error recorder: a line of the log like any other. Where TensorRT logs
// it as well, it counts once.
void logRecordedError(nvinfer1::ErrorCode code, const char* text) noexcept;

// Device memory that TensorRT asked for and did not get.
void logFailedAllocation(uint64_t bytes) noexcept;

// Collects the warnings and errors that TensorRT logs on this thread during the scope. Scopes may nest: an
// outer one has the lines of an inner one too.
class LogScope {
 public:
  LogScope() noexcept;
  LogScope(const LogScope&) = delete;
  LogScope& operator=(const LogScope&) = delete;
  ~LogScope();
  // The last errors of the scope (warnings where there is no error), oldest first, joined by "; ". "" where
  // nothing was logged. On the scope's thread.
  std::string text() const;
  // Whether TensorRT missed memory of the device during the scope.
  bool outOfMemory() const noexcept;

 private:
  uint64_t start_;
};

// One build. TensorRT's builder logs on threads of its own, which nothing ties to a build: so the process
// runs one at a time, and lines of threads without a scope belong to it. The thread's LogScopes see them.
class BuildScope {
 public:
  // Waits for the build before. ABORT_ERR once `isCancelled` says so, which is asked while it waits.
  static Expected<BuildScope> enter(const std::function<bool()>& isCancelled);
  BuildScope(BuildScope&& other) noexcept : entered_(std::exchange(other.entered_, false)) {}
  BuildScope& operator=(BuildScope&&) = delete;
  ~BuildScope();

 private:
  BuildScope() = default;
  bool entered_ = true;
};

// The Status with the scope's lines behind its message.
Status withLog(Status status, const LogScope& log);

// Why a call of TensorRT's failed that says no more than false or nullptr: ERR_OUT_OF_DEVICE_MEMORY where
// memory was the reason, ERR_CUDA where CUDA left an error on this thread, else `code`; with the log's lines.
Status failure(const char* code, const std::string& what, const LogScope& log);

}  // namespace nt
