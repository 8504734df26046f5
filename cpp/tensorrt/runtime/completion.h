// The end of a stream's work: a thread waits for the device, tells who asked, and lets go of what the device
// used.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#include "core/runtime.h"
#include "tensorrt/cuda.h"
#include "tensorrt/runtime/context_run.h"
#include "tensorrt/runtime/device_state.h"
#include "tensorrt/runtime/work_queue.h"

namespace nt::runtime {

// Context switches of a thread, as the operating system counts them.
class SwitchCounter {
 public:
  // On the thread itself.
  void sample() noexcept;
  uint64_t voluntary() const noexcept { return voluntary_.load(std::memory_order_relaxed); }
  uint64_t involuntary() const noexcept { return involuntary_.load(std::memory_order_relaxed); }

 private:
  std::atomic<uint64_t> voluntary_ = 0;
  std::atomic<uint64_t> involuntary_ = 0;
};

// A point in a stream's work, and what is kept until the device has reached it. Used again and again.
struct Ticket {
  nt::Event event;
  References held;
};

struct Completed {
  std::unique_ptr<Ticket> ticket;
  bool recorded = false;  // the ticket's event is on the stream
  Done done;              // may be empty
  Status status;          // what has failed so far
};

class Completion {
 public:
  Completion(DeviceState& device, int32_t spinUs) noexcept : device_(device), spinUs_(spinUs) {}
  ~Completion() { stop(); }

  // Throws std::system_error.
  void start();
  // Ends what is under way first.
  void stop() noexcept;

  // Throws std::bad_alloc. A Status where CUDA makes no event.
  Expected<std::unique_ptr<Ticket>> takeTicket();
  // In the order of the stream.
  void push(Completed&& completed) noexcept;
  const SwitchCounter& switches() const noexcept { return switches_; }

 private:
  void run() noexcept;
  void complete(Completed& completed) noexcept;

  DeviceState& device_;
  const int32_t spinUs_;
  WorkQueue<Completed> queue_;
  SwitchCounter switches_;
  std::mutex mutex_;
  std::vector<std::unique_ptr<Ticket>> free_;
  std::thread thread_;
};

}  // namespace nt::runtime
