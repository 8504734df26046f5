// Lets go of the module's objects off the event loop, and knows when that is done.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <memory>
#include <mutex>
#include <utility>

#include "core/module.h"
#include "napi/runtime_completions.h"

namespace nt::napi {

class Releases;

// All that letting go of one reference takes, allocated ahead so that it cannot fail.
class Release {
 public:
  Release(std::shared_ptr<Releases> releases, TensorRtModule* module);

  TensorRtModule* module() const noexcept { return module_; }
  void setModule(TensorRtModule* module) noexcept { module_ = module; }

  // Any thread. `ticket`, where there is one, is settled when this reference has been let go: where nobody
  // else holds the object, its memory has gone back then.
  static void run(std::unique_ptr<Release> release, std::shared_ptr<runtime::Object> object,
                  std::shared_ptr<Ticket> ticket) noexcept;

 private:
  // Stands for one reference. The module tells when an object is gone; this one goes with its reference,
  // whoever else holds what it refers to.
  struct Reference final : runtime::Object {
    std::shared_ptr<runtime::Object> object;
  };

  void finish() noexcept;

  std::shared_ptr<Releases> releases_;
  TensorRtModule* module_;
  std::shared_ptr<Reference> reference_;
  std::shared_ptr<Ticket> ticket_;
};

// Those of an environment.
class Releases final : public std::enable_shared_from_this<Releases> {
 public:
  // `module` may be null until Release::setModule.
  std::unique_ptr<Release> prepare(TensorRtModule* module) {
    return std::make_unique<Release>(shared_from_this(), module);
  }
  // Environment teardown: waits for all that are under way. Later ones block their caller.
  void drain() noexcept;

 private:
  friend class Release;

  bool begin() noexcept;
  void end() noexcept;

  std::mutex mutex_;
  std::condition_variable changed_;
  uint64_t underWay_ = 0;
  bool drained_ = false;
};

// An object of the module's with what it takes to let go of it. Movable; lets go at its end.
template <class T>
class Owned {
 public:
  explicit Owned(std::unique_ptr<Release> release, std::shared_ptr<T> object = nullptr) noexcept
      : release_(std::move(release)), object_(std::move(object)) {}
  ~Owned() { letGo(nullptr); }
  Owned(Owned&&) noexcept = default;
  Owned& operator=(Owned&&) = delete;

  // Once.
  void set(std::shared_ptr<T> object) noexcept { object_ = std::move(object); }
  void setModule(TensorRtModule* module) noexcept { release_->setModule(module); }
  TensorRtModule* module() const noexcept { return release_->module(); }
  const std::shared_ptr<T>& get() const noexcept { return object_; }

  // Nothing where there is nothing.
  void letGo(std::shared_ptr<Ticket> ticket) noexcept {
    if (object_) Release::run(std::move(release_), std::move(object_), std::move(ticket));
  }

 private:
  std::unique_ptr<Release> release_;
  std::shared_ptr<T> object_;
};

}  // namespace nt::napi
