#include "tensorrt/logger.h"

#include <array>
#include <mutex>
#include <vector>

namespace nt {

namespace {

using Severity = nvinfer1::ILogger::Severity;

constexpr size_t kLines = 64;
constexpr size_t kLineBytes = 512;
constexpr size_t kReported = 4;

struct Line {
  uint64_t number = 0;  // from 1; 0 = never written
  Severity severity = Severity::kVERBOSE;
  std::array<char, kLineBytes> text{};
};

// A ring of fixed size: logging allocates nothing, since TensorRT also logs when it is out of memory.
class Logger final : public nvinfer1::ILogger {
 public:
  void log(Severity severity, const char* message) noexcept override {
    if (severity > Severity::kWARNING || message == nullptr) return;
    const std::lock_guard lock(mutex_);
    Line& line = lines_[next_ % kLines];
    line.number = ++next_;
    line.severity = severity;
    size_t i = 0;
    for (; i + 1 < kLineBytes && message[i] != '\0'; ++i)
      line.text[i] = message[i] == '\n' ? ' ' : message[i];
    line.text[i] = '\0';
  }

  uint64_t count() noexcept {
    const std::lock_guard lock(mutex_);
    return next_;
  }

  std::string since(uint64_t start) {
    const std::lock_guard lock(mutex_);
    const auto collect = [&](Severity worst) {
      std::vector<const Line*> found;
      for (uint64_t n = next_ > kLines ? next_ - kLines : 0; n < next_; ++n) {
        const Line& line = lines_[n % kLines];
        if (line.number > start && line.severity <= worst) found.push_back(&line);
      }
      return found;
    };
    std::vector<const Line*> found = collect(Severity::kERROR);
    if (found.empty()) found = collect(Severity::kWARNING);
    std::string text;
    for (size_t i = found.size() > kReported ? found.size() - kReported : 0; i < found.size(); ++i) {
      if (!text.empty()) text += "; ";
      text += found[i]->text.data();
    }
    return text;
  }

 private:
  std::mutex mutex_;
  std::array<Line, kLines> lines_;
  uint64_t next_ = 0;
};

Logger& instance() noexcept {
  static auto* logger = new Logger;
  return *logger;
}

}  // namespace

nvinfer1::ILogger& tensorRtLogger() noexcept {
  return instance();
}

void addLogSink(runtime::LogSink*) noexcept {}
void removeLogSink(runtime::LogSink*) noexcept {}

LogScope::LogScope() noexcept : start_(instance().count()) {}

std::string LogScope::text() const {
  return instance().since(start_);
}

}  // namespace nt
