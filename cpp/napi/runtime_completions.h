// Promises of the generic runtime: settled on the event loop when a thread of the module's, or of the pool,
// says so.
#pragma once

#include <napi.h>

#include <atomic>
#include <cstdint>
#include <list>
#include <memory>
#include <mutex>
#include <utility>

#include "core/status.h"

namespace nt::napi {

// What a promise settles with. Filled in on any thread, freed on any thread.
class Completion {
 public:
  virtual ~Completion() = default;
  // Event loop, once: the value that the promise resolves with. Null rejects it, with `status` or with the
  // exception that is pending.
  virtual napi_value settle(napi_env env, Status& status) noexcept = 0;
  // Event loop, instead of `settle`, where nobody filled it in.
  virtual void discard(napi_env) noexcept {}
};

// Success is undefined.
struct StatusCompletion final : Completion {
  Status result;
  napi_value settle(napi_env env, Status& status) noexcept override;
};

class CompletionChannel;

// The right to settle one promise; held by whoever is to do so. Where the last holder lets go without having
// done it, the promise is rejected with ERR_DISPOSED: none hangs.
class Ticket {
 public:
  Ticket(std::shared_ptr<CompletionChannel> channel, std::unique_ptr<Completion> completion,
         napi_deferred deferred);
  ~Ticket();
  Ticket(const Ticket&) = delete;
  Ticket& operator=(const Ticket&) = delete;

  // Any thread. Whether the caller is the first: it alone may fill in the completion, and then calls `post`.
  bool claim() noexcept { return !claimed_.exchange(true); }
  void post() noexcept;

 private:
  friend class CompletionChannel;
  struct Entry {
    std::unique_ptr<Completion> completion;
    napi_deferred deferred = nullptr;
    bool abandoned = false;
  };

  std::shared_ptr<CompletionChannel> channel_;
  std::list<Entry> entry_;  // one; spliced into the channel's queue, which therefore cannot fail
  std::atomic<bool> claimed_ = false;
};

// One thread-safe function for all promises of an environment. Completions that arrive while a call is on its
// way join it, and settle in the order of arrival. It keeps the process alive while a promise is pending.
//
// As for ResultChannel: the thread-safe function owns a reference, and `drop` is called from a cleanup hook.
class CompletionChannel final : public std::enable_shared_from_this<CompletionChannel> {
 public:
  struct Begun {
    napi_value promise;
    std::shared_ptr<Ticket> ticket;
  };

  // Event loop.
  Status open(napi_env env);
  Expected<Begun> begin(std::unique_ptr<Completion> completion);
  // Nothing is settled from here on; what arrives is freed.
  void drop() noexcept;

 private:
  friend class Ticket;

  void post(std::list<Ticket::Entry>& entry) noexcept;
  static void callJs(napi_env env, napi_value callback, void* context, void* data) noexcept;
  void settle(napi_env env, Ticket::Entry& entry) noexcept;

  napi_env env_ = nullptr;
  napi_threadsafe_function function_ = nullptr;
  uint64_t pending_ = 0;  // promises; event loop

  std::mutex mutex_;  // guards what follows
  std::list<Ticket::Entry> queue_;
  bool signalled_ = false;
  bool dropped_ = false;
};

}  // namespace nt::napi
