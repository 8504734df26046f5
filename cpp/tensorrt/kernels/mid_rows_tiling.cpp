#include "tensorrt/kernels/mid_rows_tiling.h"

#include <cmath>

namespace nt::kernels {

namespace {

struct Measured {
  int32_t n;
  int32_t k;
  bool gated;
  std::array<MidRowsTiling, kMidRowsBounds.size()> tilings;
};

// The fastest ones of the layers of Llama-2-7B and Llama-3-8B on an H200 (bench/native/mid_rows_bench.cu,
// docs/performance.md). Such a table is all that can be had: how tiles fill 132 multiprocessors jumps from
// one width to the next.
constexpr Measured kMeasured[] = {
    {12288,
     4096,
     false,
     {{{64, 96, 1, 1, 1},
       {128, 96, 1, 1, 1},
       {192, 96, 1, 1, 1},
       {256, 96, 1, 1, 1},
       {192, 96, 1, 2, 1},
       {256, 96, 1, 2, 1}}}},
    {6144,
     4096,
     false,
     {{{64, 128, 1, 1, 1},
       {64, 128, 1, 2, 1},
       {192, 96, 1, 1, 2},
       {128, 96, 1, 2, 1},
       {192, 96, 1, 2, 1},
       {256, 96, 1, 2, 1}}}},
    {4096,
     4096,
     false,
     {{{64, 96, 1, 1, 2},
       {64, 96, 1, 2, 1},
       {192, 96, 1, 1, 2},
       {128, 96, 1, 2, 1},
       {128, 96, 1, 1, 1},
       {128, 128, 1, 2, 1}}}},
    {4096,
     11008,
     false,
     {{{64, 128, 1, 1, 2},
       {128, 128, 1, 1, 2},
       {192, 96, 1, 1, 2},
       {64, 128, 1, 2, 1},
       {192, 128, 1, 1, 2},
       {128, 128, 1, 2, 1}}}},
    {4096,
     14336,
     false,
     {{{64, 128, 1, 1, 2},
       {128, 128, 1, 1, 2},
       {192, 96, 1, 1, 2},
       {64, 128, 1, 2, 1},
       {192, 128, 1, 1, 2},
       {128, 128, 1, 2, 1}}}},
    {11008,
     4096,
     true,
     {{{64, 176, 1, 1, 1},
       {128, 176, 1, 1, 1},
       {192, 176, 1, 1, 1},
       {256, 96, 1, 1, 1},
       {192, 176, 1, 1, 1},
       {128, 224, 1, 1, 1}}}},
    {14336,
     4096,
     true,
     {{{64, 224, 1, 1, 1},
       {128, 224, 1, 1, 1},
       {192, 128, 1, 1, 1},
       {256, 112, 1, 1, 1},
       {128, 224, 1, 1, 1},
       {256, 112, 1, 1, 1}}}},
};

}  // namespace

MidRowsTiling chooseMidRowsTiling(int32_t rows, int32_t n, int32_t k, bool gated) noexcept {
  // Other shapes take what is best for the one that is most alike.
  const Measured* nearest = nullptr;
  double distance = 0;
  for (const Measured& candidate : kMeasured) {
    if (candidate.gated != gated) continue;
    const double d = std::abs(std::log(static_cast<double>(n) / candidate.n)) +
                     std::abs(std::log(static_cast<double>(k) / candidate.k));
    if (nearest != nullptr && d >= distance) continue;
    nearest = &candidate;
    distance = d;
  }
  size_t i = 0;
  while (i + 1 < kMidRowsBounds.size() && rows > kMidRowsBounds[i]) ++i;
  MidRowsTiling tiling = nearest->tilings[i];
  constexpr int32_t kLeastOfSplit = 256;  // elements of k
  if (k < kLeastOfSplit * tiling.splits) tiling.splits = 1;
  return tiling;
}

}  // namespace nt::kernels
