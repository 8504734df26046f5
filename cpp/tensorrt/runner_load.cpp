// Loading: engines, weights, memory, graphs. See runner.h.
#include <NvInferRuntime.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <mutex>
#include <thread>

#include "core/graph.h"
#include "core/safetensors.h"
#include "tensorrt/driver.h"
#include "tensorrt/kernels/decode_plan.h"
#include "tensorrt/kernels/rows.h"
#include "tensorrt/library.h"
#include "tensorrt/plan_file.h"
#include "tensorrt/runner.h"

namespace nt {

namespace {

constexpr size_t kPlanBytes = size_t{16} << 20;
constexpr size_t kPartialBytes = size_t{512} << 20;
// Left free beside the KV pool: for graphs, kernels that are loaded at their first launch, and other
// processes' small change.
constexpr uint64_t kReserveBytes = uint64_t{512} << 20;
// Decode batches that get a graph each; a step is padded to the next one.
constexpr std::array<int32_t, 13> kBuckets = {1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 192, 256};
// Steps whose linear layers cuBLASLt and the kernel of gate and up run faster than an engine does: all
// (docs/performance.md). Fewer rows have kernels of their own, if any has.
constexpr RowRange kCublasRows = {1, INT32_MAX};
// Of a capture that another thread ended, after 10, 20, 40, ... ms.
constexpr int32_t kCaptureRetries = 6;

// The smallest bucket that holds `count`, or the largest.
int32_t bucketFor(int32_t count) {
  const auto at = std::lower_bound(kBuckets.begin(), kBuckets.end(), count);
  return at == kBuckets.end() ? kBuckets.back() : *at;
}

std::string versionText(int32_t version) {
  return std::to_string(version / 10000) + "." + std::to_string(version / 100 % 100) + "." +
         std::to_string(version % 100);
}

Status checkHeader(const PlanHeader& header, const Library& library, const GpuFacts& gpu) {
  if (header.libraryVersion != library.version()) {
    return {"ERR_ENGINE_INCOMPATIBLE",
            "The engine was built by TensorRT " + versionText(header.libraryVersion) +
                ", this process runs " + library.versionText(),
            "Build the engine again, or install the TensorRT it was built by"};
  }
  if (header.computeMajor != gpu.computeMajor || header.computeMinor != gpu.computeMinor) {
    const auto text = [](int32_t major, int32_t minor) {
      return std::to_string(major) + "." + std::to_string(minor);
    };
    return {"ERR_ENGINE_INCOMPATIBLE",
            "The engine was built for compute capability " + text(header.computeMajor, header.computeMinor) +
                ", " + gpu.name + " has " + text(gpu.computeMajor, gpu.computeMinor),
            "Build the engine on this GPU"};
  }
  return {};
}

Status checkOptions(const TensorRtOptions& options) {
  for (const auto& [name, value] :
       {std::pair{"pageSize", options.pageSize}, std::pair{"maxSlots", options.maxSlots},
        std::pair{"maxStepTokens", options.maxStepTokens}}) {
    if (value < 1)
      return Status::invalid(std::string(name) + " is " + std::to_string(value) + "; it must be at least 1");
  }
  if (options.numPages < 0) return Status::invalid("numPages must be 0 (as many as fit) or more");
  if (!(options.kvCacheFraction > 0 && options.kvCacheFraction <= 1)) {
    return Status::invalid("kvCacheFraction must be greater than 0 and at most 1");
  }
  return {};
}

Status allocateInto(DeviceBuffer& buffer, uint64_t bytes, const std::string& what) {
  Expected<DeviceBuffer> memory = DeviceBuffer::allocate(bytes, what);
  if (memory) buffer = *std::move(memory);
  return memory.status();
}

}  // namespace

Expected<std::unique_ptr<Runner>> Runner::create(const TensorRtOptions& options) {
  // One load at a time: two would size their pools by the same free memory, and what one does to the device
  // could end a capture of the other.
  static std::mutex loading;
  const std::lock_guard lock(loading);
  std::unique_ptr<Runner> runner(new Runner);
  if (Status status = runner->load(options); !status) return status;
  return runner;
}

Runner::~Runner() {
  // Without a stream the load ended before it touched the device: setting one would make a context there.
  if (stream_.get() == nullptr) return;
  cudaSetDevice(device_);
  cudaStreamSynchronize(stream_.get());
}

Status Runner::load(const TensorRtOptions& options) {
  const Expected<GpuFacts> gpu = requireDevice(options.device);
  if (!gpu) return gpu.status();
  const Expected<const Library*> library = Library::open(options.libraryPath);
  if (!library) return library.status();
  if (Status status = (*library)->requireFull("A language model's engine"); !status) return status;
  if (Status status = checkOptions(options); !status) return status;
  const Expected<Graph> graph = parseGraph(options.graph);
  if (!graph) return graph.status();
  const Expected<Partition> parts = partition(*graph);
  if (!parts) return parts.status();

  device_ = options.device;
  faultAtStep_ = options.faultAtStep;
  if (Status status = toStatus(cudaSetDevice(device_), "cudaSetDevice"); !status) return status;
  const cudaError_t error = cudaStreamCreateWithFlags(stream_.put(), cudaStreamNonBlocking);
  if (Status status = toStatus(error, "cudaStreamCreate"); !status) return status;

  info_.name = "tensorrt";
  info_.device = gpu->name + " (compute capability " + std::to_string(gpu->computeMajor) + "." +
                 std::to_string(gpu->computeMinor) + ", " + bytesText(gpu->memoryBytes) + ")";
  info_.batchInvariant = false;
  info_.vocabSize = graph->vocabSize;
  info_.maxPositions = graph->maxPositions;
  info_.pageSize = options.pageSize;
  info_.maxSlots = options.maxSlots;
  info_.maxStepTokens = options.maxStepTokens;
  width_ = parts->headShape().inputWidth();
  const std::vector<Node>& head = parts->headShape().nodes;
  const auto* norm = std::get_if<RmsNormOp>(&head.front().op);
  // Hidden states are the norm's, computed again beside an engine that gives logits alone.
  if (head.size() == 2 && norm != nullptr && std::holds_alternative<LinearOp>(head.back().op)) {
    info_.hiddenSize = width_;
    info_.hiddenRows = true;
    normEps_ = norm->eps;
  }
  kvHeads_ = graph->kvHeads;
  // Padding may make a step of few sequences longer than the longest one asked for.
  rowCapacity_ = std::max(options.maxStepTokens, bucketFor(std::min(options.maxSlots, kBuckets.back())));
  embeddingScale_ = parts->embedding.scale;

  if (Status status = loadEngines(options, *graph, *parts, *gpu); !status) return status;
  auto files = WeightFiles::open(options.files);
  if (!files) return files.status();
  auto weights = DeviceWeights::load(*graph, *parts, **files, dtype_);
  if (!weights) return weights.status();
  weights_ = *std::move(weights);
  info_.weightBytes = weights_.bytes();

  if (Status status = allocate(options, *graph); !status) return status;
  if (Status status = makeRopeTables(*graph); !status) return status;
  if (Status status = allocatePool(options, *graph); !status) return status;
  Expected<StepBuffers> buffers = createBuffers();
  if (!buffers) return buffers.status();
  Status status = warmUp(*buffers);
  if (status && options.cudaGraphs) status = captureGraphs(*buffers);
  // The device may still read the buffers.
  if (!status) (void)drain();
  return status;
}

Status Runner::loadEngines(const TensorRtOptions& options, const Graph& graph, const Partition& parts,
                           const GpuFacts& gpu) {
  const Expected<const Library*> library = Library::open(options.libraryPath);
  if (!library) return library.status();
  const Expected<PlanFile> file = readPlanFile(options.plan);
  if (!file) return file.status();
  const PlanHeader& header = file->header;
  if (Status status = checkHeader(header, **library, gpu); !status) return status;
  if (file->engines.size() != parts.shapes.size()) {
    return {"ERR_ENGINE_INVALID",
            "The plan has " + std::to_string(file->engines.size()) + " engines, the graph needs " +
                std::to_string(parts.shapes.size()),
            "Build the engine again"};
  }
  dtype_ = header.dtype;
  if (options.maxStepTokens > header.layerProfiles.back().max) {
    return Status::invalid("maxStepTokens is " + std::to_string(options.maxStepTokens) +
                           ", the engine was built for " + std::to_string(header.layerProfiles.back().max));
  }
  state_.plainKernels = options.plainKernels;
  attention_ =
      kernels::findAttentionKernels(dtype_, static_cast<uint32_t>(graph.headDim), options.plainKernels);
  if (attention_ == nullptr) {
    return {"ERR_MODEL_UNSUPPORTED", "No attention kernel has head size " + std::to_string(graph.headDim)};
  }

  Expected<std::unique_ptr<nvinfer1::IRuntime>> runtime = (*library)->createRuntime();
  if (!runtime) return runtime.status();
  runtime_ = *std::move(runtime);
  if (!options.plainKernels && dtype_ != DType::kF32) {
    // Without it the engines run every step of more rows than few: slower, as right.
    auto cublas = CublasLinear::create(dtype_);
    if (!cublas && CublasLinear::isNamed()) return cublas.status();
    if (cublas) cublas_ = *std::move(cublas);
  }
  for (size_t i = 0; i < parts.shapes.size(); ++i) {
    const SegmentShape& shape = parts.shapes[i];
    const PlanEngine& built = file->engines[i];
    if (built.signature != shape.signature) {
      return {"ERR_ENGINE_INCOMPATIBLE",
              "The engine was built from another graph: '" + shape.name + "' differs",
              "Build the engine again"};
    }
    RowRange rows = kCublasRows;
    const int32_t headRows = header.headProfiles.back().max;
    rows.last = std::min(rows.last, shape.attentions > 0 ? rowCapacity_ : headRows);
    auto engine = SegmentEngine::create(*runtime_, built.plan, shape, dtype_,
                                        shape.attentions > 0 ? header.layerProfiles : header.headProfiles,
                                        state_, stream_.get());
    if (!engine) return engine.status();
    engines_.push_back(*std::move(engine));
    kernels_.push_back(options.plainKernels ? nullptr
                                            : KernelSegment::create(shape, dtype_, cublas_.get(), rows,
                                                                    shape.attentions > 0 ? headRows : 0));
  }
  const auto usesCublas = [](const auto& segment) { return segment != nullptr && segment->usesCublas(); };
  if (std::any_of(kernels_.begin(), kernels_.end(), usesCublas)) {
    info_.linearLibrary = "cuBLASLt " + cublas_->version();
  } else {
    cublas_.reset();  // widths that it does not take, or no kernel for this GPU
  }
  widePrefill_ = (*attention_)[AttentionPath::kWidePrefill].plan != nullptr && gpu.computeMajor == 9 &&
                 gpu.computeMinor == 0;
  // Programmatic dependent launch came with compute capability 9.0.
  state_.overlap = !options.plainKernels && gpu.computeMajor >= 9;

  for (const Segment& segment : parts.segments) {
    Layer layer{engines_[segment.shape].get(), kernels_[segment.shape].get(), 0};
    for (const Node& node : parts.shapes[segment.shape].nodes) {
      const auto* op = std::get_if<AttentionOp>(&node.op);
      if (op == nullptr) continue;
      const auto known = std::find_if(plans_.begin(), plans_.end(), [&](const AttentionPlan& plan) {
        return plan.heads == op->heads && plan.window == op->window;
      });
      layer.plan = static_cast<size_t>(known - plans_.begin());
      if (known == plans_.end()) plans_.push_back({op->heads, op->window, {}});
      const bool decodes = static_cast<uint32_t>(op->heads / op->kvHeads) <= kernels::kMostDecodeGroup &&
                           info_.pageSize % kernels::kDecodeTile == 0;
      if (attention_->plans && !decodes) decodePath_ = AttentionPath::kPrefill;
    }
    layers_.push_back(layer);
  }
  return {};
}

Status Runner::allocate(const TensorRtOptions& options, const Graph& graph) {
  const auto elementBytes = sizeOf(dtype_);
  const int32_t sequenceCapacity =
      std::max(options.maxSlots, bucketFor(std::min(options.maxSlots, kBuckets.back())));
  // cuBLASLt computes rows of padding, too.
  const auto rows = static_cast<uint64_t>(KernelSegment::paddedRows(rowCapacity_));
  const auto headRows = static_cast<uint64_t>(KernelSegment::paddedRows(engines_.back()->maxRows()));
  const auto slots = static_cast<uint64_t>(options.maxSlots);
  const auto vocab = static_cast<uint64_t>(graph.vocabSize);
  const uint64_t rowBytes = static_cast<uint64_t>(width_) * elementBytes;
  const int64_t pagesPerSequence = (int64_t{graph.maxPositions} + options.pageSize - 1) / options.pageSize;
  maxPagesListed_ = static_cast<int32_t>(std::min<int64_t>(pagesPerSequence * options.maxSlots, INT32_MAX));

  int64_t activations = 0;
  for (const auto& engine : engines_) activations = std::max(activations, engine->activationBytes());
  // Segments run one after the other, on an engine or on kernels: the memory between their layers is one.
  for (const auto& segment : kernels_) {
    if (segment != nullptr)
      activations = std::max(activations, static_cast<int64_t>(segment->scratchBytes()));
  }
  const TableLayout largest(rowCapacity_, sequenceCapacity, rowCapacity_ + sequenceCapacity);
  // A capture lists a page for each sequence of its bucket, which may be more than there are slots.
  const auto pagesListed = static_cast<uint64_t>(std::max(maxPagesListed_, sequenceCapacity));
  const uint64_t tableBytes = (largest.kvIndices + pagesListed) * sizeof(int32_t);
  const uint64_t planBytes =
      attention_->plans ? kPlanBytes * plans_.size() * std::tuple_size_v<decltype(AttentionPlan::parts)> : 0;
  const uint64_t resultBytes = headRows * (3 + 2 * kernels::kMaxTopLogprobs) * sizeof(int32_t);
  const uint64_t slotBytes = slots * (sizeof(kernels::SlotParams) + 2 * sizeof(int32_t) +
                                      vocab * sizeof(uint32_t) + sizeof(kernels::SlotBias));
  const uint64_t historyBytes = static_cast<uint64_t>(graph.maxPositions) * sizeof(int32_t);
  for (Status status :
       {allocateInto(activations_, static_cast<uint64_t>(activations), "The activations"),
        allocateInto(x_[0], rows * rowBytes, "The residual stream"),
        allocateInto(x_[1], rows * rowBytes, "The residual stream"),
        allocateInto(gathered_, headRows * rowBytes, "The gathered rows"),
        allocateInto(logits_, headRows * vocab * elementBytes, "The logits"),
        allocateInto(normed_, info_.hiddenSize > 0 ? headRows * rowBytes : 0, "The hidden states"),
        allocateInto(masks_, slots * maskWords(graph.vocabSize) * sizeof(int32_t), "The token masks"),
        allocateInto(tables_, tableBytes, "The step's tables"),
        allocateInto(ints_, planBytes, "The attention plans"),
        allocateInto(floats_, attention_->plans ? kPartialBytes : 0, "The attention workspace"),
        allocateInto(results_, resultBytes, "The results"), allocateInto(slots_, slotBytes, "The slots"),
        allocateInto(history_, historyBytes, "A slot's tokens")}) {
    if (!status) return status;
  }
  info_.workspaceBytes = cublas_ == nullptr ? 0 : cublas_->workspaceBytes();
  for (const DeviceBuffer* buffer : {&activations_, &x_[0], &x_[1], &gathered_, &logits_, &normed_, &masks_,
                                     &tables_, &ints_, &floats_, &results_, &slots_, &history_}) {
    info_.workspaceBytes += buffer->bytes();
  }
  for (const auto& engine : engines_) engine->setActivationMemory(activations_.as<>(), activations);
  for (const auto& segment : kernels_) {
    if (segment != nullptr) segment->setScratch(activations_.as<>());
  }
  auto history = PinnedBuffer::allocate(historyBytes, "A slot's tokens");
  if (!history) return history.status();
  historyHost_ = *std::move(history);
  cudaError_t error = cudaEventCreateWithFlags(historySent_.put(), cudaEventDisableTiming);
  if (error == cudaSuccess) error = cudaMemsetAsync(slots_.as<>(), 0, slotBytes, stream_.get());
  if (Status status = toStatus(error, "Preparing the slots"); !status) return status;

  auto* params = slots_.as<kernels::SlotParams>();
  auto* lastTokens = reinterpret_cast<int32_t*>(params + slots);
  auto* tokenCounts = reinterpret_cast<uint32_t*>(lastTokens + 2 * slots);
  auto* biases = reinterpret_cast<kernels::SlotBias*>(tokenCounts + slots * vocab);
  slotTable_ = {params, lastTokens, lastTokens + slots, tokenCounts, biases, graph.vocabSize};
  state_.pageSize = options.pageSize;
  state_.layers = graph.layers;
  return {};
}

Status Runner::makeRopeTables(const Graph& graph) {
  const uint64_t half = static_cast<uint64_t>(graph.headDim) / 2;
  const uint64_t tableFloats = static_cast<uint64_t>(graph.maxPositions) * 2 * half;
  if (Status status = allocateInto(ropes_, graph.ropes.size() * (tableFloats + half) * sizeof(float),
                                   "The rotary tables");
      !status) {
    return status;
  }
  float* tables = ropes_.as<float>();
  float* frequencies = tables + graph.ropes.size() * tableFloats;
  for (size_t i = 0; i < graph.ropes.size(); ++i) {
    const Rope& rope = graph.ropes[i];
    if (rope.invFreq.size() != half)
      return {"ERR_MODEL_UNSUPPORTED", "A rotary table does not cover the whole head"};
    cudaError_t error = cudaMemcpyAsync(frequencies + i * half, rope.invFreq.data(), half * sizeof(float),
                                        cudaMemcpyHostToDevice, stream_.get());
    if (error == cudaSuccess) {
      error = kernels::ropeTable(frequencies + i * half, rope.scale, graph.maxPositions,
                                 static_cast<int32_t>(half), tables + i * tableFloats, stream_.get());
    }
    if (Status status = toStatus(error, "The rotary tables"); !status) return status;
    ropeTables_.push_back(tables + i * tableFloats);
  }
  state_.cosSin = ropeTables_.data();
  state_.ropes = static_cast<int32_t>(ropeTables_.size());
  return toStatus(cudaStreamSynchronize(stream_.get()), "The rotary tables");
}

Status Runner::allocatePool(const TensorRtOptions& options, const Graph& graph) {
  const uint64_t pageBytes = graph.pageBytes(options.pageSize, sizeOf(dtype_));
  int64_t pages = options.numPages;
  if (pages == 0) {
    size_t free = 0;
    size_t total = 0;
    if (Status status = toStatus(cudaMemGetInfo(&free, &total), "cudaMemGetInfo"); !status) return status;
    const uint64_t usable = free > kReserveBytes ? free - kReserveBytes : 0;
    const auto share =
        static_cast<uint64_t>(static_cast<double>(usable) * static_cast<double>(options.kvCacheFraction));
    // All slots at their longest; what is beyond would hold nothing but cached prefixes.
    pages = std::min<int64_t>(static_cast<int64_t>(share / pageBytes), maxPagesListed_);
    if (pages < 1) {
      return {
          "ERR_OUT_OF_DEVICE_MEMORY",
          "No room for a KV cache: " + bytesText(free) + " are free, a page takes " + bytesText(pageBytes),
          "Use a smaller model or step, or stop what else runs on this GPU"};
    }
  }
  const uint64_t bytes = static_cast<uint64_t>(pages) * pageBytes;
  if (Status status = allocateInto(pool_, bytes, "The KV cache"); !status) return status;
  // Pages are read only where they were written, but kernels may multiply what lies behind a sequence's end
  // by zero, and old memory may hold NaNs.
  if (Status status = toStatus(cudaMemsetAsync(pool_.as<>(), 0, bytes, stream_.get()), "The KV cache");
      !status) {
    return status;
  }
  info_.numPages = static_cast<int32_t>(pages);
  info_.kvCacheBytes = bytes;
  state_.pool = pool_.as<>();
  state_.layerBytes = static_cast<int64_t>(bytes) / graph.layers;
  return toStatus(cudaStreamSynchronize(stream_.get()), "The KV cache");
}

Expected<StepBuffers> Runner::createBuffers() const {
  StepBuffers buffers;
  const uint64_t entries = static_cast<uint64_t>(rowCapacity_) + static_cast<uint64_t>(info_.maxSlots);
  const auto allocate = [](PinnedBuffer& buffer, uint64_t bytes) -> Status {
    auto memory = PinnedBuffer::allocate(bytes, "A step's buffer");
    if (memory) buffer = *std::move(memory);
    return memory.status();
  };
  for (Status status :
       {allocate(buffers.tables, tables_.bytes()), allocate(buffers.plans, ints_.bytes()),
        allocate(buffers.results, entries * (3 + 2 * kernels::kMaxTopLogprobs) * sizeof(int32_t)),
        toStatus(cudaEventCreate(buffers.begun.put()), "cudaEventCreate"),
        toStatus(cudaEventCreateWithFlags(buffers.done.put(), cudaEventBlockingSync), "cudaEventCreate")}) {
    if (!status) return status;
  }
  return buffers;
}

// Each profile's largest step and a mixed one, before there is work: what they lack (memory, a kernel) shows
// now and not in a request, and the kernels are loaded.
Status Runner::warmUp(StepBuffers& buffers) {
  const int64_t longest = int64_t{info_.maxSlots} * info_.maxPositions;
  const auto most = static_cast<int32_t>(std::min<int64_t>(info_.maxStepTokens, longest));
  if (Status status = warmUp(buffers, most, 0); !status) return status;
  // One segment of each shape.
  for (size_t i = 0; i < kernels_.size(); ++i) {
    if (kernels_[i] == nullptr) continue;
    const auto layer = std::find_if(layers_.begin(), layers_.end(),
                                    [&](const Layer& each) { return each.kernels == kernels_[i].get(); });
    const bool isHead = layer + 1 == layers_.end();
    const auto& weights = weights_.segments()[static_cast<size_t>(layer - layers_.begin())];
    if (Status status = kernels_[i]->warmUp(isHead ? gathered_.as<>() : x_[0].as<>(),
                                            isHead ? logits_.as<>() : x_[1].as<>(), weights, stream_.get());
        !status) {
      return status;
    }
  }
  for (const RowProfile& profile : engines_.front()->profiles()) {
    if (profile.max >= most) break;
    if (Status status = warmUp(buffers, profile.max, 0); !status) return status;
  }
  // A prompt whose beginning is cached.
  const auto wide = static_cast<int32_t>(kWideRows);
  if ((*attention_)[AttentionPath::kFreshPrefill].plan != nullptr &&
      wide < std::min(most, info_.maxPositions)) {
    if (Status status = warmUp(buffers, wide, 0, 1); !status) return status;
  }
  // Both parts of attention, the second one too short for the wide kernel; the first one below and above the
  // rows from which it takes the decode kernel.
  const int32_t mixed = std::min(most, info_.maxPositions);
  for (const int32_t singles : {1, static_cast<int32_t>(kLeastDecodeRows)}) {
    if (info_.maxSlots <= singles || mixed < singles + 2) continue;
    if (Status status = warmUp(buffers, std::min(mixed, singles + 15), singles); !status) return status;
  }
  return {};
}

Status Runner::warmUp(StepBuffers& buffers, int32_t rows, int32_t singles, int32_t cached) {
  const int32_t sequences = singles + (rows - singles + info_.maxPositions - 1) / info_.maxPositions;
  const TableLayout layout(rows, sequences, std::min(rows, engines_.back()->maxRows()));
  const size_t ints = fillWarmUp(layout, info_.pageSize, singles, buffers.tables.as<int32_t>(), cached);
  setState(layout);
  if (Status status = sendTables(buffers, ints); !status) return status;
  if (Status status = planAttention(layout, buffers, singles, false); !status) return status;
  if (Status status = enqueueModel(layout, nullptr, false); !status) return status;
  return toStatus(cudaStreamSynchronize(stream_.get()), "The first step");
}

Status Runner::captureGraphs(StepBuffers& buffers) {
  int32_t engineRows = INT32_MAX;
  for (const auto& engine : engines_) engineRows = std::min(engineRows, engine->maxRows());
  const int32_t most = std::min(info_.maxSlots, info_.maxStepTokens);
  for (const int32_t bucket : kBuckets) {
    if (bucket > engineRows || bucket > rowCapacity_) break;
    bool invalidated = false;
    Status status = capture(bucket, buffers, invalidated);
    for (int32_t again = 0; invalidated && again < kCaptureRetries; ++again) {
      std::this_thread::sleep_for(std::chrono::milliseconds(10 << again));
      status = capture(bucket, buffers, invalidated);
    }
    if (!status) return status;
    if (bucket >= most) break;
  }
  return {};
}

Status Runner::capture(int32_t bucket, StepBuffers& buffers, bool& invalidated) {
  invalidated = false;
  const TableLayout layout(bucket, bucket, bucket);
  const size_t ints = fillWarmUp(layout, info_.pageSize, bucket, buffers.tables.as<int32_t>());
  setState(layout);
  if (Status status = sendTables(buffers, ints); !status) return status;
  if (Status status = planAttention(layout, buffers, bucket, true); !status) return status;
  for (size_t i = 0; i < engines_.size(); ++i) {
    if (kernels_[i] != nullptr && kernels_[i]->runs(bucket)) continue;
    if (Status status = engines_[i]->dedicate(bucket, stream_.get()); !status) return status;
  }
  // TensorRT settles a new shape at its first enqueue, which must not be captured.
  if (Status status = enqueueModel(layout, nullptr, true); !status) return status;
  if (Status status = toStatus(cudaStreamSynchronize(stream_.get()), "The first decode step"); !status)
    return status;
  if (Status status =
          toStatus(cudaStreamBeginCapture(stream_.get(), cudaStreamCaptureModeThreadLocal), "Capture");
      !status) {
    return status;
  }
  const Status enqueued = enqueueModel(layout, nullptr, true);
  cudaGraph_t graph = nullptr;
  cudaError_t error = cudaStreamEndCapture(stream_.get(), &graph);
  // Another thread waited for the whole device: a build does.
  invalidated = error == cudaErrorStreamCaptureInvalidated;
  if (invalidated) cudaGetLastError();
  if (!enqueued) {
    if (graph != nullptr) cudaGraphDestroy(graph);
    return enqueued;
  }
  GraphExec exec;
  if (error == cudaSuccess) error = cudaGraphInstantiate(exec.put(), graph, 0);
  if (graph != nullptr) cudaGraphDestroy(graph);
  if (error == cudaSuccess) error = cudaGraphUpload(exec.get(), stream_.get());
  if (Status status = toStatus(error, "Capturing a decode step"); !status) return status;
  graphs_.emplace(bucket, std::move(exec));
  return toStatus(cudaStreamSynchronize(stream_.get()), "Capturing a decode step");
}

}  // namespace nt
