// Lowers a segment to a strongly typed TensorRT network.
//
// Inputs "x" [rows, width] and "w0", "w1", ... (SegmentShape::weightShapes); output "y" [rows, width]; all of
// one type. Roundings are Hugging Face's: norms compute in float32 and round before the weight.
#pragma once

#include <NvInfer.h>

#include <deque>
#include <string>

#include "tensorrt/segments.h"

namespace nt {

inline constexpr const char* kInputName = "x";
inline constexpr const char* kOutputName = "y";
std::string weightInputName(size_t index);

nvinfer1::DataType toTensorRt(DType type) noexcept;

// What the network's constants point to: TensorRT reads them when it builds, so this must live until then.
struct NetworkConstants {
  std::deque<float> floats;
  std::deque<int64_t> integers;
};

// ERR_BUILD_FAILED where TensorRT refuses a layer; its log says why.
Status lowerSegment(const SegmentShape& shape, DType dtype, nvinfer1::INetworkDefinition& network,
                    NetworkConstants& constants);

}  // namespace nt
