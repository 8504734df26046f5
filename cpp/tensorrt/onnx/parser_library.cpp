#include "tensorrt/onnx/parser_library.h"

#include <dlfcn.h>
#include <link.h>
#include <sys/stat.h>

#include <exception>
#include <mutex>
#include <vector>

#include "tensorrt/logger.h"

namespace nt {

namespace {

constexpr const char* kFileName = "libnvonnxparser.so.10";
constexpr const char* kHint =
    "Put libnvonnxparser.so.10 of the same TensorRT beside libnvinfer.so.10, or on the search path; built "
    "engines run without it";

bool isFile(const std::string& path) {
  struct stat info{};
  return stat(path.c_str(), &info) == 0 && S_ISREG(info.st_mode);
}

std::string pathOf(void* handle) {
  link_map* map = nullptr;
  return dlinfo(handle, RTLD_DI_LINKMAP, &map) == 0 && map != nullptr ? map->l_name : "";
}

std::mutex openMutex;
// They live as long as the process.
std::vector<const ParserLibrary*>& openLibraries() {
  static auto* libraries = new std::vector<const ParserLibrary*>;
  return *libraries;
}

}  // namespace

Expected<const ParserLibrary*> ParserLibrary::open(const Library& library) {
  if (Status status = library.requireFull("Reading ONNX models"); !status) return status;
  const std::lock_guard lock(openMutex);
  const std::string beside = library.path().substr(0, library.path().rfind('/') + 1) + kFileName;
  std::string looked;
  void* handle = nullptr;
  for (const std::string& place : {beside, std::string(kFileName)}) {
    if (place == beside && !isFile(beside)) {
      looked = beside + ": there is no such file";
      continue;
    }
    handle = dlopen(place.c_str(), RTLD_NOW | RTLD_LOCAL);
    if (handle != nullptr) break;
    looked += (looked.empty() ? "" : "; ") + std::string(dlerror());
  }
  if (handle == nullptr) {
    return Status("ERR_TENSORRT_NOT_FOUND", "TensorRT's ONNX parser was not found; looked at " + looked,
                  kHint);
  }
  for (const ParserLibrary* open : openLibraries()) {
    if (open->handle_ != handle) continue;
    dlclose(handle);  // counted once
    return open;
  }
  const std::string path = pathOf(handle);
  const auto getVersion = reinterpret_cast<int (*)()>(dlsym(handle, "getNvOnnxParserVersion"));
  if (getVersion == nullptr || dlsym(handle, "createNvOnnxParser_INTERNAL") == nullptr) {
    dlclose(handle);
    return Status("ERR_TENSORRT_NOT_FOUND", path + " is not TensorRT's ONNX parser", kHint);
  }
  openLibraries().push_back(new ParserLibrary(handle, getVersion(), path));
  return openLibraries().back();
}

Expected<std::unique_ptr<nvonnxparser::IParser>> ParserLibrary::createParser(
    nvinfer1::INetworkDefinition& network) const {
  using Factory = void* (*)(void*, void*, int);
  const auto make = reinterpret_cast<Factory>(dlsym(handle_, "createNvOnnxParser_INTERNAL"));
  const LogScope log;
  std::string why = "no reason given";
  // Declared noexcept, and throws all the same.
  try {
    if (auto* parser = static_cast<nvonnxparser::IParser*>(make(&network, &tensorRtLogger(), version_)))
      return std::unique_ptr<nvonnxparser::IParser>(parser);
  } catch (const std::exception& error) {
    why = error.what();
  } catch (...) {
    why = "an exception of an unknown type";
  }
  return withLog({"ERR_BUILD_FAILED", "TensorRT's ONNX parser does not start: " + why}, log);
}

}  // namespace nt
