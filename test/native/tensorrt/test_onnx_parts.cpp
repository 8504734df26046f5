// The parts of building from ONNX that need no GPU: patterns of layer names, progress out of phases, files.
#include <unistd.h>

#include <cstdlib>
#include <string>
#include <vector>

#include "check.h"
#include "tensorrt/onnx/file_io.h"
#include "tensorrt/onnx/layer_rules.h"
#include "tensorrt/onnx/parser_errors.h"
#include "tensorrt/onnx/progress.h"

namespace {

using namespace nt;

class Listener final : public BuildListener {
 public:
  void onProgress(int32_t part, int32_t parts, std::string_view phase, int32_t step,
                  int32_t steps) noexcept override {
    CHECK_EQ(part, 0);
    CHECK_EQ(parts, 1);
    CHECK_EQ(steps, 1000);
    seen.push_back(step);
    last = phase;
  }
  bool isCancelled() noexcept override { return cancelled; }

  std::vector<int32_t> seen;
  std::string last;
  bool cancelled = false;
};

std::string temporaryFolder() {
  std::string path = "/tmp/nt-onnx-XXXXXX";
  CHECK(mkdtemp(path.data()) != nullptr);
  return path;
}

}  // namespace

TEST(globMatchesWholeNames) {
  CHECK(matchesGlob("encoder/fc1", "encoder/fc1"));
  CHECK(!matchesGlob("encoder/fc1", "encoder/fc12"));
  CHECK(!matchesGlob("fc1", "encoder/fc1"));
  CHECK(matchesGlob("*", ""));
  CHECK(matchesGlob("*", "anything"));
  CHECK(!matchesGlob("", "anything"));
  CHECK(matchesGlob("", ""));
  CHECK(matchesGlob("encoder/*", "encoder/"));
  CHECK(matchesGlob("*/fc?", "encoder/layer.0/fc1"));
  CHECK(!matchesGlob("*/fc?", "encoder/layer.0/fc"));
  CHECK(matchesGlob("*a*b*c", "xaxbxbxc"));
  CHECK(!matchesGlob("*a*b*c", "xaxcxb"));
  CHECK(matchesGlob("**a", "a"));
  // Backtracking is linear in the last star: this ends.
  CHECK(!matchesGlob("*a*a*a*a*a*a*a*b", std::string(5000, 'a')));
}

TEST(progressNestsAndNeverFalls) {
  Listener listener;
  PhaseProgress progress(&listener);
  progress.phaseStart("build", nullptr, 4);
  CHECK_EQ(progress.fraction(), 0.0);
  CHECK(progress.stepComplete("build", 0));
  CHECK_EQ(progress.fraction(), 0.25);
  progress.phaseStart("timing", "build", 2);
  CHECK(progress.stepComplete("timing", 0));
  CHECK_EQ(progress.fraction(), 0.375);
  progress.phaseStart("tactics", "timing", 10);
  CHECK(progress.stepComplete("tactics", 4));
  CHECK_EQ(progress.fraction(), 0.4375);
  CHECK_EQ(listener.last, std::string("tactics"));
  // Ends before all its steps.
  progress.phaseFinish("tactics");
  progress.phaseFinish("timing");
  const double before = progress.fraction();
  CHECK(progress.stepComplete("build", 1));
  CHECK(progress.fraction() >= before);
  // The name comes again, once the one before has ended.
  progress.phaseStart("timing", "build", 2);
  progress.phaseFinish("timing");
  progress.phaseFinish("build");
  CHECK_EQ(progress.fraction(), 1.0);
  for (size_t i = 1; i < listener.seen.size(); ++i) CHECK(listener.seen[i] >= listener.seen[i - 1]);
}

TEST(progressTakesNonsense) {
  PhaseProgress progress(nullptr);
  progress.phaseStart(nullptr, nullptr, 1);
  progress.phaseStart("loop", "loop", 0);
  CHECK(progress.stepComplete("loop", 99));
  CHECK(progress.stepComplete("nobody", 1));
  progress.phaseFinish("nobody");
  progress.phaseFinish(nullptr);
  progress.phaseStart("a", "b", 2);
  progress.phaseStart("b", "a", 2);
  progress.phaseStart("root", nullptr, 2);
  CHECK(progress.stepComplete("root", -5));
  CHECK(progress.fraction() <= 1.0);
}

TEST(cancellingStopsAtTheNextStep) {
  Listener listener;
  PhaseProgress progress(&listener);
  progress.phaseStart("build", nullptr, 2);
  CHECK(progress.stepComplete("build", 0));
  listener.cancelled = true;
  CHECK(!progress.stepComplete("build", 1));
}

TEST(problemsReadAsSentences) {
  const OnnxProblem named{
      "ERR_ONNX_UNSUPPORTED", "Assertion failed", 3, "head/fc2", "Gemm", "importGemm", 42};
  CHECK_EQ(describe(named), std::string("node 'head/fc2' (Gemm): Assertion failed [importGemm, line 42]"));
  const OnnxProblem unnamed{"ERR_ONNX_UNSUPPORTED", "", 3, "", "Gemm", "", 0};
  CHECK_EQ(describe(unnamed), std::string("node 3 (Gemm): no reason given"));
  const Status status = parseFailure({named, unnamed}, "m.onnx");
  CHECK_EQ(status.code(), std::string("ERR_ONNX_UNSUPPORTED"));
  CHECK(status.message().find("and 1 more") != std::string::npos);
  CHECK_EQ(parseFailure({}, "m.onnx").code(), std::string("ERR_ONNX_INVALID"));
}

TEST(filesAreWholeOrNotThere) {
  const std::string folder = temporaryFolder();
  const std::string path = folder + "/file";
  const Expected<std::vector<char>> none = readFileIfThere(path);
  CHECK(none && none->empty());
  CHECK(writeNewFile(path, "plan", 4).isOk());
  CHECK_EQ(writeNewFile(path, "other", 5).code(), std::string("ERR_IO"));
  CHECK(replaceFile(path, "longer plan", 11).isOk());
  const Expected<std::vector<char>> read = readFileIfThere(path);
  CHECK(read && std::string(read->begin(), read->end()) == "longer plan");
  CHECK_EQ(replaceFile(folder + "/nowhere/file", "x", 1).code(), std::string("ERR_IO"));
  CHECK_EQ(readFileIfThere(folder).status().code(), std::string("ERR_IO"));
  unlink(path.c_str());
  CHECK_EQ(rmdir(folder.c_str()), 0);  // nothing is left beside it
}

TEST_MAIN()
