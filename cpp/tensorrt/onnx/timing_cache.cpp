#include "tensorrt/onnx/timing_cache.h"

#include <fcntl.h>
#include <sys/file.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <utility>
#include <vector>

#include "tensorrt/onnx/file_io.h"

namespace nt {

namespace {

// Of the file beside the cache, since the cache itself is replaced. Held until the end of the scope.
class FileLock {
 public:
  explicit FileLock(const std::string& path)
      : file_(::open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0644)) {
    if (file_ < 0) return;
    int locked = 0;
    do {
      locked = flock(file_, LOCK_EX);
    } while (locked != 0 && errno == EINTR);
    held_ = locked == 0;
  }
  FileLock(const FileLock&) = delete;
  FileLock& operator=(const FileLock&) = delete;
  ~FileLock() {
    if (file_ >= 0) ::close(file_);
  }
  bool held() const noexcept { return held_; }

 private:
  int file_;
  bool held_ = false;
};

}  // namespace

Status TimingCacheFile::open(nvinfer1::IBuilderConfig& config) {
  std::vector<char> bytes;
  if (!path_.empty()) {
    Expected<std::vector<char>> read = readFileIfThere(path_);
    if (!read) return read.status();
    bytes = *std::move(read);
  }
  cache_.reset(config.createTimingCache(bytes.data(), bytes.size()));
  used_ = !bytes.empty() && cache_ != nullptr && config.setTimingCache(*cache_, false);
  if (used_) return {};
  // Of another GPU or version, or damaged: start afresh.
  cache_.reset(config.createTimingCache(nullptr, 0));
  if (cache_ == nullptr || !config.setTimingCache(*cache_, false))
    return {"ERR_BUILD_FAILED", "TensorRT refused an empty timing cache"};
  return {};
}

Status TimingCacheFile::merge(nvinfer1::IBuilderConfig& config) {
  if (path_.empty()) return {};
  const FileLock lock(path_ + ".lock");
  if (!lock.held())
    return {"ERR_IO", "Locking the timing cache " + path_ + " failed: " + std::strerror(errno)};
  Expected<std::vector<char>> there = readFileIfThere(path_);
  if (there && !there->empty()) {
    // One of another GPU or version is not merged but replaced.
    const std::unique_ptr<nvinfer1::ITimingCache> other(
        config.createTimingCache(there->data(), there->size()));
    if (other != nullptr) cache_->combine(*other, false);
  }
  const std::unique_ptr<nvinfer1::IHostMemory> bytes(cache_->serialize());
  if (bytes == nullptr) return {};
  return replaceFile(path_, bytes->data(), bytes->size());
}

}  // namespace nt
