// The CPU backend's front door: all that cpp/napi and the native tests need of this room.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "core/backend.h"
#include "core/status.h"

namespace nt {

struct CpuOptions {
  std::string graph;               // JSON, see lib/models/graph.ts
  std::vector<std::string> files;  // safetensors, absolute paths
  int32_t pageSize = 16;           // tokens
  int32_t numPages = 0;
  int32_t maxSlots = 0;
  int32_t maxStepTokens = 0;
  int32_t threads = 0;  // 0 = as many as the process may use
  std::string simd;     // "" = the best the processor has, or a name out of CpuFeatures::simd
};

struct CpuFeatures {
  std::string model;              // the processor's name, as the system gives it
  int32_t threads = 0;            // hardware threads that this process may use
  std::vector<std::string> simd;  // instruction sets that can be asked for, best first; "portable" is always last
};

CpuFeatures cpuFeatures();

// Checks the options and the graph, reads the weights and reserves the KV pool. Blocks for as long as that takes, so it is
// called off the event loop. Errors: ERR_INVALID_ARGUMENT, ERR_GRAPH_INVALID, ERR_MODEL_INVALID, ERR_WEIGHTS_INVALID,
// ERR_WEIGHTS_MISSING, ERR_IO, ERR_OUT_OF_MEMORY.
Expected<std::unique_ptr<Backend>> createCpuBackend(const CpuOptions& options) noexcept;

}  // namespace nt
