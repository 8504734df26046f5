#include "tensorrt/runtime/context.h"

#include <algorithm>

#include "core/text.h"
#include "tensorrt/guarded.h"
#include "tensorrt/runtime/memory.h"
#include "tensorrt/runtime/reaper.h"

namespace nt::runtime {

namespace {

// What TensorRT asks of addresses.
constexpr uint64_t kAlignment = 256;

// Values of a later call replace those before.
template <class T>
void setFor(std::vector<std::pair<size_t, T>>& all, size_t tensor, T value) {
  const auto is = [&](const auto& entry) { return entry.first == tensor; };
  if (const auto found = std::find_if(all.begin(), all.end(), is); found != all.end()) {
    found->second = std::move(value);
  } else {
    all.emplace_back(tensor, std::move(value));
  }
}

Status wrongTensor(const TensorFacts& tensor, const std::string& what, std::string hint = {}) {
  return {"ERR_INVALID_TENSOR",
          std::string(tensor.input ? "Input " : "Output ") + quoted(tensor.name) + " " + what,
          std::move(hint)};
}

// Within the range where it is known, each of as many as it has.
bool within(const std::vector<int64_t>& values, const Range& range) {
  if (range.min.size() != values.size() || range.max.size() != values.size()) return true;
  for (size_t i = 0; i < values.size(); ++i) {
    if (values[i] < range.min[i] || values[i] > range.max[i]) return false;
  }
  return true;
}

bool holdsIntegers(nvinfer1::DataType type) noexcept {
  switch (type) {
    case nvinfer1::DataType::kINT32:
    case nvinfer1::DataType::kINT64:
    case nvinfer1::DataType::kINT8:
    case nvinfer1::DataType::kUINT8:
    case nvinfer1::DataType::kBOOL:
      return true;
    default:
      return false;
  }
}

}  // namespace

ContextObject::ContextObject(std::shared_ptr<EngineObject> engine,
                             std::unique_ptr<nvinfer1::IExecutionContext> context,
                             const ContextOptions& options)
    : RunnableContext(engine->device()),
      engine_(std::move(engine)),
      tensors_(engine_->facts().tensors),
      memory_(options.memory),
      calledProfile_(options.profile),
      profile_(options.profile),
      bound_(tensors_.size()),
      temporary_(engine_->device()),
      context_(std::move(context)) {
  for (size_t i = 0; i < tensors_.size(); ++i) {
    calledShapes_.push_back(tensors_[i].shape);
    if (!tensors_[i].input) bound_[i].slot = std::make_unique<OutputSlot>(engine_->device());
  }
}

Expected<std::shared_ptr<Context>> ContextObject::create(std::shared_ptr<EngineObject> engine,
                                                         std::unique_ptr<nvinfer1::IExecutionContext> context,
                                                         const ContextOptions& options) {
  const auto made = makeReaped<ContextObject>(std::move(engine), std::move(context), options);
  made->context_->setErrorRecorder(&made->recorder_);
  if (!made->context_->setTemporaryStorageAllocator(&made->temporary_))
    return Status("ERR_INTERNAL", "TensorRT does not take an allocator for scratch memory");
  return std::shared_ptr<Context>(made);
}

ContextObject::~ContextObject() {
  const DeviceScope scope(deviceState().device());
  context_.reset();
}

PendingChanges& ContextObject::pending() {
  if (pending_ == nullptr) pending_ = std::make_unique<PendingChanges>();
  return *pending_;
}

Expected<const TensorFacts*> ContextObject::tensorAt(int32_t tensor) const {
  if (tensor < 0 || static_cast<size_t>(tensor) >= tensors_.size()) {
    return Status("ERR_INVALID_TENSOR", "There is no tensor " + std::to_string(tensor) + ", the engine has " +
                                            std::to_string(tensors_.size()));
  }
  return &tensors_[static_cast<size_t>(tensor)];
}

Expected<const TensorFacts*> ContextObject::inputAt(int32_t tensor) const {
  Expected<const TensorFacts*> facts = tensorAt(tensor);
  if (facts && !(*facts)->input) return wrongTensor(**facts, "is no input");
  return facts;
}

Status ContextObject::setProfile(int32_t profile) noexcept {
  return guarded([&]() -> Status {
    if (profile < 0 || profile >= engine_->facts().profiles) {
      return Status::invalid("profile is " + std::to_string(profile) +
                             "; the engine has the profiles 0 ... " +
                             std::to_string(engine_->facts().profiles - 1));
    }
    PendingChanges& changes = pending();
    changes.profile = profile;
    changes.shapes.clear();
    changes.values.clear();
    calledProfile_ = profile;
    for (size_t i = 0; i < tensors_.size(); ++i) calledShapes_[i] = tensors_[i].shape;
    return {};
  });
}

Status ContextObject::setInputShape(int32_t tensor, Shape shape) noexcept {
  return guarded([&]() -> Status {
    const Expected<const TensorFacts*> facts = inputAt(tensor);
    if (!facts) return facts.status();
    const TensorFacts& input = **facts;
    const Range& range = input.profiles[static_cast<size_t>(calledProfile_)];
    bool fits = shape.size() == input.shape.size() && within(shape, range);
    for (size_t i = 0; fits && i < shape.size(); ++i) {
      fits = input.shape[i] < 0 ? shape[i] >= 0 : shape[i] == input.shape[i];
    }
    if (!fits) {
      const std::string wanted = input.isDynamic()
                                     ? "shapes from " + shapeText(range.min) + " to " + shapeText(range.max) +
                                           " in profile " + std::to_string(calledProfile_)
                                     : "the shape " + shapeText(input.shape);
      return wrongTensor(input, "takes " + wanted + ", not " + shapeText(shape));
    }
    setFor(pending().shapes, static_cast<size_t>(tensor), shape);
    calledShapes_[static_cast<size_t>(tensor)] = std::move(shape);
    return {};
  });
}

Status ContextObject::setShapeValues(int32_t tensor, std::vector<int64_t> values) noexcept {
  return guarded([&]() -> Status {
    const Expected<const TensorFacts*> facts = inputAt(tensor);
    if (!facts) return facts.status();
    const TensorFacts& input = **facts;
    if (!input.onHost || !holdsIntegers(input.type))
      return wrongTensor(input, "is no shape tensor", "Bind memory to it");
    const Shape& shape = calledShapes_[static_cast<size_t>(tensor)];
    const bool counted = std::all_of(shape.begin(), shape.end(), [](int64_t extent) { return extent >= 0; });
    if (counted && volumeOf(shape) != static_cast<int64_t>(values.size())) {
      return wrongTensor(input, "takes " + std::to_string(volumeOf(shape)) + " values, not " +
                                    std::to_string(values.size()));
    }
    const auto profile = static_cast<size_t>(calledProfile_);
    if (profile < input.values.size() && !within(values, input.values[profile])) {
      return wrongTensor(input, "takes values from " + shapeText(input.values[profile].min) + " to " +
                                    shapeText(input.values[profile].max) + " in profile " +
                                    std::to_string(calledProfile_) + ", not " + shapeText(values));
    }
    for (const int64_t value : values) {
      if (input.type == nvinfer1::DataType::kINT32 && value != static_cast<int32_t>(value))
        return wrongTensor(input, "is of int32 and does not hold " + std::to_string(value));
    }
    setFor(pending().values, static_cast<size_t>(tensor), std::move(values));
    return {};
  });
}

Status ContextObject::checkPlace(const Memory& memory, uint64_t offset, const std::string& what) const {
  // All memory is of this class (memory.h).
  const auto& object = static_cast<const MemoryObject&>(memory);
  if (memory.kind() == MemoryKind::kDevice && &object.deviceState() != &deviceState()) {
    return {"ERR_INVALID_TENSOR", what + " is given memory of GPU " +
                                      std::to_string(object.deviceState().device()) +
                                      ", the engine runs on GPU " + std::to_string(deviceState().device())};
  }
  if (offset > memory.bytes()) {
    return Status::invalid("offset is " + std::to_string(offset) + ", the memory of " + what + " has " +
                           std::to_string(memory.bytes()) + " bytes");
  }
  if ((reinterpret_cast<uintptr_t>(memory.address()) + offset) % kAlignment != 0) {
    return {"ERR_INVALID_TENSOR",
            what + " begins at offset " + std::to_string(offset) + ", expected a multiple of " +
                std::to_string(kAlignment) + " bytes",
            "Round offsets up to 256"};
  }
  return {};
}

Status ContextObject::setAddress(int32_t tensor, std::shared_ptr<Memory> memory, uint64_t offset) noexcept {
  return guarded([&]() -> Status {
    const Expected<const TensorFacts*> found = tensorAt(tensor);
    if (!found) return found.status();
    const TensorFacts& facts = **found;
    if (memory == nullptr) {
      if (facts.input) return wrongTensor(facts, "must be given memory: only outputs are allocated");
    } else {
      if (facts.onHost && memory->kind() != MemoryKind::kPinned)
        return wrongTensor(facts, "lives on the host and is given device memory", "Use pinned memory");
      const std::string what = (facts.input ? "Input " : "Output ") + quoted(facts.name);
      if (Status status = checkPlace(*memory, offset, what); !status) return status;
    }
    setFor(pending().places, static_cast<size_t>(tensor), Place{std::move(memory), offset});
    return {};
  });
}

Status ContextObject::setDeviceMemory(std::shared_ptr<Memory> memory, uint64_t offset) noexcept {
  return guarded([&]() -> Status {
    if (memory_ != ContextMemory::kUser) {
      return Status::invalid("The context has activation memory of its own",
                             "Create it for memory that the user gives");
    }
    if (memory == nullptr || memory->kind() != MemoryKind::kDevice)
      return Status::invalid("Activations need device memory");
    if (Status status = checkPlace(*memory, offset, "The activation memory"); !status) return status;
    pending().deviceMemory = Place{std::move(memory), offset};
    return {};
  });
}

Status ContextObject::setProfiling(bool on) noexcept {
  return guarded([&]() -> Status {
    pending().profiling = on;
    return {};
  });
}

Expected<OutputView> ContextObject::output(int32_t tensor) noexcept {
  return guarded([&]() -> Expected<OutputView> {
    const Expected<const TensorFacts*> facts = tensorAt(tensor);
    if (!facts) return facts.status();
    if ((*facts)->input) return wrongTensor(**facts, "is no output");
    return bound_[static_cast<size_t>(tensor)].slot->view((*facts)->name);
  });
}

std::string ContextObject::takeProfile() noexcept {
  try {
    return profiler_.take();
  } catch (const std::bad_alloc&) {
    return "[]";
  }
}

std::unique_ptr<ContextChanges> ContextObject::takeChanges() noexcept {
  return std::move(pending_);
}

void ContextObject::keepChanges(std::unique_ptr<ContextChanges> changes) noexcept {
  if (changes == nullptr) return;
  const std::lock_guard lock(keptMutex_);
  try {
    kept_.reserve(kept_.size() + 1);
  } catch (const std::bad_alloc&) {
    return;  // the next run finds the context as it was before these
  }
  kept_.emplace_back(static_cast<PendingChanges*>(changes.release()));
}

}  // namespace nt::runtime
