#include "napi/result_channel.h"

#include <utility>

namespace nt::napi {

Status ResultChannel::open(napi_env env, ResultListener* listener) {
  auto keepAlive = std::make_unique<std::shared_ptr<ResultChannel>>(shared_from_this());
  napi_value name = nullptr;
  const auto finalize = [](napi_env, void* data, void*) {
    delete static_cast<std::shared_ptr<ResultChannel>*>(data);
  };
  if (napi_create_string_utf8(env, "node-tensorrt:results", NAPI_AUTO_LENGTH, &name) != napi_ok ||
      napi_create_threadsafe_function(env, nullptr, nullptr, name, 0, 1, keepAlive.get(), finalize, this,
                                      &ResultChannel::callJs, &function_) != napi_ok) {
    return {"ERR_INTERNAL", "Could not create a thread-safe function"};
  }
  keepAlive.release();
  env_ = env;
  listener_ = listener;
  unref();
  return Status::ok();
}

void ResultChannel::reserve() {
  std::list<StepResult> node(1);
  const std::lock_guard lock(mutex_);
  spare_.splice(spare_.end(), node);
}

void ResultChannel::unreserve() noexcept {
  const std::lock_guard lock(mutex_);
  if (!spare_.empty()) spare_.pop_back();
}

void ResultChannel::ref() noexcept {
  napi_ref_threadsafe_function(env_, function_);
}

void ResultChannel::unref() noexcept {
  napi_unref_threadsafe_function(env_, function_);
}

void ResultChannel::drop() noexcept {
  std::list<StepResult> dropped;
  const std::lock_guard lock(mutex_);
  listener_ = nullptr;
  dropped.swap(queue_);
}

void ResultChannel::release() noexcept {
  napi_release_threadsafe_function(function_, napi_tsfn_release);
}

void ResultChannel::onStep(StepResult&& result) noexcept {
  const std::lock_guard lock(mutex_);
  // Without a spare node the backend reported a step twice.
  if (listener_ == nullptr || spare_.empty()) return;
  spare_.front() = std::move(result);
  queue_.splice(queue_.end(), spare_, spare_.begin());
  signal();
}

void ResultChannel::end() noexcept {
  const std::lock_guard lock(mutex_);
  if (listener_ == nullptr) return;
  ended_ = true;
  signal();
}

// Under the mutex: `drop` waits for a call that has begun, so the function cannot go away in the middle of
// it.
void ResultChannel::signal() noexcept {
  if (signalled_) return;
  signalled_ = napi_call_threadsafe_function(function_, nullptr, napi_tsfn_nonblocking) == napi_ok;
}

void ResultChannel::callJs(napi_env env, napi_value, void* context, void*) noexcept {
  // Calls that Node discards during teardown come without an environment, and after the finalizer: the
  // channel may be gone.
  if (env == nullptr) return;
  auto* channel = static_cast<ResultChannel*>(context);
  std::list<StepResult> results;
  bool ended = false;
  ResultListener* listener = nullptr;
  {
    const std::lock_guard lock(channel->mutex_);
    channel->signalled_ = false;
    results.swap(channel->queue_);
    ended = channel->ended_;
    listener = channel->listener_;
  }
  if (listener != nullptr) listener->onResults(std::move(results), ended);
}

}  // namespace nt::napi
