// libnvinfer, opened at run time.
#pragma once

#include <NvInfer.h>

#include <memory>
#include <string>

#include "core/module.h"

namespace nt {

class Library {
 public:
  // Opens libnvinfer.so.10 from `path` (a file or a folder) if it is given, else from TENSORRT_LIB_DIR if
  // that is set, else by the system's search path. The first library that opens serves the whole process:
  // later calls get it whatever they name. `facts`, if given, gets the library's part. ERR_TENSORRT_NOT_FOUND
  // lists every place and what the loader said of it; ERR_VERSION_MISMATCH where another major version is
  // there instead.
  static Expected<const Library*> open(const std::string& path, ModuleFacts* facts = nullptr);

  int32_t version() const noexcept { return version_; }
  std::string versionText() const;
  const std::string& path() const noexcept { return path_; }

  // Ok, with the path in `found`, where the builder's kernels are within reach of TensorRT.
  Status findBuilderResource(std::string* found) const;

  // The driver must have been found usable before (driver.h). ERR_TENSORRT_NOT_FOUND where the builder
  // resource is missing, ERR_CUDA with TensorRT's words else.
  Expected<std::unique_ptr<nvinfer1::IBuilder>> createBuilder() const;
  // Knows our plugins.
  Expected<std::unique_ptr<nvinfer1::IRuntime>> createRuntime() const;

 private:
  Library(void* handle, int32_t version, std::string path)
      : handle_(handle), version_(version), path_(std::move(path)) {}
  Status loadBuilderResource() const;
  template <class T>
  Expected<std::unique_ptr<T>> create(const char* factory) const;

  void* handle_;
  int32_t version_;
  std::string path_;
};

}  // namespace nt
