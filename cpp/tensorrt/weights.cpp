#include "tensorrt/weights.h"

#include <algorithm>
#include <array>

#include "tensorrt/kernels/rows.h"

namespace nt {

namespace {

constexpr uint64_t kAlignment = 256;
constexpr uint64_t kStagingBytes = uint64_t{32} << 20;

uint64_t aligned(uint64_t bytes) {
  return (bytes + kAlignment - 1) / kAlignment * kAlignment;
}

// Moves tensors through two pinned buffers: one fills from the file while the other travels.
class Uploader {
 public:
  Uploader(const WeightFiles& files, DType dtype, cudaStream_t stream)
      : files_(files), dtype_(dtype), stream_(stream) {}
  // Also after an error, when a copy may still read a stage.
  ~Uploader() { cudaStreamSynchronize(stream_); }

  Status open() {
    for (Stage& stage : stages_) {
      auto host = PinnedBuffer::allocate(kStagingBytes, "A buffer for weights");
      if (!host) return host.status();
      stage.host = *std::move(host);
      auto device = DeviceBuffer::allocate(kStagingBytes, "A buffer for weights");
      if (!device) return device.status();
      stage.device = *std::move(device);
      const cudaError_t error = cudaEventCreateWithFlags(stage.sent.put(), cudaEventDisableTiming);
      if (Status status = toStatus(error, "cudaEventCreate"); !status) return status;
    }
    return {};
  }

  // `to` receives the tensor's elements, in its order, in the engine's type.
  Status upload(const TensorInfo& tensor, char* to) {
    const uint64_t fromSize = sizeOf(tensor.dtype);
    const uint64_t toSize = sizeOf(dtype_);
    for (uint64_t begin = 0; begin < tensor.bytes; begin += kStagingBytes) {
      Stage& stage = stages_[next_++ % stages_.size()];
      const uint64_t count = std::min(kStagingBytes, tensor.bytes - begin);
      if (Status status = toStatus(cudaEventSynchronize(stage.sent.get()), "Uploading weights"); !status)
        return status;
      if (Status status = files_.read(tensor, begin, count, stage.host.as<>()); !status) return status;
      char* target = to + begin / fromSize * toSize;
      const bool same = tensor.dtype == dtype_;
      cudaError_t error = cudaMemcpyAsync(same ? target : stage.device.as<>(), stage.host.as<>(), count,
                                          cudaMemcpyHostToDevice, stream_);
      if (error == cudaSuccess && !same) {
        error = kernels::convert(tensor.dtype, stage.device.as<>(), dtype_, target,
                                 static_cast<int64_t>(count / fromSize), stream_);
      }
      if (error == cudaSuccess) error = cudaEventRecord(stage.sent.get(), stream_);
      if (Status status = toStatus(error, "Uploading weights"); !status) return status;
    }
    return {};
  }

 private:
  struct Stage {
    PinnedBuffer host;
    DeviceBuffer device;
    Event sent;
  };

  const WeightFiles& files_;
  DType dtype_;
  cudaStream_t stream_;
  std::array<Stage, 2> stages_;
  size_t next_ = 0;
};

}  // namespace

Expected<DeviceWeights> DeviceWeights::load(const Graph& graph, const Partition& partition,
                                            const WeightFiles& files, DType dtype, cudaStream_t stream) {
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
  Uploader uploader(files, dtype, stream);
  if (Status status = uploader.open(); !status) return status;
  char* base = result.memory_.as<char>();
  for (const auto& [names, at] : placed) {
    char* to = base + at.offset;
    for (const TensorInfo& tensor : at.tensors) {
      if (Status status = uploader.upload(tensor, to); !status) return status;
      to += tensor.bytes / sizeOf(tensor.dtype) * sizeOf(dtype);
    }
  }
  if (Status status = toStatus(cudaStreamSynchronize(stream), "Uploading weights"); !status) return status;

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
