#include "cpu/memory.h"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstdint>
#include <fstream>
#include <string>

namespace nt::cpu {

namespace {

constexpr size_t kSlack = 64;

Status outOfMemory(size_t bytes, std::string_view purpose) {
  return {"ERR_OUT_OF_MEMORY",
          "Could not allocate " + std::to_string(bytes >> 20) + " MiB for " + std::string(purpose) + ".",
          "this process may use " + std::to_string(memoryLimit() >> 20) + " MiB"};
}

}  // namespace

size_t memoryLimit() {
  const long pages = sysconf(_SC_PHYS_PAGES);
  const long pageBytes = sysconf(_SC_PAGESIZE);
  size_t limit = pages > 0 && pageBytes > 0 ? size_t(pages) * size_t(pageBytes) : SIZE_MAX;
  for (const char* path : {"/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"}) {
    std::ifstream file(path);
    size_t bytes = 0;
    if (file >> bytes) limit = std::min(limit, bytes);  // "max" does not parse
  }
  return limit;
}

MappedMemory::~MappedMemory() {
  if (data_ != nullptr) munmap(data_, bytes_ + kSlack);
}

Expected<MappedMemory> MappedMemory::allocate(size_t bytes, std::string_view purpose, bool huge) {
  // Without MAP_NORESERVE the kernel refuses what it could never give; the limit adds what it does not know
  // of.
  if (bytes > memoryLimit()) return outOfMemory(bytes, purpose);
  void* data = mmap(nullptr, bytes + kSlack, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (data == MAP_FAILED) return outOfMemory(bytes, purpose);
  if (huge) madvise(data, bytes, MADV_HUGEPAGE);  // a wish: without it the block works too
  MappedMemory memory;
  memory.data_ = data;
  memory.bytes_ = bytes;
  return memory;
}

}  // namespace nt::cpu
