// Building a generic engine from an ONNX model, and asking what of a model TensorRT can take. Part of the
// module's interface (core/module.h). Nothing of NVIDIA's is named here.
#pragma once

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

namespace nt {

// What the engine computes in. kF32 is strict: TF32 is off. kF16 and kBF16 let TensorRT pick between that
// type and float32 for each layer. kInt8 quantizes where the model has QuantizeLinear / DequantizeLinear and
// takes float16 or float32 elsewhere. kFp8 takes the model's types as they are (a strongly typed network),
// with 8-bit floats where the model has such Q/DQ nodes. kStronglyTyped takes the model's types as they are,
// quantized or not; TF32 is off.
enum class OnnxPrecision : uint8_t { kF32, kTF32, kF16, kBF16, kInt8, kFp8, kStronglyTyped };

struct OnnxSource {
  std::string path;         // absolute; external data files are found beside it
  std::vector<char> bytes;  // the model itself, where `path` is empty
};

// The range of one input in one optimization profile. `opt` decides which kernels TensorRT picks.
struct OnnxRange {
  std::string input;
  std::vector<int64_t> min;
  std::vector<int64_t> opt;
  std::vector<int64_t> max;
  bool values = false;  // of a shape tensor: its values, not its dimensions
};

using OnnxProfile = std::vector<OnnxRange>;

// Layers whose name matches `pattern` compute and answer in `precision` (kF32, kF16 or kBF16). In a pattern
// '*' stands for any characters and '?' for one. The last pattern that matches a layer counts.
struct OnnxLayerRule {
  std::string pattern;
  OnnxPrecision precision = OnnxPrecision::kF32;
};

enum class OnnxRefit : uint8_t {
  kNone,
  kIdentical,  // the weights of the build only; costs no speed
  kAny,        // any weights of the same shapes
};

enum class OnnxHardware : uint8_t { kNone, kAmperePlus, kSameComputeCapability };
enum class OnnxVerbosity : uint8_t { kLayerNames, kNone, kDetailed };
enum class OnnxIoType : uint8_t { kModel, kF16, kBF16 };

struct OnnxBuildOptions {
  OnnxSource model;
  std::string planPath;     // the plan is written there; the file must not be there
  std::string libraryPath;  // libnvinfer or its folder; "" = TENSORRT_LIB_DIR, then the system's search path
  int32_t device = 0;
  OnnxPrecision precision = OnnxPrecision::kF32;
  std::vector<OnnxLayerRule> layers;
  std::vector<OnnxProfile> profiles;  // inputs that are left out must be static
  uint64_t workspaceBytes = 0;        // limit for one kernel's scratch; 0 = TensorRT's default
  int32_t optimizationLevel = -1;     // 0 ... 5; -1 = TensorRT's default
  int32_t maxAuxStreams = -1;         // -1 = TensorRT's choice
  // Read before the build, where it is there; afterwards the timings are merged into it, whatever another
  // process wrote there meanwhile. "" = none.
  std::string timingCachePath;
  bool strip = false;  // leave out the weights that a refit can set
  OnnxRefit refit = OnnxRefit::kNone;
  bool versionCompatible = false;
  bool excludeLeanRuntime = false;  // of a version-compatible plan
  OnnxHardware hardware = OnnxHardware::kNone;
  OnnxVerbosity verbosity = OnnxVerbosity::kLayerNames;
  bool directIo = false;
  OnnxIoType ioType = OnnxIoType::kModel;  // of inputs and outputs that are float32 in the model
  bool sparseWeights = false;
};

struct OnnxBuildResult {
  uint64_t planBytes = 0;
  int32_t libraryVersion = 0;
  int32_t parserVersion = 0;
  int32_t computeMajor = 0;
  int32_t computeMinor = 0;
  int32_t layers = 0;             // of the network, before TensorRT fuses them
  int32_t constrainedLayers = 0;  // that `layers` held to a type
  bool timingCacheUsed = false;   // there was one, and this machine could use it
  float parseSeconds = 0;
  float buildSeconds = 0;
  std::vector<std::string> log;  // TensorRT's warnings
};

struct OnnxInspectOptions {
  OnnxSource model;
  std::string libraryPath;
  int32_t device = 0;
};

// One complaint of TensorRT's parser.
struct OnnxProblem {
  std::string code;      // ERR_ONNX_INVALID or ERR_ONNX_UNSUPPORTED
  std::string message;   // TensorRT's words
  int32_t node = -1;     // index in the model's graph; -1 = none in particular
  std::string nodeName;  // "" where the model names it not
  std::string op;        // its type
  std::string function;  // in TensorRT's parser, and the line there
  int32_t line = 0;
};

struct OnnxReport {
  bool supported = false;
  int32_t libraryVersion = 0;
  std::vector<OnnxProblem> problems;
  std::vector<int64_t> unsupportedNodes;  // indices in the model's graph, ascending
};

}  // namespace nt
