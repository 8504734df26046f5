// The inside of the fake CUDA runtime: memory, streams, events and captures. Handles are numbers that are
// never used again, so that one is recognised after its end.
#pragma once

#include <array>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <deque>
#include <map>
#include <memory>
#include <mutex>
#include <unordered_map>
#include <vector>

#include "fake_gpu.h"

namespace nt::fake {

using Clock = std::chrono::steady_clock;

struct Capture {
  std::mutex mutex;
  std::vector<Work> works;
  cudaStreamCaptureMode mode = cudaStreamCaptureModeGlobal;
  cudaStream_t origin = nullptr;
  bool invalid = false;
  std::atomic<bool> ended = false;
};

struct StreamState {
  int device = 0;
  std::mutex mutex;
  std::condition_variable changed;
  std::deque<Work> queue;
  uint64_t issued = 0;
  uint64_t done = 0;
  bool destroyed = false;
  std::shared_ptr<Capture> capture;

  void start(std::shared_ptr<StreamState> self);
  void push(Work work);
  // Until all that was pushed before is done; a dead device's work is dropped and counts as done.
  void drain();
  bool isIdle();
  std::shared_ptr<Capture> capturing();
};

struct EventState {
  int device = 0;
  unsigned flags = 0;
  std::mutex mutex;
  std::condition_variable changed;
  uint64_t recorded = 0;  // records that were called for
  uint64_t done = 0;      // of these
  Clock::time_point at;   // of the last one done
  std::shared_ptr<Capture> capture;
};

struct GraphState {
  std::vector<Work> works;
  int device = 0;
};

struct Block {
  uint64_t bytes = 0;
  int device = 0;
};

// Handles of one kind.
template <class Handle, class State>
class Handles {
 public:
  explicit Handles(uintptr_t first) : next_(first) {}
  Handle add(std::shared_ptr<State> state) {
    const std::lock_guard lock(mutex_);
    const auto handle = reinterpret_cast<Handle>(next_);
    next_ += 16;
    all_.emplace(handle, std::move(state));
    return handle;
  }
  std::shared_ptr<State> find(Handle handle) {
    const std::lock_guard lock(mutex_);
    const auto found = all_.find(handle);
    return found == all_.end() ? nullptr : found->second;
  }
  std::shared_ptr<State> remove(Handle handle) {
    const std::lock_guard lock(mutex_);
    const auto found = all_.find(handle);
    if (found == all_.end()) return nullptr;
    std::shared_ptr<State> state = std::move(found->second);
    all_.erase(found);
    return state;
  }
  std::vector<std::shared_ptr<State>> all() {
    const std::lock_guard lock(mutex_);
    std::vector<std::shared_ptr<State>> states;
    for (const auto& [handle, state] : all_) states.push_back(state);
    return states;
  }
  uint64_t size() {
    const std::lock_guard lock(mutex_);
    return all_.size();
  }

 private:
  std::mutex mutex_;
  uintptr_t next_;
  std::unordered_map<Handle, std::shared_ptr<State>> all_;
};

class Gpu {
 public:
  static constexpr int kMaxDevices = 8;
  static Gpu& get();

  int devices() const { return devices_; }
  uint64_t totalBytes() const { return total_; }
  std::atomic<int>& death(int device) { return deaths_[device]; }
  void die(int device, cudaError_t error);

  cudaError_t allocate(int device, uint64_t bytes, void** memory);
  cudaError_t allocatePinned(int device, uint64_t bytes, void** memory);
  cudaError_t free(void* memory);
  cudaError_t freePinned(void* memory);
  uint64_t freeBytes(int device);
  void* reach(const void* address, size_t bytes);
  bool isDevice(const void* address) const;
  bool isPinned(const void* address);

  std::shared_ptr<StreamState> stream(cudaStream_t handle, int device);
  void drainDevice(int device);
  // A capture in whose way this call of the thread's is.
  bool isAllocationBarred();

  Handles<cudaStream_t, StreamState> streams{0x5100000};
  Handles<cudaEvent_t, EventState> events{0xe100000};
  Handles<cudaGraph_t, GraphState> graphs{0x6100000};
  Handles<cudaGraphExec_t, GraphState> execs{0x7100000};

  std::mutex captureMutex;
  std::vector<std::weak_ptr<Capture>> captures;  // in global or thread-local mode
  std::atomic<uint64_t> failIn = 0;
  std::atomic<uint64_t> allocations = 0;
  std::atomic<uint32_t> jitter = 0;
  std::atomic<uint64_t> violations = 0;
  std::mutex violationMutex;
  std::string lastViolation;
  bool aborts = false;
  std::atomic<uint64_t> total_;

  Figures figures();

 private:
  Gpu();
  bool fails();

  int devices_ = 1;
  std::array<std::atomic<int>, kMaxDevices> deaths_{};
  std::array<cudaStream_t, kMaxDevices> defaultStreams_{};
  // Two views of one file: addresses of the device, which nobody may touch, and how the host reaches them.
  int file_ = -1;
  char* device_ = nullptr;
  char* host_ = nullptr;
  std::mutex mutex_;
  uint64_t next_[kMaxDevices] = {};
  std::array<uint64_t, kMaxDevices> used_{};
  std::map<uintptr_t, Block> blocks_;
  std::map<uintptr_t, Block> pinned_;
};

}  // namespace nt::fake
