#include "napi/runtime_releases.h"

namespace nt::napi {

Release::Release(std::shared_ptr<Releases> releases, TensorRtModule* module)
    : releases_(std::move(releases)), module_(module), reference_(std::make_shared<Reference>()) {}

void Release::run(std::unique_ptr<Release> release, std::shared_ptr<runtime::Object> object,
                  std::shared_ptr<Ticket> ticket) noexcept {
  release->ticket_ = std::move(ticket);
  if (!release->releases_->begin()) {
    object.reset();
    if (release->ticket_ && release->ticket_->claim()) release->ticket_->post();
    return;
  }
  std::shared_ptr<Reference> reference = std::move(release->reference_);
  reference->object = std::move(object);
  // A plain pointer, which a std::function holds without allocating.
  Release* held = release.release();
  held->module_->release(std::move(reference), [held] { held->finish(); });
}

void Release::finish() noexcept {
  const std::unique_ptr<Release> self(this);
  if (ticket_ && ticket_->claim()) ticket_->post();
  releases_->end();
}

bool Releases::begin() noexcept {
  const std::lock_guard lock(mutex_);
  if (!drained_) ++underWay_;
  return !drained_;
}

void Releases::end() noexcept {
  const std::lock_guard lock(mutex_);
  if (--underWay_ == 0) changed_.notify_all();
}

void Releases::drain() noexcept {
  std::unique_lock lock(mutex_);
  drained_ = true;
  changed_.wait(lock, [this] { return underWay_ == 0; });
}

}  // namespace nt::napi
