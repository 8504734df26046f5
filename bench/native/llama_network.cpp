#include "llama_network.h"

#include <array>
#include <cmath>
#include <deque>
#include <numeric>

namespace bench {

namespace {

using namespace nvinfer1;
using T = ITensor*;

class Network {
 public:
  Network(INetworkDefinition& net, const LlamaShape& shape, const BuildOptions& options)
      : net_(net), shape_(shape), options_(options) {}

  void build() {
    const bool whole = options_.part == Part::kWhole;
    T x = nullptr;
    if (whole || options_.part == Part::kEmbedding) {
      T ids = net_.addInput("ids", DataType::kINT32, Dims{1, {-1}});
      x = net_.addGather(*weight("embed", {shape_.vocab, shape_.width}), *ids, 0)->getOutput(0);
    } else {
      x = net_.addInput("x", DataType::kBF16, Dims2{-1, shape_.width});
    }
    if (whole)
      for (int i = 0; i < options_.layers; ++i) x = layer(x, std::to_string(i) + ".", i);
    if (options_.part == Part::kLayer) x = layer(x, "", nt::kLayerFromState);
    if (whole || options_.part == Part::kHead) {
      T rows = net_.addInput("rows", DataType::kINT32, Dims{1, {-1}});
      x = net_.addGather(*x, *rows, 0)->getOutput(0);
      x = linear(norm(x, "norm"), "lm_head", shape_.vocab, shape_.width);
      x = net_.addCast(*x, DataType::kFLOAT)->getOutput(0);
    }
    x->setName("y");
    net_.markOutput(*x);
  }

 private:
  T constant(DataType type, const Dims& dims, const void* data, int64_t count, const std::string& name) {
    const Weights weights{type, data, count};
    T out = net_.addConstant(dims, weights)->getOutput(0);
    // Without a name of its own a weight cannot be refitted: setting it then reports success and does
    // nothing.
    if (!name.empty()) REQUIRE(net_.setWeightsName(weights, name.c_str()));
    return out;
  }
  T weight(const std::string& name, const std::vector<int64_t>& dims) {
    Dims shape{static_cast<int32_t>(dims.size()), {}};
    std::copy(dims.begin(), dims.end(), shape.d);
    if (!options_.weights) return net_.addInput(name.c_str(), DataType::kBF16, shape);
    const int64_t count = std::accumulate(dims.begin(), dims.end(), int64_t{1}, std::multiplies<>());
    return constant(DataType::kBF16, shape, options_.weights(name), count, name);
  }
  T elementWise(T a, T b, ElementWiseOperation op) { return net_.addElementWise(*a, *b, op)->getOutput(0); }
  T linear(T x, const std::string& name, int64_t out, int64_t in) {
    return net_
        .addMatrixMultiply(*x, MatrixOperation::kNONE, *weight(name, {out, in}), MatrixOperation::kTRANSPOSE)
        ->getOutput(0);
  }
  // Hugging Face's rounding points: the normalised row goes back to bfloat16 before the weight.
  T norm(T x, const std::string& name) {
    using Op = ElementWiseOperation;
    T f = net_.addCast(*x, DataType::kFLOAT)->getOutput(0);
    T mean = net_.addReduce(*elementWise(f, f, Op::kPROD), ReduceOperation::kAVG, 2, true)->getOutput(0);
    floats_.push_back(shape_.eps);
    T eps = constant(DataType::kFLOAT, Dims2{1, 1}, &floats_.back(), 1, {});
    T root = net_.addUnary(*elementWise(mean, eps, Op::kSUM), UnaryOperation::kSQRT)->getOutput(0);
    T unit = net_.addCast(*elementWise(f, root, Op::kDIV), DataType::kBF16)->getOutput(0);
    return elementWise(unit, weight(name, {1, shape_.width}), Op::kPROD);
  }
  // Columns [from, from + length) of a matrix with a dynamic number of rows.
  T columns(T x, int64_t from, int64_t length) {
    ISliceLayer* slice = net_.addSlice(*x, Dims2{0, from}, Dims2{1, length}, Dims2{1, 1});
    integers_.push_back({0, length});
    const auto& pair = integers_.back();
    T first = constant(DataType::kINT64, Dims{1, {1}}, &pair[0], 1, {});
    T rows = net_.addGather(*net_.addShape(*x)->getOutput(0), *first, 0)->getOutput(0);
    std::array<T, 2> parts = {rows, constant(DataType::kINT64, Dims{1, {1}}, &pair[1], 1, {})};
    slice->setInput(2, *net_.addConcatenation(parts.data(), 2)->getOutput(0));
    return slice->getOutput(0);
  }
  T attention(T qkv, int layer) {
    nt::PagedAttentionParams params;
    params.layer = layer;
    params.heads = static_cast<int32_t>(shape_.heads);
    params.kvHeads = static_cast<int32_t>(shape_.kvHeads);
    params.headDim = static_cast<int32_t>(shape_.headDim);
    params.scale = 1.0F / std::sqrt(static_cast<float>(shape_.headDim));
    const std::unique_ptr<IPluginV3> plugin(nt::createPagedAttention(params));
    REQUIRE(plugin != nullptr);
    return net_.addPluginV3(&qkv, 1, nullptr, 0, *plugin)->getOutput(0);
  }
  T layer(T x, const std::string& prefix, int index) {
    using Op = ElementWiseOperation;
    T qkv = linear(norm(x, prefix + "norm1"), prefix + "qkv", shape_.qkvWidth(), shape_.width);
    T o = linear(attention(qkv, index), prefix + "o", shape_.width, shape_.heads * shape_.headDim);
    x = elementWise(o, x, Op::kSUM);
    T gateUp = linear(norm(x, prefix + "norm2"), prefix + "gate_up", 2 * shape_.ffn, shape_.width);
    T gate = columns(gateUp, 0, shape_.ffn);
    T silu = elementWise(gate, net_.addActivation(*gate, ActivationType::kSIGMOID)->getOutput(0), Op::kPROD);
    T hidden = elementWise(silu, columns(gateUp, shape_.ffn, shape_.ffn), Op::kPROD);
    return elementWise(linear(hidden, prefix + "down", shape_.width, shape_.ffn), x, Op::kSUM);
  }

  INetworkDefinition& net_;
  const LlamaShape& shape_;
  const BuildOptions& options_;
  // TensorRT reads constants at build time: addresses stay put until then.
  std::deque<float> floats_;
  std::deque<std::array<int64_t, 2>> integers_;
};

void setDimensions(IOptimizationProfile& profile, const char* input, const Profile& rows,
                   const std::vector<int64_t>& tail) {
  const auto dims = [&](int64_t n) {
    Dims d{static_cast<int32_t>(tail.size() + 1), {}};
    d.d[0] = n;
    std::copy(tail.begin(), tail.end(), d.d + 1);
    return d;
  };
  REQUIRE(profile.setDimensions(input, OptProfileSelector::kMIN, dims(rows.min)));
  REQUIRE(profile.setDimensions(input, OptProfileSelector::kOPT, dims(rows.opt)));
  REQUIRE(profile.setDimensions(input, OptProfileSelector::kMAX, dims(rows.max)));
}

}  // namespace

size_t WeightSpec::count() const {
  return static_cast<size_t>(std::accumulate(dims.begin(), dims.end(), int64_t{1}, std::multiplies<>()));
}

std::vector<WeightSpec> layerWeights(const LlamaShape& s, const std::string& prefix) {
  return {{prefix + "norm1", {1, s.width}},
          {prefix + "qkv", {s.qkvWidth(), s.width}},
          {prefix + "o", {s.width, s.heads * s.headDim}},
          {prefix + "norm2", {1, s.width}},
          {prefix + "gate_up", {2 * s.ffn, s.width}},
          {prefix + "down", {s.width, s.ffn}}};
}

std::vector<WeightSpec> allWeights(const LlamaShape& shape, int layers) {
  std::vector<WeightSpec> all = {{"embed", {shape.vocab, shape.width}}};
  for (int i = 0; i < layers; ++i)
    for (WeightSpec& spec : layerWeights(shape, std::to_string(i) + ".")) all.push_back(std::move(spec));
  all.push_back({"norm", {1, shape.width}});
  all.push_back({"lm_head", {shape.vocab, shape.width}});
  return all;
}

Engine buildEngine(TensorRt& trt, const LlamaShape& shape, const BuildOptions& options) {
  const auto start = std::chrono::steady_clock::now();
  const auto flags = 1U << static_cast<uint32_t>(NetworkDefinitionCreationFlag::kSTRONGLY_TYPED);
  const std::unique_ptr<INetworkDefinition> net(trt.builder().createNetworkV2(flags));
  const std::unique_ptr<IBuilderConfig> config(trt.builder().createBuilderConfig());
  Network definition(*net, shape, options);
  definition.build();
  if (options.strippedRefit) {
    config->setFlag(BuilderFlag::kREFIT);
    config->setFlag(BuilderFlag::kSTRIP_PLAN);
  }
  // TensorRT does not see the plugin's writes to the cache, so nothing may run beside it.
  config->setMaxAuxStreams(0);
  for (const Profile& rows : options.profiles) {
    IOptimizationProfile* profile = trt.builder().createOptimizationProfile();
    if (options.part == Part::kLayer || options.part == Part::kHead)
      setDimensions(*profile, "x", rows, {shape.width});
    else
      setDimensions(*profile, "ids", rows, {});
    if (options.part == Part::kHead || options.part == Part::kWhole)
      setDimensions(*profile, "rows", {1, std::min<int64_t>(rows.opt, 64), std::min<int64_t>(rows.max, 256)},
                    {});
    config->addOptimizationProfile(profile);
  }
  const std::unique_ptr<IHostMemory> plan(trt.builder().buildSerializedNetwork(*net, *config));
  REQUIRE(plan != nullptr);
  Engine engine;
  engine.buildSeconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  engine.planBytes = plan->size();
  engine.engine.reset(trt.runtime().deserializeCudaEngine(plan->data(), plan->size()));
  REQUIRE(engine.engine != nullptr);
  return engine;
}

int createContexts(Engine& engine, nt::StepState* state, cudaStream_t stream) {
  int attached = 0;
  for (int i = 0; i < engine.engine->getNbOptimizationProfiles(); ++i) {
    const nt::StepStateScope scope(state);
    const int before = state->attached;
    std::unique_ptr<IExecutionContext> context(engine.engine->createExecutionContext());
    REQUIRE(context != nullptr);
    const int created = state->attached - before;
    REQUIRE(context->setOptimizationProfileAsync(i, stream));
    attached = state->attached - before;
    if (attached != created)
      std::printf("profile %d: %d attached, %d after the profile was set\n", i, created, attached);
    engine.contexts.push_back(std::move(context));
  }
  CUDA_CHECK(cudaStreamSynchronize(stream));
  return attached;
}

double refit(TensorRt& trt, Engine& engine, const std::vector<WeightSpec>& specs,
             const std::function<const void*(const std::string&)>& weights) {
  const auto start = std::chrono::steady_clock::now();
  const auto refitter = trt.refitter(*engine.engine);
  REQUIRE(refitter != nullptr);
  for (const WeightSpec& spec : specs) {
    const Weights values{DataType::kBF16, weights(spec.name), static_cast<int64_t>(spec.count())};
    if (!refitter->setNamedWeights(spec.name.c_str(), values)) {
      std::fprintf(stderr, "cannot set %s\n", spec.name.c_str());
      std::exit(1);
    }
  }
  std::vector<const char*> missing(64);
  const int32_t count = refitter->getMissingWeights(static_cast<int32_t>(missing.size()), missing.data());
  for (int32_t i = 0; i < std::min<int32_t>(count, 64); ++i)
    std::fprintf(stderr, "missing after set: %s\n", missing[i]);
  REQUIRE(count == 0);
  REQUIRE(refitter->refitCudaEngine());
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

}  // namespace bench
