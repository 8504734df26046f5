#include "tensorrt/kernel_segment.h"

#include <algorithm>
#include <optional>
#include <string>

#include "tensorrt/cuda.h"
#include "tensorrt/kernels/gated_linear.h"
#include "tensorrt/kernels/layer_rows.h"
#include "tensorrt/kernels/rows.h"

namespace nt {

namespace {

constexpr int64_t kAlignment = 256;

int64_t aligned(int64_t bytes) {
  return (bytes + kAlignment - 1) / kAlignment * kAlignment;
}

// Whether the thread's device has compute capability 9.0.
bool isHopper() {
  int device = 0;
  int major = 0;
  int minor = 0;
  return cudaGetDevice(&device) == cudaSuccess &&
         cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device) == cudaSuccess &&
         cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device) == cudaSuccess &&
         major == 9 && minor == 0;
}

}  // namespace

// Walks the nodes in order and gathers what one kernel does; what fits no kernel ends it.
class KernelSegment::Compiler {
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
            gated->gate == Gate::kSilu ? kernels::LinearGate::kSilu : kernels::LinearGate::kGeluTanh;
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
    step.attention.params = PagedAttentionParams::of(op);
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

int32_t KernelSegment::paddedRows(int32_t rows) noexcept {
  const int32_t step = rows <= 128 ? 16 : rows <= 512 ? 32 : 64;
  return (rows + step - 1) / step * step;
}

std::unique_ptr<KernelSegment> KernelSegment::create(const SegmentShape& shape, DType dtype,
                                                     CublasLinear* cublas, RowRange cublasRows,
                                                     int32_t mostKept) {
  Compiler compiler(shape);
  if (dtype == DType::kF32 || !compiler.run()) return nullptr;
  std::unique_ptr<KernelSegment> result(new KernelSegment);
  result->dtype_ = dtype;
  result->steps_ = compiler.take();

  int32_t few = kernels::kFewRowsMax;
  if (cublas == nullptr) cublasRows = {};
  int64_t rotated = 0;
  int64_t normed = 0;
  int64_t gated = 0;  // elements; of the others, those of a row
  const bool hopper = isHopper();
  std::vector<bool> made(shape.widths.size(), false);
  made[0] = true;
  for (Step& step : result->steps_) {
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
      continue;
    }
    Linear& linear = step.linear;
    linear.together =
        hopper && linear.bias < 0 && kernels::gatedLinearFits(dtype, linear.gate, linear.n, linear.k);
    while (few > 0 && !kernels::fewRowsFits(dtype, few, linear.k)) --few;
    if (linear.n % 8 != 0 || linear.k % 8 != 0) cublasRows = {};
    if (linear.norm >= 0) normed = std::max<int64_t>(normed, linear.k);
    if (linear.gate == kernels::LinearGate::kNone) continue;
    for (int32_t each = cublasRows.first; cublasRows.holds(each); each = paddedRows(each) + 1) {
      if (!isTogether(linear, each)) gated = std::max(gated, int64_t{paddedRows(each)} * 2 * linear.n);
    }
  }
  const auto last = static_cast<ValueId>(shape.widths.size()) - 1;
  const int32_t rows = std::max(few, cublasRows.last > 0 ? paddedRows(cublasRows.last) : 0);
  if (rows < 1 || !made[static_cast<size_t>(last)]) return nullptr;
  result->fewRows_ = few;
  result->cublas_ = cublas;
  result->cublasRows_ = cublasRows;

  const auto elementBytes = static_cast<int64_t>(sizeOf(dtype));
  result->offsets_.assign(shape.widths.size(), -1);
  int64_t bytes = 0;
  const auto reserve = [&](int64_t elements) {
    const int64_t offset = bytes;
    bytes += aligned(elements * elementBytes);
    return offset;
  };
  for (ValueId value = 1; value < last; ++value) {
    if (!made[static_cast<size_t>(value)]) continue;
    result->offsets_[static_cast<size_t>(value)] =
        reserve(int64_t{rows} * shape.widths[static_cast<size_t>(value)]);
  }
  result->rotatedOffset_ = reserve(rows * rotated);
  result->widths_ = shape.widths;
  result->keptOffsets_.assign(shape.widths.size(), -1);
  for (size_t i = 0; i < result->steps_.size(); ++i) {
    if (result->steps_[i].isAttention) result->behindAttention_ = i + 1;
  }
  const bool isCut = result->behindAttention_ > 0 && result->behindAttention_ < result->steps_.size();
  result->mostKept_ = isCut ? std::min(mostKept, rows) : 0;
  std::vector<bool> later(shape.widths.size(), false);
  for (size_t i = result->behindAttention_; i < result->steps_.size() && result->mostKept_ > 0; ++i) {
    const Linear& linear = result->steps_[i].linear;
    for (const ValueId value : {linear.input, linear.residual}) {
      const auto at = static_cast<size_t>(value);
      if (value < 0 || later[at] || result->keptOffsets_[at] >= 0) continue;
      result->keptOffsets_[at] = reserve(int64_t{paddedRows(result->mostKept_)} * shape.widths[at]);
    }
    later[static_cast<size_t>(linear.output)] = true;
  }
  result->normedOffset_ = reserve(cublasRows.last > 0 ? rows * normed : 0);
  result->gatedOffset_ = reserve(cublasRows.last > 0 ? gated : 0);
  result->scratchBytes_ = static_cast<uint64_t>(bytes);
  for (int32_t each = cublasRows.first; cublasRows.holds(each); each = paddedRows(each) + 1) {
    if (!result->prepare(each)) result->cublasRows_ = cublasRows = {};
  }
  return few > 0 || cublasRows.last > 0 ? std::move(result) : nullptr;
}

// Of one linear layer.
struct KernelSegment::Pointers {
  const void* x = nullptr;
  const void* weight = nullptr;
  const void* bias = nullptr;
  const void* norm = nullptr;
  const void* residual = nullptr;
  void* y = nullptr;
};

cudaError_t KernelSegment::runFew(const Linear& linear, const Pointers& at, int32_t rows, bool overlap,
                                  cudaStream_t stream) const {
  kernels::FewRowsArgs args;
  args.x = at.x;
  args.weight = at.weight;
  args.bias = at.bias;
  args.norm = at.norm;
  args.residual = at.residual;
  args.y = at.y;
  args.rows = rows;
  args.n = linear.n;
  args.k = linear.k;
  args.eps = linear.eps;
  args.gate = linear.gate;
  return kernels::fewRowsLinear(dtype_, args, overlap, stream);
}

bool KernelSegment::isTogether(const Linear& linear, int32_t rows) noexcept {
  return linear.together && kernels::gatedLinearPays(paddedRows(rows));
}

LinearArgs KernelSegment::cublasShape(const Linear& linear, int32_t rows) {
  LinearArgs args;
  args.rows = paddedRows(rows);
  args.n = linear.gate == kernels::LinearGate::kNone ? linear.n : 2 * linear.n;
  args.k = linear.k;
  return args;
}

// What stands before and behind the product has kernels of its own, but for an activation that runs together
// with it: x is the norm's result where there is a norm, y what the activation takes where there is one.
Status KernelSegment::runCublas(const Linear& linear, const Pointers& at, int32_t rows, bool overlap,
                                cudaStream_t stream) const {
  if (linear.norm >= 0) {
    const cudaError_t error = kernels::rmsNorm(dtype_, at.x, at.norm, linear.eps, rows, linear.k,
                                               scratch_ + normedOffset_, overlap, stream);
    if (Status status = toStatus(error, "A norm"); !status) return status;
  }
  const void* x = linear.norm < 0 ? at.x : scratch_ + normedOffset_;
  if (isTogether(linear, rows)) {
    const kernels::GatedLinearArgs args{x, at.weight, at.y, rows, linear.n, linear.k};
    return toStatus(kernels::gatedLinear(dtype_, args, overlap, stream), "Gate and up");
  }
  const bool gated = linear.gate != kernels::LinearGate::kNone;
  LinearArgs args = cublasShape(linear, rows);
  args.x = x;
  args.weight = at.weight;
  args.bias = at.bias;
  args.residual = at.residual;
  args.y = gated ? scratch_ + gatedOffset_ : at.y;
  if (Status status = cublas_->enqueue(args, stream); !status) return status;
  if (!gated) return {};
  return toStatus(
      kernels::gatedActivation(dtype_, linear.gate, args.y, rows, linear.n, at.y, overlap, stream),
      "A gated activation");
}

bool KernelSegment::keeps(int32_t rows, int32_t count) const noexcept {
  return mostKept_ > 0 && count <= mostKept_ && rows > fewRows_ && cublasRows_.holds(rows) &&
         (count == 0 || runs(count)) && paddedRows(count) < paddedRows(rows);
}

bool KernelSegment::prepare(int32_t rows) const {
  // Of the addresses only counts which are there.
  static const char there = 0;
  return std::all_of(steps_.begin(), steps_.end(), [&](const Step& step) {
    if (step.isAttention || isTogether(step.linear, rows)) return true;
    LinearArgs shape = cublasShape(step.linear, rows);
    shape.bias = step.linear.bias < 0 ? nullptr : &there;
    shape.residual = step.linear.residual < 0 ? nullptr : &there;
    return cublas_->prepare(shape).isOk();
  });
}

Status KernelSegment::warmUp(const void* x, void* y, const std::vector<void*>& weights,
                             cudaStream_t stream) const {
  for (int32_t rows = cublasRows_.first; cublasRows_.holds(rows); rows = paddedRows(rows) + 1) {
    const int32_t most = std::min(paddedRows(rows), cublasRows_.last);
    if (Status status = run(most, x, y, weights, nullptr, nullptr, stream); !status) return status;
  }
  return {};
}

Status KernelSegment::enqueue(int32_t rows, const void* x, void* y, const std::vector<void*>& weights,
                              const StepState& state, cudaStream_t stream, const KeptRows* kept) const {
  return run(rows, x, y, weights, &state, kept, stream);
}

Status KernelSegment::run(int32_t rows, const void* x, void* y, const std::vector<void*>& weights,
                          const StepState* state, const KeptRows* kept, cudaStream_t stream) const {
  const auto last = static_cast<ValueId>(offsets_.size()) - 1;
  bool isCut = false;
  const auto address = [&](ValueId value) -> void* {
    if (value == last) return y;
    const int64_t keptOffset = keptOffsets_[static_cast<size_t>(value)];
    if (isCut && keptOffset >= 0) return scratch_ + keptOffset;
    return value == 0 ? const_cast<void*>(x) : scratch_ + offsets_[static_cast<size_t>(value)];
  };
  const auto weight = [&](int32_t index) -> const void* {
    return index < 0 ? nullptr : weights[static_cast<size_t>(index)];
  };
  const bool overlap = state != nullptr && state->overlap;
  for (size_t i = 0; i < steps_.size(); ++i) {
    const Step& step = steps_[i];
    Status status;
    if (kept != nullptr && i == behindAttention_) {
      rows = kept->count;
      for (size_t value = 0; value < keptOffsets_.size(); ++value) {
        if (keptOffsets_[value] < 0) continue;
        const auto rowBytes = static_cast<int64_t>(widths_[value]) * static_cast<int64_t>(sizeOf(dtype_));
        status = toStatus(kernels::gatherRows(address(static_cast<ValueId>(value)), kept->rows, rows,
                                              rowBytes, scratch_ + keptOffsets_[value], stream),
                          "Gathering rows");
        if (!status) return status;
      }
      if (rows == 0) return {};
      isCut = true;
    }
    if (step.isAttention) {
      if (state == nullptr) continue;
      const Attention& attention = step.attention;
      const int32_t error = runPagedAttention(attention.params, *state, dtype_, static_cast<uint32_t>(rows),
                                              address(attention.input), address(attention.output),
                                              scratch_ + rotatedOffset_, stream);
      if (error < 0) return {"ERR_INTERNAL", "Attention failed, status " + std::to_string(error)};
      status = toStatus(static_cast<cudaError_t>(error), "Attention");
    } else {
      const Linear& linear = step.linear;
      const Pointers at{address(linear.input),
                        weight(linear.weight),
                        weight(linear.bias),
                        weight(linear.norm),
                        linear.residual < 0 ? nullptr : address(linear.residual),
                        address(linear.output)};
      status = rows <= fewRows_ ? toStatus(runFew(linear, at, rows, overlap, stream), "A layer of few rows")
                                : runCublas(linear, at, rows, overlap, stream);
    }
    if (!status) return status;
  }
  return {};
}

}  // namespace nt
