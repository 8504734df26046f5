// The linear kernels of few rows against a plain computation in double precision, and their speed against the
// bytes they read. Needs a GPU.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <random>
#include <string>
#include <vector>

#include "check.h"
#include "support/device_array.h"
#include "tensorrt/kernels/few_rows.h"

namespace {

using namespace nt;
using kernels::FewRowsArgs;
using kernels::LinearGate;
using test::Array;
using test::cuda;
using test::toType;
using test::valueOf;

struct Case {
  int32_t rows, n, k;
  LinearGate gate;
  bool norm, bias, residual;
};

// Hugging Face's order of operations with its roundings.
template <class T>
void check(const Case& c, std::mt19937& random) {
  const bool gated = c.gate != LinearGate::kNone;
  const auto n = static_cast<size_t>(c.n);
  const auto k = static_cast<size_t>(c.k);
  const auto rows = static_cast<size_t>(c.rows);
  const size_t outputs = gated ? 2 * n : n;
  const Array<T> x(rows * k, 1, random);
  const Array<T> weight(outputs * k, 1 / std::sqrt(static_cast<double>(k)), random);
  const Array<T> bias(outputs, 1, random);
  const Array<T> norm(k, 1, random);
  const Array<T> residual(rows * n, 1, random);
  const Array<T> y(rows * n, 0, random);
  FewRowsArgs args;
  args.x = x.at();
  args.weight = weight.at();
  args.bias = c.bias ? bias.at() : nullptr;
  args.norm = c.norm ? norm.at() : nullptr;
  args.residual = c.residual ? residual.at() : nullptr;
  args.y = y.at();
  args.rows = c.rows;
  args.n = c.n;
  args.k = c.k;
  args.eps = 1e-5F;
  args.gate = c.gate;
  constexpr DType kType = std::is_same_v<T, __half> ? DType::kF16 : DType::kBF16;
  cuda(kernels::fewRowsLinear(kType, args, true, nullptr));
  cuda(cudaDeviceSynchronize());
  std::vector<T> got(rows * n);
  cuda(cudaMemcpy(got.data(), y.at(), got.size() * sizeof(T), cudaMemcpyDeviceToHost));

  const auto round = [](double v) { return valueOf(toType<T>(v)); };
  double worst = 0;
  for (size_t r = 0; r < rows; ++r) {
    std::vector<double> in(k);
    double squares = 0;
    for (size_t i = 0; i < k; ++i) {
      in[i] = valueOf(x.host[r * k + i]);
      squares += in[i] * in[i];
    }
    if (c.norm) {
      const double scale = 1 / std::sqrt(squares / static_cast<double>(k) + 1e-5);
      for (size_t i = 0; i < k; ++i) in[i] = round(round(in[i] * scale) * valueOf(norm.host[i]));
    }
    const auto dot = [&](size_t column) {
      double sum = 0;
      for (size_t i = 0; i < k; ++i) sum += in[i] * valueOf(weight.host[column * k + i]);
      return c.bias ? round(sum) + valueOf(bias.host[column]) : sum;
    };
    for (size_t j = 0; j < n; ++j) {
      double want = dot(j);
      if (gated) {
        const double f = round(want);
        const double active =
            c.gate == LinearGate::kSilu
                ? f / (1 + std::exp(-f))
                : 0.5 * f * (1 + std::tanh(0.7978845608028654 * (f + 0.044715 * f * f * f)));
        want = round(active) * round(dot(j + n));
      }
      if (c.residual) want = round(want) + valueOf(residual.host[r * n + j]);
      worst = std::max(worst, std::abs(valueOf(got[r * n + j]) - want) / std::max(1.0, std::abs(want)));
    }
  }
  // Two roundings of the type, where a sum lies at the border of two values.
  const double limit = std::is_same_v<T, __half> ? 4e-3 : 3.2e-2;
  CHECK(worst < limit);
  if (worst >= limit) {
    std::printf("  rows %d n %d k %d gate %d norm %d bias %d residual %d: %g\n", c.rows, c.n, c.k,
                static_cast<int>(c.gate), c.norm, c.bias, c.residual, worst);
  }
}

template <class T>
void checkAll() {
  std::mt19937 random(7);
  for (const int32_t rows : {1, 2, 3, 5, 8}) {
    for (const auto& [n, k] :
         {std::pair{1, 32}, {100, 96}, {333, 352}, {4096, 256}, {264, 11008}, {1000, 4096}}) {
      check<T>({rows, n, k, LinearGate::kNone, false, false, false}, random);
      check<T>({rows, n, k, LinearGate::kNone, true, true, false}, random);
      check<T>({rows, n, k, LinearGate::kNone, false, false, true}, random);
      check<T>({rows, n, k, LinearGate::kSilu, true, false, false}, random);
      check<T>({rows, n, k, LinearGate::kGeluTanh, true, true, false}, random);
    }
  }
}

TEST(FewRowsBFloat16) {
  checkAll<__nv_bfloat16>();
}

TEST(FewRowsFloat16) {
  checkAll<__half>();
}

// A chain of layers that depend on each other, as a decode step has them; each reads weights of its own.
void measure(const char* name, int32_t width, int32_t heads, int32_t hidden, int32_t qkv) {
  constexpr int kLayers = 12;
  std::mt19937 random(1);
  const auto make = [&](int64_t elements) {
    auto memory = DeviceBuffer::allocate(static_cast<uint64_t>(elements) * 2, "test");
    if (!memory) throw std::runtime_error(memory.status().message());
    cuda(cudaMemset(memory->as<>(), 0, static_cast<size_t>(elements) * 2));
    return *std::move(memory);
  };
  struct Layer {
    DeviceBuffer qkv, out, gate, down, norm;
  };
  std::vector<Layer> layers;
  for (int i = 0; i < kLayers; ++i) {
    layers.push_back({make(int64_t{qkv} * width), make(int64_t{width} * heads),
                      make(int64_t{2} * hidden * width), make(int64_t{width} * hidden), make(width)});
  }
  const DeviceBuffer x = make(int64_t{8} * width), h = make(int64_t{8} * width), a = make(int64_t{8} * qkv),
                     b = make(int64_t{8} * hidden);
  cudaStream_t stream = nullptr;
  cuda(cudaStreamCreate(&stream));
  const double bytes = 2.0 * (double(qkv) * width + double(width) * heads + 3.0 * hidden * width);
  for (const bool overlap : {false, true}) {
    for (const int32_t rows : {1, 2, 4, 8}) {
      const auto run = [&] {
        for (const Layer& layer : layers) {
          const auto linear = [&](const DeviceBuffer& in, const DeviceBuffer& weight, const void* norm,
                                  const void* residual, const DeviceBuffer& out, int32_t n, int32_t k,
                                  LinearGate gate) {
            FewRowsArgs args;
            args.x = in.as<>();
            args.weight = weight.as<>();
            args.norm = norm;
            args.residual = residual;
            args.y = out.as<>();
            args.rows = rows;
            args.n = n;
            args.k = k;
            args.eps = 1e-5F;
            args.gate = gate;
            cuda(kernels::fewRowsLinear(DType::kBF16, args, overlap, stream));
          };
          linear(x, layer.qkv, layer.norm.as<>(), nullptr, a, qkv, width, LinearGate::kNone);
          linear(a, layer.out, nullptr, x.as<>(), h, width, heads, LinearGate::kNone);
          linear(h, layer.gate, layer.norm.as<>(), nullptr, b, hidden, width, LinearGate::kSilu);
          linear(b, layer.down, nullptr, h.as<>(), x, width, hidden, LinearGate::kNone);
        }
      };
      if (!kernels::fewRowsFits(DType::kBF16, rows, hidden)) continue;
      run();
      cuda(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
      run();
      cudaGraph_t graph = nullptr;
      cuda(cudaStreamEndCapture(stream, &graph));
      cudaGraphExec_t exec = nullptr;
      cuda(cudaGraphInstantiate(&exec, graph, 0));
      cudaEvent_t begin = nullptr, end = nullptr;
      cuda(cudaEventCreate(&begin));
      cuda(cudaEventCreate(&end));
      std::vector<float> times;
      for (int i = 0; i < 30; ++i) {
        cuda(cudaEventRecord(begin, stream));
        cuda(cudaGraphLaunch(exec, stream));
        cuda(cudaEventRecord(end, stream));
        cuda(cudaEventSynchronize(end));
        float ms = 0;
        cuda(cudaEventElapsedTime(&ms, begin, end));
        times.push_back(ms / kLayers);
      }
      std::sort(times.begin(), times.end());
      const double ms = static_cast<double>(times[times.size() / 2]);
      std::printf("%s rows %d %s: %.4f ms a layer, %.0f GB/s\n", name, rows,
                  overlap ? "overlapped" : "in turn", ms, bytes / ms / 1e6);
      cudaGraphExecDestroy(exec);
      cudaGraphDestroy(graph);
    }
  }
  cudaStreamDestroy(stream);
}

TEST(FewRowsSpeed) {
  measure("Llama-2-7B", 4096, 4096, 11008, 12288);
  measure("Llama-3-8B", 4096, 4096, 14336, 6144);
}

}  // namespace

TEST_MAIN()
