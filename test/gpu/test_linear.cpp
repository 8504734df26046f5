// cuBLASLt's linear layers, norms, gated activations and the kernel of gate and up against a plain
// computation in double precision, and the time of a decoder layer's without its attention. Needs a GPU and
// cuBLASLt (NODE_TENSORRT_CUBLAS names its folder).
#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <cstdio>
#include <cstring>
#include <functional>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "check.h"
#include "support/device_array.h"
#include "tensorrt/cublas_linear.h"
#include "tensorrt/kernel_segment.h"
#include "tensorrt/kernels/gated_linear.h"
#include "tensorrt/kernels/layer_rows.h"

namespace {

using namespace nt;
using kernels::LinearGate;
using test::Array;
using test::cuda;
using test::toType;
using test::valueOf;

template <class T>
constexpr DType kType = std::is_same_v<T, __half> ? DType::kF16 : DType::kBF16;
// Two roundings of the type, where a sum lies at the border of two values.
template <class T>
constexpr double kLimit = std::is_same_v<T, __half> ? 4e-3 : 3.2e-2;

std::unique_ptr<CublasLinear> library(DType dtype) {
  auto made = CublasLinear::create(dtype);
  if (!made) throw std::runtime_error(made.status().message());
  return *std::move(made);
}

template <class T>
std::vector<T> fetch(const void* from, size_t count) {
  std::vector<T> values(count);
  cuda(cudaDeviceSynchronize());
  cuda(cudaMemcpy(values.data(), from, count * sizeof(T), cudaMemcpyDeviceToHost));
  return values;
}

double difference(double got, double want) {
  return std::abs(got - want) / std::max(1.0, std::abs(want));
}

// Memory that holds what `noise` does, over and over.
template <class T>
DeviceBuffer repeated(const Array<T>& noise, int64_t elements) {
  const auto bytes = static_cast<size_t>(elements) * sizeof(T);
  auto memory = DeviceBuffer::allocate(bytes, "test");
  if (!memory) throw std::runtime_error(memory.status().message());
  const size_t piece = noise.host.size() * sizeof(T);
  for (size_t at = 0; at < bytes; at += piece) {
    cuda(cudaMemcpy(memory->template as<char>() + at, noise.at(), std::min(piece, bytes - at),
                    cudaMemcpyDeviceToDevice));
  }
  return *std::move(memory);
}

// Whether gatedLinear runs on this device.
bool hasGatedLinear() {
  int major = 0;
  int minor = 0;
  cuda(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, 0));
  cuda(cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, 0));
  return major == 9 && minor == 0 && kernels::gatedLinearFits(DType::kBF16, LinearGate::kSilu, 8, 8);
}

// Says so, where it does not.
bool lacksGatedLinear() {
  const bool lacks = !hasGatedLinear();
  if (lacks) std::printf("skipped: gatedLinear is not for this device\n");
  return lacks;
}

template <class T>
void checkLinear(CublasLinear& linear, int32_t rows, int32_t n, int32_t k, bool withBias, bool withResidual,
                 std::mt19937& random) {
  const auto at = [](int32_t row, int32_t width, int32_t i) {
    return static_cast<size_t>(row) * static_cast<size_t>(width) + static_cast<size_t>(i);
  };
  const Array<T> x(at(rows, k, 0), 1, random);
  const Array<T> weight(at(n, k, 0), 1 / std::sqrt(static_cast<double>(k)), random);
  const Array<T> bias(static_cast<size_t>(n), 1, random);
  const Array<T> residual(at(rows, n, 0), 1, random);
  const Array<T> y(at(rows, n, 0), 0, random);
  LinearArgs args{x.at(),
                  weight.at(),
                  withBias ? bias.at() : nullptr,
                  withResidual ? residual.at() : nullptr,
                  y.at(),
                  rows,
                  n,
                  k};
  const Status status = linear.enqueue(args, nullptr);
  CHECK(status.isOk());
  if (!status) std::printf("  %s\n", status.message().c_str());
  const std::vector<T> got = fetch<T>(y.at(), y.host.size());
  double worst = 0;
  // Some of the rows and columns: the reference is slow.
  for (int32_t row = 0; row < rows; row += std::max(1, rows / 5)) {
    for (int32_t column = row % 7; column < n; column += std::max(1, n / 97)) {
      double want = 0;
      for (int32_t i = 0; i < k; ++i)
        want += valueOf(x.host[at(row, k, i)]) * valueOf(weight.host[at(column, k, i)]);
      if (withBias) want += valueOf(bias.host[static_cast<size_t>(column)]);
      if (withResidual) want += valueOf(residual.host[at(row, n, column)]);
      worst = std::max(worst, difference(valueOf(got[at(row, n, column)]), want));
    }
  }
  CHECK(worst < kLimit<T>);
  if (worst >= kLimit<T>)
    std::printf("  linear rows %d n %d k %d bias %d residual %d: %g\n", rows, n, k, withBias, withResidual,
                worst);
}

template <class T>
void checkRows(int32_t rows, int32_t width, std::mt19937& random) {
  const auto count = static_cast<size_t>(rows) * static_cast<size_t>(width);
  const Array<T> in(2 * count, 1, random);
  const Array<T> weight(static_cast<size_t>(width), 1, random);
  const Array<T> out(count, 0, random);
  const auto round = [](double v) { return valueOf(toType<T>(v)); };
  const auto w = static_cast<size_t>(width);

  cuda(kernels::rmsNorm(kType<T>, in.at(), weight.at(), 1e-5F, rows, width, out.at(), true, nullptr));
  std::vector<T> got = fetch<T>(out.at(), count);
  double worst = 0;
  for (size_t row = 0; row < static_cast<size_t>(rows); ++row) {
    double squares = 0;
    for (size_t i = 0; i < w; ++i) squares += std::pow(valueOf(in.host[row * w + i]), 2);
    const double root = std::sqrt(squares / width + 1e-5);
    for (size_t i = 0; i < w; ++i) {
      const double want = round(valueOf(in.host[row * w + i]) / root) * valueOf(weight.host[i]);
      worst = std::max(worst, difference(valueOf(got[row * w + i]), want));
    }
  }
  CHECK(worst < kLimit<T>);
  if (worst >= kLimit<T>) std::printf("  norm rows %d width %d: %g\n", rows, width, worst);

  if (width % 8 != 0) return;
  for (const LinearGate gate : {LinearGate::kSilu, LinearGate::kGeluTanh}) {
    cuda(kernels::gatedActivation(kType<T>, gate, in.at(), rows, width, out.at(), true, nullptr));
    got = fetch<T>(out.at(), count);
    worst = 0;
    for (size_t row = 0; row < static_cast<size_t>(rows); ++row) {
      for (size_t i = 0; i < w; ++i) {
        const double f = valueOf(in.host[row * 2 * w + i]);
        const double up = valueOf(in.host[row * 2 * w + w + i]);
        const double active =
            gate == LinearGate::kSilu
                ? f / (1 + std::exp(-f))
                : 0.5 * f * (1 + std::tanh(0.7978845608028654 * (f + 0.044715 * f * f * f)));
        worst = std::max(worst, difference(valueOf(got[row * w + i]), round(active) * up));
      }
    }
    CHECK(worst < kLimit<T>);
    if (worst >= kLimit<T>)
      std::printf("  gate %d rows %d width %d: %g\n", static_cast<int>(gate), rows, width, worst);
  }
}

// Samples of the outputs against double precision, all of them against cuBLASLt's product and the
// activation's kernel. `weight` holds what `noise` does, over and over.
template <class T>
void checkGated(CublasLinear& linear, const Array<T>& x, const Array<T>& noise, const DeviceBuffer& weight,
                int32_t rows, int32_t n, int32_t k) {
  constexpr size_t kGuard = 2048;  // elements on both sides of y
  const auto width = static_cast<size_t>(n);
  const size_t count = static_cast<size_t>(rows) * width;
  const auto make = [](size_t elements) {
    auto memory = DeviceBuffer::allocate(elements * sizeof(T), "test");
    if (!memory) throw std::runtime_error(memory.status().message());
    return *std::move(memory);
  };
  // Of no numbers, as the guards: an output that is not written shows, too.
  const DeviceBuffer y = make(count + 2 * kGuard);
  cuda(cudaMemset(y.as<>(), 0xff, y.bytes()));
  kernels::GatedLinearArgs args;
  args.x = x.at();
  args.weight = weight.as<>();
  args.y = y.as<T>() + kGuard;
  args.rows = rows;
  args.n = n;
  args.k = k;
  cuda(kernels::gatedLinear(kType<T>, args, false, nullptr));
  const std::vector<T> all = fetch<T>(y.as<>(), count + 2 * kGuard);
  const T* got = all.data() + kGuard;
  const auto bitsOf = [](const T& value) {
    uint16_t bits = 0;
    std::memcpy(&bits, &value, sizeof bits);
    return bits;
  };
  size_t touched = 0;
  for (size_t i = 0; i < kGuard; ++i) {
    touched += bitsOf(all[i]) != 0xffff;
    touched += bitsOf(all[kGuard + count + i]) != 0xffff;
  }
  CHECK_EQ(touched, size_t{0});

  // What is not a number counts as wrong.
  size_t wrong = 0;
  double worst = 0;
  const auto compare = [&](double value, double want) {
    const double apart = difference(value, want);
    if (!(apart < kLimit<T>)) ++wrong;
    worst = std::max(worst, apart);
  };
  const auto round = [](double v) { return valueOf(toType<T>(v)); };
  const auto dot = [&](size_t row, size_t weightRow) {
    const auto length = static_cast<size_t>(k);
    double sum = 0;
    for (size_t i = 0; i < length; ++i) {
      sum += valueOf(x.host[row * length + i]) *
             valueOf(noise.host[(weightRow * length + i) % noise.host.size()]);
    }
    return sum;
  };
  const auto last = static_cast<size_t>(rows) - 1;
  for (const size_t row : {size_t{0}, last / 3, last / 2, last - last / 7, last}) {
    for (size_t column = row % 7; column < width + 96; column += std::max<size_t>(1, width / 61)) {
      const size_t c = std::min(column, width - 1);
      const double f = round(dot(row, c));
      compare(valueOf(got[row * width + c]), round(f / (1 + std::exp(-f))) * round(dot(row, width + c)));
    }
  }
  const size_t wrongSamples = std::exchange(wrong, 0);

  const DeviceBuffer product = make(2 * count);
  const DeviceBuffer other = make(count);
  const Status status =
      linear.enqueue({x.at(), weight.as<>(), nullptr, nullptr, product.as<>(), rows, 2 * n, k}, nullptr);
  CHECK_EQ(status.message(), std::string());
  cuda(kernels::gatedActivation(kType<T>, LinearGate::kSilu, product.as<>(), rows, n, other.as<>(), false,
                                nullptr));
  const std::vector<T> want = fetch<T>(other.as<>(), count);
  for (size_t i = 0; i < count; ++i) {
    if (bitsOf(got[i]) != bitsOf(want[i])) compare(valueOf(got[i]), valueOf(want[i]));
  }
  CHECK_EQ(wrongSamples, size_t{0});
  CHECK_EQ(wrong, size_t{0});
  if (wrongSamples + wrong > 0) {
    std::printf("  gate and up, rows %d n %d k %d: %zu samples and %zu of %zu outputs are wrong, worst %g\n",
                rows, n, k, wrongSamples, wrong, count, worst);
  }
}

template <class T>
void checkGatedShapes() {
  if (lacksGatedLinear()) return;
  std::mt19937 random(12);
  const auto linear = library(kType<T>);
  constexpr std::array kRows = {1, 7, 64, 128, 129, 256, 300, 513, 1000, 2048};
  for (const auto& [n, k] : {std::pair{8, 64}, {264, 72}, {1000, 520}, {11008, 4096}, {14336, 4096}}) {
    const Array<T> x(static_cast<size_t>(kRows.back()) * static_cast<size_t>(k), 1, random);
    // A prime number of values: no two rows are the same.
    constexpr size_t kPeriod = 4194301;
    const size_t count = size_t{2} * static_cast<size_t>(n) * static_cast<size_t>(k);
    const Array<T> noise(std::min(count, kPeriod), 1 / std::sqrt(static_cast<double>(k)), random);
    const DeviceBuffer weight = repeated(noise, static_cast<int64_t>(count));
    for (const int32_t rows : kRows) checkGated<T>(*linear, x, noise, weight, rows, n, k);
  }
}

TEST(GatedLinearBFloat16) {
  checkGatedShapes<__nv_bfloat16>();
}

TEST(GatedLinearFloat16) {
  checkGatedShapes<__half>();
}

TEST(GatedLinearRefusesWhatDoesNotFit) {
  CHECK(!kernels::gatedLinearFits(DType::kF32, LinearGate::kSilu, 64, 64));
  CHECK(!kernels::gatedLinearFits(DType::kBF16, LinearGate::kGeluTanh, 64, 64));
  CHECK(!kernels::gatedLinearFits(DType::kBF16, LinearGate::kNone, 64, 64));
  CHECK(!kernels::gatedLinearFits(DType::kF16, LinearGate::kSilu, 12, 64));
  CHECK(!kernels::gatedLinearFits(DType::kF16, LinearGate::kSilu, 64, 4));
  CHECK(!kernels::gatedLinearFits(DType::kF16, LinearGate::kSilu, 0, 64));
  if (lacksGatedLinear()) return;
  std::mt19937 random(13);
  const Array<__half> memory(256, 1, random);
  const auto at = [&](size_t element) { return memory.device.as<__half>() + element; };
  kernels::GatedLinearArgs args{at(0), at(64), at(192), 1, 8, 8};
  args.rows = 0;
  CHECK_EQ(kernels::gatedLinear(DType::kF16, args, false, nullptr), cudaSuccess);
  args.rows = -1;
  CHECK_EQ(kernels::gatedLinear(DType::kF16, args, false, nullptr), cudaErrorInvalidValue);
  args.rows = 1;
  args.y = at(193);
  CHECK_EQ(kernels::gatedLinear(DType::kF16, args, false, nullptr), cudaErrorInvalidValue);
  args.y = at(192);
  args.k = 12;
  CHECK_EQ(kernels::gatedLinear(DType::kF16, args, false, nullptr), cudaErrorInvalidValue);
  // Nothing ran.
  const std::vector<__half> left = fetch<__half>(memory.at(), memory.host.size());
  CHECK(std::memcmp(left.data(), memory.host.data(), left.size() * sizeof(__half)) == 0);
}

template <class T>
void checkAll() {
  std::mt19937 random(11);
  const auto linear = library(kType<T>);
  std::printf("cuBLASLt %s\n", linear->version().c_str());
  for (const int32_t rows : {16, 48, 112, 256, 320, 832, 2048}) {
    for (const auto& [n, k] : {std::pair{96, 64}, {1024, 512}, {4096, 1376}}) {
      checkLinear<T>(*linear, rows, n, k, false, false, random);
      checkLinear<T>(*linear, rows, n, k, true, false, random);
      checkLinear<T>(*linear, rows, n, k, false, true, random);
      checkLinear<T>(*linear, rows, n, k, true, true, random);
    }
  }
  for (const auto& [rows, width] :
       {std::pair{9, 64}, {33, 100}, {5, 2048}, {17, 4096}, {3, 8192}, {2, 14336}}) {
    checkRows<T>(rows, width, random);
  }
}

TEST(LinearBFloat16) {
  checkAll<__nv_bfloat16>();
}

TEST(LinearFloat16) {
  checkAll<__half>();
}

// Median microseconds of a layer of each side, that is a CUDA graph of some, each with weights of its own.
// The sides take turns: the device's clock falls as it gets warm.
std::vector<double> timed(cudaStream_t stream, const std::vector<std::function<void()>>& sides, int layers) {
  std::vector<GraphExec> graphs(sides.size());
  for (size_t side = 0; side < sides.size(); ++side) {
    sides[side]();
    cuda(cudaStreamSynchronize(stream));
    cuda(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
    sides[side]();
    CapturedGraph graph;
    cuda(cudaStreamEndCapture(stream, graph.put()));
    cuda(cudaGraphInstantiate(graphs[side].put(), graph.get(), 0));
  }
  Event begin, end;
  cuda(cudaEventCreate(begin.put()));
  cuda(cudaEventCreate(end.put()));
  std::vector<std::vector<float>> times(sides.size());
  for (int i = 0; i < 24; ++i) {
    for (size_t side = 0; side < sides.size(); ++side) {
      cuda(cudaEventRecord(begin.get(), stream));
      cuda(cudaGraphLaunch(graphs[side].get(), stream));
      cuda(cudaEventRecord(end.get(), stream));
      cuda(cudaEventSynchronize(end.get()));
      float ms = 0;
      cuda(cudaEventElapsedTime(&ms, begin.get(), end.get()));
      if (i >= 4) times[side].push_back(ms);
    }
  }
  std::vector<double> medians;
  for (std::vector<float>& each : times) {
    const auto middle = each.begin() + static_cast<std::ptrdiff_t>(each.size() / 2);
    std::nth_element(each.begin(), middle, each.end());
    medians.push_back(1000.0 * static_cast<double>(*middle) / layers);
  }
  return medians;
}

void measure(const char* name, int32_t width, int32_t hidden, int32_t qkv) {
  constexpr int kLayers = 8;
  constexpr int32_t kMaxRows = 4096;
  std::mt19937 random(1);
  // Real values, as power and so the clock depend on them.
  const Array<__nv_bfloat16> noise(size_t{1} << 24, 0.02, random);
  const auto make = [&](int64_t elements) { return repeated(noise, elements); };
  struct Layer {
    DeviceBuffer qkv, out, gate, down, norm;
  };
  std::vector<Layer> layers;
  for (int i = 0; i < kLayers; ++i) {
    layers.push_back({make(int64_t{qkv} * width), make(int64_t{width} * width),
                      make(int64_t{2} * hidden * width), make(int64_t{width} * hidden), make(width)});
  }
  const DeviceBuffer x = make(int64_t{kMaxRows} * width), h = make(int64_t{kMaxRows} * width),
                     a = make(int64_t{kMaxRows} * qkv), g = make(int64_t{kMaxRows} * 2 * hidden),
                     b = make(int64_t{kMaxRows} * hidden), normed = make(int64_t{kMaxRows} * width);
  const auto linear = library(DType::kBF16);
  const bool hasGated = hasGatedLinear();
  Stream stream;
  cuda(cudaStreamCreate(stream.put()));
  for (const int32_t rows : {16, 32, 64, 128, 192, 256, 384, 512, 768, 1024, 2048, 4096}) {
    const auto product = [&](const DeviceBuffer& in, const DeviceBuffer& weight, const void* residual,
                             const DeviceBuffer& out, int32_t n, int32_t k) {
      const Status status = linear->enqueue(
          {in.as<>(), weight.as<>(), nullptr, residual, out.as<>(), rows, n, k}, stream.get());
      if (!status) throw std::runtime_error(status.message());
    };
    const auto products = [&] {
      for (const Layer& layer : layers) {
        product(x, layer.qkv, nullptr, a, qkv, width);
        product(a, layer.out, nullptr, h, width, width);
        product(h, layer.gate, nullptr, g, 2 * hidden, width);
        product(g, layer.down, nullptr, h, width, hidden);
      }
    };
    // `overlap`: what can start while the kernel before it ends does.
    const auto whole = [&](bool overlap) {
      for (const Layer& layer : layers) {
        const auto norm = [&](const DeviceBuffer& in) {
          cuda(kernels::rmsNorm(DType::kBF16, in.as<>(), layer.norm.as<>(), 1e-5F, rows, width, normed.as<>(),
                                overlap, stream.get()));
        };
        norm(x);
        product(normed, layer.qkv, nullptr, a, qkv, width);
        product(a, layer.out, x.as<>(), h, width, width);
        norm(h);
        if (hasGated && kernels::gatedLinearPays(rows)) {
          cuda(kernels::gatedLinear(DType::kBF16,
                                    {normed.as<>(), layer.gate.as<>(), b.as<>(), rows, hidden, width},
                                    overlap, stream.get()));
        } else {
          product(normed, layer.gate, nullptr, g, 2 * hidden, width);
          cuda(kernels::gatedActivation(DType::kBF16, LinearGate::kSilu, g.as<>(), rows, hidden, b.as<>(),
                                        overlap, stream.get()));
        }
        product(b, layer.down, h.as<>(), x, width, hidden);
      }
    };
    const std::vector<double> us = timed(
        stream.get(), {products, [&] { whole(false); }, [&] { whole(true); }}, kLayers);
    std::printf(
        "%s, %4d rows: products %7.1f us a layer, with norms, activation and residuals %7.1f, overlapping "
        "%7.1f\n",
        name, rows, us[0], us[1], us[2]);
    std::fflush(stdout);
  }
}

TEST(LinearTime) {
  measure("Llama-2-7B", 4096, 11008, 12288);
  measure("Llama-3-8B", 4096, 14336, 6144);
}

// Gate and up in one kernel beside cuBLASLt's product and the activation's, and where KernelSegment uses it.
void measureGated(const char* name, int32_t n, int32_t k) {
  constexpr int kLayers = 8;
  constexpr int64_t kMaxRows = 8192;
  std::mt19937 random(1);
  const Array<__nv_bfloat16> noise(size_t{1} << 24, 0.02, random);
  std::vector<DeviceBuffer> weights;
  for (int i = 0; i < kLayers; ++i) weights.push_back(repeated(noise, int64_t{2} * n * k));
  const DeviceBuffer x = repeated(noise, kMaxRows * k), product = repeated(noise, kMaxRows * 2 * n),
                     y = repeated(noise, kMaxRows * n);
  const auto linear = library(DType::kBF16);
  Stream stream;
  cuda(cudaStreamCreate(stream.put()));
  for (const int32_t rows : {128, 160, 192, 224, 256, 320, 384, 448, 512, 640, 768, 896, 1024, 1152, 1280,
                             2048, 2176, 4096, 8192}) {
    const auto two = [&] {
      for (const DeviceBuffer& weight : weights) {
        const Status status = linear->enqueue(
            {x.as<>(), weight.as<>(), nullptr, nullptr, product.as<>(), rows, 2 * n, k}, stream.get());
        if (!status) throw std::runtime_error(status.message());
        cuda(kernels::gatedActivation(DType::kBF16, LinearGate::kSilu, product.as<>(), rows, n, y.as<>(),
                                      true, stream.get()));
      }
    };
    const auto one = [&] {
      for (const DeviceBuffer& weight : weights) {
        cuda(kernels::gatedLinear(DType::kBF16, {x.as<>(), weight.as<>(), y.as<>(), rows, n, k}, false,
                                  stream.get()));
      }
    };
    const std::vector<double> us = timed(stream.get(), {two, one}, kLayers);
    std::printf(
        "%s, %4d rows, gate and up: cuBLASLt and activation %7.1f us, one kernel %7.1f us, %4.0f TFLOP/s, "
        "%.3f times as fast%s\n",
        name, rows, us[0], us[1], 4e-6 * rows * n * k / us[1], us[0] / us[1],
        kernels::gatedLinearPays(rows) ? "; used" : "");
    std::fflush(stdout);
  }
}

TEST(GatedLinearTime) {
  if (lacksGatedLinear()) return;
  measureGated("Llama-2-7B", 11008, 4096);
  measureGated("Llama-3-8B", 14336, 4096);
}

}  // namespace

TEST_MAIN()
