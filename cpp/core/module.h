// The C ABI between the addon and nt-tensorrt.so, the TensorRT backend module. Nothing of NVIDIA's is named
// here.
//
// The addon opens the module with dlopen, asks `nt_tensorrt_module` for its interface and never closes it:
// backends, threads and TensorRT's own state live in its code. Both sides are built from one source tree with
// one compiler; what crosses are C++ objects whose memory either side may free (both take it from the
// process's malloc). kModuleAbi guards the layout: a module of another build answers nullptr. Nothing throws
// across.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "core/backend.h"
#include "core/dtype.h"
#include "core/onnx_build.h"
#include "core/runtime.h"
#include "core/status.h"

namespace nt {

// To be raised with every change to this file or to anything it includes.
inline constexpr uint32_t kModuleAbi = 3 << 8 | kBackendAbi;
inline constexpr const char* kModuleEntryPoint = "nt_tensorrt_module";

struct GpuFacts {
  std::string name;
  int32_t computeMajor = 0;
  int32_t computeMinor = 0;
  uint64_t memoryBytes = 0;
};

// What this machine has. Each Status says why the part is unusable; the facts beside it are filled as far as
// they were found.
struct ModuleFacts {
  // ERR_DRIVER_NOT_FOUND, ERR_DRIVER_TOO_OLD, ERR_NO_GPU or ERR_CUDA.
  Status driver;
  std::string driverPath;
  int32_t driverCuda = 0;    // newest CUDA the driver serves, 1000 * major + 10 * minor; 0 = unknown
  int32_t requiredCuda = 0;  // what this build needs, likewise
  std::vector<GpuFacts> gpus;

  // ERR_TENSORRT_NOT_FOUND or ERR_VERSION_MISMATCH.
  Status library;
  std::string libraryPath;
  int32_t libraryVersion = 0;             // 10000 * major + 100 * minor + patch
  std::vector<std::string> placesLooked;  // "place: what the loader said"

  // What building needs beside `library`, ERR_TENSORRT_NOT_FOUND. Running built engines does not need it.
  Status builderResource;
  std::string builderResourcePath;
};

// Row counts of one optimization profile. `opt` decides which kernels TensorRT picks.
struct RowProfile {
  int32_t min = 1;
  int32_t opt = 1;
  int32_t max = 1;
};

struct BuildOptions {
  std::string graph;        // JSON, see lib/models/graph.ts
  std::string libraryPath;  // libnvinfer or its folder; "" = TENSORRT_LIB_DIR, then the system's search path
  int32_t device = 0;
  DType dtype = DType::kBF16;
  // Sorted by `max`, ranges may overlap: a step runs on the first profile that holds its rows.
  std::vector<RowProfile> layerProfiles;  // rows = tokens of a step
  std::vector<RowProfile> headProfiles;   // rows = rows whose logits are wanted, at one time
  int32_t optimizationLevel = -1;         // 0 ... 5; -1 = TensorRT's default
  uint64_t workspaceBytes = 0;            // limit for one kernel's scratch; 0 = TensorRT's default
  std::vector<char> timingCache;          // of an earlier build on the same machine; may be empty
};

struct BuildResult {
  std::vector<char> plan;         // what TensorRtOptions::plan takes
  std::vector<char> timingCache;  // for the next build
  int32_t libraryVersion = 0;
  int32_t computeMajor = 0;
  int32_t computeMinor = 0;
  struct Part {
    std::string name;  // "layer", "head", ...
    uint64_t planBytes = 0;
    float seconds = 0;
  };
  std::vector<Part> parts;  // one per engine in the plan
};

// Called on threads of TensorRT's, also several at once. Must return quickly and never throw.
class BuildListener {
 public:
  virtual ~BuildListener() = default;
  // `part` of `parts` engines; `phase` is TensorRT's name of what it does, `step` of `steps` within it.
  virtual void onProgress(int32_t part, int32_t parts, std::string_view phase, int32_t step,
                          int32_t steps) noexcept = 0;
  // Asked often. True ends the build with ABORT_ERR, within about the time of one step.
  virtual bool isCancelled() noexcept = 0;
};

struct TensorRtOptions {
  std::string graph;       // JSON; must be the one the plan was built from
  std::vector<char> plan;  // BuildResult::plan; the caller has checked where it comes from: a plan is code
  std::vector<std::string> files;  // safetensors, absolute paths
  std::string libraryPath;         // as in BuildOptions
  int32_t device = 0;
  int32_t pageSize = 16;  // tokens
  int32_t numPages = 0;   // 0 = as many as fit, see below
  // Share of the memory that is free once weights, activations and tables are in place; used where numPages
  // is 0.
  float kvCacheFraction = 0.9F;
  int32_t maxSlots = 0;
  int32_t maxStepTokens = 0;
  bool cudaGraphs = true;     // capture decode steps
  bool plainKernels = false;  // attention without FlashInfer (verification)
  // Verification of failover: the step with this number, from 1, faults on the device. 0 = none.
  int32_t faultAtStep = 0;
};

class TensorRtModule {
 public:
  // Never throws, loads TensorRT at most once per process. Takes milliseconds, or a second where the driver
  // wakes up.
  virtual ModuleFacts probe(const std::string& libraryPath) noexcept = 0;

  // Blocks for seconds to minutes: call it off the event loop. Errors: those of ModuleFacts;
  // ERR_GRAPH_INVALID, ERR_MODEL_UNSUPPORTED, ERR_INVALID_ARGUMENT, ERR_OUT_OF_DEVICE_MEMORY,
  // ERR_BUILD_FAILED (with TensorRT's last lines), ABORT_ERR.
  virtual Expected<BuildResult> build(const BuildOptions& options, BuildListener* listener) noexcept = 0;

  // Blocks while weights load. Errors: those of ModuleFacts; ERR_ENGINE_INVALID, ERR_ENGINE_INCOMPATIBLE
  // (both sides named), those of the CPU backend for graph and weights, ERR_OUT_OF_DEVICE_MEMORY, ERR_CUDA.
  virtual Expected<std::unique_ptr<Backend>> createBackend(const TensorRtOptions& options) noexcept = 0;

  // The runtime of generic engines on a device. Blocks: a second where the driver wakes up. Errors: those of
  // ModuleFacts, ERR_INVALID_ARGUMENT for a device that is not there, ERR_CUDA.
  virtual Expected<std::shared_ptr<runtime::Runtime>> createRuntime(
      const runtime::RuntimeOptions& options) noexcept = 0;

  // Lets go of an object on a thread of the module's, since freeing device memory may block. `done` is called
  // once the object is gone: where commands or others still hold it, when the last of them lets go.
  virtual void release(std::shared_ptr<runtime::Object> object, std::function<void()> done) noexcept = 0;

  // Lines of TensorRT's log go to every sink that was added, until it is removed: no call reaches it after
  // removeLogSink has returned.
  virtual void addLogSink(runtime::LogSink* sink) noexcept = 0;
  virtual void removeLogSink(runtime::LogSink* sink) noexcept = 0;

  // Verification only.
  virtual void injectFaults(const runtime::Faults& faults) noexcept = 0;

  // Writes the plan of an ONNX model to a file. Blocks for seconds to minutes. The listener gets the progress
  // of the whole as `step` of 1000 steps, and the innermost phase; `part` is 0 of 1. Errors: those of
  // ModuleFacts, ERR_TENSORRT_NOT_FOUND also for the parser's library, ERR_ONNX_INVALID,
  // ERR_ONNX_UNSUPPORTED, ERR_INVALID_ARGUMENT, ERR_OUT_OF_DEVICE_MEMORY, ERR_BUILD_FAILED, ERR_IO,
  // ABORT_ERR.
  virtual Expected<OnnxBuildResult> buildOnnx(const OnnxBuildOptions& options,
                                              BuildListener* listener) noexcept = 0;

  // What of a model TensorRT does not support; needs a GPU too. A model that is no ONNX is
  // ERR_ONNX_INVALID. Other errors as for buildOnnx.
  virtual Expected<OnnxReport> inspectOnnx(const OnnxInspectOptions& options) noexcept = 0;

 protected:
  ~TensorRtModule() = default;  // lives as long as the process
};

// Type of the entry point `nt_tensorrt_module`: nullptr where `abi` is not kModuleAbi of the module's build.
using ModuleEntryPoint = TensorRtModule*(uint32_t abi);

}  // namespace nt
