#include "napi/runtime_pool.h"

#include <algorithm>
#include <string>
#include <system_error>

namespace nt::napi {
namespace {

// Enough that allocations pass by an engine that loads; what blocks waits for the device, not the processor.
constexpr size_t kMaxThreads = 4;

}  // namespace

Expected<napi_value> Pool::start(CompletionChannel& completions, std::unique_ptr<Job> job,
                                 std::shared_ptr<Strand> strand) {
  if (Status status = addThread(); !status) return status;
  Job* raw = job.get();
  Expected<CompletionChannel::Begun> begun = completions.begin(std::move(job));
  if (!begun) return begun.status();
  {
    const std::lock_guard lock(mutex_);
    queue_.push_back({raw, begun->ticket, std::move(strand)});
  }
  changed_.notify_one();
  return begun->promise;
}

Status Pool::addThread() {
  const std::lock_guard lock(mutex_);
  if (idle_ > queue_.size() || threads_.size() == kMaxThreads) return Status::ok();
  try {
    threads_.emplace_back([this] { work(); });
  } catch (const std::system_error& error) {
    if (threads_.empty()) return {"ERR_INTERNAL", std::string("Could not start a thread: ") + error.what()};
  }
  return Status::ok();
}

std::deque<Pool::Entry>::iterator Pool::findRunnable() noexcept {
  return std::find_if(queue_.begin(), queue_.end(),
                      [](const Entry& entry) { return !entry.strand || !entry.strand->busy; });
}

void Pool::work() noexcept {
  std::unique_lock lock(mutex_);
  for (;;) {
    auto next = findRunnable();
    while (!stopped_ && next == queue_.end()) {
      ++idle_;
      changed_.wait(lock);
      --idle_;
      next = findRunnable();
    }
    if (stopped_) return;
    Entry entry = std::move(*next);
    queue_.erase(next);
    if (entry.strand) entry.strand->busy = true;
    lock.unlock();
    entry.job->run();
    if (entry.ticket->claim()) entry.ticket->post();
    entry.ticket.reset();
    lock.lock();
    // Whoever was passed over for the strand is found by this thread, in its next round.
    if (entry.strand) entry.strand->busy = false;
  }
}

void Pool::stop() noexcept {
  std::deque<Entry> dropped;
  {
    const std::lock_guard lock(mutex_);
    stopped_ = true;
    dropped.swap(queue_);
  }
  changed_.notify_all();
  for (std::thread& thread : threads_) thread.join();
  threads_.clear();
}

}  // namespace nt::napi
