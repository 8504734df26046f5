#include "tensorrt/few_rows.h"

#include <algorithm>
#include <optional>

#include "tensorrt/cuda.h"

namespace nt {

namespace {

constexpr int64_t kAlignment = 256;

int64_t aligned(int64_t bytes) {
  return (bytes + kAlignment - 1) / kAlignment * kAlignment;
}

}  // namespace

// Walks the nodes in order and gathers what one kernel does; what fits no kernel ends it.
class FewRowsSegment::Compiler {
 public:
  explicit Compiler(const SegmentShape& shape) : shape_(shape), uses_(shape.widths.size(), 0) {
    for (const Node& node : shape.nodes) {
      for (const ValueId input : node.inputs) ++uses_[static_cast<size_t>(input)];
    }
    norms_.resize(shape.widths.size());
    taken_.resize(shape.nodes.size(), false);
  }

  bool run() {
    for (size_t i = 0; i < shape_.nodes.size(); ++i) {
      if (taken_[i]) continue;
      const Node& node = shape_.nodes[i];
      if (const auto* norm = std::get_if<RmsNormOp>(&node.op)) {
        norms_[static_cast<size_t>(node.output)] = Norm{node.inputs[0], weights_++, norm->eps};
      } else if (const auto* linear = std::get_if<LinearOp>(&node.op)) {
        if (!add(*linear, node, i)) return false;
      } else if (const auto* attention = std::get_if<AttentionOp>(&node.op)) {
        if (!add(*attention, node)) return false;
      } else {
        return false;
      }
    }
    return !steps_.empty() && static_cast<size_t>(weights_) == shape_.weightShapes.size();
  }

  std::vector<Step> take() { return std::move(steps_); }

 private:
  struct Norm {
    ValueId input;
    int32_t weight;
    float eps;
  };

  int32_t width(ValueId value) const { return shape_.widths[static_cast<size_t>(value)]; }
  // The only node that uses a value, if it is the only one.
  std::optional<size_t> user(ValueId value, size_t after) const {
    if (uses_[static_cast<size_t>(value)] != 1) return std::nullopt;
    for (size_t i = after + 1; i < shape_.nodes.size(); ++i) {
      const auto& inputs = shape_.nodes[i].inputs;
      if (std::find(inputs.begin(), inputs.end(), value) != inputs.end()) return i;
    }
    return std::nullopt;
  }

  bool add(const LinearOp& op, const Node& node, size_t index) {
    Step step;
    Linear& linear = step.linear;
    linear.input = node.inputs[0];
    linear.output = node.output;
    linear.k = width(linear.input);
    linear.n = width(node.output);
    if (const auto& norm = norms_[static_cast<size_t>(linear.input)]) {
      linear.input = norm->input;
      linear.norm = norm->weight;
      linear.eps = norm->eps;
    }
    linear.weight = weights_++;
    if (!op.biases.empty()) linear.bias = weights_++;
    if (const auto next = user(node.output, index)) {
      const Node& follower = shape_.nodes[*next];
      if (const auto* gated = std::get_if<GatedActivationOp>(&follower.op)) {
        linear.gate =
            gated->gate == Gate::kSilu ? kernels::FewRowsGate::kSilu : kernels::FewRowsGate::kGeluTanh;
        linear.n = width(follower.output);
        linear.output = follower.output;
        taken_[*next] = true;
      } else if (std::holds_alternative<AddOp>(follower.op)) {
        const ValueId other = follower.inputs[follower.inputs[0] == node.output ? 1 : 0];
        // Values are numbered in order of definition: this one is there already.
        if (other < node.output && !norms_[static_cast<size_t>(other)]) {
          linear.residual = other;
          linear.output = follower.output;
          taken_[*next] = true;
        }
      }
    }
    steps_.push_back(step);
    return true;
  }

  bool add(const AttentionOp& op, const Node& node) {
    if (!op.qNorm.empty() || norms_[static_cast<size_t>(node.inputs[0])]) return false;
    Step step;
    step.isAttention = true;
    step.attention.input = node.inputs[0];
    step.attention.output = node.output;
    PagedAttentionParams& params = step.attention.params;
    params.layer = kLayerFromState;
    params.heads = op.heads;
    params.kvHeads = op.kvHeads;
    params.headDim = op.headDim;
    params.scale = op.scale;
    params.rope = op.rope;
    params.window = op.window;
    steps_.push_back(step);
    return true;
  }

  const SegmentShape& shape_;
  std::vector<int32_t> uses_;
  std::vector<std::optional<Norm>> norms_;  // by value
  std::vector<bool> taken_;                 // nodes that an earlier one's kernel does
  std::vector<Step> steps_;
  int32_t weights_ = 0;
};

std::unique_ptr<FewRowsSegment> FewRowsSegment::create(const SegmentShape& shape, DType dtype) {
  Compiler compiler(shape);
  if (dtype == DType::kF32 || !compiler.run()) return nullptr;
  std::unique_ptr<FewRowsSegment> result(new FewRowsSegment);
  result->dtype_ = dtype;
  result->steps_ = compiler.take();

  int32_t rows = kernels::kFewRowsMax;
  int64_t rotated = 0;
  std::vector<bool> made(shape.widths.size(), false);
  made[0] = true;
  for (const Step& step : result->steps_) {
    const ValueId input = step.isAttention ? step.attention.input : step.linear.input;
    const ValueId output = step.isAttention ? step.attention.output : step.linear.output;
    const ValueId residual = step.isAttention ? -1 : step.linear.residual;
    // A norm's result that something else than a linear layer reads has no place.
    if (!made[static_cast<size_t>(input)] || (residual >= 0 && !made[static_cast<size_t>(residual)]))
      return nullptr;
    made[static_cast<size_t>(output)] = true;
    if (step.isAttention) {
      rotated =
          std::max<int64_t>(rotated, int64_t{step.attention.params.heads} * step.attention.params.headDim);
    } else {
      while (rows > 0 && !kernels::fewRowsFits(dtype, rows, step.linear.k)) --rows;
    }
  }
  const auto last = static_cast<ValueId>(shape.widths.size()) - 1;
  if (rows < 1 || !made[static_cast<size_t>(last)]) return nullptr;
  result->maxRows_ = rows;

  const auto elementBytes = static_cast<int64_t>(sizeOf(dtype));
  result->offsets_.assign(shape.widths.size(), -1);
  int64_t bytes = 0;
  for (ValueId value = 1; value < last; ++value) {
    if (!made[static_cast<size_t>(value)]) continue;
    result->offsets_[static_cast<size_t>(value)] = bytes;
    bytes += aligned(rows * shape.widths[static_cast<size_t>(value)] * elementBytes);
  }
  result->rotatedOffset_ = bytes;
  result->scratchBytes_ = static_cast<uint64_t>(bytes + aligned(rows * rotated * elementBytes));
  return result;
}

Status FewRowsSegment::enqueue(int32_t rows, const void* x, void* y, const std::vector<void*>& weights,
                               const StepState& state, cudaStream_t stream) const {
  const auto last = static_cast<ValueId>(offsets_.size()) - 1;
  const auto address = [&](ValueId value) -> void* {
    if (value == last) return y;
    return value == 0 ? const_cast<void*>(x) : scratch_ + offsets_[static_cast<size_t>(value)];
  };
  const auto weight = [&](int32_t index) -> const void* {
    return index < 0 ? nullptr : weights[static_cast<size_t>(index)];
  };
  for (const Step& step : steps_) {
    int32_t error = 0;
    if (step.isAttention) {
      const Attention& attention = step.attention;
      error = runPagedAttention(attention.params, state, dtype_, static_cast<uint32_t>(rows),
                                address(attention.input), address(attention.output),
                                scratch_ + rotatedOffset_, stream);
      if (error < 0) return {"ERR_INTERNAL", "Attention of few rows failed, status " + std::to_string(error)};
    } else {
      const Linear& linear = step.linear;
      kernels::FewRowsArgs args;
      args.x = address(linear.input);
      args.weight = weight(linear.weight);
      args.bias = weight(linear.bias);
      args.norm = weight(linear.norm);
      args.residual = linear.residual < 0 ? nullptr : address(linear.residual);
      args.y = address(linear.output);
      args.rows = rows;
      args.n = linear.n;
      args.k = linear.k;
      args.eps = linear.eps;
      args.gate = linear.gate;
      error = kernels::fewRowsLinear(dtype_, args, state.overlap, stream);
    }
    if (Status status = toStatus(static_cast<cudaError_t>(error), "A layer of few rows"); !status)
      return status;
  }
  return {};
}

}  // namespace nt
