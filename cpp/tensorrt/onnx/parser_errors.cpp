#include "tensorrt/onnx/parser_errors.h"

#include "core/text.h"
#include "tensorrt/logger.h"

namespace nt {

namespace {

using nvonnxparser::ErrorCode;

const char* codeOf(ErrorCode code) {
  switch (code) {
    case ErrorCode::kMEM_ALLOC_FAILED:
      return "ERR_OUT_OF_MEMORY";
    case ErrorCode::kMODEL_DESERIALIZE_FAILED:
    case ErrorCode::kINVALID_VALUE:
    case ErrorCode::kINVALID_GRAPH:
    case ErrorCode::kINVALID_NODE:
      return "ERR_ONNX_INVALID";
    default:
      return "ERR_ONNX_UNSUPPORTED";
  }
}

std::string textOf(const char* text) {
  return text == nullptr ? "" : text;
}

// TensorRT 10.6 calls a node of an operator that it does not know invalid, once it has found no plugin of
// that name.
bool lacksOperator(const OnnxProblem& problem) {
  return problem.function == "checkFallbackPluginImporter";
}

}  // namespace

std::vector<OnnxProblem> problemsOf(const nvonnxparser::IParser& parser) {
  std::vector<OnnxProblem> problems;
  for (int i = 0; i < parser.getNbErrors(); ++i) {
    const nvonnxparser::IParserError* error = parser.getError(i);
    if (error == nullptr) continue;
    problems.push_back({codeOf(error->code()), textOf(error->desc()), error->node(),
                        textOf(error->nodeName()), textOf(error->nodeOperator()), textOf(error->func()),
                        error->line()});
    if (lacksOperator(problems.back())) problems.back().code = "ERR_ONNX_UNSUPPORTED";
  }
  return problems;
}

std::string describe(const OnnxProblem& problem) {
  std::string text;
  if (problem.node >= 0 || !problem.nodeName.empty() || !problem.op.empty()) {
    text = problem.nodeName.empty() ? "node " + std::to_string(problem.node)
                                    : "node " + quoted(problem.nodeName, 200);
    if (!problem.op.empty()) text += " (" + problem.op + ")";
    text += ": ";
  }
  text += problem.message.empty() ? "no reason given" : problem.message;
  if (!problem.function.empty())
    text += " [" + problem.function + ", line " + std::to_string(problem.line) + "]";
  return text;
}

Status parseFailure(const std::vector<OnnxProblem>& problems, const std::string& model) {
  if (problems.empty()) return {"ERR_ONNX_INVALID", model + " is no ONNX model that TensorRT reads"};
  const OnnxProblem& first = problems.front();
  std::string text = first.code == "ERR_ONNX_UNSUPPORTED" ? "TensorRT does not support " + model + ": "
                                                          : model + " is not valid: ";
  text += describe(first);
  if (problems.size() > 1) text += "; and " + std::to_string(problems.size() - 1) + " more";
  std::string hint;
  if (first.code == "ERR_ONNX_UNSUPPORTED")
    hint = "node-tensorrt doctor lists every node that TensorRT does not support";
  return {first.code, std::move(text), std::move(hint)};
}

std::string nameOf(const OnnxSource& model) {
  return model.path.empty() ? "The ONNX model" : model.path;
}

Status parseModel(nvonnxparser::IParser& parser, const OnnxSource& model) {
  const LogScope log;
  const bool parsed =
      model.path.empty()
          ? parser.parse(model.bytes.data(), model.bytes.size(), nullptr)
          : parser.parseFromFile(model.path.c_str(), static_cast<int>(nvinfer1::ILogger::Severity::kWARNING));
  if (parsed) return {};
  const std::vector<OnnxProblem> problems = problemsOf(parser);
  Status status = parseFailure(problems, nameOf(model));
  // The parser's own words are in the problems; where it has none, the log may.
  return problems.empty() ? withLog(std::move(status), log) : status;
}

}  // namespace nt
