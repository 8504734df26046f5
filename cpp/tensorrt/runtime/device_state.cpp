#include "tensorrt/runtime/device_state.h"

#include <algorithm>
#include <map>
#include <memory>
#include <new>
#include <utility>

#include "tensorrt/cuda.h"
#include "tensorrt/runtime/faults.h"
#include "tensorrt/runtime/reaper.h"

namespace nt::runtime {

namespace {

// What the pools keep at most.
constexpr uint64_t kPooledDeviceBytes = uint64_t{1} << 30;
constexpr uint64_t kPooledPinnedBytes = uint64_t{256} << 20;

// After these the process's CUDA context answers every call with an error.
bool isFinal(cudaError_t error) noexcept {
  switch (error) {
    case cudaErrorCudartUnloading:
    case cudaErrorECCUncorrectable:
    case cudaErrorNvlinkUncorrectable:
    case cudaErrorIllegalAddress:
    case cudaErrorLaunchTimeout:
    case cudaErrorContextIsDestroyed:
    case cudaErrorAssert:
    case cudaErrorHardwareStackError:
    case cudaErrorIllegalInstruction:
    case cudaErrorMisalignedAddress:
    case cudaErrorInvalidAddressSpace:
    case cudaErrorInvalidPc:
    case cudaErrorLaunchFailure:
    case cudaErrorContained:
    case cudaErrorTensorMemoryLeak:
    case cudaErrorExternalDevice:
    case cudaErrorMpsClientTerminated:
    case cudaErrorUnknown:
      return true;
    default:
      return false;
  }
}

}  // namespace

DeviceState::DeviceState(int32_t device) noexcept
    : device_(device), devicePool_(kPooledDeviceBytes), pinnedPool_(kPooledPinnedBytes) {}

Expected<DeviceState*> DeviceState::of(int32_t device) noexcept {
  static std::mutex mutex;
  // Never destroyed: threads that outlive main() may still free memory.
  static std::map<int32_t, std::unique_ptr<DeviceState>>* states = nullptr;
  try {
    const std::lock_guard lock(mutex);
    if (states == nullptr) states = new std::map<int32_t, std::unique_ptr<DeviceState>>;
    std::unique_ptr<DeviceState>& state = (*states)[device];
    if (state == nullptr) state.reset(new DeviceState(device));
    return state.get();
  } catch (const std::bad_alloc&) {
    return Status("ERR_OUT_OF_MEMORY", "Out of memory");
  }
}

Status DeviceState::select() noexcept {
  if (isDead()) return alive();
  return check(cudaSetDevice(device_), "Selecting the GPU");
}

Status DeviceState::alive() const noexcept {
  if (!isDead()) return {};
  try {
    const std::lock_guard lock(deathMutex_);
    return {
        "ERR_BACKEND_DEAD",
        "GPU " + std::to_string(device_) + " is unusable in this process since an earlier error: " + death_,
        "Close what is open and start a new process; CUDA cannot recover from this error"};
  } catch (const std::bad_alloc&) {
    return {"ERR_BACKEND_DEAD", ""};
  }
}

Status DeviceState::check(cudaError_t error, const char* what) noexcept {
  if (error == cudaSuccess) return {};
  cudaGetLastError();
  try {
    if (error == cudaErrorMemoryAllocation) {
      return {
          "ERR_OUT_OF_DEVICE_MEMORY",
          std::string(what) + ": GPU " + std::to_string(device_) + " is out of memory",
          "Close buffers, contexts and engines that are no longer used, or stop what else runs on this GPU"};
    }
    Status status = toStatus(error, what);
    if (!isFinal(error)) return status;
    {
      const std::lock_guard lock(deathMutex_);
      if (!isDead()) death_ = status.message();
      dead_.store(true, std::memory_order_release);
    }
    return alive();
  } catch (const std::bad_alloc&) {
    if (isFinal(error)) dead_.store(true, std::memory_order_release);
    return {"ERR_CUDA", ""};
  }
}

cudaError_t DeviceState::allocate(MemoryKind kind, uint64_t bytes, void** memory) noexcept {
  const bool onDevice = kind == MemoryKind::kDevice;
  *memory = nullptr;
  if (onDevice ? failsDeviceAllocation() : failsPinnedAllocation()) return cudaErrorMemoryAllocation;
  const DeviceScope scope(device_);
  const auto call = [&] {
    account(kind).allocations.fetch_add(1, std::memory_order_relaxed);
    const cudaError_t error = onDevice ? cudaMalloc(memory, std::max<uint64_t>(bytes, 1))
                                       : cudaMallocHost(memory, std::max<uint64_t>(bytes, 1));
    if (error != cudaSuccess) {
      *memory = nullptr;
      cudaGetLastError();
    }
    return error;
  };
  cudaError_t error = call();
  if (error == cudaErrorMemoryAllocation) {
    const Pool::Blocks blocks = pool(kind).takeAll();
    if (blocks.empty()) return error;
    freeBlocks(kind, blocks);
    error = call();
  }
  if (error != cudaSuccess) return error;
  Account& book = account(kind);
  try {
    const std::lock_guard lock(book.mutex);
    book.sizes.emplace(*memory, bytes);
    book.bytes += bytes;
    return cudaSuccess;
  } catch (const std::bad_alloc&) {
    if (onDevice) {
      cudaFree(*memory);
    } else {
      cudaFreeHost(*memory);
    }
    *memory = nullptr;
    return cudaErrorMemoryAllocation;
  }
}

void DeviceState::free(MemoryKind kind, void* memory) noexcept {
  if (memory == nullptr) return;
  Account& book = account(kind);
  {
    const std::lock_guard lock(book.mutex);
    const auto found = book.sizes.find(memory);
    if (found == book.sizes.end()) return;
    book.bytes -= found->second;
    book.sizes.erase(found);
  }
  book.frees.fetch_add(1, std::memory_order_relaxed);
  const DeviceScope scope(device_);
  // On a dead device this fails, and the memory goes with the process.
  const cudaError_t error = kind == MemoryKind::kDevice ? cudaFree(memory) : cudaFreeHost(memory);
  (void)check(error, "Freeing memory");
}

cudaError_t DeviceState::allocateDeviceRaw(uint64_t bytes, void** memory) noexcept {
  return allocate(MemoryKind::kDevice, bytes, memory);
}
void DeviceState::freeDeviceRaw(void* memory) noexcept {
  free(MemoryKind::kDevice, memory);
}
cudaError_t DeviceState::allocatePinnedRaw(uint64_t bytes, void** memory) noexcept {
  return allocate(MemoryKind::kPinned, bytes, memory);
}
void DeviceState::freePinnedRaw(void* memory) noexcept {
  free(MemoryKind::kPinned, memory);
}

Expected<MemoryFigures> DeviceState::memory() noexcept {
  if (Status status = alive(); !status) return status;
  const DeviceScope scope(device_);
  size_t free = 0;
  size_t total = 0;
  if (Status status = check(cudaMemGetInfo(&free, &total), "Asking for the GPU's free memory"); !status) {
    return status;
  }
  MemoryFigures figures;
  figures.freeBytes = free;
  figures.totalBytes = total;
  figures.pooledDeviceBytes = devicePool_.bytes();
  figures.pooledPinnedBytes = pinnedPool_.bytes();
  const auto inUse = [](Account& book, uint64_t pooled) {
    const std::lock_guard lock(book.mutex);
    return book.bytes - std::min(book.bytes, pooled);
  };
  figures.deviceBytes = inUse(onDevice_, figures.pooledDeviceBytes);
  figures.pinnedBytes = inUse(pinned_, figures.pooledPinnedBytes);
  return figures;
}

DeviceCounters DeviceState::counters() const noexcept {
  return {onDevice_.allocations, onDevice_.frees, pinned_.allocations, pinned_.frees, poolHits_};
}

void DeviceState::trim() noexcept {
  freeBlocksLater(MemoryKind::kDevice, devicePool_.takeAll());
  freeBlocksLater(MemoryKind::kPinned, pinnedPool_.takeAll());
}

void* DeviceState::takePooled(MemoryKind kind, uint64_t bytes) noexcept {
  void* memory = pool(kind).take(bytes);
  if (memory != nullptr) poolHits_.fetch_add(1, std::memory_order_relaxed);
  return memory;
}

void DeviceState::putPooled(MemoryKind kind, void* memory, uint64_t bytes) noexcept {
  Pool::Blocks gone;
  try {
    if (isDead() || !pool(kind).put(memory, bytes, gone)) gone.emplace(bytes, Pool::Block{memory, 0});
  } catch (const std::bad_alloc&) {
    free(kind, memory);
  }
  freeBlocksLater(kind, std::move(gone));
}

void DeviceState::freeBlocks(MemoryKind kind, const Pool::Blocks& blocks) noexcept {
  for (const auto& [bytes, block] : blocks) free(kind, block.memory);
}

void DeviceState::freeBlocksLater(MemoryKind kind, Pool::Blocks blocks) noexcept {
  if (blocks.empty()) return;
  std::shared_ptr<Pool::Blocks> shared;
  try {
    shared = std::make_shared<Pool::Blocks>();
  } catch (const std::bad_alloc&) {
    freeBlocks(kind, blocks);
    return;
  }
  *shared = std::move(blocks);
  reap([this, kind, shared] { freeBlocks(kind, *shared); });
}

}  // namespace nt::runtime
