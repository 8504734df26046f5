// usage: test_tensorrt_module MODULE LIBRARY-FOLDER DRIVER-CODE LIBRARY-CODE RESOURCE-CODE
#include <dlfcn.h>

#include <algorithm>
#include <string>

#include "check.h"
#include "core/module.h"

namespace {

char** arguments = nullptr;

nt::ModuleEntryPoint* entryPoint() {
  void* module = dlopen(arguments[1], RTLD_NOW | RTLD_LOCAL);
  if (module == nullptr) {
    std::cout << "# " << dlerror() << "\n";
    return nullptr;
  }
  return reinterpret_cast<nt::ModuleEntryPoint*>(dlsym(module, nt::kModuleEntryPoint));
}

std::string codeOf(const nt::Status& status) {
  return status.isOk() ? "OK" : status.code();
}

// An error must say something, and what to do about it unless it comes from the driver itself.
void checkUseful(const nt::Status& status) {
  if (status.isOk()) return;
  CHECK(!status.message().empty());
  CHECK(status.code() == "ERR_CUDA" || !status.hint().empty());
}

}  // namespace

TEST(refusesAnotherBuild) {
  nt::ModuleEntryPoint* entry = entryPoint();
  REQUIRE(entry != nullptr);
  CHECK(entry(nt::kModuleAbi + 1) == nullptr);
  CHECK(entry(nt::kModuleAbi) != nullptr);
}

TEST(tellsWhatIsMissing) {
  nt::ModuleEntryPoint* entry = entryPoint();
  REQUIRE(entry != nullptr);
  nt::TensorRtModule& module = *entry(nt::kModuleAbi);
  for (int again = 0; again < 2; ++again) {
    const nt::ModuleFacts facts = module.probe(arguments[2]);
    CHECK_EQ(codeOf(facts.driver), std::string(arguments[3]));
    CHECK_EQ(codeOf(facts.library), std::string(arguments[4]));
    CHECK_EQ(codeOf(facts.builderResource), std::string(arguments[5]));
    for (const nt::Status& status : {facts.driver, facts.library, facts.builderResource}) checkUseful(status);
    // Both sides by their versions.
    if (facts.library.code() == "ERR_VERSION_MISMATCH") {
      CHECK_CONTAINS(facts.library.message(), "TensorRT 10.6.0 or a later 10.x, found TensorRT ");
      CHECK_CONTAINS(facts.library.message(), arguments[2]);
    }
    if (facts.driver.code() == "ERR_DRIVER_TOO_OLD") {
      CHECK_CONTAINS(facts.driver.message(), "12.4");
      CHECK_EQ(facts.driverCuda, 12040);
    }
    if (facts.driver.isOk()) {
      REQUIRE(facts.gpus.size() == 1);
      CHECK_EQ(facts.gpus[0].name, std::string("Stand-in"));
      CHECK(facts.requiredCuda > 0 && facts.driverCuda >= facts.requiredCuda);
    }
    const auto namesFolder = [](const std::string& place) {
      return place.find(arguments[2]) != std::string::npos;
    };
    if (facts.library.code() == "ERR_TENSORRT_NOT_FOUND") {
      CHECK(std::any_of(facts.placesLooked.begin(), facts.placesLooked.end(), namesFolder));
    }
  }
}

// The driver is asked first, so what it lacks is the error, whatever else is missing.
TEST(backendAndBuildFailWithTheSameCodes) {
  nt::ModuleEntryPoint* entry = entryPoint();
  REQUIRE(entry != nullptr);
  nt::TensorRtModule& module = *entry(nt::kModuleAbi);
  const std::string driver = arguments[3];
  const std::string library = arguments[4];
  const std::string expected = driver != "OK" ? driver : library;
  if (expected == "OK") return;
  nt::TensorRtOptions run;
  run.libraryPath = arguments[2];
  CHECK_EQ(codeOf(module.createBackend(run).status()), expected);
  nt::BuildOptions build;
  build.libraryPath = arguments[2];
  CHECK_EQ(codeOf(module.build(build, nullptr).status()), expected);
}

int main(int argc, char** argv) {
  if (argc != 6) return 2;
  arguments = argv;
  return nt::test::runAll("");
}
