#include "tensorrt/weights.h"

#include <algorithm>
#include <array>
#include <atomic>
#include <exception>
#include <mutex>
#include <system_error>
#include <thread>

#include "tensorrt/kernels/rows.h"

namespace nt {

namespace {

constexpr uint64_t kAlignment = 256;
constexpr uint64_t kChunkBytes = uint64_t{16} << 20;
// One thread copies out of the page cache at a sixth of the bus's rate.
constexpr size_t kReaders = 6;

uint64_t aligned(uint64_t bytes) {
  return (bytes + kAlignment - 1) / kAlignment * kAlignment;
}

// A piece of a tensor, and where its elements go.
struct Chunk {
  const TensorInfo* tensor = nullptr;
  uint64_t begin = 0;  // bytes in the tensor
  uint64_t bytes = 0;
  char* to = nullptr;
};

// Moves chunks to the device, several readers at a time.
class Upload {
 public:
  Upload(const WeightFiles& files, DType dtype, std::vector<Chunk> chunks)
      : files_(files), dtype_(dtype), chunks_(std::move(chunks)) {}

  Status run() {
    int device = 0;
    if (Status status = toStatus(cudaGetDevice(&device), "cudaGetDevice"); !status) return status;
    std::vector<std::thread> threads;
    const size_t readers = std::min(kReaders, chunks_.size());
    for (size_t i = 1; i < readers; ++i) {
      try {
        threads.emplace_back([this, device] { read(device); });
      } catch (const std::system_error&) {
        break;  // fewer readers do it as well
      }
    }
    read(device);
    for (std::thread& thread : threads) thread.join();
    return std::move(failure_);
  }

 private:
  // Two buffers a reader: one fills from the file while the other travels.
  struct Stage {
    PinnedBuffer host;
    DeviceBuffer device;  // where the type changes
    Event sent;
  };
  struct Reader {
    Stream stream;
    std::array<Stage, 2> stages;
    // Also after an error, when a copy may still read a stage.
    ~Reader() {
      if (stream.get() != nullptr) cudaStreamSynchronize(stream.get());
    }
  };

  void read(int device) noexcept {
    try {
      if (Status status = toStatus(cudaSetDevice(device), "cudaSetDevice"); !status)
        return fail(std::move(status));
      Reader reader;
      if (Status status = open(reader); !status) return fail(std::move(status));
      for (size_t turn = 0; !failed_; ++turn) {
        const size_t index = next_++;
        if (index >= chunks_.size()) break;
        Stage& stage = reader.stages[turn % reader.stages.size()];
        if (Status status = send(chunks_[index], stage, reader.stream.get()); !status)
          return fail(std::move(status));
      }
      const cudaError_t error = cudaStreamSynchronize(reader.stream.get());
      if (Status status = toStatus(error, "Uploading weights"); !status) fail(std::move(status));
    } catch (const std::exception& error) {
      fail({"ERR_OUT_OF_MEMORY", std::string("Uploading weights: ") + error.what()});
    }
  }

  Status open(Reader& reader) {
    cudaError_t error = cudaStreamCreateWithFlags(reader.stream.put(), cudaStreamNonBlocking);
    if (Status status = toStatus(error, "cudaStreamCreate"); !status) return status;
    const bool converts = std::any_of(chunks_.begin(), chunks_.end(),
                                      [&](const Chunk& chunk) { return chunk.tensor->dtype != dtype_; });
    for (Stage& stage : reader.stages) {
      auto host = PinnedBuffer::allocate(kChunkBytes, "A buffer for weights");
      if (!host) return host.status();
      stage.host = *std::move(host);
      if (converts) {
        auto memory = DeviceBuffer::allocate(kChunkBytes, "A buffer for weights");
        if (!memory) return memory.status();
        stage.device = *std::move(memory);
      }
      error = cudaEventCreateWithFlags(stage.sent.put(), cudaEventDisableTiming);
      if (Status status = toStatus(error, "cudaEventCreate"); !status) return status;
    }
    return {};
  }

  Status send(const Chunk& chunk, Stage& stage, cudaStream_t stream) {
    if (Status status = toStatus(cudaEventSynchronize(stage.sent.get()), "Uploading weights"); !status)
      return status;
    if (Status status = files_.read(*chunk.tensor, chunk.begin, chunk.bytes, stage.host.as<>()); !status)
      return status;
    const DType from = chunk.tensor->dtype;
    const bool same = from == dtype_;
    cudaError_t error = cudaMemcpyAsync(same ? chunk.to : stage.device.as<char>(), stage.host.as<>(),
                                        chunk.bytes, cudaMemcpyHostToDevice, stream);
    if (error == cudaSuccess && !same) {
      error = kernels::convert(from, stage.device.as<>(), dtype_, chunk.to,
                               static_cast<int64_t>(chunk.bytes / sizeOf(from)), stream);
    }
    if (error == cudaSuccess) error = cudaEventRecord(stage.sent.get(), stream);
    return toStatus(error, "Uploading weights");
  }

  void fail(Status status) noexcept {
    const std::lock_guard lock(mutex_);
    if (failure_) failure_ = std::move(status);
    failed_ = true;
  }

  const WeightFiles& files_;
  DType dtype_;
  std::vector<Chunk> chunks_;
  std::atomic<size_t> next_ = 0;
  std::atomic<bool> failed_ = false;
  std::mutex mutex_;  // guards `failure_`
  Status failure_;    // the first
};

}  // namespace

Expected<DeviceWeights> DeviceWeights::load(const Graph& graph, const Partition& partition,
                                            const WeightFiles& files, DType dtype) {
  // One copy of what is used twice (tied embeddings), found by the list of names.
  struct Placed {
    uint64_t offset = 0;
    std::vector<TensorInfo> tensors;
  };
  std::map<std::vector<std::string>, Placed> placed;
  uint64_t total = 0;
  const auto place = [&](const std::vector<std::string>& names) -> Status {
    const auto [at, isNew] = placed.try_emplace(names);
    if (!isNew) return {};
    at->second.offset = total;
    uint64_t elements = 0;
    for (const std::string& name : names) {
      Expected<TensorInfo> tensor = files.find(name, graph.weights.at(name));
      if (!tensor) return tensor.status();
      elements += tensor->bytes / sizeOf(tensor->dtype);
      at->second.tensors.push_back(*std::move(tensor));
    }
    total = aligned(total + elements * sizeOf(dtype));
    return {};
  };
  if (Status status = place({partition.embedding.weight}); !status) return status;
  for (const Segment& segment : partition.segments) {
    for (const WeightInput& weight : segment.weights) {
      if (Status status = place(weight.names); !status) return status;
    }
  }

  DeviceWeights result;
  Expected<DeviceBuffer> memory = DeviceBuffer::allocate(total, "The weights");
  if (!memory) return memory.status();
  result.memory_ = *std::move(memory);
  char* base = result.memory_.as<char>();
  std::vector<Chunk> chunks;
  for (const auto& [names, at] : placed) {
    char* to = base + at.offset;
    for (const TensorInfo& tensor : at.tensors) {
      const uint64_t fromSize = sizeOf(tensor.dtype);
      for (uint64_t begin = 0; begin < tensor.bytes; begin += kChunkBytes) {
        const uint64_t bytes = std::min(kChunkBytes, tensor.bytes - begin);
        chunks.push_back({&tensor, begin, bytes, to + begin / fromSize * sizeOf(dtype)});
      }
      to += tensor.bytes / fromSize * sizeOf(dtype);
    }
  }
  if (Status status = Upload(files, dtype, std::move(chunks)).run(); !status) return status;

  const auto address = [&](const std::vector<std::string>& names) -> void* {
    return base + placed.at(names).offset;
  };
  result.embedding_ = address({partition.embedding.weight});
  for (const Segment& segment : partition.segments) {
    std::vector<void*>& inputs = result.segments_.emplace_back();
    for (const WeightInput& weight : segment.weights) inputs.push_back(address(weight.names));
  }
  return result;
}

}  // namespace nt
