// A file of TensorRT's timings that several processes may use at once.
#pragma once

#include <NvInfer.h>

#include <memory>
#include <string>

#include "core/status.h"

namespace nt {

class TimingCacheFile {
 public:
  // `path` "" = no file: the timings live for one build.
  explicit TimingCacheFile(std::string path) : path_(std::move(path)) {}

  // Reads the file, where it is there, and sets the cache on the config, which this object must outlive.
  // ERR_IO, ERR_BUILD_FAILED.
  Status open(nvinfer1::IBuilderConfig& config);
  // Whether the file held timings of this GPU and TensorRT.
  bool used() const noexcept { return used_; }

  // Merges the timings into the file as it is by then, under a lock, and replaces it at once. ERR_IO.
  Status merge(nvinfer1::IBuilderConfig& config);

 private:
  std::string path_;
  std::unique_ptr<nvinfer1::ITimingCache> cache_;
  bool used_ = false;
};

}  // namespace nt
