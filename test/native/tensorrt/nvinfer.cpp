// Stands in for libnvinfer where only its version matters; its registry takes any plugin.
#include "fake_gpu/unsupported.h"

#define EXPORT extern "C" __attribute__((visibility("default")))

#ifndef LEAN
namespace {

class Registry final : public nt::fake::BarePluginRegistry {
 public:
  bool registerCreator(nvinfer1::IPluginCreatorInterface&, nvinfer1::AsciiChar const*) noexcept override {
    return true;
  }
  void setErrorRecorder(nvinfer1::IErrorRecorder*) noexcept override {}
};

}  // namespace
#endif

EXPORT int32_t getInferLibVersion() noexcept {
  return VERSION;
}
EXPORT nvinfer1::IPluginRegistry* getPluginRegistry() noexcept {
#ifdef LEAN
  return nullptr;  // nobody is to ask
#else
  static Registry registry;
  return &registry;
#endif
}
#ifndef LEAN
EXPORT void* createInferBuilder_INTERNAL(void*, int) {
  return nullptr;
}
#endif
