// libnvonnxparser, opened at run time beside libnvinfer.
#pragma once

#include <NvInfer.h>
#include <NvOnnxParser.h>

#include <memory>
#include <string>

#include "core/status.h"
#include "tensorrt/library.h"

namespace nt {

class ParserLibrary {
 public:
  // Opens libnvonnxparser.so.10 of the folder that `library` came from, else by the system's search path. It
  // is opened once for a library and never closed. ERR_TENSORRT_NOT_FOUND lists the places.
  static Expected<const ParserLibrary*> open(const Library& library);

  int32_t version() const noexcept { return version_; }
  const std::string& path() const noexcept { return path_; }

  // The parser must outlive the network: it owns the weights.
  Expected<std::unique_ptr<nvonnxparser::IParser>> createParser(nvinfer1::INetworkDefinition& network) const;

 private:
  ParserLibrary(void* handle, int32_t version, std::string path)
      : handle_(handle), version_(version), path_(std::move(path)) {}

  void* handle_;
  int32_t version_;
  std::string path_;
};

}  // namespace nt
