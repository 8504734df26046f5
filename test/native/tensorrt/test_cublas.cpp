// CublasLinear and KernelSegment where there is no GPU: on the fake one, and on a stand-in for cuBLASLt that
// computes.
#include <dlfcn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <cmath>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <functional>
#include <random>
#include <string>
#include <vector>

#include "check.h"
#include "core/convert.h"
#include "cublas_stand_in.h"
#include "fake_gpu.h"
#include "tensorrt/cublas_linear.h"
#include "tensorrt/kernel_segment.h"
#include "tensorrt/kernels/gated_linear.h"

namespace {

using namespace nt;

constexpr const char* kVariable = "NODE_TENSORRT_CUBLAS";
const std::string kComplete = NT_CUBLAS_COMPLETE;  // folders that hold a libcublasLt.so.13
const std::string kLacking = NT_CUBLAS_LACKING;

// What a process of its own says: the library is looked for once in each.
std::string inProcess(const char* named, const std::function<std::string()>& say) {
  std::array<int, 2> ends{};
  if (pipe(ends.data()) != 0) throw std::runtime_error("no pipe");
  const pid_t child = fork();
  if (child == 0) {
    close(ends[0]);
    if (named == nullptr) {
      unsetenv(kVariable);
    } else {
      setenv(kVariable, named, 1);
    }
    const std::string text = say();
    const bool whole = write(ends[1], text.data(), text.size()) == static_cast<ssize_t>(text.size());
    _exit(whole ? 0 : 1);
  }
  close(ends[1]);
  std::string text;
  std::array<char, 4096> piece{};
  for (ssize_t got; (got = read(ends[0], piece.data(), piece.size())) > 0;)
    text.append(piece.data(), static_cast<size_t>(got));
  close(ends[0]);
  int status = 0;
  CHECK(child > 0 && waitpid(child, &status, 0) == child);
  CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0);
  return text;
}

std::string created(DType dtype = DType::kBF16) {
  const auto made = CublasLinear::create(dtype);
  return made ? (*made)->version() : made.status().code() + ": " + made.status().message();
}

class Folder {
 public:
  Folder() {
    std::string name = std::filesystem::temp_directory_path() / "nt-cublas-XXXXXX";
    if (mkdtemp(name.data()) == nullptr) throw std::runtime_error("no temporary folder");
    path_ = name;
  }
  ~Folder() { std::filesystem::remove_all(path_); }
  Folder(const Folder&) = delete;
  Folder& operator=(const Folder&) = delete;

  std::string path() const { return path_; }
  void write(const char* file, const char* text) const { std::ofstream(path_ / file) << text; }
  void link(const char* file, const std::string& to) const {
    std::filesystem::create_symlink(to, path_ / file);
  }

 private:
  std::filesystem::path path_;
};

// The library of this process, as it was before any test.
CublasStandIn& standIn() {
  static CublasStandIn* state = [] {
    setenv(kVariable, kComplete.c_str(), 1);
    void* library = dlopen((kComplete + "/libcublasLt.so.13").c_str(), RTLD_NOW);
    if (library == nullptr) throw std::runtime_error(dlerror());
    return reinterpret_cast<CublasStandInFn>(dlsym(library, "cublasStandIn"))();
  }();
  return *state;
}

class Fixture {
 public:
  Fixture() : before_(fake::figures()) { standIn() = {.living = standIn().living}; }
  ~Fixture() {
    const fake::Figures now = fake::figures();
    CHECK_EQ(now.violations, before_.violations);
    CHECK_EQ(now.deviceBlocks, before_.deviceBlocks);
  }
  Fixture(const Fixture&) = delete;
  Fixture& operator=(const Fixture&) = delete;

 private:
  fake::Figures before_;
};

DeviceBuffer allocate(uint64_t bytes) {
  auto memory = DeviceBuffer::allocate(bytes, "test");
  if (!memory) throw std::runtime_error(memory.status().message());
  return *std::move(memory);
}

// Random values of a type, on the device and here.
struct Tensor {
  Tensor(size_t count, DType dtype, std::mt19937& random) : device(allocate(count * 2)), host(count) {
    std::uniform_real_distribution<float> values(-1, 1);
    auto* bits = static_cast<uint16_t*>(fake::reach(device.as<>(), count * 2));
    for (size_t i = 0; i < count; ++i) {
      bits[i] = dtype == DType::kF16 ? floatToF16(values(random)) : floatToBf16(values(random));
      host[i] = valueAt(i, dtype);
    }
  }
  float valueAt(size_t i, DType dtype) const {
    const uint16_t bits = static_cast<uint16_t*>(fake::reach(device.as<>(), host.size() * 2))[i];
    return dtype == DType::kF16 ? f16ToFloat(bits) : bf16ToFloat(bits);
  }

  DeviceBuffer device;
  std::vector<float> host;
};

std::unique_ptr<CublasLinear> library(DType dtype = DType::kBF16) {
  auto made = CublasLinear::create(dtype);
  if (!made) throw std::runtime_error(made.status().message());
  return *std::move(made);
}

// A layer without norms and activations, whose kernels the fake GPU does not run: qkv, attention, out with
// its residual.
SegmentShape layerOf(int32_t heads, int32_t headDim, bool biases) {
  const int32_t width = heads * headDim;
  SegmentShape shape;
  shape.name = "layer";
  shape.attentions = 1;
  LinearOp linear{{"w"}, {}};
  if (biases) linear.biases = {"b"};
  AttentionOp attention;
  attention.heads = attention.kvHeads = heads;
  attention.headDim = headDim;
  attention.scale = 1;
  shape.nodes = {{linear, {0}, 1}, {attention, {1}, 2}, {linear, {2}, 3}, {AddOp{}, {0, 3}, 4}};
  shape.widths = {width, 3 * width, width, width, width};
  for (const int32_t n : {3 * width, width}) {
    shape.weightShapes.push_back({n, width});
    if (biases) shape.weightShapes.push_back({1, n});
  }
  return shape;
}

// A decoder layer as models have it; the fake GPU does not run its norms and activation.
SegmentShape decoderLayer(int32_t width) {
  SegmentShape shape = layerOf(2, width / 2, false);
  const LinearOp product{{"w"}, {}};
  shape.nodes = {{RmsNormOp{"n", 1e-5F}, {0}, 1},
                 {product, {1}, 2},
                 {shape.nodes[1].op, {2}, 3},
                 {product, {3}, 4},
                 {AddOp{}, {0, 4}, 5},
                 {RmsNormOp{"n", 1e-5F}, {5}, 6},
                 {product, {6}, 7},
                 {GatedActivationOp{}, {7}, 8},
                 {product, {8}, 9},
                 {AddOp{}, {5, 9}, 10}};
  const int32_t w = width;
  shape.widths = {w, w, 3 * w, w, w, w, w, 4 * w, 2 * w, w, w};
  shape.weightShapes = {{1, w}, {3 * w, w}, {w, w}, {1, w}, {4 * w, w}, {w, 2 * w}};
  return shape;
}

// The numbers of rows that cuBLASLt computes for steps of up to `last`.
std::vector<int32_t> sizesUpTo(int32_t last) {
  std::vector<int32_t> sizes;
  for (int32_t rows = 1; rows <= last; ++rows) {
    const int32_t padded = KernelSegment::paddedRows(rows);
    if (sizes.empty() || sizes.back() != padded) sizes.push_back(padded);
  }
  return sizes;
}

}  // namespace

// Before the tests that open the library in this process, so that these fork without it.
TEST(cublasCanBeSwitchedOff) {
  CHECK_EQ(inProcess("off", [] { return created(); }), std::string("ERR_IO: NODE_TENSORRT_CUBLAS is off"));
  CHECK_EQ(inProcess("off", [] { return std::string(CublasLinear::isNamed() ? "named" : "not"); }),
           std::string("not"));
  CHECK_EQ(inProcess("", [] { return std::string(CublasLinear::isNamed() ? "named" : "not"); }),
           std::string("not"));
  CHECK_EQ(inProcess(nullptr, [] { return std::string(CublasLinear::isNamed() ? "named" : "not"); }),
           std::string("not"));
  CHECK_EQ(inProcess("/a", [] { return std::string(CublasLinear::isNamed() ? "named" : "not"); }),
           std::string("named"));
}

TEST(aFolderWithoutCublasIsNamedWithWhatWasLookedFor) {
  const Folder folder;
  const std::string said = inProcess(folder.path().c_str(), [] { return created(); });
  CHECK_CONTAINS(said, "ERR_IO: cuBLASLt was not found");
  CHECK_CONTAINS(said, folder.path() + "/libcublasLt.so.13");
  CHECK_CONTAINS(said, folder.path() + "/libcublasLt.so.12");
  CHECK(said.find("/usr/local") == std::string::npos);
}

TEST(aCublasThatLacksFunctionsIsRefused) {
  const std::string said = inProcess(kLacking.c_str(), [] { return created(); });
  CHECK_CONTAINS(said, "ERR_IO");
  CHECK_CONTAINS(said, kLacking + "/libcublasLt.so.13 lacks functions of cuBLASLt");
  CHECK_CONTAINS(said, kLacking + "/libcublasLt.so.12");
}

TEST(anotherVersionServesWhereTheFirstIsBroken) {
  const Folder folder;
  folder.write("libcublasLt.so.13", "no library");
  const std::string said = inProcess(folder.path().c_str(), [] { return created(); });
  CHECK_CONTAINS(said, folder.path() + "/libcublasLt.so.13: file too short");
  folder.link("libcublasLt.so.12", kComplete + "/libcublasLt.so.13");
  CHECK_EQ(inProcess(folder.path().c_str(), [] { return created(); }), std::string("13.1.2"));
  std::filesystem::remove(folder.path() + "/libcublasLt.so.13");
  folder.link("libcublasLt.so.13", kLacking + "/libcublasLt.so.13");
  CHECK_EQ(inProcess(folder.path().c_str(), [] { return created(); }), std::string("13.1.2"));
}

TEST(float32IsLeftToTheEngine) {
  CHECK_CONTAINS(inProcess("off", [] { return created(DType::kF32); }), "ERR_MODEL_UNSUPPORTED");
}

TEST(aHandleThatIsNotMadeLeavesNothing) {
  const Fixture fixture;
  standIn().createStatus = 1;
  const auto made = CublasLinear::create(DType::kBF16);
  REQUIRE(!made);
  CHECK_EQ(made.status().code(), std::string("ERR_CUDA"));
  CHECK_CONTAINS(made.status().message(), "cublasLtCreate: status 1");
  CHECK_CONTAINS(made.status().hint(), "NODE_TENSORRT_CUBLAS=off");
  standIn().createStatus = 0;
  fake::failAllocation(1);
  const auto poor = CublasLinear::create(DType::kBF16);
  fake::failAllocation(0);
  REQUIRE(!poor);
  CHECK_EQ(poor.status().code(), std::string("ERR_OUT_OF_DEVICE_MEMORY"));
}

TEST(aLinearLayerByCublas) {
  const Fixture fixture;
  std::mt19937 random(3);
  Stream stream;
  REQUIRE(cudaStreamCreateWithFlags(stream.put(), cudaStreamNonBlocking) == cudaSuccess);
  for (const DType dtype : {DType::kBF16, DType::kF16}) {
    const auto linear = library(dtype);
    CHECK_EQ(linear->version(), std::string("13.1.2"));
    constexpr int32_t kRows = 16;
    constexpr int32_t kN = 24;
    constexpr int32_t kK = 40;
    for (const bool biased : {false, true}) {
      for (const bool added : {false, true}) {
        const Tensor x(kRows * kK, dtype, random);
        const Tensor weight(kN * kK, dtype, random);
        const Tensor bias(kN, dtype, random);
        const Tensor y(kRows * kN, dtype, random);
        LinearArgs args{x.device.as<>(),
                        weight.device.as<>(),
                        biased ? bias.device.as<>() : nullptr,
                        added ? y.device.as<>() : nullptr,
                        y.device.as<>(),
                        kRows,
                        kN,
                        kK};
        const Status status = linear->enqueue(args, stream.get());
        CHECK(status.isOk());
        CHECK(cudaStreamSynchronize(stream.get()) == cudaSuccess);
        double worst = 0;
        for (size_t row = 0; row < kRows; ++row) {
          for (size_t column = 0; column < kN; ++column) {
            const size_t at = row * kN + column;
            double want = (biased ? bias.host[column] : 0) + (added ? y.host[at] : 0);
            for (size_t i = 0; i < kK; ++i)
              want += double{x.host[row * kK + i]} * weight.host[column * kK + i];
            worst = std::max(worst, std::abs(y.valueAt(at, dtype) - want) / std::max(1.0, std::abs(want)));
          }
        }
        CHECK(worst < (dtype == DType::kF16 ? 2e-3 : 1.6e-2));
      }
    }
  }
}

TEST(aShapeIsChosenOnce) {
  const Fixture fixture;
  const auto linear = library();
  LinearArgs shape;
  shape.rows = 32;
  shape.n = shape.k = 64;
  for (int i = 0; i < 3; ++i) CHECK(linear->prepare(shape).isOk());
  CHECK_EQ(standIn().heuristics, 1);
  shape.bias = &shape;
  CHECK(linear->prepare(shape).isOk());
  CHECK_EQ(standIn().heuristics, 2);
  CHECK_EQ(standIn().products, 0);
}

TEST(aShapeThatCublasHasNoKernelForIsAnError) {
  const Fixture fixture;
  const auto linear = library();
  LinearArgs shape;
  shape.rows = 16;
  shape.n = 8;
  shape.k = 24;
  standIn().kernelsFound = 0;
  Status status = linear->prepare(shape);
  CHECK_CONTAINS(status.message(), "cuBLASLt has no kernel for 16 x 8 x 24");
  standIn().heuristicStatus = 15;
  status = linear->prepare(shape);
  CHECK_EQ(status.code(), std::string("ERR_CUDA"));
  CHECK_CONTAINS(status.message(), "status 15");
  // What failed is not remembered.
  standIn() = {.living = standIn().living};
  CHECK(linear->prepare(shape).isOk());
}

TEST(aLoadAgainMakesNothingNew) {
  const Fixture fixture;
  LinearArgs shape;
  shape.rows = 48;
  shape.n = 16;
  shape.k = 40;
  CHECK(library()->prepare(shape).isOk());
  const int32_t living = standIn().living;
  CHECK(living > 0);
  for (int32_t load = 0; load < 3; ++load) CHECK(library()->prepare(shape).isOk());
  CHECK_EQ(standIn().living, living);
  // What fails leaves nothing either.
  standIn().kernelsFound = 0;
  shape.rows = 64;
  CHECK(!library()->prepare(shape).isOk());
  CHECK_EQ(standIn().living, living);
}

TEST(aProductThatFailsSaysHowToDoWithout) {
  const Fixture fixture;
  std::mt19937 random(4);
  auto linear = library();
  const Tensor x(16 * 8, DType::kBF16, random);
  LinearArgs args{x.device.as<>(), x.device.as<>(), nullptr, nullptr, x.device.as<>(), 16, 8, 8};
  standIn().matmulStatus = 13;
  const Status status = linear->enqueue(args, nullptr);
  CHECK_EQ(status.code(), std::string("ERR_CUDA"));
  CHECK_CONTAINS(status.message(), "cublasLtMatmul: status 13");
  CHECK_CONTAINS(status.hint(), "NODE_TENSORRT_CUBLAS=off");
  // Its handle is not for another load: the device may have been reset.
  standIn().matmulStatus = 0;
  const int32_t living = standIn().living;
  const auto again = library();
  CHECK_EQ(standIn().living, living + 1);
  CHECK(linear->enqueue(args, nullptr).isOk());
  linear.reset();
  CHECK(standIn().living <= living);
  CHECK(again->enqueue(args, nullptr).isOk());
  CHECK(cudaStreamSynchronize(nullptr) == cudaSuccess);
}

TEST(rowsArePaddedToFewSizes) {
  for (const auto& [rows, padded] : std::vector<std::pair<int32_t, int32_t>>{{1, 16},
                                                                             {16, 16},
                                                                             {17, 32},
                                                                             {127, 128},
                                                                             {128, 128},
                                                                             {129, 160},
                                                                             {511, 512},
                                                                             {512, 512},
                                                                             {513, 576},
                                                                             {1000, 1024},
                                                                             {1024, 1024},
                                                                             {8191, 8192}}) {
    CHECK_EQ(KernelSegment::paddedRows(rows), padded);
  }
  int32_t before = 0;
  for (int32_t rows = 1; rows <= 8192; ++rows) {
    const int32_t padded = KernelSegment::paddedRows(rows);
    // A step of fewer rows fits what was allocated for one of more, and a size is its own.
    CHECK(padded >= rows && padded >= before && padded - rows < 64);
    CHECK_EQ(KernelSegment::paddedRows(padded), padded);
    before = padded;
  }
  CHECK_EQ(sizesUpTo(1024).size(), size_t{28});
}

TEST(aSegmentChoosesAndWarmsUpEverySize) {
  // A shape is chosen once in a process: each case has widths of its own.
  int32_t headDim = 0;
  for (const int32_t last : {9, 100, 1000}) {
    for (const bool biases : {false, true}) {
      const Fixture fixture;
      const auto linear = library();
      headDim += 4;
      const auto width = static_cast<uint64_t>(2 * headDim);
      const SegmentShape shape = layerOf(2, headDim, biases);
      const auto segment = KernelSegment::create(shape, DType::kBF16, linear.get(), {1, last});
      REQUIRE(segment != nullptr);
      CHECK(segment->usesCublas());
      CHECK(segment->runs(1) && segment->runs(last) && !segment->runs(last + 1));
      const auto sizes = static_cast<int32_t>(sizesUpTo(last).size());
      CHECK_EQ(standIn().heuristics, 2 * sizes);

      // Not a byte more than the rows of padding need: the stand-in refuses what goes beyond.
      const auto rows = static_cast<uint64_t>(KernelSegment::paddedRows(last));
      CHECK(segment->scratchBytes() >= rows * 5 * width * 2);  // qkv, attention's result, rotated q
      const DeviceBuffer x = allocate(rows * width * 2);
      const DeviceBuffer y = allocate(rows * width * 2);
      const DeviceBuffer scratch = allocate(segment->scratchBytes());
      std::vector<DeviceBuffer> memory;
      std::vector<void*> weights;
      for (const auto& dims : shape.weightShapes) {
        memory.push_back(allocate(static_cast<uint64_t>(dims[0] * dims[1]) * 2));
        weights.push_back(memory.back().as<>());
      }
      segment->setScratch(scratch.as<>());
      Stream stream;
      REQUIRE(cudaStreamCreateWithFlags(stream.put(), cudaStreamNonBlocking) == cudaSuccess);
      const Status status = segment->warmUp(x.as<>(), y.as<>(), weights, stream.get());
      CHECK_EQ(status.message(), std::string());
      CHECK_EQ(standIn().products, 2 * sizes);
      CHECK_EQ(standIn().lastRows, static_cast<int32_t>(rows));
      CHECK_EQ(standIn().heuristics, 2 * sizes);
      CHECK(cudaStreamSynchronize(stream.get()) == cudaSuccess);
    }
  }
}

TEST(aSegmentWithNormsAndAGateHasPlaceForPadding) {
  const Fixture fixture;
  const auto linear = library(DType::kF16);
  const SegmentShape shape = decoderLayer(8);
  const auto segment = KernelSegment::create(shape, DType::kF16, linear.get(), {1, 190});
  REQUIRE(segment != nullptr);
  CHECK(segment->usesCublas());
  CHECK_EQ(standIn().heuristics, 4 * static_cast<int32_t>(sizesUpTo(190).size()));
  // qkv, attention's result, the first sum, the activation; rotated q, a norm's result, gate and up.
  CHECK(segment->scratchBytes() >= uint64_t{192} * (24 + 8 + 8 + 16 + 8 + 8 + 32) * 2);
}

TEST(gateAndUpRunTogetherWherePairsOfTilesAreFull) {
  for (const int32_t rows : {224, 256, 448, 480, 512, 768, 1024, 1216, 2048, 4096, 8192})
    CHECK(kernels::gatedLinearPays(rows));
  for (const int32_t rows : {0, 1, 16, 128, 223, 257, 300, 447, 513, 704, 2049, 2112}) {
    CHECK(!kernels::gatedLinearPays(rows));
  }
  for (int32_t rows = 4865; rows <= 8192; ++rows) CHECK(kernels::gatedLinearPays(rows));
}

// Neither is a product chosen nor memory held for it where gate and up run together.
TEST(aSegmentNeedsNoProductOfGateAndUpThatRunTogether) {
  const Fixture fixture;
  const auto linear = library(DType::kF16);
  const auto segment = KernelSegment::create(decoderLayer(16), DType::kF16, linear.get(), {1, 1024});
  REQUIRE(segment != nullptr);
  CHECK(segment->usesCublas());
  // The module may be built without the kernel.
  const bool fits = kernels::gatedLinearFits(DType::kF16, kernels::LinearGate::kSilu, 32, 16);
  int32_t products = 0;
  int32_t largest = 0;
  const std::vector<int32_t> sizes = sizesUpTo(1024);
  for (const int32_t size : sizes) {
    if (fits && kernels::gatedLinearPays(size)) continue;
    ++products;
    largest = size;
  }
  CHECK_EQ(products, fits ? 21 : 28);
  CHECK_EQ(standIn().heuristics, 3 * static_cast<int32_t>(sizes.size()) + products);
  const auto others = uint64_t{1024} * (48 + 16 + 16 + 32 + 16 + 16) * 2;
  const uint64_t product = static_cast<uint64_t>(largest) * 64 * 2;
  CHECK(segment->scratchBytes() >= others + product);
  CHECK(segment->scratchBytes() <= others + product + 7 * 256);
}

TEST(aSegmentKeepsFewerRowsBehindItsAttention) {
  const Fixture fixture;
  const auto linear = library(DType::kF16);
  const SegmentShape shape = decoderLayer(64);
  const RowRange all = {1, 1024};
  const auto whole = KernelSegment::create(shape, DType::kF16, linear.get(), all);
  const auto segment = KernelSegment::create(shape, DType::kF16, linear.get(), all, 100);
  REQUIRE(whole != nullptr && segment != nullptr);
  CHECK(segment->runs(1) && segment->usesCublas());
  for (const int32_t count : {0, 1, 8, 9, 100}) {
    CHECK(segment->keeps(512, count));
    CHECK(!whole->keeps(512, count));
  }
  CHECK(!segment->keeps(512, 101));
  // Padded, the rows are as many: nothing to gain.
  CHECK(!segment->keeps(110, 100) && segment->keeps(113, 100));
  CHECK(!segment->keeps(48, 48) && !segment->keeps(48, 33) && segment->keeps(48, 32));
  CHECK(!segment->keeps(8, 1) && !segment->keeps(1025, 1));
  // The step's input and what attention gives, of 112 rows.
  CHECK_EQ(segment->scratchBytes(), whole->scratchBytes() + uint64_t{2} * 112 * 64 * 2);

  // Without attention every row is read.
  SegmentShape head;
  head.name = "head";
  head.nodes = {{LinearOp{{"w"}, {}}, {0}, 1}};
  head.widths = {64, 128};
  head.weightShapes = {{128, 64}};
  const auto rows = KernelSegment::create(head, DType::kF16, linear.get(), all, 100);
  REQUIRE(rows != nullptr);
  CHECK(!rows->keeps(512, 1));
  const auto few = KernelSegment::create(shape, DType::kF16, nullptr, all, 100);
  REQUIRE(few != nullptr);
  CHECK(!few->keeps(512, 1));
}

TEST(aSegmentGoesWithoutCublas) {
  const Fixture fixture;
  const auto linear = library();
  // 64 wide: what the kernels of few rows take.
  const SegmentShape shape = layerOf(2, 32, false);
  const auto few = KernelSegment::create(shape, DType::kBF16, nullptr, {1, 1024});
  REQUIRE(few != nullptr);
  CHECK(!few->usesCublas());
  CHECK(few->runs(8) && !few->runs(9));

  standIn().kernelsFound = 0;
  const auto without = KernelSegment::create(shape, DType::kBF16, linear.get(), {1, 1024});
  REQUIRE(without != nullptr);
  CHECK(!without->usesCublas());
  CHECK(without->runs(8) && !without->runs(9));
  // 120 wide: nothing is left.
  CHECK(KernelSegment::create(layerOf(2, 60, false), DType::kBF16, linear.get(), {1, 1024}) == nullptr);
  standIn().kernelsFound = 1;

  // 12 wide: neither takes it.
  CHECK(KernelSegment::create(layerOf(3, 4, false), DType::kBF16, linear.get(), {1, 1024}) == nullptr);
  CHECK(KernelSegment::create(shape, DType::kF32, linear.get(), {1, 1024}) == nullptr);
}

TEST_MAIN()
