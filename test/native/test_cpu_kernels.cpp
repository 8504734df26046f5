// Every kernel of every instruction set against double precision, and bit for bit against the other sets.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <functional>
#include <limits>
#include <string>
#include <vector>

#include "check.h"
#include "core/convert.h"
#include "core/random.h"
#include "cpu/kernels.h"
#include "cpu/processor.h"

namespace {

using namespace nt;
using namespace nt::cpu;

constexpr float kInfinity = std::numeric_limits<float>::infinity();

std::vector<const Kernels*> allKernels() {
  std::vector<const Kernels*> out;
  for (const char* name : {"portable", "avx2", "avx512"}) {
    if (const auto kernels = kernelsFor(name, detectProcessor())) out.push_back(*kernels);
  }
  return out;
}

std::vector<float> random(size_t count, uint64_t stream, float range = 1) {
  std::vector<float> out(count);
  for (size_t i = 0; i < count; ++i) out[i] = float(uniform(7, i, stream) * 2 - 1) * range;
  return out;
}

bool sameBits(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

// Runs `f` with each set of kernels and checks that all give the bits of the first; returns these.
std::vector<float> onAll(const char* what, const std::function<std::vector<float>(const Kernels&)>& f) {
  std::vector<float> first;
  for (const Kernels* kernels : allKernels()) {
    auto out = f(*kernels);
    if (first.empty()) {
      first = std::move(out);
    } else if (!sameBits(out, first)) {
      nt::test::fail(__FILE__, __LINE__, std::string(what) + ": " + kernels->name + " differs from portable");
    }
  }
  return first;
}

TEST(exponentialIsAccurate) {
  std::vector<float> x;
  for (float v = -87.3F; v < 88.3F; v += 0.00371F) x.push_back(v);
  const auto y = onAll("exp", [&](const Kernels& kernels) {
    std::vector<float> out(x.size());
    kernels.exp(x.data(), x.size(), out.data());
    return out;
  });
  double worst = 0;
  for (size_t i = 0; i < x.size(); ++i) {
    const double exact = std::exp(double(x[i]));
    const auto nearest = float(exact);
    const double ulp = double(std::nextafter(nearest, kInfinity)) - double(nearest);
    worst = std::max(worst, std::abs(double(y[i]) - exact) / ulp);
  }
  std::cout << "# exp within " << worst << " ulp\n";
  CHECK(worst < 2);
}

TEST(exponentialAtTheEdges) {
  const std::vector<float> x = {-kInfinity, -1000, -87.4F, 0, 1000, kInfinity, std::nanf("")};
  for (const Kernels* kernels : allKernels()) {
    std::vector<float> y(x.size());
    kernels->exp(x.data(), x.size(), y.data());
    CHECK_EQ(y[0], 0.0F);
    CHECK_EQ(y[1], 0.0F);
    CHECK_EQ(y[2], 0.0F);
    CHECK_EQ(y[3], 1.0F);
    CHECK(std::isfinite(y[4]) && y[4] > 1e38F);
    CHECK_EQ(y[5], y[4]);
    CHECK(std::isnan(y[6]));
  }
}

// [rows][columns] packed as PackedMatrix does it.
template <typename T>
std::vector<T> packPanels(const std::vector<T>& w, size_t outputs, size_t k) {
  const size_t panels = (outputs + kPanelWidth - 1) / kPanelWidth;
  std::vector<T> out(panels * k * kPanelWidth);
  for (size_t n = 0; n < outputs; ++n) {
    for (size_t i = 0; i < k; ++i)
      out[(n / kPanelWidth * k + i) * kPanelWidth + n % kPanelWidth] = w[n * k + i];
  }
  return out;
}

void checkGemm(DType dtype, size_t rows, size_t outputs, size_t k, bool withBias) {
  const auto a = random(rows * k, 1);
  const auto wide = random(outputs * k, 2);
  std::vector<float> w(wide.size());
  std::vector<uint16_t> narrow(wide.size());
  for (size_t i = 0; i < wide.size(); ++i) {
    narrow[i] = dtype == DType::kF16 ? floatToF16(wide[i]) : floatToBf16(wide[i]);
    w[i] = dtype == DType::kF32   ? wide[i]
           : dtype == DType::kF16 ? f16ToFloat(narrow[i])
                                  : bf16ToFloat(narrow[i]);
  }
  const auto packedWide = packPanels(w, outputs, k);
  const auto packedNarrow = packPanels(narrow, outputs, k);
  const void* panels =
      dtype == DType::kF32 ? static_cast<const void*>(packedWide.data()) : packedNarrow.data();
  const size_t panelCount = (outputs + kPanelWidth - 1) / kPanelWidth;
  const size_t ldc = panelCount * kPanelWidth + 16;
  const auto bias = random(panelCount * kPanelWidth, 3);
  const auto c = onAll("gemm", [&](const Kernels& kernels) {
    std::vector<float> out(rows * ldc, -1);
    kernels.gemm(
        {a.data(), k, rows, k, panels, dtype, panelCount, withBias ? bias.data() : nullptr, out.data(), ldc});
    return out;
  });
  double worst = 0;
  for (size_t r = 0; r < rows; ++r) {
    for (size_t n = 0; n < outputs; ++n) {
      double sum = withBias ? double(bias[n]) : 0;
      for (size_t i = 0; i < k; ++i) sum += double(a[r * k + i]) * double(w[n * k + i]);
      worst = std::max(worst, std::abs(sum - double(c[r * ldc + n])));
    }
  }
  CHECK(worst < 1e-6 * double(k));
  // A row gives the same bits alone as in company.
  for (size_t r = 0; r < rows; ++r) {
    const auto alone = onAll("gemm of one row", [&](const Kernels& kernels) {
      std::vector<float> out(ldc, -1);
      kernels.gemm({a.data() + r * k, k, 1, k, panels, dtype, panelCount, withBias ? bias.data() : nullptr,
                    out.data(), ldc});
      return out;
    });
    if (std::memcmp(alone.data(), c.data() + r * ldc, panelCount * kPanelWidth * sizeof(float)) != 0) {
      nt::test::fail(__FILE__, __LINE__,
                     "row " + std::to_string(r) + " of " + std::to_string(rows) + " differs alone");
    }
  }
}

TEST(gemmOfEveryHeight) {
  for (size_t rows = 1; rows <= 27; ++rows) checkGemm(DType::kBF16, rows, 96 + 7, 33, rows % 2 == 0);
}

TEST(gemmOfEveryWidth) {
  for (const DType dtype : {DType::kF32, DType::kF16, DType::kBF16}) {
    for (const size_t outputs : {1, 31, 32, 33, 64, 96, 128, 160, 192, 224, 256, 320}) {
      for (const size_t rows : {1, 3, 5, 13}) checkGemm(dtype, rows, outputs, 24, rows == 3);
    }
  }
}

TEST(conversionOfAllHalves) {
  // Every 16-bit value as a weight times 1, NaNs aside (their payloads are the hardware's).
  for (const DType dtype : {DType::kF16, DType::kBF16}) {
    std::vector<uint16_t> bits(65536);
    for (size_t i = 0; i < bits.size(); ++i) bits[i] = uint16_t(i);
    const float one = 1;
    for (const Kernels* kernels : allKernels()) {
      std::vector<float> out(bits.size());
      kernels->gemm(
          {&one, 1, 1, 1, bits.data(), dtype, bits.size() / kPanelWidth, nullptr, out.data(), bits.size()});
      size_t wrong = 0;
      for (size_t i = 0; i < bits.size(); ++i) {
        const float expected = dtype == DType::kF16 ? f16ToFloat(bits[i]) : bf16ToFloat(bits[i]);
        if (std::isnan(expected) ? !std::isnan(out[i]) : out[i] != expected) ++wrong;
      }
      CHECK_EQ(wrong, size_t{0});
    }
  }
}

struct AttentionCase {
  int32_t rows, heads, headDim, first, window, pageSize;
};

void checkAttention(const AttentionCase& c) {
  const auto dim = size_t(c.headDim);
  const auto pageSize = size_t(c.pageSize);
  const auto length = size_t(c.first + c.rows);
  const size_t pageCount = (length + pageSize - 1) / pageSize;
  const size_t pageStride = 2 * pageSize * dim;
  const auto q = random(size_t(c.rows) * size_t(c.heads) * dim, 1, 2);
  const auto k = random(length * dim, 2, 2);
  const auto v = random(length * dim, 3, 2);
  // Pages in reverse order, with something poisonous in what no row may see.
  std::vector<float> pool((pageCount + 1) * pageStride + 16, 1e30F);
  std::vector<int32_t> pages;
  for (size_t p = 0; p < pageCount; ++p) pages.push_back(int32_t(pageCount - p));
  for (size_t t = 0; t < length; ++t) {
    float* page = pool.data() + size_t(pages[t / pageSize]) * pageStride;
    for (size_t d = 0; d < dim; ++d) {
      page[d * pageSize + t % pageSize] = k[t * dim + d];
      page[pageSize * dim + t % pageSize * dim + d] = v[t * dim + d];
    }
  }
  const float scale = 1.0F / std::sqrt(float(c.headDim));
  const size_t stride = size_t(c.heads) * dim;
  const auto run = [&](const Kernels& kernels, int32_t row, int32_t rows) {
    std::vector<float> out(size_t(rows) * stride, -1);
    const size_t tile = std::max<size_t>(size_t(kAttendTile), size_t(rows) * size_t(c.heads));
    std::vector<float> scratch(attendScratch(1, tile, dim, length - 1, pageSize));
    kernels.attend({.q = q.data() + size_t(row) * stride,
                    .qStride = stride,
                    .out = out.data(),
                    .outStride = stride,
                    .rows = rows,
                    .heads = c.heads,
                    .headDim = c.headDim,
                    .scale = scale,
                    .firstPosition = c.first + row,
                    .window = c.window,
                    .kv = {pool.data(), pool.data() + pageSize * dim, pageStride, c.pageSize, pages.data()},
                    .scratch = scratch.data()});
    return out;
  };
  const auto together = onAll("attend", [&](const Kernels& kernels) { return run(kernels, 0, c.rows); });
  double worst = 0;
  for (int32_t row = 0; row < c.rows; ++row) {
    const auto alone =
        onAll("attend of one row", [&](const Kernels& kernels) { return run(kernels, row, 1); });
    CHECK(std::memcmp(alone.data(), together.data() + size_t(row) * stride, stride * sizeof(float)) == 0);
    const int32_t position = c.first + row;
    const int32_t start = c.window > 0 ? std::max(0, position - c.window + 1) : 0;
    for (size_t h = 0; h < size_t(c.heads); ++h) {
      const float* query = q.data() + size_t(row) * stride + h * dim;
      std::vector<double> weight;
      double max = -1e300;
      for (int32_t t = start; t <= position; ++t) {
        double dot = 0;
        for (size_t d = 0; d < dim; ++d) dot += double(query[d]) * double(k[size_t(t) * dim + d]);
        weight.push_back(dot * double(scale));
        max = std::max(max, weight.back());
      }
      double sum = 0;
      for (double& w : weight) sum += w = std::exp(w - max);
      for (size_t d = 0; d < dim; ++d) {
        double value = 0;
        for (int32_t t = start; t <= position; ++t) {
          value += weight[size_t(t - start)] * double(v[size_t(t) * dim + d]);
        }
        worst = std::max(worst, std::abs(value / sum - double(together[size_t(row) * stride + h * dim + d])));
      }
    }
  }
  if (!(worst < 2e-5)) {
    nt::test::fail(__FILE__, __LINE__,
                   "attention off by " + std::to_string(worst) + " at rows " + std::to_string(c.rows) +
                       " heads " + std::to_string(c.heads) + " dim " + std::to_string(c.headDim) + " first " +
                       std::to_string(c.first) + " window " + std::to_string(c.window) + " page " +
                       std::to_string(c.pageSize));
  }
}

TEST(attentionAgainstDouble) {
  for (const int32_t pageSize : {1, 4, 7, 8, 16, 24, 32, 64}) {
    for (const int32_t first : {0, 1, 15, 16, 100}) {
      for (const int32_t window : {0, 1, 3, 16, 40}) {
        checkAttention({4, 2, 16, first, window, pageSize});
        checkAttention({1, 3, 24, first, window, pageSize});
      }
    }
  }
  for (const int32_t headDim : {8, 64, 72, 80, 96, 128, 256}) {
    for (const int32_t heads : {1, 2, 4, 5, 8}) {
      checkAttention({std::max(1, 8 / heads), heads, headDim, 37, 0, 16});
      checkAttention({1, heads, headDim, 90, 33, 16});
    }
  }
  // More heads to a key than a tile holds.
  checkAttention({2, 9, 16, 20, 0, 16});
  checkAttention({3, 16, 64, 50, 7, 16});
}

TEST(rowOperations) {
  for (const size_t width : {1, 7, 16, 40, 192, 1000}) {
    const auto x = random(width, 1, 8);
    const auto y = random(width, 2, 8);
    const auto normed = onAll("rmsNorm", [&](const Kernels& kernels) {
      std::vector<float> out(width);
      kernels.rmsNorm(x.data(), y.data(), 1e-5F, width, out.data());
      return out;
    });
    const auto silu = onAll("siluMul", [&](const Kernels& kernels) {
      std::vector<float> out(width);
      kernels.siluMul(x.data(), y.data(), width, out.data());
      return out;
    });
    const auto gelu = onAll("geluMul", [&](const Kernels& kernels) {
      std::vector<float> out(width);
      kernels.geluMul(x.data(), y.data(), width, out.data());
      return out;
    });
    const auto sum = onAll("add", [&](const Kernels& kernels) {
      std::vector<float> out(width);
      kernels.add(x.data(), y.data(), width, out.data());
      return out;
    });
    double square = 0;
    for (const float v : x) square += double(v) * double(v);
    const double inverse = 1 / std::sqrt(square / double(width) + 1e-5);
    for (size_t i = 0; i < width; ++i) {
      const double g = double(x[i]);
      const double u = double(y[i]);
      CHECK(std::abs(double(normed[i]) - g * inverse * u) < 1e-5);
      CHECK(std::abs(double(silu[i]) - g / (1 + std::exp(-g)) * u) < 2e-5);
      const double tanh = std::tanh(0.7978845608028654 * (g + 0.044715 * g * g * g));
      CHECK(std::abs(double(gelu[i]) - 0.5 * g * (1 + tanh) * u) < 2e-5);
      CHECK_EQ(sum[i], x[i] + y[i]);
    }
  }
}

TEST(rotation) {
  for (const size_t dim : {8, 24, 64, 128}) {
    const auto head = random(dim, 1);
    std::vector<float> cos(dim / 2);
    std::vector<float> sin(dim / 2);
    for (size_t i = 0; i < dim / 2; ++i) {
      cos[i] = float(std::cos(double(i) * 0.3));
      sin[i] = float(std::sin(double(i) * 0.3));
    }
    const auto out = onAll("rope", [&](const Kernels& kernels) {
      auto copy = head;
      kernels.rope(copy.data(), cos.data(), sin.data(), dim);
      return copy;
    });
    for (size_t i = 0; i < dim / 2; ++i) {
      CHECK(std::abs(out[i] - (head[i] * cos[i] - head[i + dim / 2] * sin[i])) < 1e-6F);
      CHECK(std::abs(out[i + dim / 2] - (head[i + dim / 2] * cos[i] + head[i] * sin[i])) < 1e-6F);
    }
  }
}

TEST(searchesInLogits) {
  for (const size_t n : {1, 5, 16, 17, 255, 256, 257, 4096, 4099}) {
    auto x = random(n, 4, 10);
    const size_t at = n / 2;
    x[at] = 11;
    if (at + 3 < n) x[at + 3] = 11;  // a tie: the lower index counts
    for (const Kernels* kernels : allKernels()) {
      bool hasNan = true;
      CHECK_EQ(kernels->max(x.data(), n, &hasNan), 11.0F);
      CHECK(!hasNan);
      CHECK_EQ(kernels->firstAtLeast(x.data(), n, 11), at);
      CHECK_EQ(kernels->firstAtLeast(x.data(), n, 12), n);
      std::vector<int32_t> ids(n);
      std::vector<int32_t> expected;
      for (size_t i = 0; i < n; ++i) {
        if (x[i] >= 5) expected.push_back(int32_t(i));
      }
      ids.resize(kernels->collectAtLeast(x.data(), n, 5, ids.data()));
      CHECK(ids == expected);
      for (const size_t bad : {size_t{0}, at, n - 1}) {
        auto damaged = x;
        damaged[bad] = std::nanf("");
        kernels->max(damaged.data(), n, &hasNan);
        CHECK(hasNan);
      }
    }
    const auto blocks = onAll("blockMax", [&](const Kernels& kernels) {
      std::vector<float> out((n + 15) / 16);
      kernels.blockMax(x.data(), n, out.data());
      return out;
    });
    for (size_t b = 0; b < blocks.size(); ++b) {
      const auto begin = x.begin() + long(b * 16);
      CHECK_EQ(blocks[b], *std::max_element(begin, x.begin() + long(std::min(n, b * 16 + 16))));
    }
    const auto sum = onAll("sumExp", [&](const Kernels& kernels) {
      return std::vector<float>{kernels.sumExp(x.data(), n, 11, 0.7F)};
    });
    double exact = 0;
    double above = 0;
    for (const float v : x) {
      const double e = std::exp((double(v) - 11) * double(0.7F));
      exact += e;
      if (v >= 2) above += e;
    }
    CHECK(std::abs(double(sum[0]) / exact - 1) < 1e-6);
    const auto weights = onAll("expBlocks", [&](const Kernels& kernels) {
      std::vector<float> out(n);
      std::vector<float> sums((n + 255) / 256);
      kernels.expBlocks(x.data(), n, 11, 0.7F, 2, out.data(), sums.data());
      out.insert(out.end(), sums.begin(), sums.end());
      return out;
    });
    double total = 0;
    for (size_t b = n; b < weights.size(); ++b) total += double(weights[b]);
    CHECK(std::abs(total / above - 1) < 1e-6);
    for (size_t i = 0; i < n; ++i) CHECK(x[i] >= 2 || weights[i] == 0);
  }
}

}  // namespace

TEST_MAIN()
