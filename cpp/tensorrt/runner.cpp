#include "tensorrt/runner.h"

#include <algorithm>
#include <numeric>

#include "tensorrt/kernels/layer_rows.h"
#include "tensorrt/kernels/rows.h"

namespace nt {

namespace {

kernels::SlotParams toParams(const SamplingParams& sampling) {
  kernels::SlotParams params;
  params.temperature = sampling.temperature;
  params.topK = sampling.topK;
  params.topP = sampling.topP;
  params.minP = sampling.minP;
  params.repetitionPenalty = sampling.repetitionPenalty;
  params.presencePenalty = sampling.presencePenalty;
  params.frequencyPenalty = sampling.frequencyPenalty;
  params.seed = sampling.seed;
  params.logprobs = sampling.logprobs;
  params.promptLogprobs = sampling.promptLogprobs;
  params.minTokens = sampling.minTokens;
  params.bannedCount = static_cast<int32_t>(sampling.bannedTokens.size());
  std::copy(sampling.bannedTokens.begin(), sampling.bannedTokens.end(), params.banned);
  std::sort(params.banned, params.banned + params.bannedCount);
  params.biasCount = static_cast<int32_t>(sampling.biasIds.size());
  params.penalised =
      sampling.repetitionPenalty != 1 || sampling.presencePenalty != 0 || sampling.frequencyPenalty != 0;
  return params;
}

kernels::SlotBias toBias(const SamplingParams& sampling) {
  std::vector<size_t> order(sampling.biasIds.size());
  std::iota(order.begin(), order.end(), size_t{0});
  std::sort(order.begin(), order.end(),
            [&](size_t a, size_t b) { return sampling.biasIds[a] < sampling.biasIds[b]; });
  kernels::SlotBias bias;
  for (size_t i = 0; i < order.size(); ++i) {
    bias.ids[i] = sampling.biasIds[order[i]];
    bias.values[i] = sampling.biasValues[order[i]];
  }
  return bias;
}

// Results by entry, in a block of `entries` of each kind.
struct ResultView {
  ResultView(void* block, int64_t entries) noexcept
      : tokens(static_cast<int32_t*>(block)),
        ranks(tokens + entries),
        logprobs(reinterpret_cast<float*>(ranks + entries)),
        topIds(reinterpret_cast<int32_t*>(logprobs + entries)),
        topLogprobs(reinterpret_cast<float*>(topIds + entries * kernels::kMaxTopLogprobs)) {}

  int32_t* tokens;
  int32_t* ranks;
  float* logprobs;
  int32_t* topIds;
  float* topLogprobs;
};

int64_t resultCapacity(uint64_t bytes) noexcept {
  return static_cast<int64_t>(bytes / ((3 + 2 * kernels::kMaxTopLogprobs) * sizeof(int32_t)));
}

}  // namespace

StepResults Runner::resultsOf(const StepBuffers& buffers) noexcept {
  const ResultView view(buffers.results.as<>(), resultCapacity(buffers.results.bytes()));
  return {view.tokens, view.ranks, view.logprobs, view.topIds, view.topLogprobs};
}

Status Runner::openSlot(const SlotInit& init) {
  const kernels::SlotParams params = toParams(init.sampling);
  const int32_t lastToken = init.output.empty() ? -1 : init.output.back();
  const auto outputs = static_cast<int32_t>(init.output.size());
  cudaError_t error = kernels::openSlot(slotTable_, init.slot, params, lastToken, outputs, stream_.get());
  if (error == cudaSuccess && params.biasCount > 0)
    error = kernels::setBias(slotTable_, init.slot, toBias(init.sampling), stream_.get());
  if (error == cudaSuccess && params.penalised != 0) {
    // One buffer serves all slots: the copy of the one before must have left it.
    error = cudaEventSynchronize(historySent_.get());
    const auto prompt = static_cast<int32_t>(init.prompt.size());
    auto* host = historyHost_.as<int32_t>();
    std::copy(init.prompt.begin(), init.prompt.end(), host);
    std::copy(init.output.begin(), init.output.end(), host + prompt);
    const auto bytes = static_cast<size_t>(prompt + outputs) * sizeof(int32_t);
    if (error == cudaSuccess) {
      error = cudaMemcpyAsync(history_.as<>(), host, bytes, cudaMemcpyHostToDevice, stream_.get());
    }
    if (error == cudaSuccess) error = cudaEventRecord(historySent_.get(), stream_.get());
    if (error == cudaSuccess) {
      error =
          kernels::countTokens(slotTable_, init.slot, history_.as<int32_t>(), prompt, outputs, stream_.get());
    }
  }
  return toStatus(error, "Opening slot " + std::to_string(init.slot));
}

Status Runner::run(const StepBatch& step, StepBuffers& buffers) {
  ++steps_;
  if (steps_ == faultAtStep_) {
    if (Status status = toStatus(kernels::fault(stream_.get()), "The injected fault"); !status) return status;
  }
  const auto sequences = static_cast<int32_t>(step.sequences.size());
  const auto rows = static_cast<int32_t>(step.tokens.size());
  const auto entries = static_cast<int32_t>(buffers.entries.size());
  const bool oneRowEach = rows == sequences;
  const auto graph = oneRowEach ? graphs_.lower_bound(std::max(sequences, entries)) : graphs_.end();
  // A captured graph has no marks.
  const bool captured = graph != graphs_.end() && !step.timeParts;
  const TableLayout layout = captured ? TableLayout(graph->first, graph->first, graph->first)
                                      : TableLayout(rows, sequences, entries);
  const size_t ints = fillTables(step, buffers.entries, layout, info_.pageSize, buffers.tables.as<int32_t>());
  const cudaError_t begun = cudaEventRecord(buffers.begun.get(), stream_.get());
  if (Status status = toStatus(begun, "Beginning a step"); !status) return status;
  buffers.timed = step.timeParts;
  buffers.marks.reset();
  state_.marks = step.timeParts ? &buffers.marks : nullptr;
  if (Status status = sendTables(buffers, ints); !status) return status;
  setState(layout);
  const int32_t singles = oneRowEach ? layout.sequences : leadingSingles(step);
  if (Status status = planAttention(layout, buffers, singles, captured); !status) return status;

  if (Status status = reserveRows(buffers); !status) return status;
  if (Status status = sendMasks(buffers); !status) return status;
  if (captured) {
    const cudaError_t error = cudaGraphLaunch(graph->second.get(), stream_.get());
    if (Status status = toStatus(error, "Launching a decode step"); !status) return status;
    if (Status status = copyResults(buffers, 0, entries); !status) return status;
  } else if (Status status = enqueueModel(layout, &buffers, false); !status) {
    return status;
  }
  return toStatus(cudaEventRecord(buffers.done.get(), stream_.get()), "Finishing a step");
}

Status Runner::drain() const {
  return toStatus(cudaStreamSynchronize(stream_.get()), "The step");
}

Status Runner::reserveRows(StepBuffers& buffers) const {
  buffers.logitRows = 0;
  buffers.hiddenRows = 0;
  uint64_t logits = 0;
  uint64_t hidden = 0;
  for (const StepEntry& entry : buffers.entries) {
    logits += entry.logits ? 1 : 0;
    hidden += entry.hidden ? 1 : 0;
  }
  const auto reserve = [](PinnedBuffer& buffer, uint64_t bytes, const char* what) -> Status {
    if (bytes <= buffer.bytes()) return {};
    auto memory = PinnedBuffer::allocate(bytes, what);
    if (memory) buffer = *std::move(memory);
    return memory.status();
  };
  const auto rowBytes = [&](int32_t width) { return static_cast<uint64_t>(width) * sizeOf(dtype_); };
  Status status = reserve(buffers.logits, logits * rowBytes(info_.vocabSize), "The logits of a step");
  if (status) status = reserve(buffers.hidden, hidden * rowBytes(width_), "The hidden states of a step");
  if (!status || buffers.entryMasks.empty()) return status;
  // The number of masked sequences goes up and down: room for all of them at once, as pinning takes a while.
  const uint64_t words = maskWords(info_.vocabSize) * static_cast<uint64_t>(info_.maxSlots);
  return reserve(buffers.masks, words * sizeof(int32_t), "The token masks of a step");
}

Status Runner::sendMasks(StepBuffers& buffers) {
  if (buffers.entryMasks.empty()) return {};
  const size_t words = maskWords(info_.vocabSize);
  auto* to = buffers.masks.as<int32_t>();
  for (const int32_t* mask : buffers.entryMasks) to = std::copy_n(mask, words, to);
  const size_t bytes = buffers.entryMasks.size() * words * sizeof(int32_t);
  return toStatus(
      cudaMemcpyAsync(masks_.as<>(), buffers.masks.as<>(), bytes, cudaMemcpyHostToDevice, stream_.get()),
      "Sending a step's token masks");
}

Status Runner::sendTables(const StepBuffers& buffers, size_t ints) {
  return toStatus(cudaMemcpyAsync(tables_.as<>(), buffers.tables.as<>(), ints * sizeof(int32_t),
                                  cudaMemcpyHostToDevice, stream_.get()),
                  "Sending a step's tables");
}

void Runner::setState(const TableLayout& layout) {
  state_.batchIndices = table(layout.batchIndices);
  state_.positions = table(layout.positions);
  state_.kvIndptr = table(layout.kvIndptr);
  state_.kvIndices = table(layout.kvIndices);
  state_.lastPageLen = table(layout.lastPageLen);
  state_.rows = static_cast<uint32_t>(layout.rows);
  state_.batch = static_cast<uint32_t>(layout.sequences);
}

Status Runner::planAttention(const TableLayout& layout, const StepBuffers& buffers, int32_t singles,
                             bool cudaGraph) {
  const auto sequences = static_cast<uint32_t>(layout.sequences);
  const auto rows = static_cast<uint32_t>(layout.rows);
  const auto decodes = static_cast<uint32_t>(singles);
  // The plain kernels take any mixture, and gain nothing from parts.
  const bool mixed = attention_->plans && decodes > 0 && decodes < sequences;
  state_.partCount = mixed ? 2 : 1;
  for (size_t i = 0; i < plans_.size(); ++i) {
    AttentionPlan& plan = plans_[i];
    AttentionPart& first = plan.parts[0];
    const bool isDecode = mixed || decodes == sequences;
    first.path = isDecode && decodes >= kLeastDecodeRows ? decodePath_ : AttentionPath::kPrefill;
    first.sequences = mixed ? decodes : sequences;
    first.rows = mixed ? decodes : rows;
    first.qIndptr = table(layout.qIndptr);
    AttentionPart& second = plan.parts[1];
    second.path = AttentionPath::kPrefill;
    second.firstSequence = second.firstRow = decodes;
    second.sequences = sequences - decodes;
    second.rows = rows - decodes;
    second.qIndptr = table(layout.wideIndptr);
    if (!attention_->plans) continue;
    for (size_t p = 0; p < state_.partCount; ++p) {
      kernels::Workspace& workspace = plan.parts[p].workspace;
      workspace.floats = floats_.as<>();
      workspace.floatBytes = floats_.bytes();
      workspace.intBytes = ints_.bytes() / (plans_.size() * plan.parts.size());
      const size_t offset = (i * plan.parts.size() + p) * workspace.intBytes;
      workspace.ints = ints_.as<char>() + offset;
      workspace.intsHost = buffers.plans.as<char>() + offset;
      if (Status status = planPart(layout, buffers, plan, cudaGraph, plan.parts[p]); !status) return status;
    }
  }
  return {};
}

Status Runner::planPart(const TableLayout& layout, const StepBuffers& buffers, const AttentionPlan& plan,
                        bool cudaGraph, AttentionPart& part) {
  const auto* block = buffers.tables.as<int32_t>();
  kernels::PlanArgs args;
  args.qIndptr = block + (part.firstSequence == 0 ? layout.qIndptr : layout.wideIndptr);
  args.kvIndptr = block + layout.kvIndptr + part.firstSequence;
  args.rows = part.rows;
  args.batch = part.sequences;
  args.heads = static_cast<uint32_t>(plan.heads);
  args.kvHeads = static_cast<uint32_t>(kvHeads_);
  args.pageSize = static_cast<uint32_t>(info_.pageSize);
  args.window = plan.window;
  args.cudaGraph = cudaGraph;
  args.lastPageLen = block + layout.lastPageLen + part.firstSequence;
  if (part.path == AttentionPath::kPrefill && widePrefill_ && !cudaGraph && plan.window == 0 &&
      part.rows >= kWideRows * part.sequences) {
    const int32_t* positions = block + layout.positions + part.firstRow;
    const bool fresh = (*attention_)[AttentionPath::kFreshPrefill].plan != nullptr &&
                       std::all_of(args.qIndptr, args.qIndptr + part.sequences,
                                   [&](int32_t row) { return positions[row] == 0; });
    part.path = fresh ? AttentionPath::kFreshPrefill : AttentionPath::kWidePrefill;
  }
  const auto make = (*attention_)[part.path].plan;
  return toStatus(make(part.workspace, args, &part.plan, stream_.get()), "Planning attention");
}

Status Runner::enqueueModel(const TableLayout& layout, StepBuffers* buffers, bool dedicated) {
  kernels::EmbedArgs embed;
  embed.table = weights_.embedding();
  embed.out = x_[0].as<>();
  embed.tokens = table(layout.tokens);
  embed.batchIndices = table(layout.batchIndices);
  embed.sequenceSlots = table(layout.sequenceSlots);
  embed.lastTokens = slotTable_.lastTokens;
  embed.rows = layout.rows;
  embed.width = width_;
  embed.vocab = info_.vocabSize;
  embed.scale = embeddingScale_;
  if (Status status = toStatus(kernels::embed(dtype_, embed, stream_.get()), "The embedding"); !status)
    return status;
  if (Status status = mark(StepPart::kEmbedding); !status) return status;

  const size_t head = layers_.size() - 1;
  // The last layer need not give more rows than the head takes.
  const Layer& last = layers_[head - 1];
  const KeptRows entries{table(layout.entryRows), layout.entries};
  const bool keeps = last.runsKernels(layout.rows) && last.kernels->keeps(layout.rows, layout.entries);
  for (size_t i = 0; i < head; ++i) {
    const Layer& layer = layers_[i];
    state_.layer = static_cast<int32_t>(i);
    state_.parts = plans_[layer.plan].parts;
    const KeptRows* kept = keeps && i + 1 == head ? &entries : nullptr;
    void* y = kept == nullptr ? x_[(i + 1) % 2].as<>() : gathered_.as<>();
    if (Status status = enqueueSegment(i, layout.rows, x_[i % 2].as<>(), y, dedicated, kept); !status)
      return status;
    if (Status status = mark(StepPart::linear(static_cast<int32_t>(i))); !status) return status;
  }
  const void* x = keeps ? nullptr : x_[head % 2].as<>();
  const int32_t chunk = engines_.back()->maxRows();
  for (int32_t first = 0; first < layout.entries; first += chunk) {
    const int32_t count = std::min(chunk, layout.entries - first);
    const auto needsLogits = [](const StepEntry& entry) { return entry.needsLogits(); };
    const bool logits =
        buffers == nullptr ||
        std::any_of(buffers->entries.begin() + first, buffers->entries.begin() + first + count, needsLogits);
    if (Status status = enqueueHead(layout, first, count, x, logits, dedicated); !status) return status;
    if (buffers == nullptr) continue;
    if (Status status = copyResults(*buffers, first, count); !status) return status;
  }
  return {};
}

Status Runner::mark(int32_t part) {
  return state_.marks == nullptr ? Status()
                                 : toStatus(state_.marks->mark(part, stream_.get()), "Timing a step");
}

Status Runner::enqueueSegment(size_t index, int32_t rows, const void* x, void* y, bool dedicated,
                              const KeptRows* kept) {
  const Layer& layer = layers_[index];
  const std::vector<void*>& weights = weights_.segments()[index];
  return layer.runsKernels(rows) ? layer.kernels->enqueue(rows, x, y, weights, state_, stream_.get(), kept)
                                 : layer.engine->enqueue(rows, x, y, weights, stream_.get(), dedicated);
}

Status Runner::enqueueHead(const TableLayout& layout, int32_t first, int32_t count, const void* x,
                           bool logits, bool dedicated) {
  const auto at = static_cast<size_t>(first);
  cudaError_t error = cudaSuccess;
  if (x != nullptr) {
    const int64_t rowBytes = int64_t{width_} * static_cast<int64_t>(sizeOf(dtype_));
    error = kernels::gatherRows(x, table(layout.entryRows + at), count, rowBytes, gathered_.as<>(),
                                stream_.get());
  }
  if (Status status = toStatus(error, "Gathering rows"); !status || !logits) return status;
  if (Status status = enqueueSegment(layers_.size() - 1, count, gathered_.as<>(), logits_.as<>(), dedicated);
      !status) {
    return status;
  }
  if (Status status = mark(StepPart::head(state_.layers)); !status) return status;
  const ResultView view(results_.as<>(), resultCapacity(results_.bytes()));
  kernels::SampleArgs sample;
  sample.logits = logits_.as<>();
  sample.slots = table(layout.entrySlots + at);
  sample.targets = table(layout.entryTargets + at);
  sample.maskRows = table(layout.entryMasks + at);
  sample.masks = masks_.as<uint32_t>();
  sample.entries = count;
  sample.table = slotTable_;
  sample.tokens = view.tokens;
  sample.ranks = view.ranks;
  sample.logprobs = view.logprobs;
  sample.topIds = view.topIds;
  sample.topLogprobs = view.topLogprobs;
  if (Status status = toStatus(kernels::sample(dtype_, sample, stream_.get()), "Sampling"); !status)
    return status;
  return mark(StepPart::sampling(state_.layers));
}

Status Runner::copyResults(StepBuffers& buffers, int32_t first, int32_t count) {
  const ResultView from(results_.as<>(), resultCapacity(results_.bytes()));
  const ResultView to(buffers.results.as<>(), resultCapacity(buffers.results.bytes()));
  const auto begin = buffers.entries.begin() + first;
  int32_t top = -1;
  for (auto entry = begin; entry != begin + count; ++entry) top = std::max(top, entry->top);
  cudaError_t error = cudaSuccess;
  const auto copy = [&](auto* target, const auto* source, int64_t perEntry) {
    if (error != cudaSuccess) return;
    error = cudaMemcpyAsync(target + first * perEntry, source,
                            static_cast<size_t>(count * perEntry) * sizeof *source, cudaMemcpyDeviceToHost,
                            stream_.get());
  };
  if (count > 0) copy(to.tokens, from.tokens, 1);
  if (top >= 0) {
    copy(to.ranks, from.ranks, 1);
    copy(to.logprobs, from.logprobs, 1);
  }
  if (top > 0) {
    copy(to.topIds, from.topIds, kernels::kMaxTopLogprobs);
    copy(to.topLogprobs, from.topLogprobs, kernels::kMaxTopLogprobs);
  }
  if (Status status = toStatus(error, "Fetching results"); !status) return status;

  const uint64_t rowBytes = static_cast<uint64_t>(info_.vocabSize) * sizeOf(dtype_);
  for (int32_t i = 0; i < count; ++i) {
    if (!begin[i].logits) continue;
    const uint64_t offset = static_cast<uint64_t>(buffers.logitRows) * rowBytes;
    error = cudaMemcpyAsync(buffers.logits.as<char>() + offset,
                            logits_.as<char>() + static_cast<uint64_t>(i) * rowBytes, rowBytes,
                            cudaMemcpyDeviceToHost, stream_.get());
    if (Status status = toStatus(error, "Fetching logits"); !status) return status;
    ++buffers.logitRows;
  }
  return copyHidden(buffers, first, count);
}

// Of the rows that are still gathered. Also behind a captured step, which has no part of it.
Status Runner::copyHidden(StepBuffers& buffers, int32_t first, int32_t count) {
  const auto begin = buffers.entries.begin() + first;
  const auto end = begin + count;
  const auto isWanted = [](const StepEntry& entry) { return entry.hidden; };
  if (std::none_of(begin, end, isWanted)) return {};
  const void* weight = weights_.segments().back().front();
  cudaError_t error = kernels::rmsNorm(dtype_, gathered_.as<>(), weight, normEps_, count, width_,
                                       normed_.as<>(), false, stream_.get());
  const uint64_t rowBytes = static_cast<uint64_t>(width_) * sizeOf(dtype_);
  for (auto from = begin; error == cudaSuccess;) {
    from = std::find_if(from, end, isWanted);
    if (from == end) break;
    const auto to = std::find_if_not(from, end, isWanted);
    const auto rows = static_cast<uint64_t>(to - from);
    error = cudaMemcpyAsync(buffers.hidden.as<char>() + static_cast<uint64_t>(buffers.hiddenRows) * rowBytes,
                            normed_.as<char>() + static_cast<uint64_t>(from - begin) * rowBytes,
                            rows * rowBytes, cudaMemcpyDeviceToHost, stream_.get());
    buffers.hiddenRows += static_cast<int32_t>(rows);
    from = to;
  }
  return toStatus(error, "Fetching hidden states");
}

}  // namespace nt
