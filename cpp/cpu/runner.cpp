#include "cpu/runner.h"

#include <algorithm>
#include <cstring>

namespace nt::cpu {

namespace {

// Multiply-adds below which handing work to another thread costs more than it saves (about two microseconds).
constexpr size_t kSerialCost = size_t{64} << 10;
// Least work of one task, for the same reason.
constexpr size_t kTaskCost = size_t{24} << 10;
// An exponential and a division, in multiply-adds.
constexpr size_t kActivationCost = 12;

size_t ceilDiv(size_t a, size_t b) {
  return (a + b - 1) / b;
}

}  // namespace

Expected<std::unique_ptr<Runner>> Runner::create(const Model& model, const Kernels& kernels, ThreadPool& pool,
                                                 int32_t pageSize, int32_t numPages, int32_t maxStepTokens) {
  std::unique_ptr<Runner> runner(new Runner(model, kernels, pool));
  const Graph& graph = model.graph;
  runner->pageSize_ = pageSize;
  runner->numPages_ = numPages;
  size_t poolBytes = 0;
  size_t pageBytes = sizeof(float);
  bool overflow = false;
  for (const int32_t factor : {2, pageSize, graph.kvHeads, graph.headDim}) {
    overflow |= __builtin_mul_overflow(pageBytes, size_t(factor), &pageBytes);
  }
  overflow |= __builtin_mul_overflow(pageBytes, size_t(graph.layers), &poolBytes);
  overflow |= __builtin_mul_overflow(poolBytes, size_t(numPages), &poolBytes);
  if (overflow) return Status("ERR_OUT_OF_MEMORY", "The KV cache would be larger than the address space.");
  runner->pageFloats_ = pageBytes / sizeof(float);
  auto kvPool = MappedMemory::allocate(poolBytes, "the KV cache", true);
  if (!kvPool) return kvPool.status();
  runner->kvPool_ = std::move(*kvPool);

  const size_t positions = std::min(size_t(graph.maxPositions), size_t(pageSize) * size_t(numPages));
  runner->scratchStride_ = attendScratch(1, kAttendTile, size_t(graph.headDim), positions, size_t(pageSize));
  auto scratch =
      MappedMemory::allocate(runner->scratchStride_ * size_t(pool.threads()) * sizeof(float), "attention");
  if (!scratch) return scratch.status();
  runner->scratch_ = std::move(*scratch);

  for (const Buffer& buffer : model.buffers) {
    auto memory = MappedMemory::allocate(buffer.rows * buffer.stride * sizeof(float), "activations");
    if (!memory) return memory.status();
    runner->buffers_.push_back(std::move(*memory));
  }
  runner->positions_.resize(size_t(maxStepTokens));
  runner->pages_.resize(size_t(maxStepTokens));
  return runner;
}

uint64_t Runner::workspaceBytes() const noexcept {
  uint64_t bytes = scratch_.bytes();
  for (const MappedMemory& buffer : buffers_) bytes += buffer.bytes();
  return bytes;
}

void Runner::forward(const StepBatch& step, std::span<const int32_t> tokens,
                     std::span<const int32_t> gathered, LogitsSink& sink) {
  locateRows(step);
  size_t done = 0;  // gathered rows whose block has run
  for (size_t begin = 0; begin < tokens.size(); begin += kHeadRows) {
    const size_t end = std::min(tokens.size(), begin + kHeadRows);
    size_t until = done;
    while (until < gathered.size() && size_t(gathered[until]) < end) ++until;
    const auto ofBlock = gathered.subspan(done, until - done);
    tileBlock(step, begin, end, ofBlock);
    block_ = begin;
    const Rows rows{end - begin, 0, tokens.data() + begin, positions_.data() + begin};
    for (size_t i = 0; i < model_.split; ++i) runNode(i, rows);
    collectGathered(begin, ofBlock, done);
    done = until;
  }
  const Buffer& logits = model_.buffers[model_.logits];
  const bool hasHidden = model_.graph.hiddenSize() > 0;
  const size_t head = hasHidden ? model_.nodes.size() - 1 : model_.nodes.size();
  for (size_t begin = 0; begin < gathered.size(); begin += kTailRows) {
    const Rows rows{std::min(kTailRows, gathered.size() - begin), begin, nullptr, nullptr};
    for (size_t i = model_.split; i < head; ++i) runNode(i, rows);
    if (hasHidden) {
      const size_t hidden = model_.nodes[head].inputs[0];
      sink.onHidden(begin, rows.count, at(hidden, rows), model_.buffers[hidden].stride);
      if (!sink.wantsLogits(begin, rows.count)) continue;
      runNode(head, rows);
    }
    sink.onLogits(begin, rows.count, at(model_.logits, rows), logits.stride);
  }
}

void Runner::locateRows(const StepBatch& step) {
  for (const StepSequence& sequence : step.sequences) {
    for (int32_t i = 0; i < sequence.tokens; ++i) {
      positions_[size_t(sequence.firstRow + i)] = sequence.cached + i;
      pages_[size_t(sequence.firstRow + i)] = sequence.pages.data();
    }
  }
}

void Runner::addTiles(const StepSequence& sequence, size_t blockBegin, size_t begin, size_t end,
                      std::vector<AttendTile>& out) {
  size_t perTile = 1;
  if (model_.graph.kvHeads > 0 && model_.lastAttention != SIZE_MAX) {
    const auto& op = std::get<AttentionOp>(model_.graph.nodes[model_.lastAttention].op);
    perTile = std::max<size_t>(1, size_t(kAttendTile) / size_t(op.heads / op.kvHeads));
  }
  for (size_t row = begin; row < end; row += perTile) {
    out.push_back({int32_t(row - blockBegin), int32_t(std::min(perTile, end - row)), positions_[row],
                   sequence.pages.data()});
  }
}

void Runner::tileBlock(const StepBatch& step, size_t begin, size_t end, std::span<const int32_t> gathered) {
  tiles_.clear();
  gatheredTiles_.clear();
  size_t next = 0;
  for (const StepSequence& sequence : step.sequences) {
    const size_t from = std::max(begin, size_t(sequence.firstRow));
    const size_t to = std::min(end, size_t(sequence.firstRow) + size_t(sequence.tokens));
    if (from >= to) continue;
    addTiles(sequence, begin, from, to, tiles_);
    while (next < gathered.size() && size_t(gathered[next]) < to) {
      const auto run = size_t(gathered[next]);
      size_t length = 1;
      while (next + length < gathered.size() && size_t(gathered[next + length]) == run + length &&
             run + length < to) {
        ++length;
      }
      addTiles(sequence, begin, run, run + length, gatheredTiles_);
      next += length;
    }
  }
}

void Runner::collectGathered(size_t blockBegin, std::span<const int32_t> gathered, size_t firstGathered) {
  for (const Crossing& crossing : model_.crossings) {
    const size_t fromStride = model_.buffers[crossing.from].stride;
    const size_t toStride = model_.buffers[crossing.to].stride;
    for (size_t i = 0; i < gathered.size(); ++i) {
      const float* from =
          buffers_[crossing.from].as<float>() + (size_t(gathered[i]) - blockBegin) * fromStride;
      float* to = buffers_[crossing.to].as<float>() + (firstGathered + i) * toStride;
      std::memcpy(to, from, crossing.width * sizeof(float));
    }
  }
}

float* Runner::at(size_t buffer, const Rows& rows) const noexcept {
  const Buffer& shape = model_.buffers[buffer];
  for (const Crossing& crossing : model_.crossings) {
    if (crossing.to == buffer) return buffers_[buffer].as<float>() + rows.first * shape.stride;
  }
  return buffers_[buffer].as<float>();
}

template <typename F>
void Runner::forRows(size_t count, size_t costPerRow, F&& f) {
  const size_t cost = count * costPerRow;
  if (cost < kSerialCost) {
    for (size_t row = 0; row < count; ++row) f(row);
    return;
  }
  const size_t perTask =
      std::max(ceilDiv(kTaskCost, costPerRow), ceilDiv(count, size_t(pool_.threads()) * 4));
  pool_.run(ceilDiv(count, perTask), [&](size_t task, int) {
    const size_t end = std::min(count, (task + 1) * perTask);
    for (size_t row = task * perTask; row < end; ++row) f(row);
  });
}

void Runner::runNode(size_t index, const Rows& rows) {
  const CompiledNode& node = model_.nodes[index];
  const auto& op = node.node->op;
  if (std::holds_alternative<GatherRowsOp>(op)) return;
  if (const auto* embedding = std::get_if<EmbeddingOp>(&op)) return embed(node, *embedding, rows);
  if (std::holds_alternative<LinearOp>(op)) return linear(node, rows);
  if (const auto* attend = std::get_if<AttentionOp>(&op)) {
    return attention(node, *attend, rows, index == model_.lastAttention ? gatheredTiles_ : tiles_);
  }

  float* out = at(node.output, rows);
  const float* in = at(node.inputs[0], rows);
  const size_t outStride = model_.buffers[node.output].stride;
  const size_t inStride = model_.buffers[node.inputs[0]].stride;
  const auto width = size_t(model_.graph.values[size_t(node.node->output)].width);
  if (const auto* norm = std::get_if<RmsNormOp>(&op)) {
    forRows(rows.count, width * 2, [&](size_t row) {
      kernels_.rmsNorm(in + row * inStride, node.norm.data(), norm->eps, width, out + row * outStride);
    });
  } else if (const auto* gated = std::get_if<GatedActivationOp>(&op)) {
    const auto activate = gated->gate == Gate::kSilu ? kernels_.siluMul : kernels_.geluMul;
    forRows(rows.count, width * kActivationCost, [&](size_t row) {
      activate(in + row * inStride, in + row * inStride + width, width, out + row * outStride);
    });
  } else {
    const float* second = at(node.inputs[1], rows);
    const size_t secondStride = model_.buffers[node.inputs[1]].stride;
    forRows(rows.count, width, [&](size_t row) {
      kernels_.add(in + row * inStride, second + row * secondStride, width, out + row * outStride);
    });
  }
}

void Runner::embed(const CompiledNode& node, const EmbeddingOp& op, const Rows& rows) {
  float* out = at(node.output, rows);
  const size_t stride = model_.buffers[node.output].stride;
  const size_t width = node.matrix->columns();
  forRows(rows.count, width * 4, [&](size_t row) {
    float* to = out + row * stride;
    node.matrix->readRow(size_t(rows.tokens[row]), to);
    if (op.scale != 1.0F) {
      for (size_t i = 0; i < width; ++i) to[i] *= op.scale;
    }
  });
}

void Runner::linear(const CompiledNode& node, const Rows& rows) {
  const PackedMatrix& w = *node.matrix;
  const float* a = at(node.inputs[0], rows);
  float* c = at(node.output, rows);
  const size_t lda = model_.buffers[node.inputs[0]].stride;
  const size_t ldc = model_.buffers[node.output].stride;
  const auto run = [&](size_t row, size_t count, size_t panel, size_t panels) {
    const float* bias = node.bias.empty() ? nullptr : node.bias.data() + panel * kPanelWidth;
    kernels_.gemm({a + row * lda, lda, count, w.columns(), w.panel(panel), w.dtype(), panels, bias,
                   c + row * ldc + panel * kPanelWidth, ldc});
  };
  const size_t panelCost = rows.count * w.columns() * kPanelWidth;
  if (pool_.threads() == 1 || panelCost * w.panels() < kSerialCost) {
    run(0, rows.count, 0, w.panels());
    return;
  }
  const auto threads = size_t(pool_.threads());
  // Four shares a thread, so that one that is held up costs little; but not so small that claiming them
  // shows.
  const size_t perTask = std::max(ceilDiv(kTaskCost, panelCost), ceilDiv(w.panels(), threads * 4));
  const size_t panelTasks = ceilDiv(w.panels(), perTask);
  const size_t rowTasks =
      std::clamp<size_t>(threads * 2 / panelTasks, 1, std::max<size_t>(1, rows.count / 32));
  pool_.run(panelTasks * rowTasks, [&](size_t task, int) {
    const size_t panel = task / rowTasks * perTask;
    const size_t row = rows.count * (task % rowTasks) / rowTasks;
    const size_t rowEnd = rows.count * (task % rowTasks + 1) / rowTasks;
    run(row, rowEnd - row, panel, std::min(perTask, w.panels() - panel));
  });
}

// Normalises and rotates q and k of one row in place, and writes k and v into their page.
void Runner::appendRow(const CompiledNode& node, const AttentionOp& op, float* qkv, int32_t position,
                       const int32_t* pages) {
  const RopeTable& table = model_.ropes[size_t(op.rope)];
  const float* cos = table.cos.data() + size_t(position) * table.half;
  const float* sin = table.sin.data() + size_t(position) * table.half;
  const auto dim = size_t(op.headDim);
  const auto pageSize = size_t(pageSize_);
  for (int32_t h = 0; h < op.heads + op.kvHeads; ++h) {
    float* head = qkv + size_t(h) * dim;
    const std::vector<float>& norm = h < op.heads ? node.qNorm : node.kNorm;
    if (!norm.empty()) kernels_.rmsNorm(head, norm.data(), op.qkNormEps, dim, head);
    kernels_.rope(head, cos, sin, dim);
  }
  const float* k = qkv + size_t(op.heads) * dim;
  const float* v = k + size_t(op.kvHeads) * dim;
  const size_t slot = size_t(position) % pageSize;
  float* keys = pageOf(op.layer, pages[size_t(position) / pageSize]);
  float* values = keys + size_t(op.kvHeads) * dim * pageSize;
  for (size_t i = 0; i < size_t(op.kvHeads) * dim; ++i) keys[i * pageSize + slot] = k[i];
  for (size_t h = 0; h < size_t(op.kvHeads); ++h) {
    std::memcpy(values + (h * pageSize + slot) * dim, v + h * dim, dim * sizeof(float));
  }
}

void Runner::attention(const CompiledNode& node, const AttentionOp& op, const Rows& rows,
                       const std::vector<AttendTile>& tiles) {
  float* qkv = at(node.inputs[0], rows);
  float* out = at(node.output, rows);
  const size_t qkvStride = model_.buffers[node.inputs[0]].stride;
  const size_t outStride = model_.buffers[node.output].stride;
  const auto dim = size_t(op.headDim);
  const auto kvHeads = size_t(op.kvHeads);
  const size_t group = size_t(op.heads) / kvHeads;
  forRows(rows.count, (size_t(op.heads) + 4 * kvHeads) * dim * 2, [&](size_t row) {
    appendRow(node, op, qkv + row * qkvStride, rows.positions[row], pages_[block_ + row]);
  });

  const auto attendOne = [&](size_t task, int thread) {
    const AttendTile& tile = tiles[task / kvHeads];
    const size_t head = task % kvHeads;
    const float* keys = pageOf(op.layer, 0) + head * dim * size_t(pageSize_);
    const KvView kv{keys, keys + kvHeads * dim * size_t(pageSize_), pageFloats_, pageSize_, tile.pages};
    kernels_.attend({.q = qkv + size_t(tile.row) * qkvStride + head * group * dim,
                     .qStride = qkvStride,
                     .out = out + size_t(tile.row) * outStride + head * group * dim,
                     .outStride = outStride,
                     .rows = tile.rows,
                     .heads = int32_t(group),
                     .headDim = op.headDim,
                     .scale = op.scale,
                     .firstPosition = tile.firstPosition,
                     .window = op.window,
                     .kv = kv,
                     .scratch = scratch_.as<float>() + size_t(thread) * scratchStride_});
  };
  size_t keys = 0;
  for (const AttendTile& tile : tiles) {
    const auto seen = size_t(tile.firstPosition + tile.rows);
    keys += size_t(tile.rows) * (op.window > 0 ? std::min(seen, size_t(op.window)) : seen);
  }
  const size_t tasks = tiles.size() * kvHeads;
  if (keys * size_t(op.heads) * dim * 2 < kSerialCost) {
    for (size_t task = 0; task < tasks; ++task) attendOne(task, 0);
  } else {
    pool_.run(tasks, attendOne);
  }
}

}  // namespace nt::cpu
