// Events: points in the work of a stream.
//
// A record is numbered when it is called for and issued to CUDA later, on the recording stream's thread.
// Waits remember the number, and hold the waiting stream's thread until that record is issued: so the order
// of the calls holds across streams whose threads run at their own pace.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <memory>
#include <mutex>

#include "core/runtime.h"
#include "tensorrt/cuda.h"
#include "tensorrt/runtime/device_state.h"

namespace nt::runtime {

class EventObject final : public Event {
 public:
  EventObject(DeviceState& device, nt::Event event, bool timing) noexcept
      : device_(device), event_(std::move(event)), timing_(timing) {}
  ~EventObject() override;

  Expected<float> elapsedSince(const Event& start) noexcept override;
  Expected<bool> isComplete() noexcept override;

  DeviceState& deviceState() const noexcept { return device_; }

  // On the callers' thread. A record's number; `cancelRecord` takes back the last one.
  uint64_t callRecord() noexcept { return called_.fetch_add(1, std::memory_order_acq_rel) + 1; }
  void cancelRecord() noexcept { called_.fetch_sub(1, std::memory_order_acq_rel); }
  uint64_t called() const noexcept { return called_.load(std::memory_order_acquire); }

  // On streams' threads. Issues record `number` after those before it; with a failed `status` there is
  // nothing to record, and who waits for it is told.
  Status issueRecord(uint64_t number, cudaStream_t stream, Status status);
  // Blocks until record `number` is issued; its status, or that of a later one.
  Status awaitIssue(uint64_t number);
  Status waitOn(cudaStream_t stream) noexcept;

 private:
  void blockUntilIssued(uint64_t number) noexcept;
  // Ok if the last record that was called for is complete. `role` names the event in the error.
  Status requireComplete(const char* role) const noexcept;

  DeviceState& device_;
  nt::Event event_;
  const bool timing_;
  std::atomic<uint64_t> called_ = 0;
  std::atomic<uint64_t> issued_ = 0;
  mutable std::mutex mutex_;
  std::condition_variable issuedNow_;
  Status last_;  // of record number `issued_`
};

Expected<std::shared_ptr<Event>> createEvent(DeviceState& device, bool timing) noexcept;

}  // namespace nt::runtime
