// The fake's plans: a header and a JSON text, see README.md.
#pragma once

#include <NvInferRuntime.h>

#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "core/status.h"

namespace nt::fake {

struct TensorSpec {
  std::string name;
  bool input = true;
  bool onHost = false;
  bool shapeTensor = false;
  nvinfer1::DataType type = nvinfer1::DataType::kFLOAT;
  nvinfer1::Dims shape{};
};

struct Bounds {
  // By OptProfileSelector.
  nvinfer1::Dims shapes[3]{};
  std::vector<int32_t> values[3];
};

struct WeightsSpec {
  std::string name;
  nvinfer1::DataType type = nvinfer1::DataType::kFLOAT;
  std::vector<double> values;
};

struct LayerSpec {
  std::string name;
  std::string op;
  std::vector<size_t> inputs;  // indices of tensors
  size_t output = 0;
  bool hasOutput = false;
  int32_t weight = -1;  // index of weights
  double a = 1;
  double b = 0;
  double max = 0;
  int64_t us = 0;
  int64_t usPerRow = 0;
  int64_t rows = -1;
  nvinfer1::ILogger::Severity severity = nvinfer1::ILogger::Severity::kINFO;
  std::string text;
};

struct LogSpec {
  nvinfer1::ILogger::Severity severity;
  std::string text;
};

struct Plan {
  std::string bytes;  // the whole plan
  std::string name;
  std::string tensorrt = "10.6.0";
  std::string compute = "9.0";
  bool hostCode = false;
  bool refittable = false;
  bool stripped = false;
  std::vector<TensorSpec> tensors;
  std::vector<std::map<size_t, Bounds>> profiles;  // by tensor
  std::vector<WeightsSpec> weights;
  std::vector<std::vector<size_t>> coupled;  // weights that are refitted together
  std::vector<int64_t> activationBytes;      // by profile
  int64_t weightBytes = 0;                   // on the device, beside the weights
  int64_t scratchBytes = 0;                  // asked of the temporary allocator in each run
  std::vector<LayerSpec> layers;
  std::vector<LogSpec> log;  // lines while it is deserialised
};

// The message of a Status that fails is what TensorRT would log.
Expected<Plan> parsePlan(std::string_view bytes);

// -1 = there is none.
int32_t tensorIndex(const Plan& plan, std::string_view name);

std::string dimsText(const nvinfer1::Dims& dims);
int64_t volume(const nvinfer1::Dims& dims);
int64_t bytesOf(nvinfer1::DataType type, int64_t count);
bool isKnown(const nvinfer1::Dims& dims);

// Of all types but the ones of less than a byte.
double loadValue(nvinfer1::DataType type, const void* values, int64_t index);
void storeValue(nvinfer1::DataType type, void* values, int64_t index, double value);

}  // namespace nt::fake
