// What throws on the inside (memory that is out) is a Status on the outside.
#pragma once

#include <exception>
#include <new>
#include <string>

#include "core/status.h"

namespace nt {

// Runs a function that returns a Status or an Expected.
template <class Fn>
auto guarded(Fn&& fn) noexcept -> decltype(fn()) {
  try {
    return fn();
  } catch (const std::bad_alloc&) {
    return Status("ERR_OUT_OF_MEMORY", "Out of memory");
  } catch (const std::exception& error) {
    return Status("ERR_INTERNAL", std::string("Unexpected exception: ") + error.what());
  } catch (...) {
    return Status("ERR_INTERNAL", "Unexpected exception");
  }
}

}  // namespace nt
