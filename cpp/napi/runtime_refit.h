// Weights from JavaScript to an engine: copied first, for a script may detach or change its arrays at any
// time.
#pragma once

#include <napi.h>

#include <cstddef>
#include <memory>
#include <string>
#include <vector>

#include "core/runtime.h"
#include "napi/runtime_environment.h"

namespace nt::napi {

struct StagedWeights {
  std::string name;
  std::string dtype;
  int64_t count = 0;
  napi_ref source = nullptr;  // the caller's array; event loop
  size_t bytes = 0;
  size_t copied = 0;
  std::unique_ptr<std::byte[]> values;
};

// Reads NativeWeights[]; their bytes stay where they are. Runs JavaScript where fields have getters.
Expected<std::vector<StagedWeights>> readWeights(napi_env env, napi_value value);
void dropSources(napi_env env, std::vector<StagedWeights>& weights) noexcept;

// A promise of the refit. Copies some MiB in each turn of the event loop, then goes on the pool.
Expected<napi_value> startRefit(RuntimeEnvironment& environment, std::shared_ptr<runtime::Engine> engine,
                                std::shared_ptr<Strand> strand, std::vector<StagedWeights> weights);

}  // namespace nt::napi
