// Which shape of engine: (a) one engine of one layer, weights as inputs, enqueued once a layer, or (b) the
// whole model, stripped and refitted. Both with the paged attention plugin.
//
// usage: engine_shapes check DIR            logits of a 2-layer model over a few steps, for
// engine_shapes_check.py
//        engine_shapes bench JSON LAYERS... times at Llama-3-8B's layer shape; (b) at each of LAYERS
#include <cstring>
#include <fstream>
#include <map>
#include <string>

#include "llama_network.h"
#include "step.h"

namespace {

using namespace bench;
using nt::AttentionPath;
using nvinfer1::Dims;
using nvinfer1::Dims2;
using nvinfer1::IExecutionContext;

Dims vectorDims(int64_t n) {
  return Dims{1, {n}};
}

size_t profileOf(const std::vector<Profile>& profiles, int64_t rows) {
  for (size_t i = 0; i < profiles.size(); ++i)
    if (rows >= profiles[i].min && rows <= profiles[i].max) return i;
  REQUIRE(!"no profile for these rows");
  return 0;
}

// ids [rows] and gathered rows [count] in, logits [count, vocab] out, at fixed addresses.
struct Buffers {
  Buffers(const LlamaShape& shape, int64_t maxRows, int64_t maxGathered)
      : ids(maxRows * 4),
        rows(maxGathered * 4),
        x{DeviceBuffer(maxRows * shape.width * 2), DeviceBuffer(maxRows * shape.width * 2)},
        logits(maxGathered * shape.vocab * 4) {
    CUDA_CHECK(cudaMemset(ids.as<>(), 0, ids.bytes()));
    CUDA_CHECK(cudaMemset(rows.as<>(), 0, rows.bytes()));
  }
  DeviceBuffer ids, rows, x[2], logits;
};

class Model {
 public:
  virtual ~Model() = default;
  virtual void setShape(int64_t rows, int64_t gathered) = 0;
  virtual void enqueue(cudaStream_t stream) = 0;
};

// Shape (a): three engines, the middle one enqueued once a layer with that layer's addresses.
class LayerModel final : public Model {
 public:
  LayerModel(TensorRt& trt, const LlamaShape& shape, std::vector<Profile> profiles, nt::StepState& state,
             Buffers& buffers, cudaStream_t stream)
      : profiles_(std::move(profiles)), state_(state), buffers_(buffers), names_(layerWeights(shape, "")) {
    embedding_ = buildEngine(trt, shape, {Part::kEmbedding, 1, {}, false, profiles_});
    layer_ = buildEngine(trt, shape, {Part::kLayer, 1, {}, false, profiles_});
    head_ = buildEngine(trt, shape, {Part::kHead, 1, {}, false, profiles_});
    createContexts(embedding_, &state, stream);
    attached_ = createContexts(layer_, &state, stream);
    createContexts(head_, &state, stream);
  }
  // Device addresses by name.
  void setWeights(int layers, const std::map<std::string, void*>& weights) {
    layerAddresses_.assign(static_cast<size_t>(layers), {});
    for (int i = 0; i < layers; ++i)
      for (const WeightSpec& spec : names_)
        layerAddresses_[static_cast<size_t>(i)].push_back(weights.at(std::to_string(i) + "." + spec.name));
    for (size_t p = 0; p < profiles_.size(); ++p) {
      REQUIRE(embedding_.contexts[p]->setTensorAddress("embed", weights.at("embed")));
      REQUIRE(embedding_.contexts[p]->setTensorAddress("ids", buffers_.ids.as<>()));
      REQUIRE(embedding_.contexts[p]->setTensorAddress("y", buffers_.x[0].as<>()));
      REQUIRE(head_.contexts[p]->setTensorAddress("norm", weights.at("norm")));
      REQUIRE(head_.contexts[p]->setTensorAddress("lm_head", weights.at("lm_head")));
      REQUIRE(head_.contexts[p]->setTensorAddress("rows", buffers_.rows.as<>()));
      REQUIRE(head_.contexts[p]->setTensorAddress("x", buffers_.x[layers % 2].as<>()));
      REQUIRE(head_.contexts[p]->setTensorAddress("y", buffers_.logits.as<>()));
    }
  }
  void setShape(int64_t rows, int64_t gathered) override {
    profile_ = profileOf(profiles_, rows);
    REQUIRE(embedding_.contexts[profile_]->setInputShape("ids", vectorDims(rows)));
    setLayerShape(rows);
    IExecutionContext& head = *head_.contexts[profile_];
    REQUIRE(head.setInputShape("x", Dims2{rows, headWidth()}));
    REQUIRE(head.setInputShape("rows", vectorDims(gathered)));
  }
  void setLayerShape(int64_t rows) { REQUIRE(context().setInputShape("x", Dims2{rows, headWidth()})); }
  void enqueueLayer(size_t i, cudaStream_t stream) {
    IExecutionContext& layer = context();
    for (size_t w = 0; w < names_.size(); ++w)
      REQUIRE(layer.setTensorAddress(names_[w].name.c_str(), layerAddresses_[i][w]));
    REQUIRE(layer.setTensorAddress("x", buffers_.x[i % 2].as<>()));
    REQUIRE(layer.setTensorAddress("y", buffers_.x[(i + 1) % 2].as<>()));
    state_.layer = static_cast<int32_t>(i);
    REQUIRE(layer.enqueueV3(stream));
  }
  void enqueueLayers(cudaStream_t stream) {
    for (size_t i = 0; i < layerAddresses_.size(); ++i) enqueueLayer(i, stream);
  }
  void enqueue(cudaStream_t stream) override {
    REQUIRE(embedding_.contexts[profile_]->enqueueV3(stream));
    enqueueLayers(stream);
    REQUIRE(head_.contexts[profile_]->enqueueV3(stream));
  }
  IExecutionContext& context() { return *layer_.contexts[profile_]; }
  const Engine& embedding() const { return embedding_; }
  const Engine& layer() const { return layer_; }
  const Engine& head() const { return head_; }
  int attached() const { return attached_; }

 private:
  int64_t headWidth() const { return layer_.engine->getTensorShape("x").d[1]; }

  std::vector<Profile> profiles_;
  nt::StepState& state_;
  Buffers& buffers_;
  std::vector<WeightSpec> names_;
  Engine embedding_, layer_, head_;
  std::vector<std::vector<void*>> layerAddresses_;
  size_t profile_ = 0;
  int attached_ = 0;
};

// Shape (b).
class WholeModel final : public Model {
 public:
  using HostWeights = std::function<const void*(const std::string&)>;
  WholeModel(TensorRt& trt, const LlamaShape& shape, int layers, std::vector<Profile> profiles,
             const HostWeights& built, const HostWeights& refitted, nt::StepState& state, Buffers& buffers,
             cudaStream_t stream)
      : profiles_(std::move(profiles)) {
    engine_ = buildEngine(trt, shape, {Part::kWhole, layers, built, true, profiles_});
    refitSeconds_ = refit(trt, engine_, allWeights(shape, layers), refitted);
    attached_ = createContexts(engine_, &state, stream);
    for (auto& context : engine_.contexts) {
      REQUIRE(context->setTensorAddress("ids", buffers.ids.as<>()));
      REQUIRE(context->setTensorAddress("rows", buffers.rows.as<>()));
      REQUIRE(context->setTensorAddress("y", buffers.logits.as<>()));
    }
  }
  void setShape(int64_t rows, int64_t gathered) override {
    profile_ = profileOf(profiles_, rows);
    REQUIRE(engine_.contexts[profile_]->setInputShape("ids", vectorDims(rows)));
    REQUIRE(engine_.contexts[profile_]->setInputShape("rows", vectorDims(gathered)));
  }
  void enqueue(cudaStream_t stream) override { REQUIRE(engine_.contexts[profile_]->enqueueV3(stream)); }
  const Engine& engine() const { return engine_; }
  double refitSeconds() const { return refitSeconds_; }
  int attached() const { return attached_; }

 private:
  std::vector<Profile> profiles_;
  Engine engine_;
  double refitSeconds_ = 0;
  int attached_ = 0;
  size_t profile_ = 0;
};

using HostModel = std::map<std::string, std::vector<uint16_t>>;

HostModel readWeights(const std::string& path, const LlamaShape& shape, int layers) {
  std::ifstream in(path, std::ios::binary);
  HostModel model;
  for (const WeightSpec& spec : allWeights(shape, layers)) {
    auto& data = model[spec.name];
    data.resize(spec.count());
    in.read(reinterpret_cast<char*>(data.data()), static_cast<std::streamsize>(data.size() * 2));
    REQUIRE(in.good());
  }
  return model;
}

// The shape engine_shapes_check.py writes weights for.
constexpr LlamaShape kCheckShape = {1024, 8, 2, 128, 2816, 4096, 1e-5F};
constexpr int kCheckLayers = 2;
constexpr int32_t kTokensPerSequence = 256;

// Prefill of three sequences, decode from a captured graph, a mixed step with a fourth, decode from a second
// graph. Writes the logits of each sequence's last row, step after step.
void runCheck(Model& model, Buffers& buffers, AttentionPath decodePath, const std::vector<int32_t>& tokens,
              const std::string& out, Steps& steps, cudaStream_t stream) {
  std::ofstream file(out, std::ios::binary);
  std::vector<int> ids;
  std::vector<int32_t> cached;
  for (int i = 0; i < 4; ++i) {
    ids.push_back(steps.addSequence(0));
    cached.push_back(0);
  }
  const int64_t padded = 8;
  std::unique_ptr<Graph> graph;
  const auto step = [&](const std::vector<StepItem>& items, bool captured) {
    std::vector<int32_t> hostIds;
    std::vector<int32_t> rows;
    for (const StepItem& item : items) {
      const int s = item.sequence - ids[0];
      for (int32_t i = 0; i < item.tokens; ++i)
        hostIds.push_back(tokens[s * kTokensPerSequence + cached[s] + i]);
      rows.push_back(static_cast<int32_t>(hostIds.size()) - 1);
      cached[s] += item.tokens;
    }
    const int64_t total = captured ? padded : static_cast<int64_t>(hostIds.size());
    hostIds.resize(static_cast<size_t>(total), 0);
    steps.prepare(items, total, captured ? decodePath : AttentionPath::kPrefill, captured);
    CUDA_CHECK(cudaMemcpy(buffers.ids.as<>(), hostIds.data(), hostIds.size() * 4, cudaMemcpyHostToDevice));
    CUDA_CHECK(cudaMemcpy(buffers.rows.as<>(), rows.data(), rows.size() * 4, cudaMemcpyHostToDevice));
    const int64_t gathered = captured ? padded : static_cast<int64_t>(rows.size());
    if (!captured) {
      model.setShape(total, gathered);
      model.enqueue(stream);
    } else {
      if (graph == nullptr) {
        model.setShape(total, gathered);
        model.enqueue(stream);  // writes the same keys to the same places as the replay below
        CUDA_CHECK(cudaStreamSynchronize(stream));
        graph = std::make_unique<Graph>(stream, [&] { model.enqueue(stream); });
      }
      graph->launch(stream);
    }
    CUDA_CHECK(cudaStreamSynchronize(stream));
    std::vector<float> logits(items.size() * kCheckShape.vocab);
    CUDA_CHECK(cudaMemcpy(logits.data(), buffers.logits.as<>(), logits.size() * 4, cudaMemcpyDeviceToHost));
    file.write(reinterpret_cast<const char*>(logits.data()), static_cast<std::streamsize>(logits.size() * 4));
    steps.commit(items);
  };
  step({{ids[0], 5}, {ids[1], 37}, {ids[2], 130}}, false);
  for (int i = 0; i < 14; ++i) step({{ids[0], 1}, {ids[1], 1}, {ids[2], 1}}, true);
  step({{ids[0], 1}, {ids[1], 1}, {ids[2], 1}, {ids[3], 20}}, false);
  for (int i = 0; i < 3; ++i) step({{ids[0], 1}, {ids[1], 1}, {ids[2], 1}, {ids[3], 1}}, true);
  std::printf("%s: %zu nodes in the decode graph\n", out.c_str(), graph->nodes());
}

int check(const std::string& dir) {
  cudaStream_t stream;
  CUDA_CHECK(cudaStreamCreate(&stream));
  TensorRt trt;
  const std::vector<Profile> profiles = {{1, 8, 16}, {17, 128, 512}};
  Steps steps(kCheckShape, kCheckLayers, 200, 512, stream);
  Buffers buffers(kCheckShape, 512, 256);
  const HostModel a = readWeights(dir + "/a.bin", kCheckShape, kCheckLayers);
  const HostModel b = readWeights(dir + "/b.bin", kCheckShape, kCheckLayers);
  std::vector<int32_t> tokens(4 * kTokensPerSequence);
  std::ifstream(dir + "/tokens.bin", std::ios::binary).read(reinterpret_cast<char*>(tokens.data()), 4096);

  LayerModel layers(trt, kCheckShape, profiles, steps.state(), buffers, stream);
  std::printf("(a) builds: embedding %.1f s, layer %.1f s, head %.1f s; %d plugin(s) attached per context\n",
              layers.embedding().buildSeconds, layers.layer().buildSeconds, layers.head().buildSeconds,
              layers.attached());
  std::map<std::string, void*> addresses;
  std::vector<DeviceBuffer> weights;
  for (const auto& [name, data] : b) {
    weights.push_back(upload(data));
    addresses[name] = weights.back().as<>();
  }
  layers.setWeights(kCheckLayers, addresses);
  runCheck(layers, buffers, AttentionPath::kDecode, tokens, dir + "/logits_layer_decode.bin", steps, stream);
  runCheck(layers, buffers, AttentionPath::kPrefill, tokens, dir + "/logits_layer_tiles.bin", steps, stream);

  const auto from = [](const HostModel& model) {
    return [&model](const std::string& name) -> const void* { return model.at(name).data(); };
  };
  WholeModel whole(trt, kCheckShape, kCheckLayers, profiles, from(a), from(b), steps.state(), buffers,
                   stream);
  std::printf("(b) build %.1f s, refit %.3f s, plan %.2f MB; %d plugins attached per context\n",
              whole.engine().buildSeconds, whole.refitSeconds(),
              static_cast<double>(whole.engine().planBytes) / 1e6, whole.attached());
  runCheck(whole, buffers, AttentionPath::kDecode, tokens, dir + "/logits_whole_decode.bin", steps, stream);
  return 0;
}

// Llama-3-8B's layer; a small vocabulary, since the head is the same in both shapes.
constexpr LlamaShape kBenchShape = {4096, 32, 8, 128, 14336, 32000, 1e-5F};
constexpr int kBenchLayers = 32;
constexpr int32_t kContext = 512;

struct Point {
  int64_t rows;
  bool decode;
};
constexpr Point kPoints[] = {{1, true}, {8, true}, {64, true}, {256, true}, {1024, false}};

struct Timing {
  double ms;
  size_t nodes;
};

class Bench {
 public:
  explicit Bench(const char* json) : json_(std::fopen(json, "w")) {
    REQUIRE(json_ != nullptr);
    std::fprintf(json_, "[");
    CUDA_CHECK(cudaStreamCreate(&stream_));
    for (int i = 0; i < 256; ++i) sequences_.push_back(steps_.addSequence(kContext - 1));
    prompt_ = steps_.addSequence(0);
  }
  void finish() {
    std::fprintf(json_, "\n]\n");
    std::fclose(json_);
  }
  void layers();
  void whole(int layers);

 private:
  void record(const std::string& what, double value, const char* unit) {
    std::printf("%-58s %10.3f %s\n", what.c_str(), value, unit);
    std::fflush(stdout);
    std::fprintf(json_, "%s\n{\"what\": \"%s\", \"value\": %.5f, \"unit\": \"%s\"}", first_ ? "" : ",",
                 what.c_str(), value, unit);
    std::fflush(json_);
    first_ = false;
  }
  void prepare(const Point& point, bool cudaGraph) {
    std::vector<StepItem> items;
    if (point.decode)
      for (int64_t i = 0; i < point.rows; ++i) items.push_back({sequences_[static_cast<size_t>(i)], 1});
    else
      items.push_back({prompt_, static_cast<int32_t>(point.rows)});
    steps_.prepare(items, 0, AttentionPath::kPrefill, cudaGraph);
  }
  Timing time(Model& model, const Point& point) {
    prepare(point, true);
    model.setShape(point.rows, point.decode ? point.rows : 1);
    model.enqueue(stream_);
    CUDA_CHECK(cudaStreamSynchronize(stream_));
    const Graph graph(stream_, [&] { model.enqueue(stream_); });
    return {deviceMs(stream_, 9, [&] { graph.launch(stream_); }), graph.nodes()};
  }
  static std::string label(const Point& point) {
    return (point.decode ? "decode " : "prefill ") + std::to_string(point.rows);
  }

  std::FILE* json_;
  bool first_ = true;
  cudaStream_t stream_;
  TensorRt trt_;
  std::vector<Profile> profiles_ = {{1, 8, 8}, {9, 64, 64}, {65, 256, 256}, {257, 1024, 2048}};
  Steps steps_{kBenchShape, kBenchLayers, 256 * (kContext / 16) + 200, 2048, nullptr};
  Buffers buffers_{kBenchShape, 2048, 256};
  std::vector<int> sequences_;
  int prompt_ = 0;
  std::map<std::string, std::vector<uint16_t>> hostWeights_;
};

void Bench::layers() {
  LayerModel model(trt_, kBenchShape, profiles_, steps_.state(), buffers_, stream_);
  record("(a) build, embedding", model.embedding().buildSeconds, "s");
  record("(a) build, layer", model.layer().buildSeconds, "s");
  record("(a) build, head", model.head().buildSeconds, "s");
  record("(a) plugins attached per context of 4 profiles", model.attached(), "");
  record("(a) plan, layer", static_cast<double>(model.layer().planBytes) / 1e6, "MB");
  std::vector<DeviceBuffer> weights;
  std::map<std::string, void*> addresses;
  uint32_t seed = 1;
  for (const WeightSpec& spec : allWeights(kBenchShape, kBenchLayers)) {
    weights.emplace_back(spec.count() * 2);
    fillDeviceBf16(weights.back().as<>(), spec.count(), seed++);
    addresses[spec.name] = weights.back().as<>();
  }
  std::map<int64_t, Timing> two;
  for (const int layers : {2, 8, 32}) {
    model.setWeights(layers, addresses);
    for (const Point& point : kPoints) {
      const Timing t = time(model, point);
      if (layers == 2) two[point.rows] = t;
      if (layers == 2) continue;
      const std::string name = "(a) " + std::to_string(layers) + " layers, " + label(point);
      record(name + ", per layer", (t.ms - two[point.rows].ms) / (layers - 2), "ms");
      record(name + ", graph nodes per layer",
             static_cast<double>(t.nodes - two[point.rows].nodes) / (layers - 2), "nodes");
      record(name + ", whole step", t.ms, "ms");
    }
  }

  // Host cost. The layer context alone, then a step of 32 layers.
  for (const int64_t rows : {int64_t{1}, int64_t{64}, int64_t{1024}}) {
    const Point point{rows, rows <= 256};
    prepare(point, false);
    model.setShape(rows, 1);
    model.enqueue(stream_);
    const std::string name = "(a) host, " + std::to_string(rows) + " rows: ";
    record(name + "enqueueV3, same shape",
           hostUs(stream_, 101, [&] { REQUIRE(model.context().enqueueV3(stream_)); }), "us");
    record(name + "8 addresses + enqueueV3", hostUs(stream_, 101, [&] { model.enqueueLayer(1, stream_); }),
           "us");
    record(name + "32 layers in a row", hostUs(stream_, 31, [&] { model.enqueueLayers(stream_); }), "us");
    const Graph graph(stream_, [&] { model.enqueueLayers(stream_); });
    record(name + "32 layers, launch of one CUDA graph", hostUs(stream_, 31, [&] { graph.launch(stream_); }),
           "us");
    record(name + "32 layers, device time from the graph",
           deviceMs(stream_, 9, [&] { graph.launch(stream_); }) * 1e3, "us");
    record(name + "32 layers, device time without a graph",
           deviceMs(stream_, 9, [&] { model.enqueueLayers(stream_); }) * 1e3, "us");
  }
  // A change of shape: the state must agree with the graph, so both shapes are planned and their states
  // swapped in.
  prepare({63, true}, false);
  const nt::StepState odd = steps_.state();
  prepare({64, true}, false);
  const nt::StepState even = steps_.state();
  model.setShape(64, 1);
  int64_t rows = 64;
  const auto change = [&] {
    rows = rows == 64 ? 63 : 64;
    steps_.state() = rows == 64 ? even : odd;
    model.setLayerShape(rows);
  };
  record("(a) host: setInputShape to another shape", hostUs(stream_, 101, change), "us");
  record("(a) host: new shape + enqueueV3",
         hostUs(stream_, 101,
                [&] {
                  change();
                  model.enqueueLayer(0, stream_);
                }),
         "us");
  record("(a) host: new shape + 32 layers in a row",
         hostUs(stream_, 31,
                [&] {
                  change();
                  model.enqueueLayers(stream_);
                }),
         "us");
}

void Bench::whole(int layers) {
  const auto specs = allWeights(kBenchShape, layers);
  uint32_t seed = 1;
  for (const WeightSpec& spec : specs) {
    auto& data = hostWeights_[spec.name];
    if (!data.empty()) continue;
    data.resize(spec.count());
    fillBf16(data.data(), data.size(), seed++);
  }
  double bytes = 0;
  for (const WeightSpec& spec : specs) bytes += static_cast<double>(spec.count()) * 2;
  const auto built = [&](const std::string& name) -> const void* { return hostWeights_.at(name).data(); };
  const auto model = std::make_unique<WholeModel>(trt_, kBenchShape, layers, profiles_, built, built,
                                                  steps_.state(), buffers_, stream_);
  const std::string name = "(b) " + std::to_string(layers) + " layers";
  record(name + ", build", model->engine().buildSeconds, "s");
  record(name + ", plan", static_cast<double>(model->engine().planBytes) / 1e6, "MB");
  record(name + ", refit", model->refitSeconds(), "s");
  record(name + ", weights", bytes / 1e9, "GB");
  for (const Point& point : kPoints) {
    const Timing t = time(*model, point);
    record(name + ", " + label(point) + ", whole step", t.ms, "ms");
    record(name + ", " + label(point) + ", graph nodes", static_cast<double>(t.nodes), "nodes");
  }
  prepare({64, true}, false);
  model->setShape(64, 64);
  model->enqueue(stream_);
  record(name + ", host, 64 rows: enqueueV3, same shape",
         hostUs(stream_, 51, [&] { model->enqueue(stream_); }), "us");
  prepare({63, true}, false);
  const nt::StepState odd = steps_.state();
  prepare({64, true}, false);
  const nt::StepState even = steps_.state();
  int64_t rows = 64;
  record(name + ", host: new shape + enqueueV3",
         hostUs(stream_, 51,
                [&] {
                  rows = rows == 64 ? 63 : 64;
                  steps_.state() = rows == 64 ? even : odd;
                  model->setShape(rows, rows);
                  model->enqueue(stream_);
                }),
         "us");
}

}  // namespace

int main(int argc, char** argv) {
  if (argc == 3 && std::strcmp(argv[1], "check") == 0) return check(argv[2]);
  if (argc < 3 || std::strcmp(argv[1], "bench") != 0) {
    std::fprintf(stderr, "usage: engine_shapes check DIR | engine_shapes bench JSON [LAYERS...]\n");
    return 2;
  }
  Bench run(argv[2]);
  run.layers();
  for (int i = 3; i < argc; ++i) run.whole(std::atoi(argv[i]));
  run.finish();
  return 0;
}
