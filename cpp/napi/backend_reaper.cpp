#include "napi/backend_reaper.h"

#include <exception>
#include <utility>

namespace nt::napi {

void BackendReaper::end(napi_env env, std::unique_ptr<Backend> backend,
                        std::shared_ptr<ResultChannel> channel) noexcept {
  if (!hooked_) {
    hooked_ = napi_add_env_cleanup_hook(env, &BackendReaper::onEnvironmentTeardown, this) == napi_ok;
  }
  endings_.remove_if([](Ending& ending) {
    if (!ending.over) return false;
    if (ending.thread.joinable()) ending.thread.join();
    return true;
  });
  backend->requestStop();
  try {
    endings_.emplace_back();
  } catch (const std::exception&) {
    backend->join();
    return;
  }
  Ending& ending = endings_.back();
  ending.backend = std::move(backend);
  ending.channel = std::move(channel);
  try {
    ending.thread = std::thread([&ending] { ending.finish(); });
  } catch (const std::exception&) {
    ending.finish();  // no thread to be had: the event loop waits for the step that runs
  }
}

void BackendReaper::Ending::finish() noexcept {
  backend->join();
  backend.reset();
  channel.reset();
  over = true;
}

void BackendReaper::join() noexcept {
  for (Ending& ending : endings_) {
    if (ending.thread.joinable()) ending.thread.join();
  }
  endings_.clear();
}

void BackendReaper::onEnvironmentTeardown(void* data) noexcept {
  static_cast<BackendReaper*>(data)->join();
}

}  // namespace nt::napi
