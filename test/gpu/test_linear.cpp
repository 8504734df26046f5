// cuBLASLt's linear layers, norms and gated activations against a plain computation in double precision, and the
// time of a decoder layer's without its attention. Needs a GPU and cuBLASLt (NODE_TENSORRT_CUBLAS names its folder).
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <functional>
#include <random>
#include <string>
#include <vector>

#include "check.h"
#include "support/device_array.h"
#include "tensorrt/cublas_linear.h"
#include "tensorrt/kernel_segment.h"
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
  LinearArgs args{x.at(), weight.at(), withBias ? bias.at() : nullptr, withResidual ? residual.at() : nullptr,
                  y.at(), rows,        n,                              k};
  const Status status = linear.enqueue(args, nullptr);
  CHECK(status.isOk());
  if (!status) std::printf("  %s\n", status.message().c_str());
  const std::vector<T> got = fetch<T>(y.at(), y.host.size());
  double worst = 0;
  // Some of the rows and columns: the reference is slow.
  for (int32_t row = 0; row < rows; row += std::max(1, rows / 5)) {
    for (int32_t column = row % 7; column < n; column += std::max(1, n / 97)) {
      double want = 0;
      for (int32_t i = 0; i < k; ++i) want += valueOf(x.host[at(row, k, i)]) * valueOf(weight.host[at(column, k, i)]);
      if (withBias) want += valueOf(bias.host[static_cast<size_t>(column)]);
      if (withResidual) want += valueOf(residual.host[at(row, n, column)]);
      worst = std::max(worst, difference(valueOf(got[at(row, n, column)]), want));
    }
  }
  CHECK(worst < kLimit<T>);
  if (worst >= kLimit<T>) std::printf("  linear rows %d n %d k %d bias %d residual %d: %g\n", rows, n, k, withBias, withResidual, worst);
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
        const double active = gate == LinearGate::kSilu
                                  ? f / (1 + std::exp(-f))
                                  : 0.5 * f * (1 + std::tanh(0.7978845608028654 * (f + 0.044715 * f * f * f)));
        worst = std::max(worst, difference(valueOf(got[row * w + i]), round(active) * up));
      }
    }
    CHECK(worst < kLimit<T>);
    if (worst >= kLimit<T>) std::printf("  gate %d rows %d width %d: %g\n", static_cast<int>(gate), rows, width, worst);
  }
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
  for (const auto& [rows, width] : {std::pair{9, 64}, {33, 100}, {5, 2048}, {17, 4096}, {3, 8192}, {2, 14336}}) {
    checkRows<T>(rows, width, random);
  }
}

TEST(LinearBFloat16) {
  checkAll<__nv_bfloat16>();
}

TEST(LinearFloat16) {
  checkAll<__half>();
}

// Median microseconds of a layer in a CUDA graph of eight, each with weights of its own.
double timed(cudaStream_t stream, const std::function<void()>& enqueue, int layers) {
  enqueue();
  cuda(cudaStreamSynchronize(stream));
  cuda(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
  enqueue();
  CapturedGraph graph;
  cuda(cudaStreamEndCapture(stream, graph.put()));
  GraphExec exec;
  cuda(cudaGraphInstantiate(exec.put(), graph.get(), 0));
  Event begin, end;
  cuda(cudaEventCreate(begin.put()));
  cuda(cudaEventCreate(end.put()));
  std::vector<float> times;
  for (int i = 0; i < 24; ++i) {
    cuda(cudaEventRecord(begin.get(), stream));
    cuda(cudaGraphLaunch(exec.get(), stream));
    cuda(cudaEventRecord(end.get(), stream));
    cuda(cudaEventSynchronize(end.get()));
    float ms = 0;
    cuda(cudaEventElapsedTime(&ms, begin.get(), end.get()));
    if (i >= 4) times.push_back(ms);
  }
  std::nth_element(times.begin(), times.begin() + times.size() / 2, times.end());
  return 1000.0 * static_cast<double>(times[times.size() / 2]) / layers;
}

void measure(const char* name, int32_t width, int32_t hidden, int32_t qkv) {
  constexpr int kLayers = 8;
  constexpr int32_t kMaxRows = 4096;
  std::mt19937 random(1);
  // Real values, as power and so the clock depend on them.
  const Array<__nv_bfloat16> noise(size_t{1} << 24, 0.02, random);
  const auto make = [&](int64_t elements) {
    auto memory = DeviceBuffer::allocate(static_cast<uint64_t>(elements) * 2, "test");
    if (!memory) throw std::runtime_error(memory.status().message());
    const auto bytes = static_cast<size_t>(elements) * 2;
    const size_t piece = noise.host.size() * 2;
    for (size_t at = 0; at < bytes; at += piece) {
      cuda(cudaMemcpy(memory->as<char>() + at, noise.at(), std::min(piece, bytes - at), cudaMemcpyDeviceToDevice));
    }
    return *std::move(memory);
  };
  struct Layer {
    DeviceBuffer qkv, out, gate, down, norm;
  };
  std::vector<Layer> layers;
  for (int i = 0; i < kLayers; ++i) {
    layers.push_back({make(int64_t{qkv} * width), make(int64_t{width} * width), make(int64_t{2} * hidden * width),
                      make(int64_t{width} * hidden), make(width)});
  }
  const DeviceBuffer x = make(int64_t{kMaxRows} * width), h = make(int64_t{kMaxRows} * width),
                     a = make(int64_t{kMaxRows} * qkv), g = make(int64_t{kMaxRows} * 2 * hidden),
                     b = make(int64_t{kMaxRows} * hidden), normed = make(int64_t{kMaxRows} * width);
  const auto linear = library(DType::kBF16);
  Stream stream;
  cuda(cudaStreamCreate(stream.put()));
  for (const int32_t rows : {16, 32, 64, 128, 192, 256, 384, 512, 768, 1024, 2048, 4096}) {
    const auto product = [&](const DeviceBuffer& in, const DeviceBuffer& weight, const void* residual,
                             const DeviceBuffer& out, int32_t n, int32_t k) {
      const Status status = linear->enqueue({in.as<>(), weight.as<>(), nullptr, residual, out.as<>(), rows, n, k}, stream.get());
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
    const auto whole = [&] {
      for (const Layer& layer : layers) {
        const auto norm = [&](const DeviceBuffer& in) {
          cuda(kernels::rmsNorm(DType::kBF16, in.as<>(), layer.norm.as<>(), 1e-5F, rows, width,
                                normed.as<>(), true, stream.get()));
        };
        norm(x);
        product(normed, layer.qkv, nullptr, a, qkv, width);
        product(a, layer.out, x.as<>(), h, width, width);
        norm(h);
        product(normed, layer.gate, nullptr, g, 2 * hidden, width);
        cuda(kernels::gatedActivation(DType::kBF16, LinearGate::kSilu, g.as<>(), rows, hidden, b.as<>(), true,
                                      stream.get()));
        product(b, layer.down, h.as<>(), x, width, hidden);
      }
    };
    std::printf("%s, %4d rows: products %7.1f us a layer, with norms, activation and residuals %7.1f\n", name,
                rows, timed(stream.get(), products, kLayers), timed(stream.get(), whole, kLayers));
    std::fflush(stdout);
  }
}

TEST(LinearTime) {
  measure("Llama-2-7B", 4096, 11008, 12288);
  measure("Llama-3-8B", 4096, 14336, 6144);
}

}  // namespace

TEST_MAIN()
