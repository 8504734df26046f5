// What an engine says of itself: read once, checked against ever after.
#pragma once

#include <NvInferRuntime.h>

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "core/runtime.h"
#include "core/status.h"

namespace nt::runtime {

// Of shapes, or of the values of a shape tensor.
struct Range {
  std::vector<int64_t> min;
  std::vector<int64_t> opt;
  std::vector<int64_t> max;
};

// How a profile wants a tensor in memory.
struct TensorLayout {
  std::string format;  // TensorRT's words
  // Of vectorized formats: elements come in groups of so many along this dimension, the last one padded.
  int32_t vectorizedDim = -1;
  int32_t components = 1;
};

struct TensorFacts {
  std::string name;
  std::string dtype;  // as in lib/native/runtime_addon.ts
  nvinfer1::DataType type = nvinfer1::DataType::kFLOAT;
  bool input = false;
  bool onHost = false;
  bool shapeTensor = false;
  Shape shape;                        // -1 = dynamic
  std::vector<TensorLayout> layouts;  // by profile
  std::vector<Range> profiles;        // of an input, by profile
  std::vector<Range> values;          // of an input that is a shape tensor, by profile; empty where unknown

  bool isDynamic() const noexcept;
  // Of this shape (no -1 in it) under a profile; INT64_MAX where that is too large for a number.
  int64_t bytesOf(const Shape& of, int32_t profile) const noexcept;
};

struct EngineFacts {
  std::string name;
  std::vector<TensorFacts> tensors;
  int32_t profiles = 0;
  int32_t layers = 0;
  std::vector<int64_t> deviceMemory;  // bytes, by profile
  int64_t streamableWeights = 0;
  int32_t auxStreams = 0;
  bool refittable = false;
  std::string hardwareCompatibility;
  std::string capability;
  std::string profilingVerbosity;
};

// "float32" and so on; empty for a type that this library does not know.
std::string_view dtypeName(nvinfer1::DataType type) noexcept;
std::optional<nvinfer1::DataType> parseDtype(std::string_view name) noexcept;
// Of so many values, rounded up to whole bytes.
int64_t bytesOfValues(nvinfer1::DataType type, int64_t count) noexcept;

Shape toShape(const nvinfer1::Dims& dims);
// At most Dims::MAX_DIMS of them.
nvinfer1::Dims toDims(const Shape& shape) noexcept;
// Number of values; INT64_MAX where that is too large for a number. No -1 in it.
int64_t volumeOf(const Shape& shape) noexcept;

// ERR_MODEL_UNSUPPORTED names a tensor whose type this library does not know.
Expected<EngineFacts> readEngine(const nvinfer1::ICudaEngine& engine);

// See NativeEngineInfo in lib/native/runtime_addon.ts.
std::string infoJson(const EngineFacts& facts);

}  // namespace nt::runtime
