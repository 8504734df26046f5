// Jobs that make an object of the module's and resolve with the JavaScript object around it.
#pragma once

#include <memory>
#include <utility>

#include "napi/runtime_environment.h"
#include "napi/runtime_object.h"

namespace nt::napi {

// `make() -> Expected<std::shared_ptr<T>>` runs on the pool. What it makes for nobody, because the
// environment ends, is let go of.
template <class Class, class T, class Make>
Expected<napi_value> startCreate(RuntimeEnvironment& environment, TensorRtModule* module,
                                 std::shared_ptr<Strand> strand, Make make) {
  auto work = [owned = Owned<T>(environment.releases().prepare(module)),
               make = std::move(make)]() mutable -> Expected<Owned<T>> {
    Expected<std::shared_ptr<T>> made = make();
    if (!made) return made.status();
    owned.set(*std::move(made));
    return std::move(owned);
  };
  auto take = [&environment](napi_env, Owned<T>& owned) {
    return environment.wrap(std::make_unique<Class>(environment, std::move(owned)));
  };
  return environment.start(makeJob(std::move(work), take), std::move(strand));
}

}  // namespace nt::napi
