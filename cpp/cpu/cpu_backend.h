// The backend that runs on the processor.
//
// Rows are independent: each result is one fixed chain of operations over the row's own data, so it does not
// depend, bit for bit, on the other rows of a step, on how a prompt is cut into chunks, on where its pages
// lie, or on the number of threads.
//
// A step whose logits hold a NaN (or have no finite maximum) fails as a whole, with ERR_STEP_FAILED, not
// retryable; the slots stay as they were.
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
  std::vector<std::string> files;  // safetensors
  int32_t pageSize = 16;           // tokens
  int32_t numPages = 256;
  int32_t maxSlots = 64;
  int32_t maxStepTokens = 2048;
  int32_t threads = 0;  // 0 = the cores that this process may run on
  std::string simd;     // "" = the best that the processor has; "avx512", "avx2", "portable"
};

struct CpuFeatures {
  std::string model;              // "AMD EPYC"
  int32_t threads = 1;            // cores that this process may run on
  std::vector<std::string> simd;  // what CpuOptions::simd may name here, the best first
};

CpuFeatures cpuFeatures();

// Reads the weights (this takes a while: call it off the event loop) and allocates the KV pool. Errors are
// those of parseGraph and WeightFiles, ERR_INVALID_ARGUMENT for an option, ERR_MODEL_UNSUPPORTED,
// ERR_OUT_OF_MEMORY.
Expected<std::unique_ptr<Backend>> createCpuBackend(const CpuOptions& options) noexcept;

}  // namespace nt
