// What NVML tells, on a stand-in for its library.
#include <unistd.h>

#include <cmath>
#include <cstdlib>
#include <filesystem>
#include <string>
#include <thread>
#include <vector>

#include "check.h"
#include "napi/nvml.h"

namespace {

// The library by a name of its own: what is remembered of a library is remembered by its path.
class FreshLibrary {
 public:
  FreshLibrary() {
    static int made = 0;
    unsetenv("FAKE_NVML_FAIL");
    unsetenv("FAKE_NVML_GPUS");
    path_ = std::filesystem::temp_directory_path() /
            ("nvml-" + std::to_string(getpid()) + "-" + std::to_string(made++));
    std::filesystem::create_symlink(NT_FAKE_NVML, path_);
  }
  ~FreshLibrary() { std::filesystem::remove(path_); }
  FreshLibrary(const FreshLibrary&) = delete;
  FreshLibrary& operator=(const FreshLibrary&) = delete;

  nt::Expected<nt::GpuUsageReport> read() const { return nt::readGpuUsage(path_); }

 private:
  std::filesystem::path path_;
};

void fail(const std::string& what) {
  setenv("FAKE_NVML_FAIL", ("," + what + ",").c_str(), 1);
}

}  // namespace

TEST(a_library_that_is_missing_is_no_error) {
  const auto report = nt::readGpuUsage("/nowhere/libnvidia-ml.so.1");
  REQUIRE(bool(report));
  CHECK(!report->available);
  CHECK(report->gpus.empty());
}

TEST(a_driver_that_does_not_run_is_no_error_and_asked_again) {
  const FreshLibrary library;
  fail("nvmlInit_v2=9");
  auto report = library.read();
  REQUIRE(bool(report));
  CHECK(!report->available);
  unsetenv("FAKE_NVML_FAIL");
  report = library.read();
  REQUIRE(bool(report));
  CHECK(report->available);
}

TEST(other_failures_are_told_in_nvmls_words) {
  const FreshLibrary library;
  fail("nvmlInit_v2=18");
  auto report = library.read();
  CHECK_EQ(report.status().code(), "ERR_CUDA");
  CHECK_CONTAINS(report.status().message(), "Driver/library version mismatch");
  fail("nvmlDeviceGetCount_v2=77");
  report = library.read();
  CHECK_CONTAINS(report.status().message(), "nvmlDeviceGetCount_v2: error 77");
}

TEST(figures_of_each_gpu) {
  const auto report = FreshLibrary().read();
  REQUIRE(bool(report));
  REQUIRE(report->gpus.size() == 2);
  const nt::GpuUsage& gpu = report->gpus[1];
  CHECK_EQ(gpu.index, 1);
  CHECK_EQ(gpu.name, "Fake GPU 1");
  CHECK_EQ(gpu.uuid, "GPU-00000000-0000-0000-0000-000000000001");
  CHECK_EQ(gpu.pciBusId, "00000000:1C:00.0");
  CHECK(gpu.utilisation >= 0.1 && gpu.utilisation <= 1);
  CHECK_EQ(gpu.memoryUsedBytes, 40.0 * (1 << 30));
  CHECK_EQ(gpu.memoryTotalBytes, 150.0 * (1 << 30));
  CHECK_EQ(gpu.temperatureCelsius, 41.0);
  CHECK_EQ(gpu.powerWatts, 123.456);
}

TEST(what_a_gpu_does_not_tell_is_unknown) {
  const FreshLibrary library;
  // NVML_ERROR_NOT_SUPPORTED: utilisation of a partitioned GPU.
  fail(
      "nvmlDeviceGetUtilizationRates@0=3,nvmlDeviceGetName@0=3,nvmlDeviceGetPciInfo_v3@0=3,"
      "nvmlDeviceGetMemoryInfo@0=15,nvmlDeviceGetTemperature@0=3,nvmlDeviceGetPowerUsage@0=3");
  const auto report = library.read();
  REQUIRE(bool(report));
  REQUIRE(report->gpus.size() == 2);
  CHECK(std::isnan(report->gpus[0].utilisation));
  CHECK(std::isnan(report->gpus[0].memoryUsedBytes));
  CHECK(std::isnan(report->gpus[0].temperatureCelsius));
  CHECK(std::isnan(report->gpus[0].powerWatts));
  CHECK_EQ(report->gpus[0].name, "");
  CHECK_EQ(report->gpus[0].pciBusId, "");
  CHECK(!std::isnan(report->gpus[1].utilisation));
}

TEST(a_gpu_that_cannot_be_had_is_left_out) {
  const FreshLibrary library;
  fail("nvmlDeviceGetHandleByIndex_v2@0=15");
  const auto report = library.read();
  REQUIRE(bool(report));
  REQUIRE(report->gpus.size() == 1);
  CHECK_EQ(report->gpus[0].index, 1);
}

TEST(no_gpu) {
  const FreshLibrary library;
  setenv("FAKE_NVML_GPUS", "0", 1);
  const auto report = library.read();
  REQUIRE(bool(report));
  CHECK(report->available);
  CHECK(report->gpus.empty());
}

TEST(a_library_of_another_kind_fails_by_name) {
  // The C library has none of these functions.
  const auto report = nt::readGpuUsage("libc.so.6");
  CHECK_EQ(report.status().code(), "ERR_CUDA");
  CHECK_CONTAINS(report.status().message(), "nvmlInit_v2: error 13");
}

TEST(many_threads_at_once) {
  const FreshLibrary library;
  std::vector<std::thread> threads;
  std::vector<int> seen(8);
  for (int i = 0; i < 8; ++i) {
    threads.emplace_back([&seen, &library, i] {
      for (int round = 0; round < 50; ++round) {
        const auto report = library.read();
        if (report && report->gpus.size() == 2) ++seen[i];
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  for (const int count : seen) CHECK_EQ(count, 50);
}

TEST_MAIN()
