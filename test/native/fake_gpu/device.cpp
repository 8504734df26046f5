#include "device.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <array>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <thread>

namespace nt::fake {

namespace {

constexpr uint64_t kArena = uint64_t{1} << 35;  // addresses of one device
constexpr uint64_t kPage = 4096;
constexpr uint64_t kGarbageBytes = 1 << 20;

uint64_t numberFrom(const char* variable, uint64_t otherwise) {
  const char* text = std::getenv(variable);
  return text == nullptr || *text == '\0' ? otherwise : std::strtoull(text, nullptr, 10);
}

uint64_t roundUp(uint64_t bytes, uint64_t to) {
  return (bytes + to - 1) / to * to;
}

// For a run's report: what was left, and what went wrong.
void writeReport() {
  const char* path = std::getenv("FAKE_GPU_REPORT");
  if (path == nullptr || *path == '\0') return;
  FILE* file = std::fopen(path, "w");
  if (file == nullptr) return;
  const Figures now = figures();
  std::fprintf(file,
               "{\"violations\":%lu,\"deviceBlocks\":%lu,\"deviceBytes\":%lu,\"pinnedBlocks\":%lu,"
               "\"pinnedBytes\":%lu,\"streams\":%lu,\"events\":%lu,\"graphs\":%lu,\"allocations\":%lu}\n",
               now.violations, now.deviceBlocks, now.deviceBytes, now.pinnedBlocks, now.pinnedBytes,
               now.streams, now.events, now.graphs, now.allocations);
  std::fclose(file);
}

}  // namespace

void StreamState::start(std::shared_ptr<StreamState> self) {
  std::thread([self = std::move(self)] {
    Gpu& gpu = Gpu::get();
    std::minstd_rand random(std::random_device{}());
    std::unique_lock lock(self->mutex);
    for (;;) {
      self->changed.wait(lock, [&] { return !self->queue.empty() || self->destroyed; });
      if (self->queue.empty()) return;
      Work work = std::move(self->queue.front());
      self->queue.pop_front();
      lock.unlock();
      if (const uint32_t jitter = gpu.jitter; jitter > 0)
        std::this_thread::sleep_for(std::chrono::microseconds(random() % (jitter + 1)));
      cudaError_t error = cudaSuccess;
      if (gpu.death(self->device) == cudaSuccess) error = work();
      work = nullptr;
      if (error != cudaSuccess) gpu.die(self->device, error);
      lock.lock();
      ++self->done;
      self->changed.notify_all();
    }
  }).detach();
}

void StreamState::push(Work work) {
  const std::lock_guard lock(mutex);
  queue.push_back(std::move(work));
  ++issued;
  changed.notify_all();
}

void StreamState::drain() {
  std::unique_lock lock(mutex);
  const uint64_t until = issued;
  changed.wait(lock, [&] { return done >= until; });
}

bool StreamState::isIdle() {
  const std::lock_guard lock(mutex);
  return done == issued;
}

std::shared_ptr<Capture> StreamState::capturing() {
  const std::lock_guard lock(mutex);
  if (capture != nullptr && capture->ended) capture.reset();
  return capture;
}

Gpu& Gpu::get() {
  // Never destroyed: streams' threads may outlive main().
  static auto* gpu = new Gpu;
  return *gpu;
}

Gpu::Gpu() {
  devices_ = static_cast<int>(std::min<uint64_t>(numberFrom("FAKE_GPU_DEVICES", 1), kMaxDevices));
  total_ = std::min(numberFrom("FAKE_GPU_TOTAL_BYTES", uint64_t{16} << 30), kArena / 2);
  jitter = static_cast<uint32_t>(numberFrom("FAKE_GPU_JITTER_US", 0));
  aborts = numberFrom("FAKE_GPU_ABORT", 0) != 0;
  const uint64_t size = kArena * kMaxDevices;
  file_ = memfd_create("fake-gpu", MFD_CLOEXEC);
  if (file_ < 0 || ftruncate(file_, static_cast<off_t>(size)) != 0) {
    std::perror("fake GPU: no memory file");
    std::abort();
  }
  void* device = mmap(nullptr, size, PROT_NONE, MAP_SHARED | MAP_NORESERVE, file_, 0);
  void* host = mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, file_, 0);
  if (device == MAP_FAILED || host == MAP_FAILED) {
    std::perror("fake GPU: no address space");
    std::abort();
  }
  madvise(device, size, MADV_DONTDUMP);
  madvise(host, size, MADV_DONTDUMP);
  device_ = static_cast<char*>(device);
  host_ = static_cast<char*>(host);
  for (int i = 0; i < kMaxDevices; ++i) next_[i] = kArena * static_cast<uint64_t>(i);
  std::atexit(writeReport);
}

void Gpu::die(int device, cudaError_t error) {
  int none = cudaSuccess;
  deaths_[static_cast<size_t>(device)].compare_exchange_strong(none, error);
  for (const auto& stream : streams.all()) {
    const std::lock_guard lock(stream->mutex);
    stream->changed.notify_all();
  }
  for (const auto& event : events.all()) {
    const std::lock_guard lock(event->mutex);
    event->changed.notify_all();
  }
}

bool Gpu::fails() {
  ++allocations;
  uint64_t left = failIn;
  while (left > 0 && !failIn.compare_exchange_weak(left, left - 1)) {
  }
  return left == 1;
}

cudaError_t Gpu::allocate(int device, uint64_t bytes, void** memory) {
  if (fails()) return cudaErrorMemoryAllocation;
  const std::lock_guard lock(mutex_);
  const auto index = static_cast<size_t>(device);
  const uint64_t counted = roundUp(bytes, 512);
  if (bytes > total_ || used_[index] + counted > total_) return cudaErrorMemoryAllocation;
  const uint64_t size = roundUp(bytes, kPage);
  const uint64_t begin = kArena * index;
  uint64_t at = next_[index];
  // Round the arena, past what is alive: a freed address comes back as late as possible.
  bool wrapped = false;
  for (;;) {
    if (at + size > begin + kArena) {
      if (wrapped) return cudaErrorMemoryAllocation;
      wrapped = true;
      at = begin;
    }
    auto after = blocks_.lower_bound(reinterpret_cast<uintptr_t>(device_) + at);
    if (after != blocks_.begin()) {
      const auto before = std::prev(after);
      const uint64_t end =
          before->first - reinterpret_cast<uintptr_t>(device_) + roundUp(before->second.bytes, kPage);
      if (end > at) {
        at = end;
        continue;
      }
    }
    if (after == blocks_.end() || after->first >= reinterpret_cast<uintptr_t>(device_) + at + size) break;
    at = after->first - reinterpret_cast<uintptr_t>(device_) + roundUp(after->second.bytes, kPage);
  }
  next_[index] = at + size;
  used_[index] += counted;
  blocks_.emplace(reinterpret_cast<uintptr_t>(device_) + at, Block{bytes, device});
  std::memset(host_ + at, 0xCD, std::min(bytes, kGarbageBytes));
  *memory = device_ + at;
  return cudaSuccess;
}

cudaError_t Gpu::allocatePinned(int device, uint64_t bytes, void** memory) {
  if (fails() || bytes > total_) return cudaErrorMemoryAllocation;
  void* block = nullptr;
  if (posix_memalign(&block, kPage, bytes) != 0) return cudaErrorMemoryAllocation;
  std::memset(block, 0xCD, std::min(bytes, kGarbageBytes));
  const std::lock_guard lock(mutex_);
  pinned_.emplace(reinterpret_cast<uintptr_t>(block), Block{bytes, device});
  *memory = block;
  return cudaSuccess;
}

cudaError_t Gpu::free(void* memory) {
  int device = -1;
  {
    const std::lock_guard lock(mutex_);
    const auto found = blocks_.find(reinterpret_cast<uintptr_t>(memory));
    if (found != blocks_.end()) device = found->second.device;
  }
  if (device < 0) {
    violation("cudaFree of memory that is not allocated");
    return cudaErrorInvalidValue;
  }
  drainDevice(device);
  const std::lock_guard lock(mutex_);
  const auto found = blocks_.find(reinterpret_cast<uintptr_t>(memory));
  if (found == blocks_.end()) {
    violation("cudaFree of the same memory by two threads");
    return cudaErrorInvalidValue;
  }
  const auto offset = static_cast<off_t>(found->first - reinterpret_cast<uintptr_t>(device_));
  used_[static_cast<size_t>(device)] -= roundUp(found->second.bytes, 512);
  fallocate(file_, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, offset,
            static_cast<off_t>(roundUp(found->second.bytes, kPage)));
  blocks_.erase(found);
  return cudaSuccess;
}

cudaError_t Gpu::freePinned(void* memory) {
  int device = -1;
  {
    const std::lock_guard lock(mutex_);
    const auto found = pinned_.find(reinterpret_cast<uintptr_t>(memory));
    if (found != pinned_.end()) device = found->second.device;
  }
  if (device < 0) {
    violation("cudaFreeHost of memory that is not allocated");
    return cudaErrorInvalidValue;
  }
  drainDevice(device);
  const std::lock_guard lock(mutex_);
  if (pinned_.erase(reinterpret_cast<uintptr_t>(memory)) > 0) std::free(memory);
  return cudaSuccess;
}

uint64_t Gpu::freeBytes(int device) {
  const std::lock_guard lock(mutex_);
  const uint64_t used = used_[static_cast<size_t>(device)];
  return used > total_ ? 0 : total_ - used;
}

bool Gpu::isDevice(const void* address) const {
  const auto* at = static_cast<const char*>(address);
  return at >= device_ && at < device_ + kArena * kMaxDevices;
}

namespace {
const std::pair<const uintptr_t, Block>* holder(const std::map<uintptr_t, Block>& blocks, uintptr_t at) {
  auto after = blocks.upper_bound(at);
  if (after == blocks.begin()) return nullptr;
  --after;
  return at <= after->first + after->second.bytes ? &*after : nullptr;
}
}  // namespace

bool Gpu::isPinned(const void* address) {
  const std::lock_guard lock(mutex_);
  return holder(pinned_, reinterpret_cast<uintptr_t>(address)) != nullptr;
}

void* Gpu::reach(const void* address, size_t bytes) {
  const auto at = reinterpret_cast<uintptr_t>(address);
  const std::lock_guard lock(mutex_);
  const auto* block = holder(isDevice(address) ? blocks_ : pinned_, at);
  if (block == nullptr || bytes > block->first + block->second.bytes - at) return nullptr;
  return isDevice(address) ? host_ + (static_cast<const char*>(address) - device_)
                           : const_cast<void*>(address);
}

std::shared_ptr<StreamState> Gpu::stream(cudaStream_t handle, int device) {
  if (handle == nullptr) {
    const std::lock_guard lock(mutex_);
    cudaStream_t& own = defaultStreams_[static_cast<size_t>(device)];
    if (own == nullptr) {
      auto state = std::make_shared<StreamState>();
      state->device = device;
      state->start(state);
      own = streams.add(std::move(state));
    }
    handle = own;
  }
  std::shared_ptr<StreamState> state = streams.find(handle);
  if (state == nullptr) violation("a stream is used that does not exist");
  return state;
}

void Gpu::drainDevice(int device) {
  for (const auto& stream : streams.all()) {
    if (stream->device == device) stream->drain();
  }
}

bool Gpu::isAllocationBarred() {
  const std::lock_guard lock(captureMutex);
  std::erase_if(captures, [](const auto& weak) {
    const auto capture = weak.lock();
    return capture == nullptr || capture->ended;
  });
  for (const auto& weak : captures) {
    if (const auto capture = weak.lock(); capture != nullptr) {
      const std::lock_guard inner(capture->mutex);
      capture->invalid = true;
      return true;
    }
  }
  return false;
}

Figures Gpu::figures() {
  Figures now;
  now.violations = violations;
  now.allocations = allocations;
  now.streams = streams.size();
  now.events = events.size();
  now.graphs = graphs.size() + execs.size();
  const std::lock_guard lock(mutex_);
  for (const cudaStream_t own : defaultStreams_) now.streams -= own == nullptr ? 0 : 1;
  now.deviceBlocks = blocks_.size();
  for (const auto& [at, block] : blocks_) now.deviceBytes += block.bytes;
  now.pinnedBlocks = pinned_.size();
  for (const auto& [at, block] : pinned_) now.pinnedBytes += block.bytes;
  return now;
}

cudaError_t submit(cudaStream_t handle, Work work) {
  int device = 0;
  if (const cudaError_t error = cudaGetDevice(&device); error != cudaSuccess) return error;
  Gpu& gpu = Gpu::get();
  const auto stream = gpu.stream(handle, device);
  if (stream == nullptr) return cudaErrorInvalidResourceHandle;
  if (const int death = gpu.death(stream->device); death != cudaSuccess)
    return static_cast<cudaError_t>(death);
  if (const auto capture = stream->capturing(); capture != nullptr) {
    const std::lock_guard lock(capture->mutex);
    if (capture->invalid) return cudaErrorStreamCaptureInvalidated;
    capture->works.push_back(std::move(work));
    return cudaSuccess;
  }
  stream->push(std::move(work));
  return cudaSuccess;
}

bool isStream(cudaStream_t handle) {
  return Gpu::get().streams.find(handle) != nullptr;
}
cudaError_t deathOf(int device) {
  return static_cast<cudaError_t>(Gpu::get().death(device).load());
}

bool isCapturing(cudaStream_t handle) {
  const auto stream = handle == nullptr ? nullptr : Gpu::get().streams.find(handle);
  return stream != nullptr && stream->capturing() != nullptr;
}

void invalidateCapture(cudaStream_t handle) {
  const auto stream = Gpu::get().streams.find(handle);
  const auto capture = stream == nullptr ? nullptr : stream->capturing();
  if (capture == nullptr) return;
  const std::lock_guard lock(capture->mutex);
  capture->invalid = true;
}

void* reach(const void* address, size_t bytes) {
  return Gpu::get().reach(address, bytes);
}
bool isDeviceAddress(const void* address) {
  return Gpu::get().isDevice(address);
}

void violation(const std::string& what) {
  Gpu& gpu = Gpu::get();
  std::fprintf(stderr, "fake GPU: %s\n", what.c_str());
  ++gpu.violations;
  {
    const std::lock_guard lock(gpu.violationMutex);
    gpu.lastViolation = what;
  }
  if (gpu.aborts) std::abort();
}

Figures figures() {
  return Gpu::get().figures();
}
std::string lastViolation() {
  Gpu& gpu = Gpu::get();
  const std::lock_guard lock(gpu.violationMutex);
  return gpu.lastViolation;
}
void clearViolations() {
  Gpu::get().violations = 0;
}
void kill(int device, cudaError_t error) {
  Gpu::get().die(device, error);
}
void revive(int device) {
  Gpu::get().death(device) = cudaSuccess;
}
void failAllocation(uint64_t n) {
  Gpu::get().failIn = n;
}
void setTotalBytes(uint64_t bytes) {
  Gpu::get().total_ = std::min(bytes, kArena / 2);
}
void setJitter(uint32_t microseconds) {
  Gpu::get().jitter = microseconds;
}

}  // namespace nt::fake
