// Memory of the generic runtime, and what happens where the host has none, on a GPU of host memory.
#include <dlfcn.h>

#include <array>

#include "runtime_streams.h"
#include "tensorrt/runtime/faults.h"
#include "tensorrt/runtime/pool.h"
#include "tensorrt/runtime/ranges.h"

namespace {

// Allocations of this program until the one that fails, on any thread; 0 = none does.
std::atomic<int64_t> failNew{0};

// The fake GPU is a library of its own, and is not to fail.
bool isOfProgram(void* code) {
  Dl_info here{};
  Dl_info there{};
  return dladdr(&failNew, &here) != 0 && dladdr(code, &there) != 0 && here.dli_fbase == there.dli_fbase;
}

}  // namespace

// Not inlined: GCC would take the pair for mismatched.
[[gnu::noinline]] void* operator new(size_t bytes, const std::nothrow_t&) noexcept {
  const bool fails = failNew.load(std::memory_order_relaxed) > 0 &&
                     isOfProgram(__builtin_return_address(0)) && failNew.fetch_sub(1) == 1;
  return fails ? nullptr : std::malloc(bytes == 0 ? 1 : bytes);
}
[[gnu::noinline]] void* operator new(size_t bytes) {
  const bool fails = failNew.load(std::memory_order_relaxed) > 0 &&
                     isOfProgram(__builtin_return_address(0)) && failNew.fetch_sub(1) == 1;
  void* memory = fails ? nullptr : std::malloc(bytes == 0 ? 1 : bytes);
  if (memory == nullptr) throw std::bad_alloc();
  return memory;
}
[[gnu::noinline]] void operator delete(void* memory) noexcept {
  std::free(memory);
}
[[gnu::noinline]] void operator delete(void* memory, size_t) noexcept {
  std::free(memory);
}

namespace {

using namespace nt;
using namespace nt::runtime;
using namespace nt::test;
using namespace std::chrono_literals;

TEST(blocks_of_the_pool_are_at_most_a_quarter_larger) {
  CHECK_EQ(sizeClass(0), 512U);
  CHECK_EQ(sizeClass(512), 512U);
  CHECK_EQ(sizeClass(513), 640U);
  CHECK_EQ(sizeClass(1024), 1024U);
  CHECK_EQ(sizeClass(1025), 1280U);
  for (uint64_t bytes = 512; bytes < 300'000; bytes += 7) {
    const uint64_t block = sizeClass(bytes);
    if (block < bytes || block > bytes + bytes / 4 + 1 || sizeClass(block) != block) {
      CHECK_EQ(block, bytes);
      break;
    }
  }
}

TEST(the_pool_lets_the_oldest_go) {
  Pool pool(1000);
  std::array<char, 4> blocks{};
  Pool::Blocks evicted;
  CHECK(pool.put(&blocks[0], 400, evicted));
  CHECK(pool.put(&blocks[1], 300, evicted));
  CHECK(pool.put(&blocks[2], 300, evicted));
  CHECK(evicted.empty());
  CHECK(!pool.put(&blocks[3], 1001, evicted));
  CHECK(pool.put(&blocks[3], 500, evicted));
  REQUIRE(evicted.size() == 2);
  CHECK(evicted.begin()->second.memory == &blocks[1]);
  CHECK(evicted.rbegin()->second.memory == &blocks[0]);
  CHECK_EQ(pool.bytes(), 800U);
  CHECK(pool.take(400) == nullptr);
  CHECK(pool.take(500) == &blocks[3]);
  CHECK_EQ(pool.takeAll().size(), 1U);
  CHECK_EQ(pool.bytes(), 0U);
}

TEST(overlap_of_rows_is_exact) {
  uint32_t random = 1;
  const auto next = [&](uint32_t below) {
    random = random * 1664525U + 1013904223U;
    return (random >> 16) % below;
  };
  int found = 0;
  for (int i = 0; i < 20'000; ++i) {
    const uint64_t bytes = next(5);
    const uint64_t rows = next(5);
    const Rows a{next(40), bytes + next(8), bytes, rows};
    const Rows b{next(40), bytes + next(8), bytes, rows};
    std::array<bool, 128> used{};
    bool common = false;
    for (uint64_t r = 0; r < rows; ++r) {
      for (uint64_t k = 0; k < bytes; ++k) used[a.offset + r * a.pitch + k] = true;
    }
    for (uint64_t r = 0; r < rows; ++r) {
      for (uint64_t k = 0; k < bytes; ++k) common = common || used[b.offset + r * b.pitch + k];
    }
    found += common ? 1 : 0;
    if (overlap(a, b) != common) {
      CHECK_EQ(a.text() + " / " + b.text(), std::string(common ? "overlap" : "no overlap"));
      return;
    }
  }
  CHECK(found > 1000);
  CHECK_EQ(checkRows({0, UINT64_MAX / 2, 8, 4}, "x").code(), "ERR_INVALID_ARGUMENT");
}

TEST(memory_is_counted_pooled_and_trimmed) {
  device().trim();
  settle();
  const MemoryFigures before = *device().memory();
  const DeviceCounters start = device().counters();
  auto plain = memory(MemoryKind::kDevice, 1000);
  CHECK_EQ(device().memory()->deviceBytes, before.deviceBytes + 1000);
  released(std::move(plain)).get();
  CHECK_EQ(device().memory()->deviceBytes, before.deviceBytes);
  CHECK_EQ(device().counters().deviceAllocations, start.deviceAllocations + 1);
  CHECK_EQ(device().counters().deviceFrees, start.deviceFrees + 1);

  auto pooled = memory(MemoryKind::kPinned, 1000, true);
  void* const address = pooled->address();
  CHECK_EQ(pooled->bytes(), 1000U);
  released(std::move(pooled)).get();
  CHECK_EQ(device().memory()->pooledPinnedBytes, 1024U);
  CHECK_EQ(device().memory()->pinnedBytes, before.pinnedBytes);
  pooled = memory(MemoryKind::kPinned, 900, true);
  CHECK(pooled->address() == address);
  CHECK_EQ(device().counters().poolHits, start.poolHits + 1);
  CHECK_EQ(device().counters().pinnedAllocations, start.pinnedAllocations + 1);
  released(std::move(pooled)).get();
  device().trim();
  CHECK_EQ(device().memory()->pooledPinnedBytes, 0U);
  settle();
  CHECK_EQ(device().counters().pinnedFrees, start.pinnedFrees + 1);

  void* raw = nullptr;
  CHECK_EQ(device().allocateDeviceRaw(5000, &raw), cudaSuccess);
  CHECK_EQ(device().memory()->deviceBytes, before.deviceBytes + 5000);
  device().freeDeviceRaw(raw);
  CHECK_EQ(device().memory()->deviceBytes, before.deviceBytes);
}

TEST(memory_that_is_out_is_a_typed_error) {
  injectFaults({2, 1, 0, 0});
  CHECK(createMemory(device(), MemoryKind::kDevice, 64, false));
  const auto failed = createMemory(device(), MemoryKind::kDevice, 64, false);
  CHECK_EQ(failed.status().code(), "ERR_OUT_OF_DEVICE_MEMORY");
  CHECK_CONTAINS(failed.status().message(), "Device memory of 64 bytes: GPU 0 is out of memory");
  CHECK(createMemory(device(), MemoryKind::kDevice, 64, false));
  CHECK_EQ(createMemory(device(), MemoryKind::kPinned, 64, true).status().code(), "ERR_OUT_OF_MEMORY");
  CHECK(createMemory(device(), MemoryKind::kPinned, 64, true));
  CHECK_EQ(createMemory(device(), MemoryKind::kDevice, UINT64_MAX, true).status().code(),
           "ERR_OUT_OF_DEVICE_MEMORY");
  CHECK(createMemory(device(), MemoryKind::kDevice, 0, false));
}

TEST(no_allocation_of_the_host_is_one_too_many) {
  int failures = 0;
  for (int64_t n = 1; n <= 120; ++n) {
    auto s = stream(0);
    const auto scratch = memory(MemoryKind::kPinned, 64);
    const auto e = event();
    const auto c = context();
    std::promise<Status> promise;
    Done done = [&](Status status) { promise.set_value(std::move(status)); };
    bool called = true;
    failNew = n;
    called = called & s->fill(scratch, 0, 64, 1).isOk();
    called = called & s->copy(scratch, 0, scratch, 32, 32).isOk();
    called = called & s->record(e).isOk();
    called = called & s->wait(e).isOk();
    called = called & s->enqueue(c).isOk();
    const auto extra = createMemory(device(), MemoryKind::kDevice, 64, n % 2 == 0);
    s->synchronize(std::move(done));
    const Status status = promise.get_future().get();
    failNew = 0;
    if (!status) {
      ++failures;
      if (status.code() != "ERR_OUT_OF_MEMORY") CHECK_EQ(status.message(), "");
    }
    if (!called || !extra) ++failures;
    const Status afterwards = synchronize(*s);
    if (!afterwards && afterwards.code() != "ERR_OUT_OF_MEMORY") CHECK_EQ(afterwards.message(), "");
    CHECK(synchronize(*s));
  }
  CHECK(failures > 3);
}

TEST(nothing_was_done_that_cuda_forbids) {
  CHECK_EQ(fake::figures().violations, 0U);
  CHECK_EQ(fake::lastViolation(), "");
}

}  // namespace

TEST_MAIN()
