// The TensorRT plugin of an attention layer: rotary embedding, append to the paged cache, attention.
//
// input  0: qkv [rows, (heads + 2 * kvHeads) * headDim], float32, float16 or bfloat16
// output 0: [rows, heads * headDim], the same type
// Everything else comes from the StepState of the execution context (step_state.h). Without one, as when the
// builder times plugins, enqueue zeroes its output.
#pragma once

#include <NvInfer.h>

#include <cstdint>

#include "core/graph.h"
#include "tensorrt/plugin/step_state.h"

namespace nt {

inline constexpr int32_t kLayerFromState = -1;

struct PagedAttentionParams {
  int32_t layer = kLayerFromState;
  int32_t heads = 0;
  int32_t kvHeads = 0;
  int32_t headDim = 0;
  float scale = 0;
  int32_t rope = 0;    // index into StepState::cosSin
  int32_t window = 0;  // tokens; 0 = none

  // Of a layer whose place in the pool is the step's to say.
  static PagedAttentionParams of(const AttentionOp& op) noexcept {
    return {kLayerFromState, op.heads, op.kvHeads, op.headDim, op.scale, op.rope, op.window};
  }
};

// Of enqueue, beside CUDA's own error codes: TensorRT reports them through the logger as "status N".
enum PluginError : int32_t {
  kPluginRowsMismatch = -1,  // the graph's rows are not the state's
  kPluginUnknownLayer = -2,  // the layer or the rope is outside what the state has
  kPluginNoKernel = -3,      // no kernel covers the type and head size
};

// What the plugin's enqueue does with a state: qkv and out as above, `rotated` [rows, heads * headDim]
// scratch. Where prompts begin with the step, q and k are rotated in place instead: qkv is overwritten, and
// must have no other reader. Gives a PluginError or one of CUDA's.
int32_t runPagedAttention(const PagedAttentionParams& params, const StepState& step, DType type,
                          uint32_t rows, void* qkv, void* out, void* rotated, cudaStream_t stream) noexcept;

// A plugin for INetworkDefinition::addPluginV3, which clones it: the caller deletes its own. nullptr when out
// of memory or where the parameters make no layer (heads not a multiple of kvHeads, a size that is not
// positive).
nvinfer1::IPluginV3* createPagedAttention(const PagedAttentionParams& params) noexcept;

// Makes the plugin known to a library's one registry, so that engines which hold it can be deserialised. Once
// a library. The creator lives as long as the process.
bool registerPagedAttention(nvinfer1::IPluginRegistry& registry) noexcept;

}  // namespace nt
