// The linear layers of some ten to some hundred rows at the shapes of real models: every tiling that the
// kernels have, checked against a plain product and timed, and the fastest ones in a chain of layers. Behind
// the table of cpp/tensorrt/kernels/mid_rows_tiling.cpp.
//
//   mid_rows_bench search REPORT.jsonl [rows...]
#include <cuda_bf16.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <string>
#include <vector>

#include "tensorrt/kernels/mid_rows.h"

namespace {

using namespace nt;
using kernels::FewRowsGate;
using kernels::MidRowsArgs;
using kernels::MidRowsKernels;
using kernels::MidRowsTiling;
using Element = __nv_bfloat16;

void cuda(cudaError_t error) {
  if (error == cudaSuccess) return;
  std::fprintf(stderr, "%s\n", cudaGetErrorString(error));
  std::exit(1);
}

constexpr int kLayers = 8;  // with weights of their own: several times the L2
constexpr int kWidth = 4096;
constexpr int kMostRows = 2080;

struct Shape {
  const char* name;
  int32_t n, k;
  FewRowsGate gate;
  bool residual;

  int64_t weights() const { return int64_t{gate == FewRowsGate::kNone ? 1 : 2} * n * k; }
};

struct Model {
  const char* name;
  std::vector<Shape> shapes;
};

const std::vector<Model> kModels = {
    {"Llama-2-7B",
     {{"qkv", 12288, kWidth, FewRowsGate::kNone, false},
      {"o", kWidth, kWidth, FewRowsGate::kNone, true},
      {"gate_up", 11008, kWidth, FewRowsGate::kSilu, false},
      {"down", kWidth, 11008, FewRowsGate::kNone, true}}},
    {"Llama-3-8B",
     {{"qkv", 6144, kWidth, FewRowsGate::kNone, false},
      {"o", kWidth, kWidth, FewRowsGate::kNone, true},
      {"gate_up", 14336, kWidth, FewRowsGate::kSilu, false},
      {"down", kWidth, 14336, FewRowsGate::kNone, true}}},
};

__global__ void fillKernel(Element* out, int64_t count, uint32_t seed, float scale) {
  for (int64_t i = blockIdx.x * int64_t{blockDim.x} + threadIdx.x; i < count;
       i += int64_t{gridDim.x} * blockDim.x) {
    uint32_t h = static_cast<uint32_t>(i) * 2654435761U + seed * 40503U + static_cast<uint32_t>(i >> 32);
    float sum = 0;  // of four uniform ones: near enough to a normal distribution
    for (int j = 0; j < 4; ++j) {
      h ^= h >> 16;
      h *= 0x7feb352dU;
      h ^= h >> 15;
      h *= 0x846ca68bU;
      h ^= h >> 16;
      sum += static_cast<float>(h) * (1.0F / 4294967296.0F) - 0.5F;
    }
    out[i] = __float2bfloat16(sum * 1.7320508F * scale);
  }
}

__device__ float roundTo(float x) {
  return __bfloat162float(__float2bfloat16(x));
}

__global__ void referenceKernel(const Element* x, const Element* w, const Element* residual, float* out,
                                int rows, int n, int k, bool gated) {
  const int column = blockIdx.x * blockDim.x + threadIdx.x;
  const int row = blockIdx.y;
  if (column >= n || row >= rows) return;
  float sums[2] = {};
  for (int part = 0; part < (gated ? 2 : 1); ++part) {
    const Element* b = w + (int64_t{part} * n + column) * k;
    for (int i = 0; i < k; ++i)
      sums[part] += __bfloat162float(x[int64_t{row} * k + i]) * __bfloat162float(b[i]);
  }
  float value = sums[0];
  if (gated) {
    const float f = roundTo(sums[0]);
    value = roundTo(f / (1 + expf(-f))) * roundTo(sums[1]);
  }
  if (residual != nullptr) value = roundTo(value) + __bfloat162float(residual[int64_t{row} * n + column]);
  out[int64_t{row} * n + column] = value;
}

__global__ void compareKernel(const Element* got, const float* want, int64_t count, float* worst) {
  float most = 0;
  for (int64_t i = blockIdx.x * int64_t{blockDim.x} + threadIdx.x; i < count;
       i += int64_t{gridDim.x} * blockDim.x) {
    const float difference = fabsf(__bfloat162float(got[i]) - want[i]) / fmaxf(1.0F, fabsf(want[i]));
    most = difference <= most ? most : isnan(difference) ? 1e30F : difference;
  }
  atomicMax(reinterpret_cast<int*>(worst), __float_as_int(most));
}

Element* random(int64_t count, uint32_t seed, float scale) {
  Element* memory = nullptr;
  cuda(cudaMalloc(&memory, static_cast<size_t>(count) * sizeof(Element)));
  fillKernel<<<2048, 256>>>(memory, count, seed, scale);
  cuda(cudaGetLastError());
  return memory;
}

cudaStream_t stream;

// Median of the time of a captured sequence, in ms.
float timeGraph(const std::function<void()>& enqueue, int replays) {
  enqueue();
  cuda(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
  enqueue();
  cudaGraph_t graph = nullptr;
  cuda(cudaStreamEndCapture(stream, &graph));
  cudaGraphExec_t exec = nullptr;
  cuda(cudaGraphInstantiate(&exec, graph, 0));
  static cudaEvent_t begin = nullptr;
  static cudaEvent_t end = nullptr;
  if (begin == nullptr) {
    cuda(cudaEventCreate(&begin));
    cuda(cudaEventCreate(&end));
  }
  std::vector<float> times;
  for (int i = 0; i < replays; ++i) {
    cuda(cudaEventRecord(begin, stream));
    cuda(cudaGraphLaunch(exec, stream));
    cuda(cudaEventRecord(end, stream));
    cuda(cudaEventSynchronize(end));
    float ms = 0;
    cuda(cudaEventElapsedTime(&ms, begin, end));
    if (i > 0) times.push_back(ms);
  }
  cudaGraphExecDestroy(exec);
  cudaGraphDestroy(graph);
  std::sort(times.begin(), times.end());
  return times[times.size() / 2];
}

std::string text(const MidRowsTiling& t) {
  char out[64];
  std::snprintf(out, sizeof out, "%dx%d x%d w%d k%d", t.rows, t.columns, t.sharingX, t.sharingW, t.splits);
  return out;
}

std::vector<MidRowsTiling> candidates(const MidRowsKernels& kernels, const Shape& shape, int32_t rows) {
  std::vector<MidRowsTiling> out;
  for (const int r : {64, 128, 192, 256, 384}) {
    // No more than one row of tiles that lies idle.
    if (r > 64 && r - rows >= 64 && r >= 2 * rows) continue;
    if ((rows + r - 1) / r > 8 || (rows >= 512 && r < 128)) continue;
    for (const int c : {96, 112, 128, 176, 224}) {
      for (const int x : {1}) {
        for (const int w : {1, 2}) {
          if (w > 1 && rows <= r) continue;
          for (const int s : {1, 2, 4}) {
            const MidRowsTiling t{static_cast<int16_t>(r), static_cast<int16_t>(c), static_cast<int8_t>(x),
                                  static_cast<int8_t>(w), static_cast<int8_t>(s)};
            if (!kernels.has(t, shape.gate != FewRowsGate::kNone)) continue;
            if (t.splits > 1) {
              const int blocks = (shape.n + c - 1) / c * ((rows + r - 1) / r) * t.splits;
              if (blocks > 264) continue;
            }
            out.push_back(t);
          }
        }
      }
    }
  }
  return out;
}

struct Memory {
  std::vector<std::vector<Element*>> weights;  // [layer][shape]
  std::vector<Element*> in, out;               // [shape]
  std::vector<Element*> norms;
  Element *x, *h;
  float* reference;
  float* worst;
};

MidRowsArgs argsOf(const Memory& m, const Shape& shape, size_t s, int layer, int32_t rows) {
  MidRowsArgs args;
  args.x = m.in[s];
  args.weight = m.weights[static_cast<size_t>(layer)][s];
  args.residual = shape.residual ? m.x : nullptr;
  args.y = m.out[s];
  args.rows = rows;
  args.n = shape.n;
  args.k = shape.k;
  args.gate = shape.gate;
  return args;
}

}  // namespace

int main(int argc, char** argv) {
  const bool search = argc > 1 && std::strcmp(argv[1], "search") == 0;
  if (argc < 3) return 2;
  std::FILE* report = std::fopen(argv[2], "w");
  std::vector<int32_t> rowCounts;
  for (int i = 3; i < argc; ++i) rowCounts.push_back(std::atoi(argv[i]));
  if (rowCounts.empty()) rowCounts = {16, 32, 64, 128, 192, 256, 384, 512};
  cuda(cudaStreamCreate(&stream));
  const MidRowsKernels* kernels = kernels::findMidRows(DType::kBF16);
  if (kernels == nullptr || report == nullptr) return 2;

  bool wrong = false;
  for (const Model& model : kModels) {
    Memory m;
    for (int layer = 0; layer < kLayers; ++layer) {
      m.weights.emplace_back();
      for (const Shape& shape : model.shapes) {
        m.weights.back().push_back(random(shape.weights(), static_cast<uint32_t>(m.weights.size() * 8),
                                          1 / std::sqrt(static_cast<float>(shape.k))));
      }
      m.norms.push_back(random(kWidth, 77, 1));
    }
    int64_t most = 0;
    for (const Shape& shape : model.shapes) {
      m.in.push_back(random(int64_t{kMostRows} * shape.k, 3, 1));
      m.out.push_back(random(int64_t{kMostRows} * shape.n, 4, 1));
      most = std::max<int64_t>(most, int64_t{kMostRows} * shape.n);
    }
    m.x = random(int64_t{kMostRows} * kWidth, 5, 1);
    m.h = random(int64_t{kMostRows} * kWidth, 6, 1);
    cuda(cudaMalloc(&m.reference, static_cast<size_t>(most) * sizeof(float)));
    cuda(cudaMalloc(&m.worst, sizeof(float)));

    // The clocks rise under load.
    for (int i = 0; i < 4000; ++i) {
      const MidRowsTiling t{256, 128, 2, 1, 1};
      cuda(kernels->linear(argsOf(m, model.shapes[2], 2, i % kLayers, 256), t, true, stream));
      if (i % 100 == 0) cuda(cudaStreamSynchronize(stream));
    }
    for (const int32_t rows : rowCounts) {
      std::vector<MidRowsTiling> best(model.shapes.size());
      double sum = 0;
      for (size_t s = 0; s < model.shapes.size(); ++s) {
        const Shape& shape = model.shapes[s];
        const bool gated = shape.gate != FewRowsGate::kNone;
        referenceKernel<<<dim3(static_cast<unsigned>(shape.n + 127) / 128, static_cast<unsigned>(rows)), 128,
                          0, stream>>>(m.in[s], m.weights[0][s], shape.residual ? m.x : nullptr, m.reference,
                                       rows, shape.n, shape.k, gated);
        std::vector<std::pair<float, MidRowsTiling>> times;
        for (const MidRowsTiling& tiling : candidates(*kernels, shape, rows)) {
          // Poison, and one row beyond the end that must stay as it is.
          const int64_t count = int64_t{rows} * shape.n;
          cuda(cudaMemsetAsync(m.out[s], 0xff, static_cast<size_t>(count + shape.n) * 2, stream));
          cuda(cudaMemsetAsync(m.worst, 0, sizeof(float), stream));
          const cudaError_t error = kernels->linear(argsOf(m, shape, s, 0, rows), tiling, false, stream);
          if (error != cudaSuccess) {
            std::printf("%s %s rows %d %s: %s\n", model.name, shape.name, rows, text(tiling).c_str(),
                        cudaGetErrorString(error));
            cudaGetLastError();
            continue;
          }
          compareKernel<<<512, 256, 0, stream>>>(m.out[s], m.reference, count, m.worst);
          float worst = 0;
          uint16_t beyond = 0;
          cuda(cudaMemcpyAsync(&worst, m.worst, sizeof worst, cudaMemcpyDeviceToHost, stream));
          cuda(cudaMemcpyAsync(&beyond, m.out[s] + count, 2, cudaMemcpyDeviceToHost, stream));
          cuda(cudaStreamSynchronize(stream));
          if (!(worst < 3.2e-2F) || beyond != 0xffff) {
            wrong = true;
            std::printf("WRONG %s %s rows %d %s: %g %x\n", model.name, shape.name, rows, text(tiling).c_str(),
                        static_cast<double>(worst), beyond);
            continue;
          }
          const float ms = timeGraph(
              [&] {
                for (int layer = 0; layer < kLayers; ++layer)
                  cuda(kernels->linear(argsOf(m, shape, s, layer, rows), tiling, true, stream));
              },
              search ? 4 : 3);
          times.emplace_back(ms / kLayers, tiling);
        }
        std::sort(times.begin(), times.end(), [](auto& a, auto& b) { return a.first < b.first; });
        if (times.empty()) return 1;
        best[s] = times[0].second;
        const double us = 1e3 * static_cast<double>(times[0].first);
        sum += us;
        std::printf("%s %-7s %4d: %6.1f us %4.0f TFLOP/s %5.2f TB/s", model.name, shape.name, rows, us,
                    2e-6 * static_cast<double>(shape.weights()) * rows / us,
                    2e-6 * static_cast<double>(shape.weights()) / us);
        for (size_t i = 0; i < std::min<size_t>(times.size(), 5); ++i)
          std::printf(" | %s %.1f", text(times[i].second).c_str(), 1e3 * static_cast<double>(times[i].first));
        std::printf("\n");
        for (const auto& [ms, t] : times) {
          std::fprintf(report,
                       "{\"model\":\"%s\",\"layer\":\"%s\",\"rows\":%d,\"tile\":[%d,%d],\"sharingX\":%d,"
                       "\"sharingW\":%d,\"splits\":%d,\"us\":%.2f}\n",
                       model.name, shape.name, rows, t.rows, t.columns, t.sharingX, t.sharingW, t.splits,
                       1e3 * static_cast<double>(ms));
        }
      }
      // Layers that depend on each other, with the norms.
      const auto chain = [&](bool norms, bool overlap) {
        const auto linear = [&](size_t s, int layer, const Element* in, const Element* residual,
                                Element* out) {
          MidRowsArgs args = argsOf(m, model.shapes[s], s, layer, rows);
          args.x = in;
          args.residual = residual;
          args.y = out;
          cuda(kernels->linear(args, best[s], overlap, stream));
        };
        const auto norm = [&](const Element* in, int layer, Element* out) {
          if (!norms) return in;
          const kernels::MidRowsNormArgs args{in,   m.norms[static_cast<size_t>(layer)], out, rows, kWidth,
                                              1e-5F};
          cuda(kernels->norm(args, overlap, stream));
          return static_cast<const Element*>(out);
        };
        for (int layer = 0; layer < kLayers; ++layer) {
          linear(0, layer, norm(m.x, layer, m.in[0]), nullptr, m.out[0]);
          linear(1, layer, m.out[0], m.x, m.h);
          linear(2, layer, norm(m.h, layer, m.in[2]), nullptr, m.out[2]);
          linear(3, layer, m.out[2], m.h, m.x);
        }
      };
      const auto us = [&](bool norms, bool overlap) {
        return 1e3 * static_cast<double>(timeGraph([&] { chain(norms, overlap); }, 12)) / kLayers;
      };
      const double plain = us(false, true);
      const double full = us(true, true);
      const double turn = us(true, false);
      std::printf("%s %d rows: sum %.1f, chain %.1f, with norms %.1f, not overlapped %.1f us\n", model.name,
                  rows, sum, plain, full, turn);
      std::fprintf(report,
                   "{\"model\":\"%s\",\"rows\":%d,\"sum\":%.2f,\"chain\":%.2f,\"withNorms\":%.2f,"
                   "\"inTurn\":%.2f}\n",
                   model.name, rows, sum, plain, full, turn);
      std::fflush(stdout);
      std::fflush(report);
      // What a chain wrote: without norms it grows from layer to layer.
      fillKernel<<<2048, 256, 0, stream>>>(m.x, int64_t{kMostRows} * kWidth, 5, 1);
      for (const size_t s : {0, 2})
        fillKernel<<<2048, 256, 0, stream>>>(m.in[s], int64_t{kMostRows} * kWidth, 3, 1);
    }
    for (auto& layer : m.weights)
      for (Element* w : layer) cudaFree(w);
    for (auto* list : {&m.in, &m.out, &m.norms})
      for (Element* p : *list) cudaFree(p);
    cudaFree(m.x);
    cudaFree(m.h);
    cudaFree(m.reference);
    cudaFree(m.worst);
  }
  std::fclose(report);
  return wrong ? 1 : 0;
}
