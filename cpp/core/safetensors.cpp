#include "core/safetensors.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <limits>
#include <new>
#include <optional>
#include <string_view>
#include <system_error>
#include <utility>

#include "core/json.h"
#include "core/text.h"

namespace nt {

namespace {

constexpr uint64_t kLengthBytes = 8;  // the header's length, little-endian, at the start of the file
constexpr uint64_t kMaxHeaderBytes = 100'000'000;  // the reference implementation's limit
constexpr uint64_t kMaxFileBytes = std::numeric_limits<int64_t>::max();
constexpr size_t kMaxRank = 32;                    // far more than any framework has
constexpr size_t kMaxReadBytes = size_t{1} << 30;  // Linux transfers at most about 2 GiB a call

struct FormatType {
  std::string_view name;
  uint64_t bits;
};
// Every type of the format, read or not: their lengths are checked alike.
constexpr std::array<FormatType, 22> kFormatTypes{{
    {"BOOL", 8},    {"F4", 4},      {"F6_E2M3", 6},     {"F6_E3M2", 6},     {"U8", 8},      {"I8", 8},
    {"F8_E5M2", 8}, {"F8_E4M3", 8}, {"F8_E5M2FNUZ", 8}, {"F8_E4M3FNUZ", 8}, {"F8_E8M0", 8}, {"I16", 16},
    {"U16", 16},    {"F16", 16},    {"BF16", 16},       {"I32", 32},        {"U32", 32},    {"F32", 32},
    {"C64", 64},    {"F64", 64},    {"I64", 64},        {"U64", 64},
}};

std::string reason(int error) {
  return std::generic_category().message(error);
}

// Owns a file descriptor.
class File {
 public:
  File(std::string path, int descriptor) noexcept : path_(std::move(path)), descriptor_(descriptor) {}
  File(File&& other) noexcept
      : path_(std::move(other.path_)), descriptor_(std::exchange(other.descriptor_, -1)) {}
  File(const File&) = delete;
  File& operator=(const File&) = delete;
  File& operator=(File&&) = delete;
  ~File() {
    if (descriptor_ >= 0) ::close(descriptor_);
  }

  static Expected<File> open(const std::string& path) {
    if (path.find('\0') != std::string::npos)
      return Status::invalid("a path with a zero byte: " + quoted(path, 400));
    int descriptor = -1;
    do {
      // O_NONBLOCK: opening a pipe would wait for its writer. It means nothing for regular files.
      descriptor = ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    } while (descriptor < 0 && errno == EINTR);
    if (descriptor < 0) return Status("ERR_IO", "cannot open " + quoted(path, 400) + ": " + reason(errno));
    return File(path, descriptor);
  }

  const std::string& path() const noexcept { return path_; }

  Expected<uint64_t> size() const {
    struct stat info{};
    if (::fstat(descriptor_, &info) != 0) {
      return Status("ERR_IO", "cannot stat " + quoted(path_, 400) + ": " + reason(errno));
    }
    if (!S_ISREG(info.st_mode)) return Status("ERR_IO", quoted(path_, 400) + " is not a regular file");
    return static_cast<uint64_t>(info.st_size);
  }

  // All of `bytes` or an error. `offset + bytes` must not overflow int64.
  Status read(uint64_t offset, uint64_t bytes, void* to) const {
    auto* target = static_cast<char*>(to);
    while (bytes > 0) {
      const auto wanted = static_cast<size_t>(std::min<uint64_t>(bytes, kMaxReadBytes));
      const ssize_t got = ::pread(descriptor_, target, wanted, static_cast<off_t>(offset));
      if (got < 0 && errno == EINTR) continue;
      if (got < 0) return {"ERR_IO", "cannot read " + quoted(path_, 400) + ": " + reason(errno)};
      if (got == 0) {
        return {"ERR_IO",
                quoted(path_, 400) + " has become shorter: it ends at byte " + std::to_string(offset) + ", " +
                    std::to_string(bytes) + " bytes too early",
                "Do not change a model's files while they are in use"};
      }
      target += got;
      offset += static_cast<uint64_t>(got);
      bytes -= static_cast<uint64_t>(got);
    }
    return {};
  }

 private:
  std::string path_;
  int descriptor_;
};

// Bytes of a tensor; nothing where they overflow or end within a byte.
std::optional<uint64_t> byteLength(const std::vector<int64_t>& shape, uint64_t bitsPerElement) {
  uint64_t bits = bitsPerElement;
  if (std::find(shape.begin(), shape.end(), 0) != shape.end()) return 0;
  for (const int64_t dimension : shape) {
    if (__builtin_mul_overflow(bits, static_cast<uint64_t>(dimension), &bits)) return std::nullopt;
  }
  if (bits % 8 != 0) return std::nullopt;
  return bits / 8;
}

// A tensor's entry in the header. Offsets in the file are relative to `dataStart`.
Status parseTensor(JsonValue entry, uint64_t dataStart, uint64_t dataBytes, TensorInfo& tensor) {
  const auto invalid = [](std::string what) { return Status("ERR_WEIGHTS_INVALID", std::move(what)); };
  const auto type = entry.find("dtype");
  const auto shape = entry.find("shape");
  const auto offsets = entry.find("data_offsets");
  if (!type || !type->string() || !shape || !shape->isArray() || !offsets || !offsets->isArray() ||
      offsets->size() != 2) {
    return invalid("needs 'dtype', 'shape' and 'data_offsets' of two numbers");
  }
  const std::string_view typeName = *type->string();
  const auto* format = std::find_if(kFormatTypes.begin(), kFormatTypes.end(),
                                    [&](const FormatType& known) { return known.name == typeName; });
  if (format == kFormatTypes.end()) return invalid("type " + quoted(typeName) + " is none of the format's");
  if (const auto dtype = parseDType(typeName)) {
    tensor.dtype = *dtype;
  } else {
    tensor.unsupportedType = typeName;
  }
  if (shape->size() > kMaxRank)
    return invalid("'shape' has more than " + std::to_string(kMaxRank) + " dimensions");
  tensor.shape.reserve(shape->size());
  for (const JsonValue element : shape->elements()) {
    const auto dimension = element.integer();
    if (!dimension || *dimension < 0) return invalid("'shape' must hold integers >= 0");
    tensor.shape.push_back(*dimension);
  }
  std::array<uint64_t, 2> range{};
  size_t i = 0;
  for (const JsonValue element : offsets->elements()) {
    const auto offset = element.integer();
    if (!offset || *offset < 0) return invalid("'data_offsets' must be integers >= 0");
    range[i++] = static_cast<uint64_t>(*offset);
  }
  const auto [begin, end] = range;
  const std::string span = "bytes " + std::to_string(begin) + " ... " + std::to_string(end);
  if (begin > end || end > dataBytes) {
    return invalid(span + " are not within the file's " + std::to_string(dataBytes) + " bytes of data");
  }
  const auto expected = byteLength(tensor.shape, format->bits);
  if (expected != end - begin) {
    return invalid(std::string(typeName) + " of shape " + shapeText(tensor.shape) + " does not take " + span);
  }
  tensor.offset = dataStart + begin;
  tensor.bytes = end - begin;
  return {};
}

class SafetensorsFiles final : public WeightFiles {
 public:
  Status add(const std::string& path) {
    Expected<File> file = File::open(path);
    if (!file) return file.status();
    files_.push_back(std::move(*file));
    return readHeader(files_.size() - 1);
  }

  const std::map<std::string, TensorInfo>& tensors() const noexcept override { return tensors_; }

  Expected<TensorInfo> find(const std::string& name, const std::vector<int64_t>& shape) const override {
    const auto found = tensors_.find(name);
    if (found == tensors_.end()) return missing(name);
    const TensorInfo& tensor = found->second;
    const std::string where = "tensor " + quoted(name) + " in " + quoted(files_[tensor.file].path(), 400);
    if (tensor.shape != shape) {
      return Status("ERR_MODEL_INVALID", where + " has shape " + shapeText(tensor.shape) +
                                             ", the model needs " + shapeText(shape));
    }
    if (!tensor.unsupportedType.empty()) {
      return Status("ERR_MODEL_UNSUPPORTED", where + " is of type " + tensor.unsupportedType,
                    "Weights must be F32, F16 or BF16: convert the checkpoint");
    }
    return tensor;
  }

  Status read(const TensorInfo& tensor, uint64_t begin, uint64_t bytes, void* to) const override {
    const bool inFile = tensor.file < files_.size() && tensor.offset <= kMaxFileBytes &&
                        tensor.bytes <= kMaxFileBytes - tensor.offset;
    if (!inFile || begin > tensor.bytes || bytes > tensor.bytes - begin) {
      return Status::invalid("cannot read " + std::to_string(bytes) + " bytes from byte " +
                             std::to_string(begin) + " of a tensor of " + std::to_string(tensor.bytes));
    }
    return files_[tensor.file].read(tensor.offset + begin, bytes, to);
  }

 private:
  Status invalid(size_t file, const std::string& what) const {
    return {"ERR_WEIGHTS_INVALID", quoted(files_[file].path(), 400) + ": " + what,
            "The file is damaged or no safetensors file: fetch it again"};
  }

  Status missing(const std::string& name) const {
    std::vector<std::string_view> names;
    names.reserve(tensors_.size());
    for (const auto& entry : tensors_) names.emplace_back(entry.first);
    std::string hint;
    for (const std::string_view near : nearestNames(name, names))
      hint += (hint.empty() ? "" : ", ") + quoted(near);
    return {"ERR_WEIGHTS_MISSING",
            "no tensor " + quoted(name) + " in " + std::to_string(files_.size()) +
                (files_.size() == 1 ? " file" : " files") + " of weights",
            hint.empty() ? hint : "The nearest names are " + hint};
  }

  Status readHeader(size_t file) {
    const Expected<uint64_t> size = files_[file].size();
    if (!size) return size.status();
    std::array<unsigned char, kLengthBytes> prefix{};
    if (*size < kLengthBytes)
      return invalid(file, "has " + std::to_string(*size) + " bytes, too few for a header");
    if (Status status = files_[file].read(0, kLengthBytes, prefix.data()); !status) return status;
    uint64_t length = 0;
    for (size_t i = kLengthBytes; i-- > 0;) length = length << 8 | prefix[i];
    if (length > kMaxHeaderBytes || length > *size - kLengthBytes) {
      return invalid(file, "a header of " + std::to_string(length) + " bytes in a file of " +
                               std::to_string(*size) + " (at most " + std::to_string(kMaxHeaderBytes) + ")");
    }
    std::string text(static_cast<size_t>(length), '\0');
    if (Status status = files_[file].read(kLengthBytes, length, text.data()); !status) return status;
    const Expected<JsonDocument> header = parseJson(text);
    if (!header) {
      const Status status = header.status();
      if (status.code() != "ERR_INVALID_ARGUMENT") return status;
      return invalid(file, "the header is not valid JSON: " + status.message());
    }
    return readEntries(file, header->root(), kLengthBytes + length, *size - kLengthBytes - length);
  }

  Status readEntries(size_t file, JsonValue header, uint64_t dataStart, uint64_t dataBytes) {
    if (!header.isObject()) return invalid(file, "the header must be an object");
    // Views into the header's text, which outlives this call; `tensors_` gets copies.
    struct Extent {
      uint64_t begin;
      uint64_t bytes;
      std::string_view name;
    };
    std::vector<Extent> extents;
    extents.reserve(header.size());
    for (const auto& [name, entry] : header.members()) {
      if (!entry.isObject()) return invalid(file, "the entry " + quoted(name) + " must be an object");
      if (name == "__metadata__") {
        for (const auto& [key, value] : entry.members()) {
          if (!value.string()) return invalid(file, "the metadata " + quoted(key) + " must be a string");
        }
        continue;
      }
      TensorInfo tensor;
      tensor.file = file;
      if (const Status status = parseTensor(entry, dataStart, dataBytes, tensor); !status) {
        return invalid(file, "tensor " + quoted(name) + ": " + status.message());
      }
      extents.push_back({tensor.offset, tensor.bytes, name});
      const auto [place, added] = tensors_.try_emplace(std::string(name), std::move(tensor));
      if (!added) {
        return invalid(
            file, "tensor " + quoted(name) + " is also in " + quoted(files_[place->second.file].path(), 400));
      }
    }
    // Together they must cover the data exactly. Empty tensors sort before the one that starts where they
    // stand.
    std::sort(extents.begin(), extents.end(), [](const Extent& a, const Extent& b) {
      return a.begin != b.begin ? a.begin < b.begin : a.bytes < b.bytes;
    });
    uint64_t expected = dataStart;
    for (const Extent& extent : extents) {
      if (extent.begin != expected) {
        return invalid(
            file, "tensor " + quoted(extent.name) +
                      (extent.begin < expected ? " overlaps the one before it" : " leaves a hole before it"));
      }
      expected += extent.bytes;
    }
    if (expected != dataStart + dataBytes) {
      return invalid(
          file, std::to_string(dataStart + dataBytes - expected) + " bytes at the end belong to no tensor");
    }
    return {};
  }

  std::vector<File> files_;
  std::map<std::string, TensorInfo> tensors_;
};

}  // namespace

Expected<std::unique_ptr<WeightFiles>> WeightFiles::open(const std::vector<std::string>& paths) {
  if (paths.empty()) return Status::invalid("no file of weights is given");
  try {
    auto files = std::make_unique<SafetensorsFiles>();
    for (const std::string& path : paths) {
      if (Status status = files->add(path); !status) return status;
    }
    return std::unique_ptr<WeightFiles>(std::move(files));
  } catch (const std::bad_alloc&) {
    return Status("ERR_OUT_OF_MEMORY", "not enough memory to read the headers of the weights");
  }
}

}  // namespace nt
