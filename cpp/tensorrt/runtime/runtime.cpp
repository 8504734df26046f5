#include "tensorrt/runtime/runtime.h"

#include "tensorrt/runtime/faults.h"
#include "tensorrt/runtime/reaper.h"

namespace nt::runtime {

Expected<std::shared_ptr<Runtime>> createRuntime(const RuntimeOptions&) {
  return Status("ERR_INTERNAL", "not there yet");
}

void releaseLater(std::shared_ptr<Object> object, std::function<void()> done) noexcept {
  object->onGone(std::move(done));
}

void injectFaults(const Faults&) noexcept {}

}  // namespace nt::runtime
