// A Llama as TensorRT networks, in the two shapes under comparison: one layer with its weights as inputs, or
// the whole model.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "tensorrt/plugin/step_state.h"
#include "trt.h"

namespace bench {

struct LlamaShape {
  int64_t width, heads, kvHeads, headDim, ffn, vocab;
  float eps;

  int64_t qkvWidth() const { return (heads + 2 * kvHeads) * headDim; }
};

// Name and dimensions of each weight, in the order of the weights file. Layer weights are named
// "<layer>.<name>".
struct WeightSpec {
  std::string name;
  std::vector<int64_t> dims;

  size_t count() const;
};
std::vector<WeightSpec> layerWeights(const LlamaShape& shape, const std::string& prefix);
std::vector<WeightSpec> allWeights(const LlamaShape& shape, int layers);

// Row counts: min, opt, max of one optimization profile.
struct Profile {
  int64_t min, opt, max;
};

enum class Part { kEmbedding, kLayer, kHead, kWhole };

struct BuildOptions {
  Part part = Part::kLayer;
  int layers = 1;
  // Host bfloat16 of a weight by name; empty: weights are network inputs of that name.
  std::function<const void*(const std::string&)> weights;
  bool strippedRefit = false;  // kREFIT | kSTRIP_PLAN
  std::vector<Profile> profiles;
};

struct Engine {
  std::unique_ptr<nvinfer1::ICudaEngine> engine;
  std::vector<std::unique_ptr<nvinfer1::IExecutionContext>> contexts;  // one per profile
  double buildSeconds = 0;
  size_t planBytes = 0;
};

// Builds and deserialises. Contexts come later (createContexts): a stripped engine is refitted before.
Engine buildEngine(TensorRt& trt, const LlamaShape& shape, const BuildOptions& options);

// One context per profile, attached to the state; returns how many plugins attached to each.
int createContexts(Engine& engine, nt::StepState* state, cudaStream_t stream);

// Sets all named weights and refits; seconds taken.
double refit(TensorRt& trt, Engine& engine, const std::vector<WeightSpec>& specs,
             const std::function<const void*(const std::string&)>& weights);

}  // namespace bench
