// Ends backends that were collected without a close(), on threads that the environment's teardown waits for.
#pragma once

#include <napi.h>

#include <atomic>
#include <list>
#include <memory>
#include <thread>

#include "core/backend.h"
#include "napi/result_channel.h"

namespace nt::napi {

// One per environment, on the event loop.
class BackendReaper {
 public:
  ~BackendReaper() { join(); }

  // The channel goes along: the backend may report a last result until it has ended.
  void end(napi_env env, std::unique_ptr<Backend> backend, std::shared_ptr<ResultChannel> channel) noexcept;

 private:
  struct Ending {
    std::unique_ptr<Backend> backend;
    std::shared_ptr<ResultChannel> channel;
    std::thread thread;
    std::atomic<bool> over = false;

    void finish() noexcept;
  };

  void join() noexcept;
  static void onEnvironmentTeardown(void* data) noexcept;

  std::list<Ending> endings_;
  bool hooked_ = false;
};

}  // namespace nt::napi
