// TensorRT's logger, its sinks, and error recorders.
#include <atomic>
#include <chrono>
#include <functional>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "check.h"
#include "tensorrt/error_recorder.h"
#include "tensorrt/logger.h"

namespace {

using nt::BuildScope;
using nt::ErrorRecorder;
using nt::LogScope;
using nt::runtime::LogSeverity;
using nvinfer1::ErrorCode;
using Severity = nvinfer1::ILogger::Severity;

void log(Severity severity, const std::string& text) {
  nt::tensorRtLogger().log(severity, text.c_str());
}

void onAnotherThread(const std::function<void()>& work) {
  std::thread(work).join();
}

class Sink final : public nt::runtime::LogSink {
 public:
  explicit Sink(LogSeverity threshold) : threshold_(threshold) { nt::addLogSink(this); }
  ~Sink() override { nt::removeLogSink(this); }
  LogSeverity threshold() const noexcept override { return threshold_; }
  void onLine(LogSeverity severity, const char* text) noexcept override {
    lines.push_back(std::to_string(static_cast<int>(severity)) + " " + text);
  }

  std::vector<std::string> lines;

 private:
  LogSeverity threshold_;
};

}  // namespace

TEST(aScopeHasTheErrorsOfItsThread) {
  log(Severity::kERROR, "before");
  const LogScope scope;
  CHECK_EQ(scope.text(), std::string());
  onAnotherThread([] {
    const LogScope other;
    log(Severity::kERROR, "another thread's");
    CHECK_EQ(other.text(), std::string("another thread's"));
  });
  onAnotherThread([] { log(Severity::kERROR, "of a thread without a scope"); });
  CHECK_EQ(scope.text(), std::string());
  log(Severity::kWARNING, "a warning");
  CHECK_EQ(scope.text(), std::string("a warning"));
  log(Severity::kINTERNAL_ERROR, "first\nline");
  log(Severity::kINFO, "not worth telling");
  log(Severity::kERROR, "second");
  CHECK_EQ(scope.text(), std::string("first line; second"));
}

TEST(onlyTheLastErrorsAreToldAndLongOnesAreCut) {
  const LogScope scope;
  for (int i = 0; i < 100; ++i) log(Severity::kERROR, "error " + std::to_string(i));
  CHECK_EQ(scope.text(), std::string("error 96; error 97; error 98; error 99"));
  const LogScope next;
  log(Severity::kERROR, std::string(5000, 'x'));
  CHECK_EQ(next.text(), std::string(511, 'x'));
}

TEST(scopesNest) {
  const LogScope outer;
  log(Severity::kERROR, "one");
  {
    const LogScope inner;
    log(Severity::kERROR, "two");
    CHECK_EQ(inner.text(), std::string("two"));
  }
  log(Severity::kERROR, "three");
  CHECK_EQ(outer.text(), std::string("one; two; three"));
}

TEST(sinksGetWhatTheirThresholdLetsThrough) {
  Sink all(LogSeverity::kVerbose);
  {
    Sink errors(LogSeverity::kError);
    log(Severity::kVERBOSE, "v");
    log(Severity::kWARNING, "w");
    log(Severity::kERROR, "e");
    log(Severity::kINTERNAL_ERROR, "i");
    const std::vector<std::string> expected = {"1 e", "0 i"};
    CHECK(errors.lines == expected);
  }
  log(Severity::kINFO, "after a sink has gone");
  const std::vector<std::string> expected = {"4 v", "2 w", "1 e", "0 i", "3 after a sink has gone"};
  CHECK(all.lines == expected);
  nt::tensorRtLogger().log(Severity::kERROR, nullptr);
  CHECK_EQ(all.lines.size(), expected.size());
}

TEST(noLineReachesASinkThatIsRemoved) {
  std::atomic<bool> stop = false;
  std::vector<std::thread> loggers;
  for (int i = 0; i < 3; ++i) {
    loggers.emplace_back([&] {
      while (!stop) log(Severity::kINFO, "line");
    });
  }
  struct Guarded final : nt::runtime::LogSink {
    LogSeverity threshold() const noexcept override { return LogSeverity::kInfo; }
    void onLine(LogSeverity, const char*) noexcept override {
      if (removed) late = true;
      ++lines;
    }
    std::atomic<bool> removed = false;
    std::atomic<bool> late = false;
    std::atomic<int> lines = 0;
  };
  std::vector<std::unique_ptr<Guarded>> sinks;
  for (int i = 0; i < 200; ++i) {
    sinks.push_back(std::make_unique<Guarded>());
    Guarded& sink = *sinks.back();
    nt::addLogSink(&sink);
    while (sink.lines == 0) std::this_thread::yield();
    nt::removeLogSink(&sink);
    sink.removed = true;
  }
  stop = true;
  for (std::thread& logger : loggers) logger.join();
  for (const auto& sink : sinks) CHECK(!sink->late);
}

TEST(aRecordedErrorIsALineOnce) {
  Sink sink(LogSeverity::kError);
  ErrorRecorder recorder;
  const LogScope scope;
  // TensorRT prefixes one of the two.
  recorder.reportError(ErrorCode::kINVALID_ARGUMENT, "Parameter check failed");
  log(Severity::kERROR, "IRuntime::f: Error Code 3: Parameter check failed");
  CHECK_EQ(scope.text(), std::string("Parameter check failed"));
  log(Severity::kERROR, "IRuntime::f: Error Code 3: Parameter check failed");
  recorder.reportError(ErrorCode::kINVALID_ARGUMENT, "Parameter check failed");
  CHECK_EQ(sink.lines.size(), size_t{2});
  // The same thing twice is two errors.
  recorder.reportError(ErrorCode::kINVALID_ARGUMENT, "again");
  recorder.reportError(ErrorCode::kINVALID_ARGUMENT, "again");
  CHECK_EQ(sink.lines.size(), size_t{4});
  recorder.reportError(ErrorCode::kINTERNAL_ERROR, nullptr);
}

TEST(aRecorderKeepsTheFirstErrors) {
  ErrorRecorder recorder;
  CHECK_EQ(recorder.getNbErrors(), 0);
  CHECK(!recorder.hasOverflowed());
  const LogScope scope;
  for (int i = 0; i < 12; ++i) {
    CHECK(recorder.reportError(ErrorCode::kFAILED_EXECUTION, ("error " + std::to_string(i)).c_str()));
  }
  CHECK_EQ(recorder.getNbErrors(), 8);
  CHECK(recorder.hasOverflowed());
  CHECK_EQ(std::string(recorder.getErrorDesc(7)), std::string("error 7"));
  CHECK(recorder.getErrorCode(0) == ErrorCode::kFAILED_EXECUTION);
  CHECK(recorder.getErrorCode(8) == ErrorCode::kUNSPECIFIED_ERROR);
  CHECK_EQ(std::string(recorder.getErrorDesc(-1)), std::string());
  CHECK_CONTAINS(scope.text(), "error 11");
  recorder.clear();
  CHECK_EQ(recorder.getNbErrors(), 0);
  CHECK(!recorder.hasOverflowed());
}

TEST(missingMemoryIsTheReason) {
  {
    const LogScope scope;
    CHECK(!scope.outOfMemory());
    nt::logFailedAllocation(123);
    CHECK(scope.outOfMemory());
    const nt::Status status = nt::failure("ERR_BUILD_FAILED", "The build", scope);
    CHECK_EQ(status.code(), std::string("ERR_OUT_OF_DEVICE_MEMORY"));
    CHECK_CONTAINS(status.message(), "no 123 bytes");
  }
  const LogScope scope;
  CHECK(!scope.outOfMemory());
  ErrorRecorder recorder;
  recorder.reportError(ErrorCode::kFAILED_ALLOCATION, "no memory");
  CHECK(scope.outOfMemory());
}

TEST(aBuildHasTheLinesOfThreadsThatAreNobodys) {
  auto build = BuildScope::enter(nullptr);
  REQUIRE(build);
  const LogScope scope;
  log(Severity::kERROR, "its own");
  onAnotherThread([] {
    log(Severity::kERROR, "of a builder's thread");
    const LogScope beside;
    log(Severity::kERROR, "of a run beside it");
    CHECK_EQ(beside.text(), std::string("of a run beside it"));
  });
  CHECK_EQ(scope.text(), std::string("its own; of a builder's thread"));
}

TEST(buildsFollowOneAnother) {
  std::atomic<int> inside = 0;
  std::atomic<bool> together = false;
  std::vector<std::thread> builds;
  for (int i = 0; i < 4; ++i) {
    builds.emplace_back([&, i] {
      auto build = BuildScope::enter([] { return false; });
      if (++inside > 1) together = true;
      const LogScope scope;
      const std::string line = "build " + std::to_string(i);
      std::thread([&] { log(Severity::kERROR, line); }).join();
      std::this_thread::sleep_for(std::chrono::milliseconds(5));
      CHECK_EQ(scope.text(), line);
      --inside;
    });
  }
  for (std::thread& build : builds) build.join();
  CHECK(!together);
}

TEST(aWaitingBuildCanBeCancelled) {
  auto first = BuildScope::enter(nullptr);
  REQUIRE(first);
  onAnotherThread([] {
    const auto second = BuildScope::enter([] { return true; });
    CHECK_EQ(second.status().code(), std::string("ABORT_ERR"));
  });
}

TEST_MAIN()
