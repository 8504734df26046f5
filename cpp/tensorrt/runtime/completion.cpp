#include "tensorrt/runtime/completion.h"

#include <pthread.h>
#include <sys/resource.h>

#include <new>
#include <utility>

#include "tensorrt/runtime/process_exit.h"

namespace nt::runtime {

void SwitchCounter::sample() noexcept {
  rusage usage{};
  if (getrusage(RUSAGE_THREAD, &usage) != 0) return;
  voluntary_.store(static_cast<uint64_t>(usage.ru_nvcsw), std::memory_order_relaxed);
  involuntary_.store(static_cast<uint64_t>(usage.ru_nivcsw), std::memory_order_relaxed);
}

void Completion::start() {
  thread_ = std::thread([this] { run(); });
}

void Completion::stop() noexcept {
  queue_.stop();
  if (thread_.joinable()) thread_.join();
}

Expected<std::unique_ptr<Ticket>> Completion::takeTicket() {
  {
    const std::lock_guard lock(mutex_);
    if (!free_.empty()) {
      std::unique_ptr<Ticket> ticket = std::move(free_.back());
      free_.pop_back();
      return ticket;
    }
  }
  auto ticket = std::make_unique<Ticket>();
  const cudaError_t error =
      cudaEventCreateWithFlags(ticket->event.put(), cudaEventDisableTiming | cudaEventBlockingSync);
  if (Status status = device_.check(error, "Creating an event"); !status) return status;
  return ticket;
}

void Completion::push(Completed&& completed) noexcept {
  try {
    queue_.push(std::move(completed));
  } catch (const std::bad_alloc&) {
    complete(completed);
  }
}

void Completion::run() noexcept {
  pthread_setname_np(pthread_self(), "nt-trt-complete");
  cudaSetDevice(device_.device());
  std::vector<Completed> items;
  while (queue_.poll(items, spinUs_) || (switches_.sample(), queue_.wait(items))) {
    for (Completed& item : items) {
      const WorkSection section;
      complete(item);
      switches_.sample();
    }
    items.clear();
  }
}

void Completion::complete(Completed& completed) noexcept {
  Status status = std::move(completed.status);
  if (completed.recorded) {
    Status onDevice = device_.check(awaitEvent(completed.ticket->event.get(), spinUs_), "Work on the GPU");
    // A dead device says more than what failed before it died.
    if (!onDevice && (status || device_.isDead())) status = std::move(onDevice);
  }
  if (completed.done) std::exchange(completed.done, nullptr)(std::move(status));
  if (completed.ticket == nullptr) return;
  completed.ticket->held.clear();
  try {
    const std::lock_guard lock(mutex_);
    free_.push_back(std::move(completed.ticket));
  } catch (const std::bad_alloc&) {
    completed.ticket.reset();
  }
}

}  // namespace nt::runtime
