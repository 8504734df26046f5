// libnvinfer, opened at run time.
#pragma once

#include <NvInfer.h>

#include <memory>
#include <string>

#include "core/module.h"

namespace nt {

class Library {
 public:
  // Opens libnvinfer.so.10, or the lean runtime libnvinfer_lean.so.10, from `path` (a file or a folder; a
  // folder's lean runtime only where it has nothing else) if it is given, else libnvinfer.so.10 from
  // TENSORRT_LIB_DIR if that is set, else the one that is open already, else by the system's search path. A
  // library is opened once and never closed; several may be open. `facts`, if given, gets the library's part.
  // ERR_TENSORRT_NOT_FOUND lists every place and what the loader said of it; ERR_VERSION_MISMATCH where
  // another major version is there instead.
  static Expected<const Library*> open(const std::string& path, ModuleFacts* facts = nullptr);

  int32_t version() const noexcept { return version_; }
  std::string versionText() const;
  const std::string& path() const noexcept { return path_; }
  // The lean runtime runs version-compatible engines, builds none and does not know our plugins.
  bool isLean() const noexcept { return lean_; }
  // ERR_TENSORRT_NOT_FOUND where this is the lean runtime and `what` needs all of TensorRT.
  Status requireFull(const std::string& what) const;

  // Ok, with the path in `found`, where the builder's kernels are within reach of TensorRT.
  Status findBuilderResource(std::string* found) const;

  // The driver must have been found usable before (driver.h). ERR_TENSORRT_NOT_FOUND where the builder
  // resource is missing, ERR_CUDA with TensorRT's words else.
  Expected<std::unique_ptr<nvinfer1::IBuilder>> createBuilder() const;
  // Knows our plugins, unless it is lean.
  Expected<std::unique_ptr<nvinfer1::IRuntime>> createRuntime() const;
  // The engine must outlive it.
  Expected<std::unique_ptr<nvinfer1::IRefitter>> createRefitter(nvinfer1::ICudaEngine& engine) const;

 private:
  Library(void* handle, int32_t version, std::string path, bool lean)
      : handle_(handle), version_(version), path_(std::move(path)), lean_(lean) {}
  Status loadBuilderResource() const;
  template <class T, class... Args>
  Expected<std::unique_ptr<T>> create(const char* factory, Args... args) const;

  void* handle_;
  int32_t version_;
  std::string path_;
  bool lean_;
};

}  // namespace nt
