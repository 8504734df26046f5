// A thread that destroys what nobody holds any more: freeing device memory, contexts and streams may block.
//
// It lives as long as the process and is joined by nobody. At exit it finishes what it is at and stops.
#pragma once

#include <functional>
#include <memory>
#include <new>
#include <utility>

#include "core/runtime.h"

namespace nt::runtime {

// See TensorRtModule::release.
void releaseLater(std::shared_ptr<Object> object, std::function<void()> done) noexcept;

// Deletes on the reaper's thread; here, where it cannot (no memory, no thread), or where this is that thread.
void deleteLater(Object* object) noexcept;
// Likewise, for what is no object. `job` must not throw.
void reap(std::function<void()> job) noexcept;

// An object that the reaper destroys, whoever lets go of it last. Throws std::bad_alloc.
template <class T, class... Args>
std::shared_ptr<T> makeReaped(Args&&... args) {
  return std::shared_ptr<T>(new T(std::forward<Args>(args)...), [](T* object) { deleteLater(object); });
}

}  // namespace nt::runtime
