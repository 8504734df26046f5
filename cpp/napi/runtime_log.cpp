#include "napi/runtime_log.h"

#include <array>
#include <deque>
#include <exception>
#include <mutex>
#include <string>
#include <utility>

#include "napi/object_writer.h"

namespace nt::napi {
namespace {

constexpr size_t kMaxLines = 4096;

struct Line {
  runtime::LogSeverity severity;
  std::string text;
};

const char* severityName(runtime::LogSeverity severity) noexcept {
  constexpr std::array<const char*, 5> names = {"internal-error", "error", "warning", "info", "verbose"};
  return names[static_cast<size_t>(severity)];
}

}  // namespace

// The thread-safe function owns a reference, as in ResultChannel. Where lines come faster than the event loop
// takes them, the oldest are dropped.
class LogRing final : public runtime::LogSink, public std::enable_shared_from_this<LogRing> {
 public:
  explicit LogRing(runtime::LogSeverity threshold) : threshold_(threshold) {}

  Status open(napi_env env, napi_value function);
  void drop() noexcept;

  runtime::LogSeverity threshold() const noexcept override { return threshold_; }
  void onLine(runtime::LogSeverity severity, const char* text) noexcept override;

 private:
  static void callJs(napi_env env, napi_value callback, void* context, void* data) noexcept;

  const runtime::LogSeverity threshold_;
  napi_threadsafe_function function_ = nullptr;

  std::mutex mutex_;  // guards what follows
  std::deque<Line> lines_;
  uint64_t dropped_ = 0;
  bool signalled_ = false;
  bool ended_ = false;
};

Status LogRing::open(napi_env env, napi_value function) {
  auto keepAlive = std::make_unique<std::shared_ptr<LogRing>>(shared_from_this());
  const auto finalize = [](napi_env, void* data, void*) {
    delete static_cast<std::shared_ptr<LogRing>*>(data);
  };
  napi_value name = nullptr;
  if (napi_create_string_utf8(env, "node-tensorrt:log", NAPI_AUTO_LENGTH, &name) != napi_ok ||
      napi_create_threadsafe_function(env, function, nullptr, name, 0, 1, keepAlive.get(), finalize, this,
                                      &LogRing::callJs, &function_) != napi_ok) {
    return {"ERR_INTERNAL", "Could not create a thread-safe function"};
  }
  keepAlive.release();
  napi_unref_threadsafe_function(env, function_);
  return Status::ok();
}

void LogRing::drop() noexcept {
  const std::lock_guard lock(mutex_);
  ended_ = true;
  lines_.clear();
  napi_release_threadsafe_function(function_, napi_tsfn_release);
}

void LogRing::onLine(runtime::LogSeverity severity, const char* text) noexcept {
  const std::lock_guard lock(mutex_);
  if (ended_) return;
  try {
    lines_.push_back({severity, text});
  } catch (const std::exception&) {
    ++dropped_;
  }
  if (lines_.size() > kMaxLines) {
    lines_.pop_front();
    ++dropped_;
  }
  if (!signalled_) {
    signalled_ = napi_call_threadsafe_function(function_, nullptr, napi_tsfn_nonblocking) == napi_ok;
  }
}

void LogRing::callJs(napi_env env, napi_value callback, void* context, void*) noexcept {
  // Calls that Node discards during teardown come without an environment: the ring may be gone.
  if (env == nullptr) return;
  auto* ring = static_cast<LogRing*>(context);
  std::deque<Line> lines;
  uint64_t dropped = 0;
  {
    const std::lock_guard lock(ring->mutex_);
    ring->signalled_ = false;
    if (ring->ended_) return;
    lines.swap(ring->lines_);
    dropped = std::exchange(ring->dropped_, 0);
  }
  napi_value undefined = nullptr;
  std::array<napi_value, 2> arguments{};
  bool ok = napi_get_undefined(env, &undefined) == napi_ok &&
            napi_create_array_with_length(env, lines.size(), arguments.data()) == napi_ok &&
            napi_create_double(env, static_cast<double>(dropped), &arguments[1]) == napi_ok;
  for (uint32_t i = 0; ok && i < lines.size(); ++i) {
    napi_handle_scope scope = nullptr;
    ok = napi_open_handle_scope(env, &scope) == napi_ok;
    if (!ok) break;
    ObjectWriter line(env);
    line.set("severity", std::string(severityName(lines[i].severity)));
    line.set("text", lines[i].text);
    ok = line.object() != nullptr && napi_set_element(env, arguments[0], i, line.object()) == napi_ok;
    napi_close_handle_scope(env, scope);
  }
  if (ok &&
      napi_call_function(env, undefined, callback, arguments.size(), arguments.data(), nullptr) == napi_ok) {
    return;
  }
  // A listener that throws is a bug of the program's: report it as uncaught.
  bool pending = false;
  napi_value error = nullptr;
  if (napi_is_exception_pending(env, &pending) == napi_ok && pending &&
      napi_get_and_clear_last_exception(env, &error) == napi_ok) {
    napi_fatal_exception(env, error);
  }
}

LogListener::LogListener(TensorRtModule* module, std::shared_ptr<LogRing> ring)
    : module_(module), ring_(std::move(ring)) {}

Expected<std::unique_ptr<LogListener>> LogListener::create(napi_env env, TensorRtModule* module,
                                                           runtime::LogSeverity threshold,
                                                           napi_value function) {
  auto ring = std::make_shared<LogRing>(threshold);
  if (Status status = ring->open(env, function); !status) return status;
  module->addLogSink(ring.get());
  return std::unique_ptr<LogListener>(new LogListener(module, std::move(ring)));
}

LogListener::~LogListener() {
  module_->removeLogSink(ring_.get());
  ring_->drop();
}

}  // namespace nt::napi
