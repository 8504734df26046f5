#include "tensorrt/network.h"

#include <array>
#include <memory>

#include "tensorrt/plugin/paged_attention.h"

namespace nt {

namespace {

using namespace nvinfer1;
using Op = ElementWiseOperation;

Dims toDims(const std::vector<int64_t>& shape) {
  Dims dims{static_cast<int32_t>(shape.size()), {}};
  for (size_t i = 0; i < shape.size(); ++i) dims.d[i] = shape[i];
  return dims;
}

// A null tensor is a failure that TensorRT has logged; it is passed on, and the caller looks once, at the
// end.
class Lowering {
 public:
  Lowering(const SegmentShape& shape, DType dtype, INetworkDefinition& network, NetworkConstants& constants)
      : shape_(shape), type_(toTensorRt(dtype)), network_(network), constants_(constants) {}

  bool run() {
    values_.assign(shape_.widths.size(), nullptr);
    values_[0] = network_.addInput(kInputName, type_, Dims2{-1, shape_.inputWidth()});
    for (const Node& node : shape_.nodes) {
      ITensor* output = std::visit([&](const auto& op) { return lower(op, node); }, node.op);
      if (output == nullptr) return false;
      values_[static_cast<size_t>(node.output)] = output;
    }
    ITensor* output = values_.back();
    output->setName(kOutputName);
    network_.markOutput(*output);
    return nextWeight_ == shape_.weightShapes.size();
  }

 private:
  ITensor* input(const Node& node, size_t i = 0) { return values_[static_cast<size_t>(node.inputs[i])]; }

  ITensor* weight() {
    const size_t index = nextWeight_++;
    return network_.addInput(weightInputName(index).c_str(), type_, toDims(shape_.weightShapes[index]));
  }

  static ITensor* outputOf(ILayer* layer) { return layer == nullptr ? nullptr : layer->getOutput(0); }

  ITensor* elementWise(ITensor* a, ITensor* b, Op op) {
    return a == nullptr || b == nullptr ? nullptr : outputOf(network_.addElementWise(*a, *b, op));
  }
  ITensor* cast(ITensor* x, DataType type) {
    return x == nullptr ? nullptr : outputOf(network_.addCast(*x, type));
  }

  ITensor* scalar(float value, int32_t rank) {
    constants_.floats.push_back(value);
    Dims dims{rank, {}};
    for (int32_t i = 0; i < rank; ++i) dims.d[i] = 1;
    return outputOf(network_.addConstant(dims, Weights{DataType::kFLOAT, &constants_.floats.back(), 1}));
  }
  ITensor* integer(int64_t value) {
    constants_.integers.push_back(value);
    return outputOf(
        network_.addConstant(Dims{1, {1}}, Weights{DataType::kINT64, &constants_.integers.back(), 1}));
  }

  // Columns [from, from + length) of a matrix with a dynamic number of rows.
  ITensor* columns(ITensor* x, int64_t from, int64_t length) {
    if (x == nullptr) return nullptr;
    ITensor* shape = outputOf(network_.addShape(*x));
    ITensor* zero = integer(0);
    if (shape == nullptr || zero == nullptr) return nullptr;
    std::array<ITensor*, 2> size = {outputOf(network_.addGather(*shape, *zero, 0)), integer(length)};
    if (size[0] == nullptr || size[1] == nullptr) return nullptr;
    ITensor* dims = outputOf(network_.addConcatenation(size.data(), 2));
    ISliceLayer* slice = network_.addSlice(*x, Dims2{0, from}, Dims2{1, length}, Dims2{1, 1});
    if (dims == nullptr || slice == nullptr) return nullptr;
    slice->setInput(2, *dims);
    return outputOf(slice);
  }

  ITensor* reshape(ITensor* x, const Dims& dims) {
    if (x == nullptr) return nullptr;
    IShuffleLayer* shuffle = network_.addShuffle(*x);
    if (shuffle == nullptr) return nullptr;
    shuffle->setReshapeDimensions(dims);
    return outputOf(shuffle);
  }

  // Over the last of `rank` dimensions. TensorRT fuses the chain into one kernel.
  ITensor* rmsNorm(ITensor* x, float eps, int32_t rank) {
    ITensor* f = cast(x, DataType::kFLOAT);
    ITensor* square = elementWise(f, f, Op::kPROD);
    if (square == nullptr) return nullptr;
    ITensor* mean = outputOf(network_.addReduce(*square, ReduceOperation::kAVG, 1U << (rank - 1), true));
    ITensor* sum = elementWise(mean, scalar(eps, rank), Op::kSUM);
    if (sum == nullptr) return nullptr;
    ITensor* unit = elementWise(f, outputOf(network_.addUnary(*sum, UnaryOperation::kSQRT)), Op::kDIV);
    return elementWise(cast(unit, type_), weight(), Op::kPROD);
  }

  ITensor* lower(const RmsNormOp& op, const Node& node) { return rmsNorm(input(node), op.eps, 2); }

  ITensor* lower(const LinearOp& op, const Node& node) {
    ITensor* w = weight();
    if (w == nullptr) return nullptr;
    ITensor* y = outputOf(
        network_.addMatrixMultiply(*input(node), MatrixOperation::kNONE, *w, MatrixOperation::kTRANSPOSE));
    return op.biases.empty() ? y : elementWise(y, weight(), Op::kSUM);
  }

  ITensor* lower(const AttentionOp& op, const Node& node) {
    ITensor* qkv = input(node);
    if (!op.qNorm.empty()) {
      const int64_t d = op.headDim;
      const auto normHeads = [&](int64_t firstHead, int64_t heads) {
        ITensor* part = reshape(columns(qkv, firstHead * d, heads * d), Dims3{-1, heads, d});
        return reshape(rmsNorm(part, op.qkNormEps, 3), Dims2{-1, heads * d});
      };
      // The weights' order is that of the signature: q, then k.
      ITensor* q = normHeads(0, op.heads);
      ITensor* k = normHeads(op.heads, op.kvHeads);
      std::array<ITensor*, 3> parts = {q, k, columns(qkv, (op.heads + op.kvHeads) * d, op.kvHeads * d)};
      for (const ITensor* part : parts) {
        if (part == nullptr) return nullptr;
      }
      IConcatenationLayer* joined = network_.addConcatenation(parts.data(), 3);
      if (joined == nullptr) return nullptr;
      joined->setAxis(1);
      qkv = outputOf(joined);
    }
    const std::unique_ptr<IPluginV3> plugin(createPagedAttention(PagedAttentionParams::of(op)));
    return plugin == nullptr || qkv == nullptr ? nullptr
                                               : outputOf(network_.addPluginV3(&qkv, 1, nullptr, 0, *plugin));
  }

  ITensor* lower(const GatedActivationOp& op, const Node& node) {
    const int64_t width = shape_.widths[static_cast<size_t>(node.output)];
    ITensor* gate = columns(input(node), 0, width);
    if (gate == nullptr) return nullptr;
    ITensor* activated = nullptr;
    if (op.gate == Gate::kSilu) {
      activated =
          elementWise(gate, outputOf(network_.addActivation(*gate, ActivationType::kSIGMOID)), Op::kPROD);
    } else {
      activated = outputOf(network_.addActivation(*gate, ActivationType::kGELU_TANH));
    }
    return elementWise(activated, columns(input(node), width, width), Op::kPROD);
  }

  ITensor* lower(const AddOp&, const Node& node) {
    return elementWise(input(node, 0), input(node, 1), Op::kSUM);
  }

  // The partition leaves neither in a segment.
  ITensor* lower(const EmbeddingOp&, const Node&) { return nullptr; }
  ITensor* lower(const GatherRowsOp&, const Node&) { return nullptr; }

  const SegmentShape& shape_;
  DataType type_;
  INetworkDefinition& network_;
  NetworkConstants& constants_;
  std::vector<ITensor*> values_;
  size_t nextWeight_ = 0;
};

}  // namespace

std::string weightInputName(size_t index) {
  std::string name = std::to_string(index);
  name.insert(name.begin(), 'w');
  return name;
}

DataType toTensorRt(DType type) noexcept {
  return type == DType::kF32 ? DataType::kFLOAT : type == DType::kF16 ? DataType::kHALF : DataType::kBF16;
}

Status lowerSegment(const SegmentShape& shape, DType dtype, INetworkDefinition& network,
                    NetworkConstants& constants) {
  if (Lowering(shape, dtype, network, constants).run()) return {};
  return {"ERR_BUILD_FAILED", "TensorRT refused a layer of '" + shape.name + "'"};
}

}  // namespace nt
