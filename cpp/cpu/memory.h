// Large blocks of memory straight from the system: zeroed, page by page only when touched, and refused
// instead of thrown.
#pragma once

#include <cstddef>
#include <string_view>
#include <utility>

#include "core/status.h"

namespace nt::cpu {

class MappedMemory {
 public:
  MappedMemory() = default;
  MappedMemory(MappedMemory&& other) noexcept
      : data_(std::exchange(other.data_, nullptr)), bytes_(std::exchange(other.bytes_, 0)) {}
  MappedMemory& operator=(MappedMemory&& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(bytes_, other.bytes_);
    return *this;
  }
  ~MappedMemory();

  // ERR_OUT_OF_MEMORY says what `purpose` was and how much was asked for, also where that is more than this
  // process may ever have. A slack of 64 readable bytes follows the block. `huge` asks for huge pages, for
  // what is touched as a whole.
  static Expected<MappedMemory> allocate(size_t bytes, std::string_view purpose, bool huge = false);

  void* data() const noexcept { return data_; }
  template <typename T>
  T* as() const noexcept {
    return static_cast<T*>(data_);
  }
  size_t bytes() const noexcept { return bytes_; }

 private:
  void* data_ = nullptr;
  size_t bytes_ = 0;
};

// Bytes that this process may use: the machine's memory, or less where its control group has a limit.
size_t memoryLimit();

}  // namespace nt::cpu
