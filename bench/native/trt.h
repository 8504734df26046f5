// TensorRT by dlopen for the measurement programs: factories by the library's own version, and owned objects.
#pragma once

#include <NvInfer.h>
#include <dlfcn.h>

#include <cstdio>
#include <memory>

#include "cuda_util.h"
#include "tensorrt/plugin/paged_attention.h"

namespace bench {

class Logger final : public nvinfer1::ILogger {
 public:
  void log(Severity severity, const char* message) noexcept override {
    if (severity <= Severity::kWARNING) std::fprintf(stderr, "[TensorRT] %s\n", message);
  }
};

class TensorRt {
 public:
  explicit TensorRt(const char* path = "libnvinfer.so.10") {
    void* library = dlopen(path, RTLD_NOW | RTLD_GLOBAL);
    if (library == nullptr) std::fprintf(stderr, "%s\n", dlerror());
    REQUIRE(library != nullptr);
    library_ = library;
    version_ = symbol<int32_t()>("getInferLibVersion")();
    builder_.reset(make<nvinfer1::IBuilder>("createInferBuilder_INTERNAL"));
    runtime_.reset(make<nvinfer1::IRuntime>("createInferRuntime_INTERNAL"));
    REQUIRE(builder_ != nullptr && runtime_ != nullptr);
    REQUIRE(nt::registerPagedAttention(*symbol<nvinfer1::IPluginRegistry*()>("getPluginRegistry")()));
  }
  int32_t version() const { return version_; }
  nvinfer1::IBuilder& builder() { return *builder_; }
  nvinfer1::IRuntime& runtime() { return *runtime_; }
  std::unique_ptr<nvinfer1::IRefitter> refitter(nvinfer1::ICudaEngine& engine) {
    using Factory = void*(void*, void*, int32_t);
    return std::unique_ptr<nvinfer1::IRefitter>(static_cast<nvinfer1::IRefitter*>(
        symbol<Factory>("createInferRefitter_INTERNAL")(&engine, &logger_, version_)));
  }

 private:
  template <class Fn>
  Fn* symbol(const char* name) {
    auto* found = reinterpret_cast<Fn*>(dlsym(library_, name));
    REQUIRE(found != nullptr);
    return found;
  }
  template <class T>
  T* make(const char* factory) {
    return static_cast<T*>(symbol<void*(void*, int32_t)>(factory)(&logger_, version_));
  }

  Logger logger_;
  void* library_ = nullptr;
  int32_t version_ = 0;
  std::unique_ptr<nvinfer1::IBuilder> builder_;
  std::unique_ptr<nvinfer1::IRuntime> runtime_;
};

}  // namespace bench
