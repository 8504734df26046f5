#include "step.h"

#include <chrono>
#include <cmath>

namespace bench {

namespace {

constexpr int32_t kMaxPositions = 8192;
constexpr size_t kFloatBytes = size_t{512} << 20;
constexpr size_t kIntBytes = size_t{16} << 20;

std::vector<float> rotaryTable(int64_t headDim) {
  const int64_t half = headDim / 2;
  std::vector<float> table(static_cast<size_t>(kMaxPositions * headDim));
  for (int64_t p = 0; p < kMaxPositions; ++p)
    for (int64_t i = 0; i < half; ++i) {
      const double angle =
          static_cast<double>(p) * std::pow(10000.0, -2.0 * static_cast<double>(i) / headDim);
      table[p * headDim + i] = static_cast<float>(std::cos(angle));
      table[p * headDim + half + i] = static_cast<float>(std::sin(angle));
    }
  return table;
}

}  // namespace

Steps::Steps(const LlamaShape& shape, int layers, int32_t pages, int64_t maxRows, cudaStream_t stream)
    : shape_(shape), stream_(stream), pages_(pages), maxRows_(maxRows) {
  const int64_t pageElements = 2 * kPageSize * shape.kvHeads * shape.headDim;
  state_.layerBytes = pages * pageElements * 2;
  state_.layers = layers;
  state_.pageSize = kPageSize;
  const auto bytes = static_cast<size_t>(state_.layerBytes) * static_cast<size_t>(layers);
  pool_ = DeviceBuffer(bytes);
  fillDeviceBf16(pool_.as<>(), bytes / 2, 5, 1);
  cosSin_ = upload(rotaryTable(shape.headDim));
  // batchIndices, positions, qIndptr, kvIndptr, lastPageLen (maxRows + 1 each), then the page list.
  tables_ =
      DeviceBuffer((static_cast<size_t>(maxRows + 1) * 5 + static_cast<size_t>(pages)) * sizeof(int32_t));
  floats_ = DeviceBuffer(kFloatBytes);
  ints_ = DeviceBuffer(kIntBytes);
  CUDA_CHECK(cudaMallocHost(&intsHost_, kIntBytes));
  ropes_[0] = cosSin_.as<float>();
  state_.pool = pool_.as<>();
  state_.cosSin = ropes_;
  state_.ropes = 1;
  auto* table = tables_.as<int32_t>();
  const int64_t stride = maxRows + 1;
  state_.batchIndices = table;
  state_.positions = table + stride;
  state_.parts[0].qIndptr = table + 2 * stride;
  state_.kvIndptr = table + 3 * stride;
  state_.lastPageLen = table + 4 * stride;
  state_.kvIndices = table + 5 * stride;
  state_.parts[0].workspace = {floats_.as<>(), kFloatBytes, ints_.as<>(), intsHost_, kIntBytes};
}

Steps::~Steps() {
  cudaFreeHost(intsHost_);
}

void Steps::reserve(Sequence& sequence, int32_t tokens) {
  while (static_cast<int32_t>(sequence.pages.size()) * kPageSize < tokens) {
    REQUIRE(nextPage_ < pages_);
    // A stride coprime to any page count up to it scatters a sequence's pages.
    sequence.pages.push_back(static_cast<int32_t>((int64_t{nextPage_++} * 1000003) % pages_));
  }
}

int Steps::addSequence(int32_t cached) {
  sequences_.push_back({cached, {}});
  reserve(sequences_.back(), cached);
  return static_cast<int>(sequences_.size()) - 1;
}

void Steps::prepare(const std::vector<StepItem>& items, int64_t paddedRows, nt::AttentionPath path,
                    bool cudaGraph) {
  std::vector<int32_t> batchIndices, positions, qIndptr{0}, kvIndptr{0}, lastPageLen, kvIndices;
  for (const StepItem& item : items) {
    Sequence& sequence = sequences_[static_cast<size_t>(item.sequence)];
    const int32_t total = sequence.cached + item.tokens;
    reserve(sequence, total);
    for (int32_t i = 0; i < item.tokens; ++i) {
      batchIndices.push_back(static_cast<int32_t>(qIndptr.size()) - 1);
      positions.push_back(sequence.cached + i);
    }
    qIndptr.push_back(static_cast<int32_t>(batchIndices.size()));
    kvIndices.insert(kvIndices.end(), sequence.pages.begin(),
                     sequence.pages.begin() + (total + kPageSize - 1) / kPageSize);
    kvIndptr.push_back(static_cast<int32_t>(kvIndices.size()));
    lastPageLen.push_back((total - 1) % kPageSize + 1);
  }
  const bool oneRowEach = batchIndices.size() == items.size();
  while (static_cast<int64_t>(batchIndices.size()) < paddedRows) {
    batchIndices.push_back(-1);
    positions.push_back(0);
    if (!oneRowEach) continue;
    // The decode kernel takes row i for sequence i; the prefill kernel gives a sequence without rows no work.
    qIndptr.push_back(path == nt::AttentionPath::kDecode ? static_cast<int32_t>(batchIndices.size())
                                                         : qIndptr.back());
    kvIndptr.push_back(kvIndptr.back());
    lastPageLen.push_back(1);
  }
  state_.rows = static_cast<uint32_t>(batchIndices.size());
  state_.batch = static_cast<uint32_t>(lastPageLen.size());
  REQUIRE(state_.rows <= maxRows_);
  nt::AttentionPart& part = state_.parts[0];
  part.path = path;
  part.sequences = state_.batch;
  part.rows = state_.rows;
  CUDA_CHECK(cudaStreamSynchronize(stream_));  // the pinned plan buffer may still be on its way
  const auto put = [&](const int32_t* device, const std::vector<int32_t>& host) {
    CUDA_CHECK(
        cudaMemcpy(const_cast<int32_t*>(device), host.data(), host.size() * 4, cudaMemcpyHostToDevice));
  };
  put(state_.batchIndices, batchIndices);
  put(state_.positions, positions);
  put(part.qIndptr, qIndptr);
  put(state_.kvIndptr, kvIndptr);
  put(state_.lastPageLen, lastPageLen);
  put(state_.kvIndices, kvIndices);

  const auto* kernels =
      nt::kernels::findAttentionKernels(nt::DType::kBF16, static_cast<uint32_t>(shape_.headDim));
  REQUIRE(kernels != nullptr);
  const nt::kernels::PlanArgs args{qIndptr.data(),
                                   kvIndptr.data(),
                                   lastPageLen.data(),
                                   state_.rows,
                                   state_.batch,
                                   static_cast<uint32_t>(shape_.heads),
                                   static_cast<uint32_t>(shape_.kvHeads),
                                   kPageSize,
                                   0,
                                   cudaGraph};
  const auto start = std::chrono::steady_clock::now();
  CUDA_CHECK((*kernels)[path].plan(part.workspace, args, &part.plan, stream_));
  planUs_ = std::chrono::duration<double, std::micro>(std::chrono::steady_clock::now() - start).count();
}

void Steps::commit(const std::vector<StepItem>& items) {
  for (const StepItem& item : items) sequences_[static_cast<size_t>(item.sequence)].cached += item.tokens;
}

}  // namespace bench
