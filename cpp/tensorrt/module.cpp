#include "tensorrt/module.h"

#include <exception>
#include <new>
#include <utility>

#include "tensorrt/backend.h"
#include "tensorrt/builder.h"
#include "tensorrt/driver.h"
#include "tensorrt/library.h"

namespace nt {

namespace {

template <class Fn>
auto guarded(Fn&& fn) noexcept -> decltype(fn()) {
  try {
    return fn();
  } catch (const std::bad_alloc&) {
    return Status("ERR_OUT_OF_MEMORY", "Out of memory");
  } catch (const std::exception& error) {
    return Status("ERR_INTERNAL", std::string("Unexpected exception: ") + error.what());
  } catch (...) {
    return Status("ERR_INTERNAL", "Unexpected exception");
  }
}

class Module final : public TensorRtModule {
 public:
  ModuleFacts probe(const std::string& libraryPath) noexcept override {
    ModuleFacts facts;
    const Status status = guarded([&]() -> Status {
      probeDriver(facts);
      facts.library = Library::open(libraryPath, &facts).status();
      if (!facts.library) facts.builderResource = facts.library;
      return {};
    });
    if (!status && facts.driver) facts.driver = status;
    return facts;
  }

  Expected<BuildResult> build(const BuildOptions& options, BuildListener* listener) noexcept override {
    return guarded([&] { return buildModel(options, listener); });
  }

  Expected<std::unique_ptr<Backend>> createBackend(const TensorRtOptions& options) noexcept override {
    return guarded([&] { return createTensorRtBackend(options); });
  }
};

}  // namespace

TensorRtModule& tensorRtModule() noexcept {
  static Module module;
  return module;
}

}  // namespace nt
