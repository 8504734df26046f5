#include "tensorrt/onnx/onnx_inspector.h"

#include <NvInfer.h>
#include <NvOnnxParser.h>
#include <cuda_runtime_api.h>

#include <algorithm>
#include <memory>
#include <set>

#include "tensorrt/cuda.h"
#include "tensorrt/driver.h"
#include "tensorrt/error_recorder.h"
#include "tensorrt/library.h"
#include "tensorrt/logger.h"
#include "tensorrt/onnx/file_io.h"
#include "tensorrt/onnx/parser_errors.h"
#include "tensorrt/onnx/parser_library.h"

namespace nt {

namespace {

Expected<std::vector<char>> bytesOf(const OnnxSource& model) {
  if (model.path.empty()) return model.bytes;
  Expected<std::vector<char>> bytes = readFileIfThere(model.path);
  if (bytes && bytes->empty()) return Status("ERR_ONNX_INVALID", model.path + " is not there, or empty");
  return bytes;
}

struct Parsing {
  static Expected<Parsing> start(nvinfer1::IBuilder& builder, const ParserLibrary& library) {
    Parsing parsing;
    parsing.network.reset(builder.createNetworkV2(0));
    if (parsing.network == nullptr) return Status("ERR_BUILD_FAILED", "TensorRT could not start a network");
    Expected<std::unique_ptr<nvonnxparser::IParser>> created = library.createParser(*parsing.network);
    if (!created) return created.status();
    parsing.parser = *std::move(created);
    return parsing;
  }

  std::unique_ptr<nvinfer1::INetworkDefinition> network;
  std::unique_ptr<nvonnxparser::IParser> parser;  // goes first
};

// The parser's subgraphs would not do: they hold the nodes beside those that it refuses, of which it knows
// nothing.
std::vector<int64_t> nodesOf(const std::vector<OnnxProblem>& problems) {
  std::set<int64_t> nodes;
  for (const OnnxProblem& problem : problems) {
    if (problem.node >= 0) nodes.insert(problem.node);
  }
  return {nodes.begin(), nodes.end()};
}

}  // namespace

Expected<OnnxReport> inspectOnnxModel(const OnnxInspectOptions& options) {
  Expected<GpuFacts> gpu = requireDevice(options.device);
  if (!gpu) return gpu.status();
  Expected<const Library*> library = Library::open(options.libraryPath);
  if (!library) return library.status();
  Expected<const ParserLibrary*> parserLibrary = ParserLibrary::open(**library);
  if (!parserLibrary) return parserLibrary.status();
  Expected<std::vector<char>> bytes = bytesOf(options.model);
  if (!bytes) return bytes.status();
  if (Status status = toStatus(cudaSetDevice(options.device), "cudaSetDevice"); !status) return status;

  Expected<BuildScope> scope = BuildScope::enter({});
  if (!scope) return scope.status();
  const LogScope log;
  ErrorRecorder recorder;  // outlives the builder
  Expected<std::unique_ptr<nvinfer1::IBuilder>> builder = (*library)->createBuilder();
  if (!builder) return builder.status();
  (*builder)->setErrorRecorder(&recorder);
  Expected<Parsing> parsing = Parsing::start(**builder, **parserLibrary);
  if (!parsing) return withLog(parsing.status(), log);
  nvonnxparser::IParser& parser = *parsing->parser;

  OnnxReport report;
  report.libraryVersion = (*library)->version();
  const char* path = options.model.path.empty() ? nullptr : options.model.path.c_str();
  report.supported = parser.supportsModelV2(bytes->data(), bytes->size(), path);
  report.problems = problemsOf(parser);
  if (report.supported) {
    report.problems.clear();
    return report;
  }
  if (report.problems.empty()) {
    // So TensorRT 10.6 answers for operators whose sizes depend on data, which it parses and builds.
    Expected<Parsing> whole = Parsing::start(**builder, **parserLibrary);
    if (!whole) return withLog(whole.status(), log);
    if (Status status = parseModel(*whole->parser, options.model); !status)
      return withLog(std::move(status), log);
    report.supported = true;
    return report;
  }
  report.unsupportedNodes = nodesOf(report.problems);
  if (report.unsupportedNodes.empty() &&
      std::all_of(report.problems.begin(), report.problems.end(),
                  [](const OnnxProblem& problem) { return problem.code == "ERR_ONNX_INVALID"; })) {
    return withLog(parseFailure(report.problems, nameOf(options.model)), log);
  }
  return report;
}

}  // namespace nt
