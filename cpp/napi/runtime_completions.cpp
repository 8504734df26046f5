#include "napi/runtime_completions.h"

#include "napi/errors.h"

namespace nt::napi {

napi_value StatusCompletion::settle(napi_env env, Status& status) noexcept {
  napi_value undefined = nullptr;
  status = std::move(result);
  if (status.isOk()) napi_get_undefined(env, &undefined);
  return undefined;
}

Ticket::Ticket(std::shared_ptr<CompletionChannel> channel, std::unique_ptr<Completion> completion,
               napi_deferred deferred)
    : channel_(std::move(channel)) {
  entry_.push_back({std::move(completion), deferred, false});
}

Ticket::~Ticket() {
  if (entry_.empty()) return;
  entry_.front().abandoned = true;
  post();
}

void Ticket::post() noexcept {
  channel_->post(entry_);
}

Status CompletionChannel::open(napi_env env) {
  auto keepAlive = std::make_unique<std::shared_ptr<CompletionChannel>>(shared_from_this());
  const auto finalize = [](napi_env, void* data, void*) {
    delete static_cast<std::shared_ptr<CompletionChannel>*>(data);
  };
  napi_value name = nullptr;
  if (napi_create_string_utf8(env, "node-tensorrt:completions", NAPI_AUTO_LENGTH, &name) != napi_ok ||
      napi_create_threadsafe_function(env, nullptr, nullptr, name, 0, 1, keepAlive.get(), finalize, this,
                                      &CompletionChannel::callJs, &function_) != napi_ok) {
    return {"ERR_INTERNAL", "Could not create a thread-safe function"};
  }
  keepAlive.release();
  env_ = env;
  napi_unref_threadsafe_function(env, function_);
  return Status::ok();
}

Expected<CompletionChannel::Begun> CompletionChannel::begin(std::unique_ptr<Completion> completion) {
  Begun begun{};
  napi_deferred deferred = nullptr;
  if (napi_create_promise(env_, &deferred, &begun.promise) != napi_ok) {
    return Status("ERR_INTERNAL", "Could not create a promise");
  }
  begun.ticket = std::make_shared<Ticket>(shared_from_this(), std::move(completion), deferred);
  if (pending_++ == 0) napi_ref_threadsafe_function(env_, function_);
  return begun;
}

void CompletionChannel::post(std::list<Ticket::Entry>& entry) noexcept {
  const std::lock_guard lock(mutex_);
  if (dropped_) return;
  queue_.splice(queue_.end(), entry);
  // Under the mutex: `drop` waits for a call that has begun, so the function cannot go away in its middle.
  if (!signalled_) {
    signalled_ = napi_call_threadsafe_function(function_, nullptr, napi_tsfn_nonblocking) == napi_ok;
  }
}

void CompletionChannel::drop() noexcept {
  std::list<Ticket::Entry> freed;  // outside of the mutex: what a completion holds may post in turn
  {
    const std::lock_guard lock(mutex_);
    dropped_ = true;
    freed.swap(queue_);
  }
  napi_release_threadsafe_function(function_, napi_tsfn_release);
}

void CompletionChannel::callJs(napi_env env, napi_value, void* context, void*) noexcept {
  // Calls that Node discards during teardown come without an environment: the channel may be gone.
  if (env == nullptr) return;
  auto* channel = static_cast<CompletionChannel*>(context);
  std::list<Ticket::Entry> entries;
  {
    const std::lock_guard lock(channel->mutex_);
    channel->signalled_ = false;
    entries.swap(channel->queue_);
  }
  for (Ticket::Entry& entry : entries) channel->settle(env, entry);
  if (!entries.empty() && (channel->pending_ -= entries.size()) == 0) {
    napi_unref_threadsafe_function(env, channel->function_);
  }
}

void CompletionChannel::settle(napi_env env, Ticket::Entry& entry) noexcept {
  napi_handle_scope scope = nullptr;
  if (napi_open_handle_scope(env, &scope) != napi_ok) return;
  Status status = entry.abandoned ? Status("ERR_DISPOSED", "The object was closed before the call was done")
                                  : Status::ok();
  napi_value value = nullptr;
  if (entry.abandoned) {
    entry.completion->discard(env);
  } else {
    value = entry.completion->settle(env, status);
  }
  if (value != nullptr) {
    napi_resolve_deferred(env, entry.deferred, value);
  } else if (napi_value error = takeError(env, status); error != nullptr) {
    napi_reject_deferred(env, entry.deferred, error);
  }
  napi_close_handle_scope(env, scope);
}

}  // namespace nt::napi
