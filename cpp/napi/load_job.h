// Makes a backend on a thread of its own and settles a promise with it.
#pragma once

#include <napi.h>

#include <functional>
#include <memory>

#include "core/backend.h"

namespace nt::napi {

using BackendFactory = std::function<Expected<std::unique_ptr<Backend>>()>;

enum class AtTeardown {
  kDetach,  // the load goes on alone, and ends the backend that nobody wants any more
  kJoin,    // the environment waits for it
};

// Returns the promise; null, with an exception pending, on failure. `make` runs once, off the event loop, and
// must not throw.
napi_value loadBackend(napi_env env, BackendFactory make, AtTeardown atTeardown) noexcept;

}  // namespace nt::napi
