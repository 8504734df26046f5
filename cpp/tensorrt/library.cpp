#include "tensorrt/library.h"

#include <dlfcn.h>
#include <link.h>
#include <sys/stat.h>

#include <array>
#include <cstdlib>
#include <exception>
#include <mutex>
#include <vector>

#include "tensorrt/logger.h"
#include "tensorrt/plugin/paged_attention.h"
#include "tensorrt/search_path.h"

namespace nt {

namespace {

// The interfaces of TensorRT 10 only grow at their ends, so any 10.x from the oldest that has what we call
// will do.
constexpr int32_t kMajor = 10;
constexpr int32_t kOldestVersion = 100600;
constexpr const char* kFileName = "libnvinfer.so.10";
constexpr const char* kLeanFileName = "libnvinfer_lean.so.10";
constexpr const char* kBuilderFactory = "createInferBuilder_INTERNAL";
constexpr const char* kResourceName = "libnvinfer_builder_resource.so.";
constexpr std::array kOtherMajors = {"libnvinfer.so.11",      "libnvinfer.so.9",      "libnvinfer.so.8",
                                     "libnvinfer_lean.so.11", "libnvinfer_lean.so.9", "libnvinfer_lean.so.8"};
constexpr const char* kInstallHint =
    "Install TensorRT 10 for CUDA 12 or 13, or set TENSORRT_LIB_DIR to the folder that holds "
    "libnvinfer.so.10";

bool isFolder(const std::string& path) {
  struct stat info{};
  return stat(path.c_str(), &info) == 0 && S_ISDIR(info.st_mode);
}

bool isFile(const std::string& path) {
  struct stat info{};
  return stat(path.c_str(), &info) == 0 && S_ISREG(info.st_mode);
}

std::string formatVersion(int32_t version) {
  return std::to_string(version / 10000) + "." + std::to_string(version / 100 % 100) + "." +
         std::to_string(version % 100);
}

std::string pathOf(void* handle) {
  link_map* map = nullptr;
  return dlinfo(handle, RTLD_DI_LINKMAP, &map) == 0 && map != nullptr ? map->l_name : "";
}

std::string folderOf(const std::string& path) {
  const size_t slash = path.rfind('/');
  return slash == std::string::npos ? "" : path.substr(0, slash + 1);
}

struct Place {
  std::string name;    // for messages
  std::string folder;  // with a slash at the end; "" = the system's search path
  std::string file;
};

// The place to look, by the first of: the option, TENSORRT_LIB_DIR, the search path. A place that was named
// and fails is an error: falling through to another library than the one asked for would be worse than none.
Place placeOf(const std::string& option) {
  const auto named = [](std::string name, const std::string& path) -> Place {
    if (isFolder(path) || !isFile(path)) {
      const bool leanAlone = !isFile(path + "/" + kFileName) && isFile(path + "/" + kLeanFileName);
      return {std::move(name), path + "/", leanAlone ? kLeanFileName : kFileName};
    }
    return {std::move(name), folderOf(path), path.substr(folderOf(path).size())};
  };
  if (!option.empty()) return named("the option", option);
  const char* variable = std::getenv("TENSORRT_LIB_DIR");
  if (variable != nullptr && *variable != '\0') return named("TENSORRT_LIB_DIR", variable);
  return {"the search path", "", kFileName};
}

Status versionMismatch(const std::string& found, const std::string& where) {
  return {"ERR_VERSION_MISMATCH",
          "This build runs TensorRT " + formatVersion(kOldestVersion) + " or a later 10.x, found " + found +
              " by " + where,
          kInstallHint};
}

// "TensorRT 11.2.0 (path)" of a library of another major version that opens where libnvinfer.so.10 does not;
// "" where there is none.
std::string otherMajor(const Place& place) {
  for (const char* name : kOtherMajors) {
    void* handle = dlopen((place.folder + name).c_str(), RTLD_LAZY | RTLD_LOCAL);
    if (handle == nullptr) {
      // There, and broken or in need of what is not: still the better reason.
      if (!place.folder.empty() && isFile(place.folder + name)) return place.folder + name;
      continue;
    }
    std::string found = pathOf(handle);
    const auto getVersion = reinterpret_cast<int32_t (*)() noexcept>(dlsym(handle, "getInferLibVersion"));
    if (getVersion != nullptr) found = "TensorRT " + formatVersion(getVersion()) + " (" + found + ")";
    dlclose(handle);
    return found;
  }
  return "";
}

// Guards what follows, and the loading of builder resources.
std::mutex openMutex;
// In the order of opening. They live as long as the process.
std::vector<const Library*>& openLibraries() {
  static auto* libraries = new std::vector<const Library*>;
  return *libraries;
}

}  // namespace

Expected<const Library*> Library::open(const std::string& option, ModuleFacts* facts) {
  const std::lock_guard lock(openMutex);
  const auto report = [&](const Library& library) {
    if (facts == nullptr) return;
    facts->libraryPath = library.path_;
    facts->libraryVersion = library.version_;
    facts->builderResource = library.findBuilderResource(&facts->builderResourcePath);
  };
  const Place place = placeOf(option);
  if (place.folder.empty()) {
    for (const Library* library : openLibraries()) {
      if (library->isLean()) continue;
      report(*library);
      return library;
    }
  }
  const std::string file = place.folder + place.file;
  void* handle = dlopen(file.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (handle == nullptr) {
    const std::string said = dlerror();
    if (facts != nullptr) facts->placesLooked.push_back(place.name + ": " + said);
    if (const std::string other = otherMajor(place); !other.empty())
      return versionMismatch(other, place.name);
    return Status("ERR_TENSORRT_NOT_FOUND", "TensorRT's library was not found by " + place.name + ": " + said,
                  kInstallHint);
  }
  const std::string path = pathOf(handle);
  if (facts != nullptr) facts->placesLooked.push_back(place.name + ": " + path);
  const auto fail = [&](Status status) {
    dlclose(handle);
    return status;
  };
  for (const Library* library : openLibraries()) {
    if (library->handle_ != handle) continue;
    dlclose(handle);  // counted once
    report(*library);
    return library;
  }
  const auto getVersion = reinterpret_cast<int32_t (*)() noexcept>(dlsym(handle, "getInferLibVersion"));
  if (getVersion == nullptr) {
    return fail({"ERR_TENSORRT_NOT_FOUND", path + " is not TensorRT's library: it has no getInferLibVersion",
                 kInstallHint});
  }
  const int32_t version = getVersion();
  if (version / 10000 != kMajor || version < kOldestVersion) {
    if (facts != nullptr) {
      facts->libraryPath = path;
      facts->libraryVersion = version;
    }
    return fail(versionMismatch("TensorRT " + formatVersion(version) + " (" + path + ")", place.name));
  }
  const bool lean = dlsym(handle, kBuilderFactory) == nullptr;
  if (!lean) {
    const auto getRegistry =
        reinterpret_cast<nvinfer1::IPluginRegistry* (*)() noexcept>(dlsym(handle, "getPluginRegistry"));
    nvinfer1::IPluginRegistry* registry = getRegistry == nullptr ? nullptr : getRegistry();
    if (registry == nullptr || !registerPagedAttention(*registry)) {
      return fail(
          {"ERR_INTERNAL", "TensorRT " + formatVersion(version) + " did not take the attention plugin"});
    }
  }
  const Library* library = new Library(handle, version, path, lean);
  openLibraries().push_back(library);
  report(*library);
  return library;
}

std::string Library::versionText() const {
  return formatVersion(version_);
}

Status Library::requireFull(const std::string& what) const {
  if (!lean_) return {};
  return {"ERR_TENSORRT_NOT_FOUND",
          what + " needs all of TensorRT, and " + path_ +
              " is its lean runtime, which runs "
              "version-compatible engines only",
          kInstallHint};
}

Status Library::findBuilderResource(std::string* found) const {
  if (Status status = requireFull("Building engines"); !status) return status;
  const std::string name = kResourceName + versionText();
  const std::string beside = folderOf(path_) + name;
  if (isFile(beside)) {
    *found = beside;
    return {};
  }
  if (void* handle = dlopen(name.c_str(), RTLD_LAZY | RTLD_LOCAL); handle != nullptr) {
    *found = pathOf(handle);
    dlclose(handle);
    return {};
  }
  return {"ERR_TENSORRT_NOT_FOUND",
          "Building engines needs " + name + ", which is neither beside " + path_ + " nor on the search path",
          "Install the TensorRT builder resource of the same version, or build the engine on a machine that "
          "has it"};
}

// TensorRT opens it by its bare name, and so does not find it beside itself.
Status Library::loadBuilderResource() const {
  const std::lock_guard lock(openMutex);
  std::string found;
  if (Status status = findBuilderResource(&found); !status) return status;
  const std::string name = kResourceName + versionText();
  if (void* handle = dlopen(name.c_str(), RTLD_LAZY | RTLD_LOCAL); handle != nullptr) {
    dlclose(handle);
    return {};
  }
  const std::string said = loadByName(folderOf(found), name);
  if (said.empty()) return {};
  return {"ERR_TENSORRT_NOT_FOUND", "Building engines needs " + found + ", which does not load: " + said,
          "Start the process with LD_LIBRARY_PATH set to that folder"};
}

template <class T, class... Args>
Expected<std::unique_ptr<T>> Library::create(const char* factory, Args... args) const {
  const auto make = reinterpret_cast<void* (*)(Args..., void*, int32_t)>(dlsym(handle_, factory));
  if (make == nullptr) return Status("ERR_VERSION_MISMATCH", path_ + " has no " + factory, kInstallHint);
  const LogScope log;
  std::string why;
  // The factories are declared noexcept and throw all the same.
  try {
    // The library's own version: it refuses the headers' newer one.
    if (auto* made = static_cast<T*>(make(args..., &tensorRtLogger(), version_)); made != nullptr)
      return std::unique_ptr<T>(made);
  } catch (const std::exception& error) {
    why = error.what();
  } catch (...) {
    why = "an exception of an unknown type";
  }
  const std::string logged = log.text();
  if (!logged.empty()) why += (why.empty() ? "" : "; ") + logged;
  return Status("ERR_CUDA",
                "TensorRT " + versionText() + " does not start: " + (why.empty() ? "no reason given" : why));
}

Expected<std::unique_ptr<nvinfer1::IBuilder>> Library::createBuilder() const {
  if (Status status = loadBuilderResource(); !status) return status;
  return create<nvinfer1::IBuilder>(kBuilderFactory);
}

Expected<std::unique_ptr<nvinfer1::IRuntime>> Library::createRuntime() const {
  return create<nvinfer1::IRuntime>("createInferRuntime_INTERNAL");
}

Expected<std::unique_ptr<nvinfer1::IRefitter>> Library::createRefitter(nvinfer1::ICudaEngine& engine) const {
  return create<nvinfer1::IRefitter>("createInferRefitter_INTERNAL", static_cast<void*>(&engine));
}

}  // namespace nt
