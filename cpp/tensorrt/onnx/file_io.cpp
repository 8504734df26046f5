#include "tensorrt/onnx/file_io.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstdio>
#include <cstring>

namespace nt {

namespace {

Status failed(const char* what, const std::string& path) {
  return {"ERR_IO", std::string(what) + " " + path + " failed: " + std::strerror(errno)};
}

}  // namespace

Expected<std::vector<char>> readFileIfThere(const std::string& path) {
  const int file = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (file < 0) {
    if (errno == ENOENT) return std::vector<char>();
    return failed("Reading", path);
  }
  struct stat info{};
  if (fstat(file, &info) != 0 || !S_ISREG(info.st_mode)) {
    ::close(file);
    return Status("ERR_IO", "Reading " + path + " failed: it is no file");
  }
  std::vector<char> bytes(static_cast<size_t>(info.st_size));
  size_t at = 0;
  while (at < bytes.size()) {
    const ssize_t count = ::read(file, bytes.data() + at, bytes.size() - at);
    if (count < 0 && errno == EINTR) continue;
    if (count <= 0) break;
    at += static_cast<size_t>(count);
  }
  bytes.resize(at);
  ::close(file);
  return bytes;
}

Status writeNewFile(const std::string& path, const void* data, size_t bytes) {
  const int file = ::open(path.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0644);
  if (file < 0) return failed("Writing", path);
  const char* from = static_cast<const char*>(data);
  // A single write takes less than 2 GiB.
  constexpr size_t kChunk = size_t{1} << 30;
  Status status;
  for (size_t at = 0; at < bytes && status.isOk();) {
    const ssize_t count = ::write(file, from + at, std::min(kChunk, bytes - at));
    if (count < 0 && errno == EINTR) continue;
    if (count <= 0)
      status = failed("Writing", path);
    else
      at += static_cast<size_t>(count);
  }
  if (status.isOk() && fsync(file) != 0) status = failed("Writing", path);
  if (::close(file) != 0 && status.isOk()) status = failed("Writing", path);
  if (!status) unlink(path.c_str());
  return status;
}

Status replaceFile(const std::string& path, const void* data, size_t bytes) {
  static std::atomic<uint32_t> count = 0;
  const std::string fresh = path + "." + std::to_string(getpid()) + "-" + std::to_string(count++);
  if (Status status = writeNewFile(fresh, data, bytes); !status) return status;
  if (std::rename(fresh.c_str(), path.c_str()) == 0) return {};
  Status status = failed("Replacing", path);
  unlink(fresh.c_str());
  return status;
}

}  // namespace nt
