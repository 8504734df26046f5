// Decode attention by itself: our decode kernel against FlashInfer's prefill kernel with tiles of 16, in a
// CUDA graph.
//
// A graph holds many launches, each on pages of its own, so that a replay reads more than the L2 cache holds.
// "bytes" are those of K and V, read once; the share is of the read rate of a device-to-device copy (half of
// its traffic). usage: attention_bench [out.json]
#include <algorithm>
#include <cstdint>
#include <numeric>
#include <random>
#include <string>

#include "cuda_util.h"
#include "tensorrt/kernels/attention.h"

namespace {

using namespace bench;
using nt::kernels::AttentionArgs;
using nt::kernels::AttentionKernels;
using nt::kernels::Plan;
using nt::kernels::PlanArgs;
using nt::kernels::Workspace;

constexpr uint32_t kPageSize = 16;
constexpr size_t kPoolBytes = size_t{12} << 30;
constexpr size_t kWorkspaceFloats = size_t{512} << 20;
constexpr size_t kWorkspaceInts = size_t{16} << 20;

struct Shape {
  uint32_t heads, kvHeads, headDim;
};

struct Bench {
  cudaStream_t stream;
  DeviceBuffer pool{kPoolBytes};
  DeviceBuffer floats{kWorkspaceFloats};
  DeviceBuffer ints{kWorkspaceInts};
  void* intsHost = nullptr;
  double readRate = 0;  // bytes/s

  Workspace workspace() const { return {floats.as<>(), floats.bytes(), ints.as<>(), intsHost, ints.bytes()}; }
};

struct Measured {
  double us = 0;
  double planUs = 0;
  double rate = 0;
};

Measured measure(Bench& bench, const Shape& shape, const std::vector<uint32_t>& lengths, bool decode) {
  const AttentionKernels* kernels = nt::kernels::findAttentionKernels(nt::DType::kBF16, shape.headDim);
  REQUIRE(kernels != nullptr);
  const auto batch = static_cast<uint32_t>(lengths.size());
  std::vector<int32_t> qIndptr(batch + 1);
  std::vector<int32_t> kvIndptr(batch + 1);
  std::vector<int32_t> lastPageLen(batch);
  for (uint32_t i = 0; i < batch; ++i) {
    qIndptr[i + 1] = static_cast<int32_t>(i + 1);
    kvIndptr[i + 1] = kvIndptr[i] + static_cast<int32_t>((lengths[i] + kPageSize - 1) / kPageSize);
    lastPageLen[i] = static_cast<int32_t>((lengths[i] - 1) % kPageSize + 1);
  }
  const int32_t pages = kvIndptr[batch];
  std::vector<int32_t> indices(static_cast<size_t>(pages));
  std::iota(indices.begin(), indices.end(), 0);
  std::shuffle(indices.begin(), indices.end(), std::mt19937(7));

  const int64_t pageElements = int64_t{2} * kPageSize * shape.kvHeads * shape.headDim;
  const size_t launchBytes = static_cast<size_t>(pages) * static_cast<size_t>(pageElements) * 2;
  REQUIRE(launchBytes <= kPoolBytes);
  const size_t launches =
      std::min(kPoolBytes / launchBytes, std::clamp<size_t>((size_t{256} << 20) / launchBytes, 8, 512));
  const double tokens = std::accumulate(lengths.begin(), lengths.end(), 0.0);
  const double bytes = tokens * 4 * shape.kvHeads * shape.headDim;

  const DeviceBuffer dQ = upload(qIndptr);
  const DeviceBuffer dKv = upload(kvIndptr);
  const DeviceBuffer dLast = upload(lastPageLen);
  const DeviceBuffer dIndices = upload(indices);
  const size_t rowElements = size_t{shape.heads} * shape.headDim;
  const DeviceBuffer query(batch * rowElements * 2);
  const DeviceBuffer out(batch * rowElements * 2);
  fillDeviceBf16(query.as<>(), batch * rowElements, 3, 1);

  PlanArgs planArgs{qIndptr.data(), kvIndptr.data(), lastPageLen.data(), batch, batch,
                    shape.heads,    shape.kvHeads,   kPageSize,          0,     true};
  Plan plan;
  const Workspace ws = bench.workspace();
  const auto path = decode ? nt::AttentionPath::kDecode : nt::AttentionPath::kPrefill;
  const auto makePlan = [&] { CUDA_CHECK((*kernels)[path].plan(ws, planArgs, &plan, bench.stream)); };
  Measured result;
  result.planUs = hostUs(bench.stream, 15, makePlan);

  AttentionArgs args;
  args.q = query.as<>();
  args.out = out.as<>();
  args.qIndptr = dQ.as<int32_t>();
  args.kv = {nullptr,
             nullptr,
             pageElements,
             int64_t{shape.kvHeads} * shape.headDim,
             shape.headDim,
             dIndices.as<int32_t>(),
             dKv.as<int32_t>(),
             dLast.as<int32_t>(),
             batch,
             shape.kvHeads,
             kPageSize};
  args.rows = batch;
  args.heads = shape.heads;
  args.scale = 0.0884F;
  const Graph graph(bench.stream, [&] {
    for (size_t i = 0; i < launches; ++i) {
      args.kv.k = bench.pool.as<char>() + i * launchBytes;
      args.kv.v = static_cast<char*>(args.kv.k) + pageElements;
      CUDA_CHECK((*kernels)[path].run(ws, plan, args, bench.stream));
    }
  });
  result.us =
      deviceMs(bench.stream, 9, [&] { graph.launch(bench.stream); }) * 1e3 / static_cast<double>(launches);
  result.rate = bytes / (result.us * 1e-6);
  return result;
}

}  // namespace

int main(int argc, char** argv) {
  Bench bench;
  CUDA_CHECK(cudaStreamCreate(&bench.stream));
  CUDA_CHECK(cudaMallocHost(&bench.intsHost, kWorkspaceInts));
  fillDeviceBf16(bench.pool.as<>(), kPoolBytes / 2, 1, 1);
  const size_t half = kPoolBytes / 2;
  const double copyMs = deviceMs(bench.stream, 5, [&] {
    CUDA_CHECK(cudaMemcpyAsync(bench.pool.as<char>() + half, bench.pool.as<>(), half,
                               cudaMemcpyDeviceToDevice, bench.stream));
  });
  // A kernel that only reads can use what the copy spends on reading and writing together.
  bench.readRate = 2.0 * static_cast<double>(half) / (copyMs * 1e-3);
  std::printf("copy: %.0f GB/s read + written\n", bench.readRate / 1e9);

  std::FILE* json = argc > 1 ? std::fopen(argv[1], "w") : nullptr;
  if (json != nullptr) std::fprintf(json, "{\"copyGBs\": %.0f, \"rows\": [\n", bench.readRate / 1e9);
  const Shape shapes[] = {{32, 32, 128}, {32, 16, 128}, {24, 8, 128}, {32, 8, 128},
                          {32, 4, 128},  {4, 2, 64},    {24, 8, 64},  {32, 8, 64}};
  const int lengths[] = {128, 512, 2000, 0};
  std::printf("%-14s %5s %9s | %9s %6s %7s | %9s %6s %7s | %s\n", "q/kv heads x d", "batch", "length",
              "decode us", "share", "plan us", "prefill us", "share", "plan us", "prefill/decode");
  bool first = true;
  for (const Shape& shape : shapes) {
    for (const uint32_t batch : {1U, 64U, 256U}) {
      for (const int length : lengths) {
        std::vector<uint32_t> all(batch, static_cast<uint32_t>(length));
        if (length == 0) {
          if (batch == 1) continue;
          std::mt19937 random(11);
          for (uint32_t& n : all) n = std::uniform_int_distribution<uint32_t>(128, 2000)(random);
        }
        const Measured decode = measure(bench, shape, all, true);
        const Measured prefill = measure(bench, shape, all, false);
        const std::string label = length == 0 ? "128-2000" : std::to_string(length);
        std::printf("%2u/%-2u x %-6u %5u %9s | %9.2f %5.0f%% %7.1f | %9.2f %5.0f%% %7.1f | %.2f\n",
                    shape.heads, shape.kvHeads, shape.headDim, batch, label.c_str(), decode.us,
                    100 * decode.rate / bench.readRate, decode.planUs, prefill.us,
                    100 * prefill.rate / bench.readRate, prefill.planUs, prefill.us / decode.us);
        if (json != nullptr) {
          std::fprintf(
              json,
              "%s{\"heads\": %u, \"kvHeads\": %u, \"headDim\": %u, \"batch\": %u, \"length\": \"%s\", "
              "\"decodeUs\": %.3f, \"decodeShare\": %.4f, \"decodePlanUs\": %.2f, \"prefillUs\": %.3f, "
              "\"prefillShare\": %.4f, \"prefillPlanUs\": %.2f}",
              first ? "" : ",\n", shape.heads, shape.kvHeads, shape.headDim, batch, label.c_str(), decode.us,
              decode.rate / bench.readRate, decode.planUs, prefill.us, prefill.rate / bench.readRate,
              prefill.planUs);
          first = false;
        }
      }
    }
  }
  if (json != nullptr) {
    std::fprintf(json, "\n]}\n");
    std::fclose(json);
  }
  CUDA_CHECK(cudaFreeHost(bench.intsHost));
  return 0;
}
