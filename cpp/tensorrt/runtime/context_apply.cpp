// What happens on a stream's thread. See context.h.
#include <algorithm>
#include <cstring>
#include <new>
#include <utility>

#include "core/text.h"
#include "tensorrt/guarded.h"
#include "tensorrt/runtime/context.h"
#include "tensorrt/runtime/failure.h"

namespace nt::runtime {

namespace {

using nvinfer1::DataType;

std::string nameOf(const TensorFacts& tensor) {
  return (tensor.input ? "Input " : "Output ") + quoted(tensor.name);
}

bool isKnown(const Shape& shape) noexcept {
  return std::all_of(shape.begin(), shape.end(), [](int64_t extent) { return extent >= 0; });
}

// As the tensor's type has them in memory. Returns their bytes.
uint64_t pack(const std::vector<int64_t>& values, DataType type, std::vector<int64_t>& to) {
  const auto bytes = static_cast<uint64_t>(bytesOfValues(type, static_cast<int64_t>(values.size())));
  to.assign(std::max<size_t>(values.size(), 1), 0);
  auto* out = reinterpret_cast<char*>(to.data());
  const size_t each = values.empty() ? 0 : bytes / values.size();
  for (const int64_t value : values) {
    const auto narrow = static_cast<int32_t>(value);
    const auto byte = static_cast<char>(type == DataType::kBOOL ? value != 0 : value);
    const void* from = each == 8   ? static_cast<const void*>(&value)
                       : each == 4 ? static_cast<const void*>(&narrow)
                                   : &byte;
    std::memcpy(out, from, each);
    out += each;
  }
  return bytes;
}

Status tooSmall(const TensorFacts& facts, const Shape& shape, uint64_t needed, uint64_t given) {
  return {"ERR_INVALID_TENSOR", nameOf(facts) + " needs " + std::to_string(needed) + " bytes for " +
                                    facts.dtype + " of shape " + shapeText(shape) + ", its memory has " +
                                    std::to_string(given)};
}

// Runs before may still use it.
void drop(Place& place, RunEffects& effects) {
  if (place.memory == nullptr) return;
  effects.dropped.push_back(place.memory);
  place = {};
}

}  // namespace

Status ContextObject::beginReshape(RunEffects& effects) {
  shapesKnown_ = settled_ = false;
  if (effects.capturing) {
    return Status::invalid("A context's shapes and profile cannot change during a capture",
                           "Run the context once with them before");
  }
  // TensorRT keeps on the device what depends on the shapes, and the graph reads it.
  if (!captured_.expired()) {
    return Status::invalid(
        "The context was captured into a graph, which needs its shapes and profile to stay",
        "Make a context for each shape that is captured, or close the graph");
  }
  ran_ = false;
  ++effects.reshapes;
  return {};
}

// In what follows: where something new is refused the old is gone all the same, as a run with it is not what
// was asked for.

Status ContextObject::applyProfile(int32_t profile, cudaStream_t stream, RunEffects& effects) {
  shapesKnown_ = settled_ = false;
  for (Bound& bound : bound_) {
    bound.given.reset();
    bound.valueBytes = 0;
  }
  if (profile == profile_) return {};
  if (Status status = beginReshape(effects); !status) return status;
  const LogScope log;
  if (!context_->setOptimizationProfileAsync(profile, stream)) {
    return failureOn(deviceState(), "ERR_EXECUTION_FAILED",
                     "TensorRT could not change to profile " + std::to_string(profile), log, stream);
  }
  profile_ = profile;
  return {};
}

Status ContextObject::applyShape(size_t tensor, Shape shape, RunEffects& effects) {
  Bound& bound = bound_[tensor];
  if (bound.given == shape) return {};
  const TensorFacts& facts = tensors_[tensor];
  shapesKnown_ = settled_ = false;
  bound.given.reset();
  if (toShape(context_->getTensorShape(facts.name.c_str())) != shape) {
    if (Status status = beginReshape(effects); !status) return status;
  }
  const LogScope log;
  if (facts.isDynamic() && !context_->setInputShape(facts.name.c_str(), toDims(shape))) {
    return withLog(
        {"ERR_INVALID_TENSOR", nameOf(facts) + ": TensorRT does not take the shape " + shapeText(shape)},
        log);
  }
  bound.given = std::move(shape);
  return {};
}

Status ContextObject::applyValues(size_t tensor, const std::vector<int64_t>& values, RunEffects& effects) {
  Bound& bound = bound_[tensor];
  drop(bound.place, effects);
  std::vector<int64_t> packed;
  const uint64_t bytes = pack(values, tensors_[tensor].type, packed);
  return takeValues(tensor, std::move(packed), bytes, effects);
}

Status ContextObject::takeValues(size_t tensor, std::vector<int64_t> packed, uint64_t bytes,
                                 RunEffects& effects) {
  Bound& bound = bound_[tensor];
  if (bound.valueBytes == bytes && bytes > 0 && packed == bound.values) return {};
  bound.valueBytes = 0;
  if (Status status = beginReshape(effects); !status) return status;
  bound.values = std::move(packed);
  if (!context_->setInputTensorAddress(tensors_[tensor].name.c_str(), bound.values.data()))
    return {"ERR_EXECUTION_FAILED", nameOf(tensors_[tensor]) + ": TensorRT does not take its values"};
  bound.valueBytes = bytes;
  return {};
}

// TensorRT would read the caller's memory in the run, after its sizes have been checked: it gets a copy.
Status ContextObject::readHostInputs(RunEffects& effects) {
  for (size_t i = 0; i < tensors_.size(); ++i) {
    const TensorFacts& facts = tensors_[i];
    const Bound& bound = bound_[i];
    if (!facts.input || !facts.onHost || bound.place.memory == nullptr) continue;
    const Shape& shape = bound.given ? *bound.given : facts.shape;
    if (!isKnown(shape)) continue;  // as settle() will tell
    const auto bytes = static_cast<uint64_t>(facts.bytesOf(shape, profile_));
    if (bound.place.bytes() < bytes) return tooSmall(facts, shape, bytes, bound.place.bytes());
    std::vector<int64_t> packed(std::max<size_t>((bytes + 7) / 8, 1), 0);
    std::memcpy(packed.data(), bound.place.address(), bytes);
    if (Status status = takeValues(i, std::move(packed), bytes, effects); !status) return status;
  }
  return {};
}

Status ContextObject::applyPlace(size_t tensor, Place place, RunEffects& effects) {
  Bound& bound = bound_[tensor];
  const TensorFacts& facts = tensors_[tensor];
  if (place == bound.place) return {};
  settled_ = false;
  drop(bound.place, effects);
  if (!facts.input) bound.slot->setGiven(nullptr, 0, effects.dropped);
  if (place.memory == nullptr) return {};
  const LogScope log;
  if (!(facts.input && facts.onHost) && !context_->setTensorAddress(facts.name.c_str(), place.address())) {
    return withLog({"ERR_INVALID_TENSOR", nameOf(facts) + ": TensorRT does not take its address"}, log);
  }
  if (!facts.input) bound.slot->setGiven(place.address(), place.bytes(), effects.dropped);
  bound.place = std::move(place);
  return {};
}

Status ContextObject::applyDeviceMemory(Place place, RunEffects& effects) {
  if (place == deviceMemory_) return {};
  drop(deviceMemory_, effects);
  if (Status status = beginReshape(effects); !status) return status;
  deviceMemory_ = std::move(place);
  return {};
}

// Goes on after a failure: what the caller has set otherwise holds for the runs to come.
Status ContextObject::applyOne(PendingChanges& changes, cudaStream_t stream, RunEffects& effects) {
  Status result;
  const auto note = [&](Status status) {
    if (result && !status) result = std::move(status);
  };
  if (changes.profile) note(applyProfile(*changes.profile, stream, effects));
  for (auto& [tensor, shape] : changes.shapes) note(applyShape(tensor, std::move(shape), effects));
  for (auto& [tensor, place] : changes.places) note(applyPlace(tensor, std::move(place), effects));
  for (const auto& [tensor, values] : changes.values) note(applyValues(tensor, values, effects));
  if (changes.deviceMemory) note(applyDeviceMemory(*std::move(changes.deviceMemory), effects));
  if (changes.profiling && *changes.profiling != profiling_) {
    profiling_ = *changes.profiling;
    context_->setProfiler(profiling_ ? &profiler_ : nullptr);
  }
  return result;
}

Status ContextObject::apply(std::unique_ptr<ContextChanges> changes, cudaStream_t stream,
                            RunEffects& effects) noexcept {
  return guarded([&]() -> Status {
    std::vector<std::unique_ptr<PendingChanges>> kept;
    {
      const std::lock_guard lock(keptMutex_);
      kept.swap(kept_);
    }
    Status result;
    for (const auto& one : kept) {
      if (Status status = applyOne(*one, stream, effects); !status && result) result = std::move(status);
    }
    if (changes == nullptr) return result;
    if (Status status = applyOne(static_cast<PendingChanges&>(*changes), stream, effects); !status)
      return status;
    return result;
  });
}

Status ContextObject::settleShapes() {
  if (shapesKnown_) return {};
  for (size_t i = 0; i < tensors_.size(); ++i) {
    const TensorFacts& facts = tensors_[i];
    if (!facts.input) continue;
    if (facts.isDynamic() && !bound_[i].given) {
      const Range& range = facts.profiles[static_cast<size_t>(profile_)];
      if (range.min == range.max) continue;  // TensorRT knows it
      return {"ERR_INVALID_TENSOR", nameOf(facts) + " has no shape yet",
              "Its shape is to be set again after each change of the profile"};
    }
    if (facts.onHost && bound_[i].valueBytes == 0)
      return {"ERR_INVALID_TENSOR", nameOf(facts) + " has no values yet"};
  }
  const LogScope log;
  std::vector<const char*> missing(tensors_.size(), nullptr);
  const int32_t count = context_->inferShapes(static_cast<int32_t>(missing.size()), missing.data());
  if (count > 0 && missing[0] != nullptr)
    return withLog({"ERR_INVALID_TENSOR", "Input " + quoted(missing[0]) + " has no shape or values yet"},
                   log);
  if (count != 0) {
    return failureOn(deviceState(), "ERR_INVALID_TENSOR",
                     "TensorRT finds no shapes of outputs for these inputs", log);
  }
  for (size_t i = 0; i < tensors_.size(); ++i) {
    const TensorFacts& facts = tensors_[i];
    Bound& bound = bound_[i];
    bound.shape = toShape(context_->getTensorShape(facts.name.c_str()));
    bound.bytes = isKnown(bound.shape) ? static_cast<uint64_t>(facts.bytesOf(bound.shape, profile_)) : 0;
    if (facts.input) continue;
    // What TensorRT knows only in the run, it asks the slot for.
    nvinfer1::IOutputAllocator* allocator = isKnown(bound.shape) ? nullptr : bound.slot.get();
    if (!context_->setOutputAllocator(facts.name.c_str(), allocator))
      return {"ERR_EXECUTION_FAILED", nameOf(facts) + ": TensorRT does not take an allocator"};
  }
  shapesKnown_ = true;
  shapesTold_ = false;
  return {};
}

Status ContextObject::checkBytes(size_t tensor) const {
  const TensorFacts& facts = tensors_[tensor];
  const Bound& bound = bound_[tensor];
  const bool byValues = bound.valueBytes > 0;
  if (bound.place.memory == nullptr && !byValues) {
    if (!facts.input) return {};
    return {"ERR_INVALID_TENSOR", nameOf(facts) + " has no memory yet"};
  }
  const uint64_t given = byValues ? bound.valueBytes : bound.place.bytes();
  return given >= bound.bytes ? Status() : tooSmall(facts, bound.shape, bound.bytes, given);
}

Status ContextObject::settle() {
  if (settled_) return {};
  if (Status status = settleShapes(); !status) return status;
  for (size_t i = 0; i < tensors_.size(); ++i) {
    if (Status status = checkBytes(i); !status) return status;
  }
  if (memory_ == ContextMemory::kUser) {
    const auto needed = static_cast<uint64_t>(engine_->facts().deviceMemory[static_cast<size_t>(profile_)]);
    if (deviceMemory_.bytes() < needed) {
      return {"ERR_INVALID_TENSOR",
              "The context needs " + std::to_string(needed) + " bytes of activation memory in profile " +
                  std::to_string(profile_) + ", it was given " + std::to_string(deviceMemory_.bytes()),
              "Set its device memory"};
    }
    context_->setDeviceMemoryV2(deviceMemory_.address(), static_cast<int64_t>(deviceMemory_.bytes()));
  }
  settled_ = true;
  return {};
}

Status ContextObject::bindOutputs(RunEffects& effects) {
  for (size_t i = 0; i < tensors_.size(); ++i) {
    Bound& bound = bound_[i];
    if (bound.slot == nullptr) continue;
    bound.slot->begin();
    if (bound.place.memory != nullptr) continue;
    void* address = nullptr;
    if (isKnown(bound.shape)) {
      const MemoryKind kind = tensors_[i].onHost ? MemoryKind::kPinned : MemoryKind::kDevice;
      Expected<void*> reserved = bound.slot->reserve(kind, bound.bytes, effects.dropped);
      if (!reserved) {
        const Status why = reserved.status();
        return {why.code(), nameOf(tensors_[i]) + ": " + why.message(), why.hint()};
      }
      address = *reserved;
    } else {
      address = bound.slot->current();
    }
    if (!context_->setTensorAddress(tensors_[i].name.c_str(), address))
      return {"ERR_EXECUTION_FAILED", nameOf(tensors_[i]) + ": TensorRT does not take its address"};
  }
  return {};
}

Status ContextObject::runFailure(const LogScope& log, cudaStream_t stream, const RunEffects& effects) const {
  for (size_t i = 0; i < tensors_.size(); ++i) {
    const Bound& bound = bound_[i];
    if (bound.slot == nullptr) continue;
    if (const Status& why = bound.slot->refusal(); !why) {
      cudaGetLastError();
      return {why.code(), nameOf(tensors_[i]) + ": " + why.message(), why.hint()};
    }
    if (const uint64_t bytes = bound.slot->refusedBytes(); bytes > 0) {
      cudaGetLastError();
      return {"ERR_INVALID_TENSOR",
              nameOf(tensors_[i]) + " turned out to need " + std::to_string(bytes) +
                  " bytes, its memory has " + std::to_string(bound.place.bytes()),
              "Give it more memory, or let the context allocate it"};
    }
  }
  return failureOn(deviceState(), "ERR_EXECUTION_FAILED", "TensorRT could not run the engine", log,
                   effects.capturing ? nullptr : stream);
}

Status ContextObject::enqueueOn(cudaStream_t stream, RunEffects& effects) noexcept {
  return guarded([&]() -> Status {
    if (Status status = engine_->runnable(); !status) return status;
    if (Status status = readHostInputs(effects); !status) return status;
    if (Status status = settle(); !status) return status;
    if (effects.capturing && (!ran_ || profiling_)) {
      // The first run of a shape moves data that a graph must not move again.
      return profiling_
                 ? Status::invalid("A run that is profiled cannot be captured", "Turn profiling off")
                 : Status::invalid("The context has not run with these shapes and cannot be captured yet",
                                   "Run it once before the capture");
    }
    if (Status status = bindOutputs(effects); !status) return status;
    const LogScope log;
    bool done = false;
    {
      const std::shared_lock running(engine_->weightsMutex());
      done = context_->enqueueV3(stream);
    }
    for (const Bound& bound : bound_) {
      if (bound.slot != nullptr) bound.slot->takeDropped(effects.dropped);
    }
    if (!done) return runFailure(log, stream, effects);
    if (!shapesTold_) {
      for (const Bound& bound : bound_) {
        if (bound.slot != nullptr && isKnown(bound.shape)) bound.slot->setShape(bound.shape);
      }
      shapesTold_ = true;
    }
    ran_ = true;
    return {};
  });
}

Expected<std::vector<Shape>> ContextObject::shapes() noexcept {
  return guarded([&]() -> Expected<std::vector<Shape>> {
    RunEffects effects;
    if (Status status = readHostInputs(effects); !status) return status;
    if (Status status = settleShapes(); !status) return status;
    std::vector<Shape> shapes;
    for (const Bound& bound : bound_) shapes.push_back(bound.shape);
    return shapes;
  });
}

Status ContextObject::uses(References& references) noexcept {
  return guarded([&]() -> Status {
    std::shared_ptr<const void> token = captured_.lock();
    if (token == nullptr) token = std::make_shared<char>();
    references.push_back(shared_from_this());
    for (const Bound& bound : bound_) {
      if (bound.place.memory != nullptr) references.push_back(bound.place.memory);
      if (bound.slot == nullptr) continue;
      if (std::shared_ptr<const void> own = bound.slot->own(); own != nullptr)
        references.push_back(std::move(own));
    }
    if (deviceMemory_.memory != nullptr) references.push_back(deviceMemory_.memory);
    references.push_back(token);
    captured_ = token;
    return {};
  });
}

}  // namespace nt::runtime
