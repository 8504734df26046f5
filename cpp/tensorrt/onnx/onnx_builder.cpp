#include "tensorrt/onnx/onnx_builder.h"

#include <NvInfer.h>
#include <NvOnnxParser.h>
#include <cuda_runtime_api.h>

#include <algorithm>
#include <chrono>
#include <memory>
#include <mutex>
#include <string_view>

#include "core/text.h"
#include "tensorrt/cuda.h"
#include "tensorrt/driver.h"
#include "tensorrt/error_recorder.h"
#include "tensorrt/library.h"
#include "tensorrt/logger.h"
#include "tensorrt/onnx/file_io.h"
#include "tensorrt/onnx/input_profiles.h"
#include "tensorrt/onnx/layer_rules.h"
#include "tensorrt/onnx/parser_errors.h"
#include "tensorrt/onnx/parser_library.h"
#include "tensorrt/onnx/progress.h"
#include "tensorrt/onnx/timing_cache.h"

// Flags of weakly typed networks are superseded by strong typing in newer headers; 10.6 has no better.
#pragma GCC diagnostic ignored "-Wdeprecated-declarations"

namespace nt {

namespace {

using namespace nvinfer1;

Status cancelled() {
  return {"ABORT_ERR", "The build was cancelled"};
}

// TensorRT's warnings and errors during a build, for the engine's manifest.
class LineCollector final : public runtime::LogSink {
 public:
  LineCollector() noexcept { addLogSink(this); }
  LineCollector(const LineCollector&) = delete;
  LineCollector& operator=(const LineCollector&) = delete;
  ~LineCollector() { removeLogSink(this); }

  runtime::LogSeverity threshold() const noexcept override { return runtime::LogSeverity::kWarning; }
  void onLine(runtime::LogSeverity, const char* text) noexcept override {
    const std::lock_guard lock(mutex_);
    if (lines_.size() >= kLines) return;
    try {
      lines_.emplace_back(std::string_view(text).substr(0, kLineBytes));
    } catch (const std::bad_alloc&) {
      // A line less in the manifest.
    }
  }
  std::vector<std::string> take() {
    const std::lock_guard lock(mutex_);
    return std::move(lines_);
  }

 private:
  static constexpr size_t kLines = 100;
  static constexpr size_t kLineBytes = 500;
  std::mutex mutex_;
  std::vector<std::string> lines_;
};

bool isQuantized(OnnxPrecision precision) {
  return precision == OnnxPrecision::kInt8 || precision == OnnxPrecision::kFp8;
}

bool isStronglyTyped(OnnxPrecision precision) {
  return precision == OnnxPrecision::kFp8 || precision == OnnxPrecision::kStronglyTyped;
}

bool has16Bit(OnnxPrecision precision, OnnxPrecision type) {
  if (type == OnnxPrecision::kF16)
    return precision == OnnxPrecision::kF16 || precision == OnnxPrecision::kInt8;
  return precision == OnnxPrecision::kBF16;
}

Status checkOptions(const OnnxBuildOptions& options) {
  if (options.model.path.empty() && options.model.bytes.empty())
    return Status::invalid("Give the ONNX model's path or its bytes");
  if (options.planPath.empty()) return Status::invalid("planPath must not be empty");
  if (options.optimizationLevel < -1 || options.optimizationLevel > 5)
    return Status::invalid("optimizationLevel must be in 0 ... 5, or -1 for TensorRT's default");
  if (options.maxAuxStreams < -1 || options.maxAuxStreams > 128)
    return Status::invalid("maxAuxStreams must be in 0 ... 128, or -1 for TensorRT's default");
  if (isStronglyTyped(options.precision) &&
      (!options.layers.empty() || options.ioType != OnnxIoType::kModel)) {
    return Status::invalid(
        std::string(options.precision == OnnxPrecision::kFp8 ? "An fp8 engine takes all other types"
                                                             : "A strongly typed engine takes its types") +
            " from the model: no layer or output can be held to one",
        "choose the types where the model is exported");
  }
  bool f16 = false;
  bool bf16 = false;
  for (const OnnxLayerRule& rule : options.layers) {
    if (rule.precision != OnnxPrecision::kF32 && rule.precision != OnnxPrecision::kF16 &&
        rule.precision != OnnxPrecision::kBF16)
      return Status::invalid("Layers are held to fp32, fp16 or bf16; see pattern " + quoted(rule.pattern));
    f16 = f16 || rule.precision == OnnxPrecision::kF16;
    bf16 = bf16 || rule.precision == OnnxPrecision::kBF16;
  }
  f16 = f16 || has16Bit(options.precision, OnnxPrecision::kF16);
  bf16 = bf16 || has16Bit(options.precision, OnnxPrecision::kBF16);
  if (f16 && bf16) return Status::invalid("An engine has one 16-bit type: fp16 or bf16, not both");
  if (options.ioType != OnnxIoType::kModel) {
    const auto wanted = options.ioType == OnnxIoType::kF16 ? OnnxPrecision::kF16 : OnnxPrecision::kBF16;
    if (!has16Bit(options.precision, wanted))
      return Status::invalid("Inputs and outputs of a 16-bit type need an engine that computes in it");
  }
  return {};
}

// What of the model's nodes are quantizing layers.
struct Quantization {
  bool any = false;
  bool fp8 = false;
};

Quantization quantizationOf(const INetworkDefinition& network) {
  Quantization found;
  for (int32_t i = 0; i < network.getNbLayers(); ++i) {
    const ILayer* layer = network.getLayer(i);
    if (layer == nullptr) continue;
    const bool quantizes = layer->getType() == LayerType::kQUANTIZE;
    if (!quantizes && layer->getType() != LayerType::kDEQUANTIZE) continue;
    found.any = true;
    const ITensor* narrow = quantizes ? layer->getOutput(0) : layer->getInput(0);
    found.fp8 = found.fp8 || (narrow != nullptr && narrow->getType() == DataType::kFP8);
  }
  return found;
}

Status checkQuantization(const Quantization& found, OnnxPrecision precision, const std::string& model) {
  if (precision == OnnxPrecision::kFp8 && !found.fp8) {
    return Status::invalid(model + " has no Q/DQ nodes of 8-bit floats, so there is nothing to run in fp8",
                           "quantize the model first: insert QuantizeLinear / DequantizeLinear of type "
                           "float8e4m3fn, as NVIDIA's ModelOpt does");
  }
  if (precision == OnnxPrecision::kInt8 && (!found.any || found.fp8)) {
    return Status::invalid(model + (found.fp8 ? " is quantized to fp8, not to int8"
                                              : " has no Q/DQ nodes, so there is nothing to run in int8"),
                           found.fp8 ? "ask for precision 'fp8'"
                                     : "quantize the model first: insert QuantizeLinear / DequantizeLinear "
                                       "nodes, as onnxruntime's quantize_static or NVIDIA's ModelOpt do");
  }
  if (!isQuantized(precision) && precision != OnnxPrecision::kStronglyTyped && found.any) {
    return Status::invalid(model + " is quantized: it has Q/DQ nodes",
                           std::string("ask for precision '") + (found.fp8 ? "fp8" : "int8") + "'");
  }
  return {};
}

void setPrecisionFlags(IBuilderConfig& config, const OnnxBuildOptions& options) {
  const OnnxPrecision precision = options.precision;
  bool f16 = has16Bit(precision, OnnxPrecision::kF16);
  bool bf16 = has16Bit(precision, OnnxPrecision::kBF16);
  bool pinnedToF32 = false;
  for (const OnnxLayerRule& rule : options.layers) {
    f16 = f16 || rule.precision == OnnxPrecision::kF16;
    bf16 = bf16 || rule.precision == OnnxPrecision::kBF16;
    pinnedToF32 = pinnedToF32 || rule.precision == OnnxPrecision::kF32;
  }
  if (f16) config.setFlag(BuilderFlag::kFP16);
  if (bf16) config.setFlag(BuilderFlag::kBF16);
  if (precision == OnnxPrecision::kInt8) config.setFlag(BuilderFlag::kINT8);
  if (!options.layers.empty()) config.setFlag(BuilderFlag::kOBEY_PRECISION_CONSTRAINTS);
  // TF32 is on by default. Who asks for float32 wants its digits.
  const bool strict = precision == OnnxPrecision::kF32 || precision == OnnxPrecision::kStronglyTyped ||
                      (pinnedToF32 && precision != OnnxPrecision::kTF32);
  if (strict) config.clearFlag(BuilderFlag::kTF32);
}

Status setFlags(IBuilderConfig& config, const OnnxBuildOptions& options, const Library& library) {
  if (options.strip) config.setFlag(BuilderFlag::kSTRIP_PLAN);
  if (options.refit == OnnxRefit::kAny) {
    config.setFlag(BuilderFlag::kREFIT);
  } else if (options.refit == OnnxRefit::kIdentical || options.strip) {
    config.setFlag(BuilderFlag::kREFIT_IDENTICAL);
  }
  if (options.versionCompatible) config.setFlag(BuilderFlag::kVERSION_COMPATIBLE);
  if (options.versionCompatible && options.excludeLeanRuntime)
    config.setFlag(BuilderFlag::kEXCLUDE_LEAN_RUNTIME);
  if (options.sparseWeights) config.setFlag(BuilderFlag::kSPARSE_WEIGHTS);
  if (options.directIo) config.setFlag(BuilderFlag::kDIRECT_IO);
  const HardwareCompatibilityLevel level = options.hardware == OnnxHardware::kAmperePlus
                                               ? HardwareCompatibilityLevel::kAMPERE_PLUS
                                           : options.hardware == OnnxHardware::kSameComputeCapability
                                               ? HardwareCompatibilityLevel::kSAME_COMPUTE_CAPABILITY
                                               : HardwareCompatibilityLevel::kNONE;
  config.setHardwareCompatibilityLevel(level);
  if (config.getHardwareCompatibilityLevel() != level) {
    return {"ERR_VERSION_MISMATCH",
            "TensorRT " + library.versionText() + " does not know this hardware compatibility level",
            "use 'ampere+', or a later TensorRT"};
  }
  config.setProfilingVerbosity(options.verbosity == OnnxVerbosity::kDetailed ? ProfilingVerbosity::kDETAILED
                               : options.verbosity == OnnxVerbosity::kNone
                                   ? ProfilingVerbosity::kNONE
                                   : ProfilingVerbosity::kLAYER_NAMES_ONLY);
  if (options.optimizationLevel >= 0) config.setBuilderOptimizationLevel(options.optimizationLevel);
  if (options.maxAuxStreams >= 0) config.setMaxAuxStreams(options.maxAuxStreams);
  if (options.workspaceBytes > 0)
    config.setMemoryPoolLimit(MemoryPoolType::kWORKSPACE, options.workspaceBytes);
  return {};
}

void setIo(INetworkDefinition& network, const OnnxBuildOptions& options) {
  const auto apply = [&](ITensor* tensor) {
    if (tensor == nullptr) return;
    if (options.ioType != OnnxIoType::kModel && tensor->getType() == DataType::kFLOAT)
      tensor->setType(options.ioType == OnnxIoType::kF16 ? DataType::kHALF : DataType::kBF16);
    if (options.directIo) tensor->setAllowedFormats(1U << static_cast<uint32_t>(TensorFormat::kLINEAR));
  };
  for (int32_t i = 0; i < network.getNbInputs(); ++i) apply(network.getInput(i));
  for (int32_t i = 0; i < network.getNbOutputs(); ++i) apply(network.getOutput(i));
}

bool mentions(const std::string& text, std::initializer_list<std::string_view> words) {
  return std::any_of(words.begin(), words.end(),
                     [&](std::string_view word) { return text.find(word) != std::string::npos; });
}

// Why there is no plan, as far as the log tells.
Status buildFailure(const std::string& model, const LogScope& log) {
  const Status status = failure("ERR_BUILD_FAILED", "TensorRT could not build " + model, log);
  if (status.code() != "ERR_BUILD_FAILED") return status;
  const std::string said = log.text();
  if (mentions(said, {"OutOfMemory", "out of memory", "Out of memory", "insufficient memory",
                      "MemoryAllocation"})) {
    return {"ERR_OUT_OF_DEVICE_MEMORY", status.message(),
            "Lower the profiles' shapes or workspaceBytes, or free memory of this GPU"};
  }
  if (mentions(said, {"Could not find any implementation"})) {
    return {status.code(), status.message(),
            "No kernel fits: allow more workspaceBytes, another precision for this layer, or a higher "
            "optimizationLevel"};
  }
  return status;
}

float secondsSince(std::chrono::steady_clock::time_point start) {
  return std::chrono::duration<float>(std::chrono::steady_clock::now() - start).count();
}

}  // namespace

Expected<OnnxBuildResult> buildOnnxEngine(const OnnxBuildOptions& options, BuildListener* listener) {
  if (Status status = checkOptions(options); !status) return status;
  Expected<GpuFacts> gpu = requireDevice(options.device);
  if (!gpu) return gpu.status();
  Expected<const Library*> library = Library::open(options.libraryPath);
  if (!library) return library.status();
  Expected<const ParserLibrary*> parserLibrary = ParserLibrary::open(**library);
  if (!parserLibrary) return parserLibrary.status();
  if (Status status = toStatus(cudaSetDevice(options.device), "cudaSetDevice"); !status) return status;

  const auto isCancelled = [&] { return listener != nullptr && listener->isCancelled(); };
  Expected<BuildScope> scope = BuildScope::enter(isCancelled);
  if (!scope) return scope.status();
  LineCollector lines;
  const LogScope log;
  ErrorRecorder recorder;  // outlives the builder
  Expected<std::unique_ptr<IBuilder>> builder = (*library)->createBuilder();
  if (!builder) return builder.status();
  (*builder)->setErrorRecorder(&recorder);

  OnnxBuildResult result;
  result.libraryVersion = (*library)->version();
  result.parserVersion = (*parserLibrary)->version();
  result.computeMajor = gpu->computeMajor;
  result.computeMinor = gpu->computeMinor;

  const uint32_t creation = isStronglyTyped(options.precision)
                                ? 1U << static_cast<uint32_t>(NetworkDefinitionCreationFlag::kSTRONGLY_TYPED)
                                : 0U;
  const std::unique_ptr<IBuilderConfig> config((*builder)->createBuilderConfig());
  const std::unique_ptr<INetworkDefinition> network((*builder)->createNetworkV2(creation));
  if (network == nullptr || config == nullptr)
    return withLog({"ERR_BUILD_FAILED", "TensorRT could not start a network"}, log);
  Expected<std::unique_ptr<nvonnxparser::IParser>> parser = (*parserLibrary)->createParser(*network);
  if (!parser) return parser.status();
  // What version-compatible and hardware-compatible engines need, and no slower.
  (*parser)->setFlag(nvonnxparser::OnnxParserFlag::kNATIVE_INSTANCENORM);

  const std::string model = nameOf(options.model);
  if (listener != nullptr) listener->onProgress(0, 1, "Reading the ONNX model", 0, PhaseProgress::kSteps);
  auto start = std::chrono::steady_clock::now();
  if (Status status = parseModel(**parser, options.model); !status) return status;
  result.parseSeconds = secondsSince(start);
  result.layers = network->getNbLayers();
  if (isCancelled()) return cancelled();

  if (Status status = checkQuantization(quantizationOf(*network), options.precision, model); !status)
    return status;
  if (Status status = addInputProfiles(**builder, *config, *network, options.profiles); !status)
    return withLog(std::move(status), log);
  Expected<int32_t> constrained = applyLayerRules(*network, options.layers, options.precision);
  if (!constrained) return constrained.status();
  result.constrainedLayers = *constrained;
  setPrecisionFlags(*config, options);
  if (Status status = setFlags(*config, options, **library); !status) return withLog(std::move(status), log);
  setIo(*network, options);
  TimingCacheFile timings(options.timingCachePath);
  if (Status status = timings.open(*config); !status) return withLog(std::move(status), log);
  result.timingCacheUsed = timings.used();
  PhaseProgress progress(listener);
  config->setProgressMonitor(&progress);

  start = std::chrono::steady_clock::now();
  const LogScope building;
  const std::unique_ptr<IHostMemory> plan((*builder)->buildSerializedNetwork(*network, *config));
  result.buildSeconds = secondsSince(start);
  if (isCancelled()) return cancelled();
  if (plan == nullptr) return buildFailure(model, building);
  if (Status status = writeNewFile(options.planPath, plan->data(), plan->size()); !status) return status;
  result.planBytes = plan->size();
  if (Status status = timings.merge(*config); !status) return status;
  result.log = lines.take();
  return result;
}

}  // namespace nt
