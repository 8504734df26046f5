// Makes a backend on a thread of its own and settles a promise with it.
#pragma once

#include <napi.h>

#include <functional>
#include <memory>

#include "core/backend.h"

namespace nt::napi {

using BackendFactory = std::function<Expected<std::unique_ptr<Backend>>()>;

// Returns the promise; null, with an exception pending, on failure. `make` runs once, off the event loop, and must not throw.
// If the environment ends meanwhile, the thread goes on alone and ends the backend that nobody wants any more; the addon is
// linked so that it is never unloaded (-z nodelete).
napi_value loadBackend(napi_env env, BackendFactory make);

// A promise that is rejected with `status`, or with the exception that is pending.
napi_value makeRejected(napi_env env, const Status& status) noexcept;

}  // namespace nt::napi
