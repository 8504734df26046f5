#include "tensorrt/logger.h"

#include <algorithm>
#include <array>
#include <atomic>
#include <chrono>
#include <cstdio>
#include <mutex>
#include <string_view>
#include <thread>
#include <vector>

#include "tensorrt/cuda.h"

namespace nt {

namespace {

using Severity = nvinfer1::ILogger::Severity;
using runtime::LogSeverity;
using runtime::LogSink;

constexpr size_t kLines = 16;
constexpr size_t kLineBytes = 512;
constexpr size_t kReported = 4;
// Shorter texts may be alike by chance.
constexpr size_t kTellingBytes = 8;

struct Line {
  uint64_t number = 0;  // of all lines of the process, from 1; 0 = never written
  Severity severity = Severity::kVERBOSE;
  std::array<char, kLineBytes> text{};
};

std::atomic<uint64_t> lastNumber = 0;

// A ring of fixed size: keeping a line allocates nothing, since TensorRT also logs when it is out of memory.
class Ring {
 public:
  void add(Severity severity, const char* message) noexcept {
    Line& line = lines_[next_++ % kLines];
    line.number = ++lastNumber;
    line.severity = severity;
    size_t i = 0;
    for (; i + 1 < kLineBytes && message[i] != '\0'; ++i)
      line.text[i] = message[i] == '\n' ? ' ' : message[i];
    line.text[i] = '\0';
  }

  void collect(uint64_t start, std::vector<Line>& to) const {
    for (const Line& line : lines_) {
      if (line.number > start) to.push_back(line);
    }
  }

 private:
  std::array<Line, kLines> lines_;
  uint64_t next_ = 0;
};

enum class Source : uint8_t { kNone, kLogger, kRecorder };

struct ThreadLog {
  Ring ring;
  int32_t scopes = 0;
  bool building = false;
  uint64_t allocationFailed = 0;  // number of the last line that told so
  // The last error, to recognise it when it comes again by the other way.
  Source source = Source::kNone;
  std::array<char, kLineBytes> error{};
};

thread_local ThreadLog threadLog;

std::mutex buildMutex;
// Lines of the build in progress that came from threads without a scope.
struct ForeignLog {
  std::mutex mutex;
  bool building = false;
  Ring ring;
};
ForeignLog foreignLog;

struct Sinks {
  std::mutex mutex;
  std::vector<LogSink*> all;
  std::atomic<size_t> count = 0;
};

// Never destroyed: TensorRT's threads may log until the process is gone.
Sinks& sinks() noexcept {
  static auto* instance = new Sinks;
  return *instance;
}

void toSinks(Severity severity, const char* message) noexcept {
  Sinks& to = sinks();
  if (to.count.load(std::memory_order_acquire) == 0) return;
  const auto level = static_cast<LogSeverity>(severity);
  const std::lock_guard lock(to.mutex);
  for (LogSink* sink : to.all) {
    if (level <= sink->threshold()) sink->onLine(level, message);
  }
}

// TensorRT tells some errors to the recorder, some to the logger and some to both, worded alike.
bool isRepeated(Source source, const char* message) noexcept {
  ThreadLog& log = threadLog;
  const std::string_view before = log.error.data();
  const std::string_view now = std::string_view(message).substr(0, kLineBytes - 1);
  const bool byTheOtherWay = log.source != Source::kNone && log.source != source;
  if (byTheOtherWay && std::min(before.size(), now.size()) >= kTellingBytes &&
      (before.find(now) != before.npos || now.find(before) != now.npos)) {
    log.source = Source::kNone;
    return true;
  }
  log.source = source;
  log.error[now.copy(log.error.data(), kLineBytes - 1)] = '\0';
  return false;
}

void takeLine(Source source, Severity severity, const char* message) noexcept {
  if (message == nullptr) return;
  if (severity <= Severity::kERROR && isRepeated(source, message)) return;
  if (severity <= Severity::kWARNING) {
    if (threadLog.scopes > 0) {
      threadLog.ring.add(severity, message);
    } else {
      const std::lock_guard lock(foreignLog.mutex);
      if (foreignLog.building) foreignLog.ring.add(severity, message);
    }
  }
  toSinks(severity, message);
}

class Logger final : public nvinfer1::ILogger {
 public:
  void log(Severity severity, const char* message) noexcept override {
    takeLine(Source::kLogger, severity, message);
  }
};

}  // namespace

nvinfer1::ILogger& tensorRtLogger() noexcept {
  static auto* logger = new Logger;
  return *logger;
}

void addLogSink(LogSink* sink) noexcept {
  if (sink == nullptr) return;
  Sinks& to = sinks();
  const std::lock_guard lock(to.mutex);
  if (std::find(to.all.begin(), to.all.end(), sink) != to.all.end()) return;
  try {
    to.all.push_back(sink);
  } catch (const std::bad_alloc&) {
    return;  // a listener without lines, in a process that is out of memory
  }
  to.count.store(to.all.size(), std::memory_order_release);
}

void removeLogSink(LogSink* sink) noexcept {
  Sinks& from = sinks();
  const std::lock_guard lock(from.mutex);
  std::erase(from.all, sink);
  from.count.store(from.all.size(), std::memory_order_release);
}

void logRecordedError(nvinfer1::ErrorCode code, const char* text) noexcept {
  takeLine(Source::kRecorder, Severity::kERROR, text);
  if (code == nvinfer1::ErrorCode::kFAILED_ALLOCATION) threadLog.allocationFailed = ++lastNumber;
}

void logFailedAllocation(uint64_t bytes) noexcept {
  std::array<char, 96> text{};
  std::snprintf(text.data(), text.size(), "The device has no %llu bytes for TensorRT",
                static_cast<unsigned long long>(bytes));
  takeLine(Source::kLogger, Severity::kERROR, text.data());
  threadLog.allocationFailed = ++lastNumber;
}

LogScope::LogScope() noexcept : start_(lastNumber.load()) {
  ++threadLog.scopes;
}

LogScope::~LogScope() {
  --threadLog.scopes;
}

std::string LogScope::text() const {
  std::vector<Line> lines;
  threadLog.ring.collect(start_, lines);
  if (threadLog.building) {
    const std::lock_guard lock(foreignLog.mutex);
    foreignLog.ring.collect(start_, lines);
  }
  std::sort(lines.begin(), lines.end(), [](const Line& a, const Line& b) { return a.number < b.number; });
  if (std::any_of(lines.begin(), lines.end(),
                  [](const Line& line) { return line.severity <= Severity::kERROR; })) {
    std::erase_if(lines, [](const Line& line) { return line.severity > Severity::kERROR; });
  }
  std::string text;
  for (size_t i = lines.size() > kReported ? lines.size() - kReported : 0; i < lines.size(); ++i) {
    if (!text.empty()) text += "; ";
    text += lines[i].text.data();
  }
  return text;
}

bool LogScope::outOfMemory() const noexcept {
  return threadLog.allocationFailed > start_;
}

Expected<BuildScope> BuildScope::enter(const std::function<bool()>& isCancelled) {
  while (!buildMutex.try_lock()) {
    if (isCancelled && isCancelled()) return Status("ABORT_ERR", "The build was cancelled");
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
  }
  threadLog.building = true;
  const std::lock_guard lock(foreignLog.mutex);
  foreignLog.building = true;
  return BuildScope();
}

BuildScope::~BuildScope() {
  if (!entered_) return;
  threadLog.building = false;
  {
    const std::lock_guard lock(foreignLog.mutex);
    foreignLog.building = false;
  }
  buildMutex.unlock();
}

Status withLog(Status status, const LogScope& log) {
  const std::string said = log.text();
  return said.empty() ? status : Status(status.code(), status.message() + ": " + said, status.hint());
}

Status failure(const char* code, const std::string& what, const LogScope& log) {
  Status cuda = takeCudaError(what);
  if (log.outOfMemory()) {
    return withLog({"ERR_OUT_OF_DEVICE_MEMORY", what + ": the GPU is out of memory",
                    "Lower what is resident on this GPU, or the shapes of the profiles"},
                   log);
  }
  return withLog(cuda ? Status(code, what) : std::move(cuda), log);
}

}  // namespace nt
