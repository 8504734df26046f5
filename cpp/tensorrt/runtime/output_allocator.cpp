#include "tensorrt/runtime/output_allocator.h"

#include <algorithm>
#include <new>
#include <utility>

#include "core/text.h"
#include "tensorrt/runtime/engine_info.h"
#include "tensorrt/runtime/memory.h"

namespace nt::runtime {

void OutputSlot::setGiven(void* address, uint64_t bytes, References& dropped) {
  dropped.reserve(dropped.size() + 1);
  const std::lock_guard lock(mutex_);
  given_ = address;
  givenBytes_ = bytes;
  if (given_ != nullptr && own_ != nullptr) dropped.push_back(std::move(own_));
}

Expected<void*> OutputSlot::reserve(MemoryKind kind, uint64_t bytes, References& dropped) noexcept {
  try {
    {
      const std::lock_guard lock(mutex_);
      // Only this slot hands it out, and does so under the lock: nobody can come to hold it meanwhile.
      if (own_ != nullptr && own_.use_count() == 1 && own_->kind() == kind && own_->bytes() >= bytes)
        return own_->address();
    }
    dropped.reserve(dropped.size() + 1);
    Expected<std::shared_ptr<Memory>> memory =
        createMemory(device_, kind, std::max<uint64_t>(bytes, 1), true);
    if (!memory) return memory.status();
    const std::lock_guard lock(mutex_);
    if (own_ != nullptr) dropped.push_back(std::move(own_));
    own_ = *std::move(memory);
    return own_->address();
  } catch (const std::bad_alloc&) {
    return Status("ERR_OUT_OF_MEMORY", "Out of memory");
  }
}

void OutputSlot::begin() noexcept {
  refusedBytes_ = 0;
  refusal_ = {};
}

void OutputSlot::takeDropped(References& dropped) {
  dropped.insert(dropped.end(), dropped_.begin(), dropped_.end());
  dropped_.clear();
}

void* OutputSlot::current() noexcept {
  if (given_ != nullptr) return given_;
  const std::lock_guard lock(mutex_);
  return own_ != nullptr && own_.use_count() == 1 ? own_->address() : nullptr;
}

void OutputSlot::setShape(const Shape& shape) {
  const std::lock_guard lock(mutex_);
  shape_ = shape;
  ran_ = true;
}

Expected<OutputView> OutputSlot::view(const std::string& name) const {
  const std::lock_guard lock(mutex_);
  if (!ran_) return Status::invalid("Output " + quoted(name) + " is not there: the context has not run yet");
  return OutputView{shape_, given_ == nullptr ? own_ : nullptr};
}

std::shared_ptr<const void> OutputSlot::own() const {
  const std::lock_guard lock(mutex_);
  return own_;
}

void* OutputSlot::reallocateOutputAsync(const char*, void*, uint64_t size, uint64_t, cudaStream_t) noexcept {
  if (given_ != nullptr) {
    if (size <= givenBytes_) return given_;
    refusedBytes_ = size;
    return nullptr;
  }
  Expected<void*> memory = reserve(MemoryKind::kDevice, size, dropped_);
  if (memory) return *memory;
  refusedBytes_ = size;
  refusal_ = memory.status();
  return nullptr;
}

void OutputSlot::notifyShape(const char*, const nvinfer1::Dims& dims) noexcept {
  try {
    setShape(toShape(dims));
  } catch (const std::bad_alloc&) {
    refusal_ = {"ERR_OUT_OF_MEMORY", "Out of memory"};
  }
}

}  // namespace nt::runtime
