// Times of rotation and append, and of a layer's attention, as a step has them. Needs a GPU of compute capability
// 9.0; test_attention checks the numbers.
#include <algorithm>
#include <cstdio>
#include <string>
#include <vector>

#include "attention_problem.h"
#include "check.h"
#include "tensorrt/plugin/step_state.h"

namespace {

using namespace nt;
using namespace nt::test;
using kernels::AttentionKernels;
using kernels::RopeAppendArgs;

// Times of what a layer does, in a graph of many layers with memory of their own.
class Speed {
 public:
  using T = __nv_bfloat16;

  Speed(Heads heads, std::vector<Sequence> sequences)
      : heads_(heads),
        random_(9),
        tables_(sequences, 0, random_),
        kernels_(kernels::findAttentionKernels(DType::kBF16, heads.size)) {
    const size_t rowWidth = size_t{heads.heads + 2 * heads.kvHeads} * heads.size;
    qkvBytes_ = rowWidth * tables_.rows() * sizeof(T);
    outBytes_ = size_t{heads.heads} * heads.size * tables_.rows() * sizeof(T);
    poolBytes_ =
        size_t{2} * kPageSize * heads.kvHeads * heads.size * static_cast<size_t>(tables_.pages) * sizeof(T);
    // More than the L2 cache holds, as far as that takes no more than 8 GiB.
    sets_ = std::clamp<size_t>((size_t{192} << 20) / qkvBytes_, 3, 24);
    sets_ = std::clamp<size_t>((size_t{8} << 30) / (poolBytes_ + qkvBytes_ + 2 * outBytes_), 2, sets_);
    qkv_ = fill(qkvBytes_ * sets_);
    pool_ = fill(poolBytes_ * sets_);
    rotated_ = allocate<DeviceBuffer>(outBytes_ * sets_);
    out_ = allocate<DeviceBuffer>(outBytes_ * sets_);
    int32_t longest = 1;
    for (const Sequence& sequence : sequences) longest = std::max(longest, sequence.length());
    cosSin_ = toDevice(makeCosSin(longest, heads.size));
    cuda(cudaStreamCreate(stream_.put()));
  }

  // kItself: the attention kernel does it.
  enum class Rotation { kNone, kPacked, kInPlace, kItself };

  // Microseconds a layer; `path` may be none.
  double measure(Rotation rotation, const AttentionPath* path) {
    kernels::Plan plan;
    if (path != nullptr) {
      kernels::PlanArgs args;
      args.qIndptr = tables_.qIndptr.data();
      args.kvIndptr = tables_.kvIndptr.data();
      args.lastPageLen = tables_.lastPageLen.data();
      args.rows = tables_.rows();
      args.batch = tables_.batch();
      args.heads = heads_.heads;
      args.kvHeads = heads_.kvHeads;
      args.pageSize = kPageSize;
      args.cudaGraph = tables_.rows() == tables_.batch();
      cuda((*kernels_)[*path].plan(workspaces_.part(0), args, &plan, stream_.get()));
      cuda(cudaStreamSynchronize(stream_.get()));
    }
    const size_t layers = std::max<size_t>(sets_, tables_.rows() > 4096 ? 4 : 24 / sets_ * sets_);
    const auto run = [&] {
      for (size_t i = 0; i < layers; ++i) layer(rotation, path, plan, i % sets_);
    };
    run();
    cuda(cudaStreamBeginCapture(stream_.get(), cudaStreamCaptureModeThreadLocal));
    run();
    CapturedGraph graph;
    cuda(cudaStreamEndCapture(stream_.get(), graph.put()));
    GraphExec exec;
    cuda(cudaGraphInstantiate(exec.put(), graph.get(), 0));
    Event begin;
    Event end;
    cuda(cudaEventCreate(begin.put()));
    cuda(cudaEventCreate(end.put()));
    std::vector<float> times;
    for (int i = 0; i < 15; ++i) {
      cuda(cudaEventRecord(begin.get(), stream_.get()));
      cuda(cudaGraphLaunch(exec.get(), stream_.get()));
      cuda(cudaEventRecord(end.get(), stream_.get()));
      cuda(cudaEventSynchronize(end.get()));
      float ms = 0;
      cuda(cudaEventElapsedTime(&ms, begin.get(), end.get()));
      times.push_back(ms);
    }
    std::sort(times.begin(), times.end());
    return 1000.0 * static_cast<double>(times[times.size() / 2]) / static_cast<double>(layers);
  }

  // Read and written by a rotation that is not in place.
  double bytes() const { return static_cast<double>(2 * qkvBytes_); }

 private:
  DeviceBuffer fill(size_t bytes) {
    const std::vector<T> values = randomValues<T>(size_t{1} << 20, random_);
    auto memory = allocate<DeviceBuffer>(bytes);
    size_t filled = std::min(bytes, values.size() * sizeof(T));
    cuda(cudaMemcpy(memory.as<void>(), values.data(), filled, cudaMemcpyHostToDevice));
    while (filled < bytes) {
      const size_t more = std::min(filled, bytes - filled);
      cuda(cudaMemcpy(memory.as<char>() + filled, memory.as<void>(), more, cudaMemcpyDeviceToDevice));
      filled += more;
    }
    return memory;
  }

  void layer(Rotation rotation, const AttentionPath* path, const kernels::Plan& plan, size_t set) {
    const size_t keys = size_t{heads_.heads} * heads_.size;
    const size_t values = keys + size_t{heads_.kvHeads} * heads_.size;
    T* const qkv = reinterpret_cast<T*>(qkv_.as<char>() + set * qkvBytes_);
    char* const pool = pool_.as<char>() + set * poolBytes_;
    RopeAppendArgs args;
    args.q = qkv;
    args.k = qkv + keys;
    args.v = qkv + values;
    args.rowStride = static_cast<int64_t>(values) + int64_t{heads_.kvHeads} * heads_.size;
    args.kv.headStride = heads_.size;
    args.kv.tokenStride = int64_t{heads_.kvHeads} * heads_.size;
    args.kv.pageStride = 2 * kPageSize * args.kv.tokenStride;
    args.kv.k = pool;
    args.kv.v = reinterpret_cast<T*>(pool) + args.kv.pageStride / 2;
    args.kv.indptr = tables_.at(3);
    args.kv.lastPageLen = tables_.at(4);
    args.kv.indices = tables_.at(5);
    args.kv.batch = tables_.batch();
    args.kv.kvHeads = heads_.kvHeads;
    args.kv.pageSize = kPageSize;
    args.batchIndices = tables_.at(0);
    args.positions = tables_.at(1);
    args.cosSin = cosSin_.as<float>();
    args.rows = tables_.rows();
    args.heads = heads_.heads;
    args.overlap = true;
    const bool inPlace =
        rotation == Rotation::kInPlace || rotation == Rotation::kItself || (path != nullptr && *path == AttentionPath::kFreshPrefill);
    args.qOut = inPlace ? static_cast<void*>(qkv) : rotated_.as<char>() + set * outBytes_;
    args.qOutStride = inPlace ? args.rowStride : 0;
    args.kOut = inPlace ? qkv + keys : nullptr;
    if (rotation != Rotation::kNone && rotation != Rotation::kItself) cuda(kernels_->ropeAppend(args, stream_.get()));
    if (path == nullptr) return;
    kernels::AttentionArgs attention;
    attention.q = args.qOut;
    attention.qStride = args.qOutStride;
    attention.k = args.k;
    attention.v = args.v;
    attention.kvStride = args.rowStride;
    attention.out = out_.as<char>() + set * outBytes_;
    attention.qIndptr = tables_.at(2);
    attention.batchIndices = args.batchIndices;
    attention.positions = args.positions;
    attention.kv = args.kv;
    attention.rows = args.rows;
    attention.heads = args.heads;
    attention.scale = 1 / std::sqrt(static_cast<float>(heads_.size));
    attention.overlap = true;
    attention.cosSin = rotation == Rotation::kItself ? args.cosSin : nullptr;
    cuda((*kernels_)[*path].run(workspaces_.part(0), plan, attention, stream_.get()));
  }

  Heads heads_;
  std::mt19937 random_;
  Tables tables_;
  const AttentionKernels* kernels_;
  size_t qkvBytes_ = 0, outBytes_ = 0, poolBytes_ = 0, sets_ = 0;
  Workspaces workspaces_;
  DeviceBuffer qkv_, pool_, rotated_, out_, cosSin_;
  Stream stream_;
};

void printSpeed(const char* name, Heads heads) {
  using Rotation = Speed::Rotation;
  std::printf(
      "# %s, microseconds a layer: rotation and append (GB/s) | in place || attention over pages | over the step's rows || "
      "both, over pages | over the step's rows\n",
      name);
  const auto wide = AttentionPath::kWidePrefill;
  const auto fresh = AttentionPath::kFreshPrefill;
  for (const int32_t rows : {128, 256, 512, 1024, 2048, 8192}) {
    const int32_t length = std::min(rows, 2048);
    Speed speed(heads, std::vector<Sequence>(static_cast<size_t>(rows / length), {0, length}));
    const double ours = speed.measure(Rotation::kPacked, nullptr);
    std::printf("# %5d prompt: %7.2f (%5.0f) | %7.2f || %8.2f | %8.2f || %8.2f | %8.2f\n", rows, ours,
                speed.bytes() / ours / 1e3, speed.measure(Rotation::kInPlace, nullptr),
                speed.measure(Rotation::kNone, &wide), speed.measure(Rotation::kNone, &fresh),
                speed.measure(Rotation::kPacked, &wide), speed.measure(Rotation::kInPlace, &fresh));
  }
}

// `spread`: lengths are drawn uniformly from 128 to `length`.
void printTokens(const char* name, Heads heads) {
  using Rotation = Speed::Rotation;
  const auto other = AttentionPath::kPrefill;
  const auto decode = AttentionPath::kDecode;
  std::printf(
      "# %s, tokens, microseconds a layer: prefill tiles || decode (share of 4.3 TB/s) || with rotation and append: tiles | "
      "decode behind it | decode doing it itself\n",
      name);
  for (const int32_t rows : {1, 8, 64, 256}) {
    for (const int32_t length : {128, 192, 500, 1500, -2000, 8000}) {
      if (static_cast<int64_t>(rows) * std::abs(length) * heads.kvHeads * heads.size > (int64_t{1} << 31)) continue;
      std::mt19937 random(4);
      std::vector<Sequence> sequences(static_cast<size_t>(rows), {std::abs(length), 1});
      double tokens = 0;
      for (Sequence& each : sequences) {
        if (length < 0) each.cached = std::uniform_int_distribution<int32_t>(128, -length)(random);
        tokens += each.cached + 1;
      }
      Speed speed(heads, sequences);
      const double bytes = tokens * heads.kvHeads * heads.size * 4;
      const double alone = speed.measure(Rotation::kNone, &decode);
      std::printf("# %4d x %5d: %8.2f || %8.2f (%3.0f%%) || %8.2f | %8.2f | %8.2f\n", rows, length,
                  speed.measure(Rotation::kNone, &other), alone, bytes / alone / 4.3e4,
                  speed.measure(Rotation::kPacked, &other), speed.measure(Rotation::kPacked, &decode),
                  speed.measure(Rotation::kItself, &decode));
      std::fflush(stdout);
    }
  }
}

TEST(SpeedOfTokens) {
  printTokens("Llama-3-8B", {32, 8, 128});
  printTokens("Llama-2-7B", {32, 32, 128});
  printTokens("group of 2", {32, 16, 128});
  printTokens("group of 8", {32, 4, 128});
  printTokens("Llama-3.2-1B", {32, 8, 64});
}

TEST(SpeedOfALayersAttention) {
  printSpeed("Llama-2-7B", {32, 32, 128});
  printSpeed("Llama-3-8B", {32, 8, 128});
  printSpeed("Llama-3.2-1B", {32, 8, 64});
}

}  // namespace

TEST_MAIN()
