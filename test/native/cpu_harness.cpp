#include "cpu_harness.h"

#include <unistd.h>

#include <cmath>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <sstream>
#include <utility>

#include "core/convert.h"
#include "core/random.h"

namespace nt::test {

namespace {

std::string layerName(int32_t layer, const char* rest) {
  return "model.layers." + std::to_string(layer) + "." + rest;
}

std::string quote(const std::string& text) {
  return "\"" + text + "\"";
}

std::string number(float value) {
  char text[40];
  std::snprintf(text, sizeof(text), "%.9g", double(value));
  return text;
}

class GraphWriter {
 public:
  explicit GraphWriter(const LlamaShape& shape) : shape_(shape) {}

  std::string write() {
    node("embedding", R"("output":"x0","weight":"model.embed_tokens.weight","scale":1)");
    for (int32_t layer = 0; layer < shape_.layers; ++layer) writeLayer(layer);
    node("gatherRows", field("input", residual_) + R"(,"output":"last")");
    norm("last", "normed", "model.norm.weight");
    linear("normed", "logits", {shape_.tied ? "model.embed_tokens.weight" : "lm_head.weight"}, false);

    std::string json = R"({"version":1,"family":"llama","vocabSize":)" + std::to_string(shape_.vocab) +
                       R"(,"maxPositions":)" + std::to_string(shape_.positions) +
                       R"(,"dtype":"F32","weights":{)";
    std::string separator;
    for (const auto& [name, dims] : shape_.weights()) {
      json += separator + quote(name) + ":[" + std::to_string(dims[0]) +
              (dims.size() > 1 ? "," + std::to_string(dims[1]) : "") + "]";
      separator = ",";
    }
    json += R"(},"ropes":{"main":{"invFreq":[)";
    for (int32_t i = 0; i < shape_.headDim / 2; ++i) {
      const float exponent = float(2 * i) / float(shape_.headDim);
      json += (i > 0 ? "," : "") + number(1.0F / std::pow(shape_.theta, exponent));
    }
    return json + R"(],"scale":1}},"nodes":[)" + nodes_ + R"(],"logits":"logits"})";
  }

 private:
  static std::string field(const char* name, const std::string& value) {
    return quote(name) + ":" + quote(value);
  }

  void node(const char* op, const std::string& fields) {
    if (!nodes_.empty()) nodes_ += ",";
    nodes_ += "{" + field("op", op) + "," + fields + "}";
  }
  void norm(const std::string& in, const std::string& out, const std::string& weight) {
    node("rmsNorm", field("input", in) + "," + field("output", out) + "," + field("weight", weight) +
                        R"(,"eps":)" + number(shape_.eps));
  }
  void linear(const std::string& in, const std::string& out, const std::vector<std::string>& weights,
              bool bias) {
    std::string names;
    std::string biases;
    for (const std::string& weight : weights) {
      names += (names.empty() ? "" : ",") + quote(weight);
      if (!bias) continue;
      biases += (biases.empty() ? "" : ",") + quote(weight.substr(0, weight.rfind('.')) + ".bias");
    }
    node("linear", field("input", in) + "," + field("output", out) + R"(,"weights":[)" + names +
                       R"(],"biases":[)" + biases + "]");
  }
  void add(const std::string& a, const std::string& b, const std::string& out) {
    node("add", R"("inputs":[)" + quote(a) + "," + quote(b) + "]," + field("output", out));
  }

  void writeLayer(int32_t layer) {
    const auto name = [&](const char* rest) { return layerName(layer, rest); };
    const auto value = [&](const char* rest) { return std::string(rest) + std::to_string(layer); };
    norm(residual_, value("h"), name("input_layernorm.weight"));
    linear(
        value("h"), value("qkv"),
        {name("self_attn.q_proj.weight"), name("self_attn.k_proj.weight"), name("self_attn.v_proj.weight")},
        shape_.bias);
    const std::string qkNorm = shape_.qkNorm ? "{" + field("q", name("self_attn.q_norm.weight")) + "," +
                                                   field("k", name("self_attn.k_norm.weight")) +
                                                   R"(,"eps":)" + number(shape_.eps) + "}"
                                             : "null";
    node("attention", field("input", value("qkv")) + "," + field("output", value("a")) + R"(,"layer":)" +
                          std::to_string(layer) + R"(,"heads":)" + std::to_string(shape_.heads) +
                          R"(,"kvHeads":)" + std::to_string(shape_.kvHeads) + R"(,"headDim":)" +
                          std::to_string(shape_.headDim) + R"(,"scale":)" +
                          number(1.0F / std::sqrt(float(shape_.headDim))) + R"(,"rope":"main","window":)" +
                          std::to_string(shape_.window) + R"(,"qkNorm":)" + qkNorm);
    linear(value("a"), value("o"), {name("self_attn.o_proj.weight")}, false);
    add(residual_, value("o"), value("y"));
    norm(value("y"), value("m"), name("post_attention_layernorm.weight"));
    linear(value("m"), value("gu"), {name("mlp.gate_proj.weight"), name("mlp.up_proj.weight")}, false);
    node(shape_.gelu ? "geluMul" : "siluMul",
         field("input", value("gu")) + "," + field("output", value("g")));
    linear(value("g"), value("d"), {name("mlp.down_proj.weight")}, false);
    residual_ = "x" + std::to_string(layer + 1);
    add(value("y"), value("d"), residual_);
  }

  const LlamaShape& shape_;
  std::string nodes_;
  std::string residual_ = "x0";
};

}  // namespace

std::map<std::string, std::vector<int64_t>> LlamaShape::weights() const {
  std::map<std::string, std::vector<int64_t>> all;
  const int64_t q = int64_t{heads} * headDim;
  const int64_t kv = int64_t{kvHeads} * headDim;
  all["model.embed_tokens.weight"] = {vocab, width};
  all["model.norm.weight"] = {width};
  if (!tied) all["lm_head.weight"] = {vocab, width};
  for (int32_t layer = 0; layer < layers; ++layer) {
    const auto put = [&](const char* name, std::vector<int64_t> dims) {
      all[layerName(layer, name)] = std::move(dims);
    };
    put("input_layernorm.weight", {width});
    put("post_attention_layernorm.weight", {width});
    put("self_attn.q_proj.weight", {q, width});
    put("self_attn.k_proj.weight", {kv, width});
    put("self_attn.v_proj.weight", {kv, width});
    put("self_attn.o_proj.weight", {width, q});
    put("mlp.gate_proj.weight", {inner, width});
    put("mlp.up_proj.weight", {inner, width});
    put("mlp.down_proj.weight", {width, inner});
    if (qkNorm) {
      put("self_attn.q_norm.weight", {headDim});
      put("self_attn.k_norm.weight", {headDim});
    }
    if (bias) {
      put("self_attn.q_proj.bias", {q});
      put("self_attn.k_proj.bias", {kv});
      put("self_attn.v_proj.bias", {kv});
    }
  }
  return all;
}

std::string LlamaShape::graph() const {
  return GraphWriter(*this).write();
}

Checkpoint::~Checkpoint() {
  std::remove(file.c_str());
}

std::unique_ptr<Checkpoint> writeCheckpoint(const LlamaShape& shape, DType dtype, uint64_t seed) {
  auto checkpoint = std::make_unique<Checkpoint>();
  std::string header = "{";
  std::string data;
  uint64_t stream = 0;
  for (const auto& [name, dims] : shape.weights()) {
    size_t count = 1;
    for (const int64_t dim : dims) count *= size_t(dim);
    auto& values = checkpoint->values[name];
    const size_t begin = data.size();
    const bool norm = name.find("norm") != std::string::npos;
    for (size_t i = 0; i < count; ++i) {
      const auto centred = float(uniform(seed, i, stream) * 2 - 1);
      float value =
          norm ? 1 + 0.2F * centred : centred * (dims.size() > 1 ? 2.5F / std::sqrt(float(dims[1])) : 0.3F);
      const auto append = [&](auto bits) { data.append(reinterpret_cast<const char*>(&bits), sizeof(bits)); };
      if (dtype == DType::kF32) {
        append(value);
      } else if (dtype == DType::kBF16) {
        const uint16_t bits = floatToBf16(value);
        value = bf16ToFloat(bits);
        append(bits);
      } else {
        const uint16_t bits = floatToF16(value);
        value = f16ToFloat(bits);
        append(bits);
      }
      values.push_back(value);
    }
    ++stream;
    header += (header.size() > 1 ? "," : "") + quote(name) + R"(:{"dtype":")" + std::string(nameOf(dtype)) +
              R"(","shape":[)" + std::to_string(dims[0]) +
              (dims.size() > 1 ? "," + std::to_string(dims[1]) : "") + R"(],"data_offsets":[)" +
              std::to_string(begin) + "," + std::to_string(data.size()) + "]}";
  }
  header += "}";
  static int serial = 0;
  checkpoint->file =
      "/tmp/nt-test-" + std::to_string(getpid()) + "-" + std::to_string(serial++) + ".safetensors";
  std::ofstream out(checkpoint->file, std::ios::binary);
  const uint64_t length = header.size();
  out.write(reinterpret_cast<const char*>(&length), sizeof(length));
  out << header << data;
  return checkpoint;
}

std::vector<int32_t> packStep(int32_t id, const std::vector<SequenceStep>& sequences) {
  std::vector<int32_t> out{kStepVersion, id, int32_t(sequences.size()), 0, 0, 0};
  for (const SequenceStep& s : sequences) {
    out[3] += int32_t(s.tokens.size());
    out[4] += int32_t(s.pages.size());
    for (const int32_t field :
         {s.slot, int32_t(s.tokens.size()), s.cached, int32_t(s.pages.size()), s.flags}) {
      out.push_back(field);
    }
  }
  for (const SequenceStep& s : sequences) out.insert(out.end(), s.pages.begin(), s.pages.end());
  for (const SequenceStep& s : sequences) out.insert(out.end(), s.tokens.begin(), s.tokens.end());
  return out;
}

void Results::onStep(StepResult&& result) noexcept {
  std::unique_lock lock(mutex_);
  held_ = holds_;
  results_.push_back(std::move(result));
  arrived_.notify_all();
  arrived_.wait(lock, [this] { return !held_; });
}

StepResult Results::take() {
  std::unique_lock lock(mutex_);
  arrived_.wait(lock, [this] { return taken_ < results_.size(); });
  return std::move(results_[taken_++]);
}

void Results::hold() {
  const std::lock_guard lock(mutex_);
  holds_ = true;
}

void Results::awaitHeld() {
  std::unique_lock lock(mutex_);
  arrived_.wait(lock, [this] { return held_; });
}

void Results::letGo() {
  const std::lock_guard lock(mutex_);
  holds_ = held_ = false;
  arrived_.notify_all();
}

Session::Session(const CpuOptions& options) {
  auto created = createCpuBackend(options);
  if (!created) {
    status = created.status();
    return;
  }
  backend = std::move(*created);
  backend->start(&results);
}

Session::~Session() {
  if (backend == nullptr) return;
  backend->requestStop();
  backend->join();
}

Status Session::open(int32_t slot, std::vector<int32_t> prompt, SamplingParams sampling,
                     std::vector<int32_t> output) {
  SlotInit init;
  init.slot = slot;
  init.sampling = std::move(sampling);
  init.prompt = std::move(prompt);
  init.output = std::move(output);
  return backend->openSlot(std::move(init));
}

StepResult Session::step(const std::vector<SequenceStep>& sequences) {
  const int32_t id = nextStep_++;
  if (Status refused = backend->submit(packStep(id, sequences)); !refused) {
    StepResult result;
    result.status = refused;
    return result;
  }
  return results.take();
}

std::vector<int32_t> Session::pages(int32_t first, int32_t tokens) const {
  std::vector<int32_t> out;
  const int32_t size = backend->info().pageSize;
  for (int32_t i = 0; i < (tokens + size - 1) / size; ++i) out.push_back(first + i);
  return out;
}

std::vector<int32_t> Session::generate(int32_t slot, const std::vector<int32_t>& prompt, int32_t count,
                                       int32_t firstPage, SamplingParams sampling, int32_t chunk) {
  std::vector<int32_t> out;
  if (status = open(slot, prompt, std::move(sampling)); !status) return out;
  const auto length = int32_t(prompt.size());
  for (int32_t begin = 0; begin < length; begin += chunk) {
    const int32_t end = std::min(length, begin + chunk);
    StepResult result = step({{slot,
                               {prompt.begin() + begin, prompt.begin() + end},
                               begin,
                               end == length ? int32_t(kSample) : 0,
                               pages(firstPage, end)}});
    if (status = result.status; !status) return out;
    out.insert(out.end(), result.tokens.begin(), result.tokens.end());
  }
  for (int32_t i = 1; i < count; ++i) {
    const int32_t cached = length + i - 1;
    StepResult result = step({{slot, {kLastSampledToken}, cached, kSample, pages(firstPage, cached + 1)}});
    if (status = result.status; !status) return out;
    out.insert(out.end(), result.tokens.begin(), result.tokens.end());
  }
  status = backend->closeSlot(slot);
  return out;
}

}  // namespace nt::test
