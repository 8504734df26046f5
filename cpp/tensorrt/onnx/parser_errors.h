// What TensorRT's ONNX parser complains of, as values.
#pragma once

#include <NvInfer.h>
#include <NvOnnxParser.h>

#include <vector>

#include "core/onnx_build.h"
#include "core/status.h"

namespace nt {

std::vector<OnnxProblem> problemsOf(const nvonnxparser::IParser& parser);

// "node 'encoder/Add_3' (Add): ..."
std::string describe(const OnnxProblem& problem);

// The error of a parse that failed: of its first problem, with the number of the others.
Status parseFailure(const std::vector<OnnxProblem>& problems, const std::string& model);

// What a message calls the model.
std::string nameOf(const OnnxSource& model);

// Parses into the parser's network. ERR_ONNX_INVALID, ERR_ONNX_UNSUPPORTED, ERR_OUT_OF_MEMORY.
Status parseModel(nvonnxparser::IParser& parser, const OnnxSource& model);

}  // namespace nt
