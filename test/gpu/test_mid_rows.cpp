// The linear kernels of some hundred rows against a plain computation in double precision: every tiling,
// ragged sizes, biases, gates, residuals; and the norm. Needs a GPU of compute capability 9.0. Their speed:
// bench/native/mid_rows_bench.cu.
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <random>
#include <stdexcept>
#include <vector>

#include "check.h"
#include "tensorrt/cuda.h"
#include "tensorrt/kernels/mid_rows_tiling.h"

namespace {

using namespace nt;
using kernels::FewRowsGate;
using kernels::MidRowsArgs;
using kernels::MidRowsTiling;

void cuda(cudaError_t error) {
  if (error != cudaSuccess) throw std::runtime_error(cudaGetErrorString(error));
}

double valueOf(__half x) {
  return static_cast<double>(__half2float(x));
}
double valueOf(__nv_bfloat16 x) {
  return static_cast<double>(__bfloat162float(x));
}
template <class T>
T toType(double x) {
  if constexpr (std::is_same_v<T, __half>) return __float2half_rn(static_cast<float>(x));
  if constexpr (std::is_same_v<T, __nv_bfloat16>) return __float2bfloat16_rn(static_cast<float>(x));
}
template <class T>
constexpr DType kType = std::is_same_v<T, __half> ? DType::kF16 : DType::kBF16;
// Two roundings of the type, where a sum lies at the border of two values.
template <class T>
constexpr double kLimit = std::is_same_v<T, __half> ? 4e-3 : 3.2e-2;

template <class T>
struct Array {
  Array(size_t count, double scale, std::mt19937& random) : host(count) {
    std::normal_distribution<double> normal(0, scale);
    for (T& x : host) x = toType<T>(normal(random));
    auto memory = DeviceBuffer::allocate(count * sizeof(T), "test");
    if (!memory) throw std::runtime_error(memory.status().message());
    device = *std::move(memory);
    cuda(cudaMemcpy(device.as<void>(), host.data(), count * sizeof(T), cudaMemcpyHostToDevice));
  }
  void* at() const { return device.as<void>(); }

  std::vector<T> host;
  DeviceBuffer device;
};

struct Case {
  int32_t rows, n, k;
  FewRowsGate gate;
  bool bias, residual;
};

template <class T>
struct Operands {
  Operands(const Case& c, std::mt19937& random)
      : c(c),
        n(static_cast<size_t>(c.n)),
        k(static_cast<size_t>(c.k)),
        rows(static_cast<size_t>(c.rows)),
        outputs(c.gate == FewRowsGate::kNone ? n : 2 * n),
        x(rows * k, 1, random),
        weight(outputs * k, 1 / std::sqrt(static_cast<double>(k)), random),
        bias(outputs, 1, random),
        residual(rows * n, 1, random),
        y((rows + 1) * n, 0, random) {}

  // Hugging Face's order of operations with its roundings.
  double want(size_t row, size_t column) const {
    const auto round = [](double v) { return valueOf(toType<T>(v)); };
    const auto dot = [&](size_t j) {
      double sum = 0;
      for (size_t i = 0; i < k; ++i) sum += valueOf(x.host[row * k + i]) * valueOf(weight.host[j * k + i]);
      return c.bias ? round(sum) + valueOf(bias.host[j]) : sum;
    };
    double value = dot(column);
    if (c.gate != FewRowsGate::kNone) {
      const double f = round(value);
      const double active = c.gate == FewRowsGate::kSilu
                                ? f / (1 + std::exp(-f))
                                : 0.5 * f * (1 + std::tanh(0.7978845608028654 * (f + 0.044715 * f * f * f)));
      value = round(active) * round(dot(column + n));
    }
    if (c.residual) value = round(value) + valueOf(residual.host[row * n + column]);
    return value;
  }

  // The largest difference of `samples` elements, and of the row behind the last one, which is nobody's.
  double run(const MidRowsTiling& tiling, int32_t samples, std::mt19937& random) const {
    MidRowsArgs args;
    args.x = x.at();
    args.weight = weight.at();
    args.bias = c.bias ? bias.at() : nullptr;
    args.residual = c.residual ? residual.at() : nullptr;
    args.y = y.at();
    args.rows = c.rows;
    args.n = c.n;
    args.k = c.k;
    args.gate = c.gate;
    cuda(cudaMemset(y.at(), 0xff, (rows + 1) * n * sizeof(T)));
    cuda(kernels::findMidRows(kType<T>)->linear(args, tiling, true, nullptr));
    cuda(cudaDeviceSynchronize());
    std::vector<T> got((rows + 1) * n);
    cuda(cudaMemcpy(got.data(), y.at(), got.size() * sizeof(T), cudaMemcpyDeviceToHost));
    double worst = 0;
    for (size_t i = 0; i < got.size(); ++i) {
      const bool unwritten = std::isnan(valueOf(got[i]));
      if (unwritten != (i >= rows * n)) worst = 1e30;
    }
    for (int32_t i = 0; i < samples; ++i) {
      const size_t row = random() % rows;
      const size_t column = random() % n;
      const double expected = want(row, column);
      const double difference =
          std::abs(valueOf(got[row * n + column]) - expected) / std::max(1.0, std::abs(expected));
      worst = difference <= worst ? worst : difference;
    }
    return worst;
  }

  Case c;
  size_t n, k, rows, outputs;
  Array<T> x, weight, bias, residual, y;
};

template <class T>
void check(const Case& c, const MidRowsTiling& t, const Operands<T>& operands, std::mt19937& random) {
  const double worst = operands.run(t, 400, random);
  CHECK(worst < kLimit<T>);
  if (!(worst < kLimit<T>)) {
    std::printf(
        "  rows %d n %d k %d gate %d bias %d residual %d, tile %d x %d, shared %d %d, splits %d: %g\n",
        c.rows, c.n, c.k, static_cast<int>(c.gate), c.bias, c.residual, t.rows, t.columns, t.sharingX,
        t.sharingW, t.splits, worst);
  }
}

const std::vector<Case> kCases = {
    {100, 264, 520, FewRowsGate::kNone, false, false},  {100, 264, 520, FewRowsGate::kNone, true, true},
    {257, 1000, 1024, FewRowsGate::kNone, false, true}, {77, 72, 264, FewRowsGate::kSilu, false, false},
    {300, 1000, 1024, FewRowsGate::kSilu, true, false}, {256, 344, 512, FewRowsGate::kGeluTanh, true, true},
    {1, 8, 8, FewRowsGate::kNone, true, true},
};

template <class T>
void checkTilings() {
  std::mt19937 random(7);
  const kernels::MidRowsKernels* kernels = kernels::findMidRows(kType<T>);
  int32_t checked = 0;
  for (const Case& c : kCases) {
    const Operands<T> operands(c, random);
    for (const int rows : {64, 128, 192, 256, 384}) {
      for (const int columns : {96, 112, 128, 176, 224}) {
        for (const int x : {1, 2}) {
          for (const int w : {1, 2}) {
            for (const int splits : {1, 2, 4}) {
              const MidRowsTiling t{static_cast<int16_t>(rows), static_cast<int16_t>(columns),
                                    static_cast<int8_t>(x), static_cast<int8_t>(w),
                                    static_cast<int8_t>(splits)};
              if (!kernels->has(t, c.gate != FewRowsGate::kNone) || (c.k + 63) / 64 < splits) continue;
              check<T>(c, t, operands, random);
              ++checked;
            }
          }
        }
      }
    }
  }
  CHECK(checked > 300);
}

// What a runner enqueues, at widths of real models.
template <class T>
void checkChosen() {
  std::mt19937 random(11);
  const std::vector<Case> shapes = {
      {0, 6144, 512, FewRowsGate::kNone, true, false},  {0, 4096, 1024, FewRowsGate::kNone, false, true},
      {0, 2752, 512, FewRowsGate::kSilu, false, false}, {0, 5000, 512, FewRowsGate::kNone, false, false},
      {0, 256, 128, FewRowsGate::kNone, false, true},   {0, 512, 64, FewRowsGate::kSilu, false, false},
  };
  for (Case c : shapes) {
    for (const int32_t rows : {9, 33, 64, 65, 128, 150, 192, 256, 300, 384, 500, 512}) {
      c.rows = rows;
      const MidRowsTiling tiling = kernels::chooseMidRowsTiling(rows, c.n, c.k, c.gate != FewRowsGate::kNone);
      check<T>(c, tiling, Operands<T>(c, random), random);
    }
  }
}

template <class T>
void checkNorm() {
  std::mt19937 random(3);
  for (const int32_t k : {8, 256, 4096, 5120, 16384}) {
    const int32_t rows = 19;
    const Array<T> x(static_cast<size_t>(rows * k), 2, random);
    const Array<T> weight(static_cast<size_t>(k), 1, random);
    const Array<T> y(static_cast<size_t>(rows * k), 0, random);
    cuda(kernels::findMidRows(kType<T>)->norm({x.at(), weight.at(), y.at(), rows, k, 1e-5F}, true, nullptr));
    cuda(cudaDeviceSynchronize());
    std::vector<T> got(x.host.size());
    cuda(cudaMemcpy(got.data(), y.at(), got.size() * sizeof(T), cudaMemcpyDeviceToHost));
    double worst = 0;
    for (size_t row = 0; row < static_cast<size_t>(rows); ++row) {
      const T* in = x.host.data() + row * static_cast<size_t>(k);
      double squares = 0;
      for (int32_t i = 0; i < k; ++i) squares += valueOf(in[i]) * valueOf(in[i]);
      const double scale = 1 / std::sqrt(squares / k + 1e-5);
      for (int32_t i = 0; i < k; ++i) {
        const double want =
            valueOf(toType<T>(valueOf(in[i]) * scale)) * valueOf(weight.host[static_cast<size_t>(i)]);
        const double difference =
            std::abs(valueOf(got[row * static_cast<size_t>(k) + static_cast<size_t>(i)]) - want);
        worst = std::max(worst, difference / std::max(1.0, std::abs(want)));
      }
    }
    CHECK(worst < kLimit<T>);
  }
}

TEST(MidRowsTilingsBFloat16) {
  checkTilings<__nv_bfloat16>();
}

TEST(MidRowsTilingsFloat16) {
  checkTilings<__half>();
}

TEST(MidRowsChosenBFloat16) {
  checkChosen<__nv_bfloat16>();
}

TEST(MidRowsChosenFloat16) {
  checkChosen<__half>();
}

TEST(MidRowsNorm) {
  checkNorm<__nv_bfloat16>();
  checkNorm<__half>();
}

}  // namespace

TEST_MAIN()
