#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <ctime>
#include <filesystem>
#include <fstream>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "check.h"
#include "core/safetensors.h"
#include "mutate.h"

namespace nt {
namespace {

// A folder that goes with the process.
class Folder {
 public:
  Folder() {
    std::string name = (std::filesystem::temp_directory_path() / "nt-safetensors-XXXXXX").string();
    if (::mkdtemp(name.data()) == nullptr) throw std::runtime_error("mkdtemp failed");
    path_ = name;
  }
  Folder(const Folder&) = delete;
  Folder& operator=(const Folder&) = delete;
  ~Folder() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }

  std::string write(const std::string& name, const std::string& content) const {
    const std::string path = at(name);
    std::ofstream(path, std::ios::binary) << content;
    return path;
  }
  std::string at(const std::string& name) const { return (path_ / name).string(); }

 private:
  std::filesystem::path path_;
};

const Folder& folder() {
  static const Folder one;
  return one;
}

std::string withLength(const std::string& header, const std::string& data, uint64_t length) {
  std::string file(8, '\0');
  for (size_t i = 0; i < 8; ++i) file[i] = static_cast<char>(length >> (8 * i));
  return file + header + data;
}

std::string fileOf(const std::string& header, const std::string& data) {
  return withLength(header, data, header.size());
}

std::string sequence(size_t bytes) {
  std::string data(bytes, '\0');
  for (size_t i = 0; i < bytes; ++i) data[i] = static_cast<char>(i * 7);
  return data;
}

const std::string kHeader = R"({"__metadata__":{"format":"pt"},)"
                            R"("b":{"dtype":"BF16","shape":[3],"data_offsets":[24,30]},)"
                            R"("a":{"dtype":"F32","shape":[2,3],"data_offsets":[0,24]},)"
                            R"("empty":{"dtype":"F16","shape":[0,7],"data_offsets":[24,24]},)"
                            R"("ids":{"dtype":"I64","shape":[],"data_offsets":[30,38]}}  )";
constexpr size_t kDataBytes = 38;

Status openText(const std::string& content) {
  return WeightFiles::open({folder().write("one.safetensors", content)}).status();
}

TEST(readsAFile) {
  const std::string data = sequence(kDataBytes);
  const auto opened = WeightFiles::open({folder().write("good.safetensors", fileOf(kHeader, data))});
  CHECK_EQ(opened.status().message(), "");
  REQUIRE(opened);
  const WeightFiles& files = **opened;
  CHECK_EQ(files.tensors().size(), size_t{4});
  const auto a = files.find("a", {2, 3});
  REQUIRE(a);
  CHECK_EQ(a->dtype, DType::kF32);
  CHECK_EQ(a->bytes, uint64_t{24});
  CHECK_EQ(a->offset, uint64_t{8 + kHeader.size()});
  const auto b = files.find("b", {3});
  REQUIRE(b);
  std::string read(6, '\0');
  CHECK(files.read(*b, 0, 6, read.data()).isOk());
  CHECK(read == data.substr(24, 6));
  read.assign(4, '\0');
  CHECK(files.read(*a, 20, 4, read.data()).isOk());
  CHECK(read == data.substr(20, 4));
  CHECK(files.read(*a, 24, 0, nullptr).isOk());
  for (const auto& [begin, bytes] :
       {std::pair<uint64_t, uint64_t>{0, 25}, {24, 1}, {25, 0}, {UINT64_MAX, 2}, {1, UINT64_MAX}}) {
    CHECK_EQ(files.read(*a, begin, bytes, read.data()).code(), "ERR_INVALID_ARGUMENT");
  }
  TensorInfo forged = *a;
  forged.file = 1;
  CHECK(!files.read(forged, 0, 1, read.data()).isOk());
  forged.file = 0;
  forged.bytes = UINT64_MAX;
  CHECK(!files.read(forged, 0, 1, read.data()).isOk());
}

TEST(explainsWhatItCannotFind) {
  const auto opened =
      WeightFiles::open({folder().write("good.safetensors", fileOf(kHeader, sequence(kDataBytes)))});
  REQUIRE(opened);
  const WeightFiles& files = **opened;
  CHECK_EQ(files.find("a", {3, 2}).status().code(), "ERR_MODEL_INVALID");
  CHECK_CONTAINS(files.find("a", {3, 2}).status().message(), "has shape [2, 3], the model needs [3, 2]");
  CHECK_EQ(files.find("ids", {}).status().code(), "ERR_MODEL_UNSUPPORTED");
  CHECK_CONTAINS(files.find("ids", {}).status().message(), "is of type I64");
  CHECK_EQ(files.find("emty", {1}).status().code(), "ERR_WEIGHTS_MISSING");
  CHECK_CONTAINS(files.find("emty", {1}).status().hint(), "'empty'");
  CHECK_EQ(files.find("quite another name", {1}).status().hint(), "");
}

TEST(hintsAtNamesWithoutTheirPrefix) {
  const std::string header =
      R"({"layers.0.self_attn.q_proj.weight":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}})";
  const auto opened = WeightFiles::open({folder().write("prefix.safetensors", fileOf(header, sequence(4)))});
  REQUIRE(opened);
  CHECK_CONTAINS((*opened)->find("model.layers.0.self_attn.q_proj.weight", {1}).status().hint(),
                 "'layers.0.self_attn.q_proj.weight'");
}

TEST(refusesDamagedFiles) {
  struct Case {
    std::string content;
    const char* message;
  };
  const auto entry = [](const std::string& text, size_t bytes) {
    return fileOf("{\"t\":" + text + "}", sequence(bytes));
  };
  const std::string data = sequence(kDataBytes);
  const Case cases[] = {
      {"", "has 0 bytes"},
      {"1234567", "has 7 bytes"},
      {withLength(kHeader, data, kHeader.size() + kDataBytes + 1), "a header of"},
      {withLength(kHeader, data, UINT64_MAX), "a header of 18446744073709551615 bytes"},
      {withLength(kHeader, data, UINT64_MAX - 7), "a header of"},
      {withLength(kHeader, data, 100'000'001), "a header of 100000001"},
      {withLength(kHeader, data, 0), "not valid JSON"},
      {withLength(kHeader, data, 10), "not valid JSON"},
      {fileOf("[]", ""), "the header must be an object"},
      {fileOf("{\"a\":1}", ""), "the entry 'a' must be an object"},
      {fileOf("{\"__metadata__\":{\"a\":1}}", ""), "the metadata 'a' must be a string"},
      {fileOf("{\"__metadata__\":\"x\"}", ""), "must be an object"},
      {fileOf("{}", "x"), "1 bytes at the end belong to no tensor"},
      {fileOf(kHeader, sequence(kDataBytes + 1)), "1 bytes at the end belong to no tensor"},
      {fileOf(kHeader, sequence(kDataBytes - 1)),
       "tensor 'ids': bytes 30 ... 38 are not within the file's 37 bytes"},
      {entry(R"({"dtype":"F32","shape":[1]})", 4), "tensor 't': needs"},
      {entry(R"({"dtype":7,"shape":[1],"data_offsets":[0,4]})", 4), "needs"},
      {entry(R"({"dtype":"F32","shape":1,"data_offsets":[0,4]})", 4), "needs"},
      {entry(R"({"dtype":"F32","shape":[1],"data_offsets":[0,4,4]})", 4), "needs"},
      {entry(R"({"dtype":"F32","shape":[1],"data_offsets":{"a":0,"b":4}})", 4), "needs"},
      {entry(R"({"dtype":"F33","shape":[1],"data_offsets":[0,4]})", 4), "type 'F33' is none of the format's"},
      {entry(R"({"dtype":"F32","shape":[-1],"data_offsets":[0,4]})", 4), "'shape' must hold integers >= 0"},
      {entry(R"({"dtype":"F32","shape":[1.0],"data_offsets":[0,4]})", 4), "'shape' must hold integers >= 0"},
      {entry(R"({"dtype":"F32","shape":[1],"data_offsets":[-4,0]})", 4),
       "'data_offsets' must be integers >= 0"},
      {entry(R"({"dtype":"F32","shape":[1],"data_offsets":[0,1e1]})", 4),
       "'data_offsets' must be integers >= 0"},
      {entry(R"({"dtype":"F32","shape":[1],"data_offsets":[4,0]})", 4), "bytes 4 ... 0 are not within"},
      {entry(R"({"dtype":"F32","shape":[1],"data_offsets":[0,9223372036854775807]})", 4), "are not within"},
      {entry(R"({"dtype":"F32","shape":[2],"data_offsets":[0,4]})", 4),
       "F32 of shape [2] does not take bytes 0 ... 4"},
      {entry(R"({"dtype":"BF16","shape":[2,2],"data_offsets":[0,4]})", 4), "does not take"},
      // Products that are 4 and 0 modulo 2^64.
      {entry(R"({"dtype":"F32","shape":[4611686018427387905],"data_offsets":[0,4]})", 4), "does not take"},
      {entry(R"({"dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,0]})", 0), "does not take"},
      {entry(R"({"dtype":"F4","shape":[7],"data_offsets":[0,4]})", 4), "does not take"},
      {entry(R"({"dtype":"F32","shape":[1],"data_offsets":[4,8]})", 8), "tensor 't' leaves a hole before it"},
      {fileOf(
           R"({"t":{"dtype":"U8","shape":[4],"data_offsets":[0,4]},"u":{"dtype":"U8","shape":[4],"data_offsets":[3,7]}})",
           sequence(7)),
       "tensor 'u' overlaps the one before it"},
      {fileOf(
           R"({"t":{"dtype":"U8","shape":[4],"data_offsets":[0,4]},"u":{"dtype":"U8","shape":[4],"data_offsets":[0,4]}})",
           sequence(4)),
       "overlaps"},
      {fileOf(
           R"({"t":{"dtype":"U8","shape":[4],"data_offsets":[0,4]},"t":{"dtype":"U8","shape":[4],"data_offsets":[4,8]}})",
           sequence(8)),
       "the key 't' twice"},
  };
  for (const Case& one : cases) {
    const Status status = openText(one.content);
    CHECK_EQ(status.code(), "ERR_WEIGHTS_INVALID");
    CHECK_CONTAINS(status.message(), one.message);
    CHECK_CONTAINS(status.message(), "one.safetensors");
  }
  CHECK(openText(fileOf("{}", "")).isOk());
  CHECK(openText(entry(R"({"dtype":"F4","shape":[8],"data_offsets":[0,4]})", 4)).isOk());
  CHECK(openText(entry(R"({"dtype":"F32","shape":[0,9223372036854775807],"data_offsets":[0,0]})", 0)).isOk());
}

TEST(joinsShards) {
  const std::string first =
      folder().write("s1", fileOf(R"({"x":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}})", "AAAA"));
  const std::string second =
      folder().write("s2", fileOf(R"({"y":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}})", "BBBB"));
  const auto opened = WeightFiles::open({first, second});
  REQUIRE(opened);
  const auto y = (*opened)->find("y", {1});
  REQUIRE(y);
  std::string read(4, '\0');
  CHECK((*opened)->read(*y, 0, 4, read.data()).isOk());
  CHECK_EQ(read, "BBBB");
  CHECK_CONTAINS(WeightFiles::open({first, second, first}).status().message(), "tensor 'x' is also in");
}

TEST(refusesWhatIsNoFile) {
  CHECK_EQ(WeightFiles::open({}).status().code(), "ERR_INVALID_ARGUMENT");
  const auto code = [](const std::string& path) { return WeightFiles::open({path}).status().code(); };
  CHECK_EQ(code(folder().at("absent")), "ERR_IO");
  CHECK_EQ(code(folder().at("")), "ERR_IO");
  CHECK_EQ(code(std::string("a\0b", 3)), "ERR_INVALID_ARGUMENT");
  const std::string pipe = folder().at("pipe");
  REQUIRE(::mkfifo(pipe.c_str(), 0600) == 0);
  CHECK_EQ(code(pipe), "ERR_IO");
}

TEST(aFileThatShrinksIsAnError) {
  const std::string path = folder().write("shrinks", fileOf(kHeader, sequence(kDataBytes)));
  const auto opened = WeightFiles::open({path});
  REQUIRE(opened);
  const auto a = (*opened)->find("a", {2, 3});
  REQUIRE(a);
  std::filesystem::resize_file(path, a->offset + 10);
  std::string read(24, '\0');
  const Status status = (*opened)->read(*a, 0, 24, read.data());
  CHECK_EQ(status.code(), "ERR_IO");
  CHECK_CONTAINS(status.message(), "has become shorter");
  CHECK_CONTAINS(status.message(), "14 bytes too early");
  CHECK((*opened)->read(*a, 0, 10, read.data()).isOk());
}

TEST(readsFromManyThreads) {
  const size_t bytes = 1 << 20;
  const std::string data = sequence(bytes);
  const auto opened = WeightFiles::open({folder().write(
      "big", fileOf("{\"t\":{\"dtype\":\"U8\",\"shape\":[1048576],\"data_offsets\":[0,1048576]}}", data))});
  REQUIRE(opened);
  const TensorInfo tensor = (*opened)->tensors().at("t");
  std::atomic<int> wrong{0};
  std::vector<std::thread> threads;
  for (size_t t = 0; t < 4; ++t) {
    threads.emplace_back([&, t] {
      std::string part(bytes / 4, '\0');
      for (int i = 0; i < 20; ++i) {
        const uint64_t begin = t * part.size();
        if (!(*opened)->read(tensor, begin, part.size(), part.data())) ++wrong;
        if (data.compare(begin, part.size(), part) != 0) ++wrong;
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  CHECK_EQ(wrong.load(), 0);
}

TEST(closesItsFiles) {
  const auto count = [] {
    const auto descriptors = std::filesystem::directory_iterator("/proc/self/fd");
    return std::distance(begin(descriptors), end(descriptors));
  };
  if (!std::filesystem::exists("/proc/self/fd")) return;
  const std::string good = folder().write("good.safetensors", fileOf(kHeader, sequence(kDataBytes)));
  const std::string bad = folder().write("bad.safetensors", fileOf(kHeader, sequence(kDataBytes + 1)));
  const auto before = count();
  for (int i = 0; i < 10; ++i) {
    CHECK(WeightFiles::open({good}));
    CHECK(!WeightFiles::open({good, bad}));
  }
  CHECK_EQ(count(), before);
}

// In seconds of the processor, the least of several times. The last tensor is asked for by a name with an `s`
// too many.
double secondsToRead(int tensors) {
  std::string header = "{";
  for (int i = 0; i < tensors; ++i) {
    const std::string begin = std::to_string(i * 2);
    const std::string end = std::to_string(i * 2 + 2);
    header += (i == 0 ? "\"" : ",\"") + std::string("model.layers.") + std::to_string(i) +
              ".self_attn.q_proj.weight\":{\"dtype\":\"BF16\",\"shape\":[1,1],\"data_offsets\":[" + begin +
              "," + end + "]}";
  }
  const std::string path = folder().write("large", fileOf(header + "}", sequence(size_t(tensors) * 2)));
  double least = 1e9;
  for (int run = 0; run < 3; ++run) {
    const auto start = std::clock();
    const auto opened = WeightFiles::open({path});
    const auto status = opened ? (*opened)->find("model.layers.5.self_attn.q_proj.weights", {1, 1}).status()
                               : opened.status();
    least = std::min(least, double(std::clock() - start) / CLOCKS_PER_SEC);
    CHECK(opened);
    if (!opened) break;
    CHECK_EQ((*opened)->tensors().size(), size_t(tensors));
    CHECK_CONTAINS(status.hint(), "'model.layers.5.self_attn.q_proj.weight'");
  }
  std::cout << "# " << double(header.size()) / 1e6 << " MB, " << least << " s\n";
  return least;
}

// About 10 MB of header. Quadratic work would take 400 times as much as for a twentieth of it.
TEST(readsALargeHeaderInProportion) {
  const double small = secondsToRead(5'000);
  CHECK(secondsToRead(100'000) < 100 * std::max(small, 1e-4));
}

TEST(readsTheDemoModel) {
  const auto opened = WeightFiles::open({NT_SOURCE_DIR "/models/tiny-storyteller/model.safetensors"});
  CHECK_EQ(opened.status().message(), "");
  REQUIRE(opened);
  CHECK((*opened)->find("model.embed_tokens.weight", {4096, 192}));
  uint64_t bytes = 0;
  for (const auto& [name, tensor] : (*opened)->tensors()) {
    bytes += tensor.bytes;
    std::string content(tensor.bytes, '\0');
    CHECK((*opened)->read(tensor, 0, tensor.bytes, content.data()).isOk());
  }
  CHECK(bytes > 1'000'000);
}

TEST(survivesDamage) {
  const std::string valid = fileOf(kHeader, sequence(kDataBytes));
  nt::test::Mutator mutator(4);
  int accepted = 0;
  for (int i = 0; i < 20'000; ++i) {
    std::string content;
    if (mutator.below(2) == 0) {
      content = mutator.mutate(valid);
    } else {
      // The length stays true, so that the damage reaches the entries.
      content = fileOf(mutator.mutate(kHeader), sequence(kDataBytes));
    }
    const auto opened = WeightFiles::open({folder().write("damaged", content)});
    if (!opened) {
      CHECK_EQ(opened.status().code(), "ERR_WEIGHTS_INVALID");
      continue;
    }
    ++accepted;
    for (const auto& [name, tensor] : (*opened)->tensors()) {
      std::string read(tensor.bytes, '\0');
      CHECK((*opened)->read(tensor, 0, tensor.bytes, read.data()).isOk());
    }
  }
  CHECK(accepted > 200 && accepted < 19'000);
}

}  // namespace
}  // namespace nt

TEST_MAIN()
