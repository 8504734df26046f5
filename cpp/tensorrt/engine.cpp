#include "tensorrt/engine.h"

#include <algorithm>

#include "tensorrt/cuda.h"
#include "tensorrt/logger.h"
#include "tensorrt/network.h"

namespace nt {

namespace {

using namespace nvinfer1;

bool matches(const Dims& dims, const std::vector<int64_t>& shape) {
  return dims.nbDims == static_cast<int32_t>(shape.size()) && std::equal(shape.begin(), shape.end(), dims.d);
}

}  // namespace

Expected<std::unique_ptr<SegmentEngine>> SegmentEngine::create(IRuntime& runtime,
                                                               const std::vector<char>& plan,
                                                               const SegmentShape& shape, DType dtype,
                                                               const std::vector<RowProfile>& profiles,
                                                               StepState& state, cudaStream_t stream) {
  const LogScope log;
  std::unique_ptr<SegmentEngine> result(new SegmentEngine);
  result->name_ = shape.name;
  result->inputWidth_ = shape.inputWidth();
  result->profiles_ = profiles;
  result->attentions_ = shape.attentions;
  result->state_ = &state;
  for (size_t i = 0; i < shape.weightShapes.size(); ++i) result->weightNames_.push_back(weightInputName(i));
  result->engine_.reset(runtime.deserializeCudaEngine(plan.data(), plan.size()));
  if (result->engine_ == nullptr) {
    return failure("ERR_ENGINE_INVALID", "TensorRT does not take the plan of '" + shape.name + "'", log);
  }
  if (Status status = result->check(shape, dtype); !status) return status;
  for (size_t i = 0; i < profiles.size(); ++i) {
    Expected<Context> context = result->createContext(i, stream);
    if (!context) return context.status();
    result->contexts_.push_back(*std::move(context));
  }
  return result;
}

Expected<SegmentEngine::Context> SegmentEngine::createContext(size_t profile, cudaStream_t stream) {
  const LogScope log;
  const StepStateScope scope(state_);
  const int32_t before = state_->attached;
  Context result;
  result.context.reset(engine_->createExecutionContext(ExecutionContextAllocationStrategy::kUSER_MANAGED));
  if (result.context == nullptr ||
      !result.context->setOptimizationProfileAsync(static_cast<int32_t>(profile), stream) ||
      cudaStreamSynchronize(stream) != cudaSuccess) {
    return failure("ERR_ENGINE_INVALID", "TensorRT could not create an execution context of '" + name_ + "'",
                   log);
  }
  // One that is not attached would give zeros instead of attention. A context holds the plugins of every
  // profile.
  const int32_t expected = attentions_ * static_cast<int32_t>(profiles_.size());
  if (state_->attached - before != expected) {
    return Status("ERR_INTERNAL", "'" + name_ + "' attached " + std::to_string(state_->attached - before) +
                                      " attention layers, expected " + std::to_string(expected));
  }
  if (activations_ != nullptr) result.context->setDeviceMemoryV2(activations_, activationBytes_);
  return result;
}

Status SegmentEngine::dedicate(int32_t rows, cudaStream_t stream) {
  if (dedicated_.contains(rows)) return {};
  const size_t profile = profileOf(rows);
  if (profile == profiles_.size()) return {"ERR_INTERNAL", "'" + name_ + "' has no profile for these rows"};
  Expected<Context> context = createContext(profile, stream);
  if (!context) return context.status();
  dedicated_.emplace(rows, *std::move(context));
  return {};
}

size_t SegmentEngine::profileOf(int32_t rows) const noexcept {
  size_t profile = 0;
  while (profile < profiles_.size() && profiles_[profile].max < rows) ++profile;
  return profile < profiles_.size() && profiles_[profile].min <= rows ? profile : profiles_.size();
}

Status SegmentEngine::check(const SegmentShape& shape, DType dtype) const {
  const auto invalid = [&](const std::string& what) {
    return Status("ERR_ENGINE_INVALID", "The plan of '" + name_ + "' does not fit its graph: " + what,
                  "Build the engine again");
  };
  const int32_t tensors = static_cast<int32_t>(shape.weightShapes.size()) + 2;
  if (engine_->getNbIOTensors() != tensors) {
    return invalid("it has " + std::to_string(engine_->getNbIOTensors()) + " tensors, not " +
                   std::to_string(tensors));
  }
  if (engine_->getNbOptimizationProfiles() != static_cast<int32_t>(profiles_.size())) {
    return invalid("it has " + std::to_string(engine_->getNbOptimizationProfiles()) + " profiles");
  }
  const auto is = [&](const char* name, TensorIOMode mode, const std::vector<int64_t>& dims) {
    return engine_->getTensorIOMode(name) == mode && engine_->getTensorDataType(name) == toTensorRt(dtype) &&
           matches(engine_->getTensorShape(name), dims);
  };
  if (!is(kInputName, TensorIOMode::kINPUT, {-1, shape.inputWidth()})) return invalid("its input differs");
  if (!is(kOutputName, TensorIOMode::kOUTPUT, {-1, shape.outputWidth()}))
    return invalid("its output differs");
  for (size_t i = 0; i < weightNames_.size(); ++i) {
    if (!is(weightNames_[i].c_str(), TensorIOMode::kINPUT, shape.weightShapes[i])) {
      return invalid("weight " + std::to_string(i) + " differs");
    }
  }
  return {};
}

int64_t SegmentEngine::activationBytes() const {
  int64_t bytes = 0;
  for (int32_t i = 0; i < static_cast<int32_t>(profiles_.size()); ++i) {
    bytes = std::max(bytes, engine_->getDeviceMemorySizeForProfileV2(i));
  }
  return bytes;
}

void SegmentEngine::setActivationMemory(void* memory, int64_t bytes) {
  activations_ = memory;
  activationBytes_ = bytes;
  for (Context& context : contexts_) context.context->setDeviceMemoryV2(memory, bytes);
}

Status SegmentEngine::enqueue(int32_t rows, const void* x, void* y, const std::vector<void*>& weights,
                              cudaStream_t stream, bool dedicated) {
  const LogScope log;
  const size_t profile = profileOf(rows);
  const auto own = dedicated_.find(rows);
  if (profile == profiles_.size() || (dedicated && own == dedicated_.end()) ||
      weights.size() != weightNames_.size()) {
    return {"ERR_INTERNAL", "'" + name_ + "' has no context for " + std::to_string(rows) + " rows"};
  }
  Context& slot = dedicated ? own->second : contexts_[profile];
  IExecutionContext& context = *slot.context;
  bool ok = true;
  if (slot.rows != rows) {
    slot.rows = -1;
    ok = context.setInputShape(kInputName, Dims2{rows, inputWidth_});
  }
  ok = ok && context.setInputTensorAddress(kInputName, x) && context.setTensorAddress(kOutputName, y);
  for (size_t i = 0; ok && i < weights.size(); ++i) {
    ok = context.setTensorAddress(weightNames_[i].c_str(), weights[i]);
  }
  if (ok && context.enqueueV3(stream)) {
    slot.rows = rows;
    return {};
  }
  return failure("ERR_STEP_FAILED",
                 "TensorRT could not run '" + name_ + "' with " + std::to_string(rows) + " rows", log);
}

}  // namespace nt
