#include "tensorrt/runtime/event.h"

#include <string>
#include <utility>

#include "tensorrt/guarded.h"
#include "tensorrt/runtime/reaper.h"
#include "tensorrt/spin.h"

namespace nt::runtime {

namespace {

// Issues of a record that is waited for are mostly under way: a look or two at the other thread is enough.
constexpr int kLooks = 64;

}  // namespace

EventObject::~EventObject() {
  const DeviceScope scope(device_.device());
  nt::Event(std::move(event_));
}

Status EventObject::requireComplete(const char* role) const noexcept {
  return guarded([&]() -> Status {
    const uint64_t called = this->called();
    if (called == 0) {
      return Status::invalid(std::string(role) + " was never recorded", "Record it on a stream first");
    }
    bool pending = false;
    {
      const std::lock_guard lock(mutex_);
      pending = issued_.load(std::memory_order_relaxed) < called;
      if (!pending && !last_) return last_;
    }
    const cudaError_t state = pending ? cudaErrorNotReady : cudaEventQuery(event_.get());
    if (state == cudaErrorNotReady) {
      return Status::invalid(std::string(role) + " has not completed yet",
                             "Synchronize the stream that records it before asking for times");
    }
    return device_.check(state, "Asking for an event");
  });
}

Expected<float> EventObject::elapsedSince(const Event& start) noexcept {
  return guarded([&]() -> Expected<float> {
    const auto& from = static_cast<const EventObject&>(start);
    if (!timing_ || !from.timing_) {
      return Status::invalid(
          std::string(timing_ ? "The start event" : "The event") + " was made without timing",
          "Create both events with timing");
    }
    if (&from.device_ != &device_) {
      return Status::invalid("The events are of different devices: GPU " + std::to_string(device_.device()) +
                             " and GPU " + std::to_string(from.device_.device()));
    }
    if (Status status = device_.alive(); !status) return status;
    if (Status status = from.requireComplete("The start event"); !status) return status;
    if (Status status = requireComplete("The event"); !status) return status;
    const DeviceScope scope(device_.device());
    float milliseconds = 0;
    const cudaError_t error = cudaEventElapsedTime(&milliseconds, from.event_.get(), event_.get());
    if (Status status = device_.check(error, "Time between events"); !status) return status;
    return milliseconds;
  });
}

Expected<bool> EventObject::isComplete() noexcept {
  return guarded([&]() -> Expected<bool> {
    if (Status status = device_.alive(); !status) return status;
    const uint64_t called = this->called();
    if (called == 0) return true;
    {
      const std::lock_guard lock(mutex_);
      if (issued_.load(std::memory_order_relaxed) < called) return false;
      if (!last_) return last_;
    }
    const cudaError_t state = cudaEventQuery(event_.get());
    if (state == cudaErrorNotReady) return false;
    if (Status status = device_.check(state, "Asking for an event"); !status) return status;
    return true;
  });
}

void EventObject::blockUntilIssued(uint64_t number) noexcept {
  for (int i = 0; i < kLooks && issued_.load(std::memory_order_acquire) < number; ++i) spinPause();
  if (issued_.load(std::memory_order_acquire) >= number) return;
  std::unique_lock lock(mutex_);
  issuedNow_.wait(lock, [&] { return issued_.load(std::memory_order_relaxed) >= number; });
}

Status EventObject::issueRecord(uint64_t number, cudaStream_t stream, Status status) {
  blockUntilIssued(number - 1);
  if (status) status = device_.check(cudaEventRecord(event_.get(), stream), "Recording an event");
  const std::lock_guard lock(mutex_);
  last_ = std::move(status);
  issued_.store(number, std::memory_order_release);
  issuedNow_.notify_all();
  return last_;
}

Status EventObject::awaitIssue(uint64_t number) {
  blockUntilIssued(number);
  const std::lock_guard lock(mutex_);
  return last_;
}

Status EventObject::waitOn(cudaStream_t stream) noexcept {
  return device_.check(cudaStreamWaitEvent(stream, event_.get(), 0), "Waiting for an event");
}

Expected<std::shared_ptr<Event>> createEvent(DeviceState& device, bool timing) noexcept {
  return guarded([&]() -> Expected<std::shared_ptr<Event>> {
    if (Status status = device.alive(); !status) return status;
    const DeviceScope scope(device.device());
    nt::Event event;
    const cudaError_t error =
        cudaEventCreateWithFlags(event.put(), timing ? cudaEventDefault : cudaEventDisableTiming);
    if (Status status = device.check(error, "Creating an event"); !status) return status;
    return std::shared_ptr<Event>(makeReaped<EventObject>(device, std::move(event), timing));
  });
}

}  // namespace nt::runtime
