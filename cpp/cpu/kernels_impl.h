// The kernels over the sixteen-lane vectors of namespace nt::cpu::NT_SIMD. Included once by each
// kernels_<isa>.cpp, which is compiled with that instruction set's flags.
//
// Only inline functions of namespace NT_SIMD and compiler builtins may be called here: an inline function of
// the standard library would be emitted with this file's instruction set, and the linker may keep that copy
// for the whole program.
#pragma once

#include "cpu/kernels.h"

namespace nt::cpu::NT_SIMD {

inline constexpr float kInfinity = __builtin_inff();
inline constexpr size_t kLanes = 16;
inline constexpr size_t kSumBlock = 256;

inline size_t minOf(size_t a, size_t b) {
  return a < b ? a : b;
}

// ---- exp ----

inline constexpr float kExpLow = -87.3365478515625F;  // ln(2^-126): below, the result is 0
inline constexpr float kExpHigh = 88.3762626647949F;  // above, the result stays e^kExpHigh = 2.4e38

// e^x within 2 ulp: x = n ln 2 + r, |r| <= ln 2 / 2, and the minimax polynomial of Cephes' expf for e^r.
inline Vec expVec(Vec x) {
  const Vec magic = set1(0x1.8p23F);  // adding it rounds to the nearest integer
  const Vec clamped = min(set1(kExpHigh), max(set1(kExpLow), x));
  const Vec shifted = fma(clamped, set1(1.44269504088896341F), magic);
  const Vec n = sub(shifted, magic);
  Vec r = fma(n, set1(-0.693359375F), clamped);
  r = fma(n, set1(2.12194440e-4F), r);
  Vec p = set1(1.9875691500e-4F);
  p = fma(p, r, set1(1.3981999507e-3F));
  p = fma(p, r, set1(8.3334519073e-3F));
  p = fma(p, r, set1(4.1665795894e-2F));
  p = fma(p, r, set1(1.6666665459e-1F));
  p = fma(p, r, set1(5.0000001201e-1F));
  const Vec e = add(fma(p, mul(r, r), r), set1(1.0F));
  return zeroBelow(mul(e, exponentOf(shifted)), x, set1(kExpLow));
}

// The last, partial vector of a row, filled up with -inf.
inline Vec loadTail(const float* x, size_t n) {
  float lanes[kLanes];
  for (size_t i = 0; i < kLanes; ++i) lanes[i] = i < n ? x[i] : -kInfinity;
  return load(lanes);
}
inline Vec loadOrTail(const float* x, size_t i, size_t n) {
  return i + kLanes <= n ? load(x + i) : loadTail(x + i, n - i);
}

inline void expArray(const float* x, size_t n, float* out) {
  for (size_t i = 0; i < n; i += kLanes) {
    storePartial(out + i, expVec(loadPartial(x + i, n - i)), n - i);
  }
}

// ---- gemm ----

struct F32 {
  using Type = float;
  static Vec load(const float* p) { return loadF32(p); }
};
struct F16 {
  using Type = uint16_t;
  static Vec load(const uint16_t* p) { return loadF16(p); }
};
struct BF16 {
  using Type = uint16_t;
  static Vec load(const uint16_t* p) { return loadBf16(p); }
};

// R rows times V vectors of outputs, held in registers over all of k. Vector v starts at output 16 v of the
// first panel.
template <typename W, int R, int V>
inline void tile(const float* a, size_t lda, const typename W::Type* w, size_t k, const float* bias, float* c,
                 size_t ldc) {
  Vec acc[R][V];
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 16
    for (int v = 0; v < V; ++v) acc[r][v] = zero();
  }
  const size_t panelStride = k * kPanelWidth;
  for (size_t i = 0; i < k; ++i) {
    Vec wv[V];
#pragma GCC unroll 16
    for (int v = 0; v < V; ++v)
      wv[v] = W::load(w + size_t(v / 2) * panelStride + i * kPanelWidth + size_t(v % 2) * kLanes);
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) {
      const Vec x = set1(a[size_t(r) * lda + i]);
#pragma GCC unroll 16
      for (int v = 0; v < V; ++v) acc[r][v] = fma(x, wv[v], acc[r][v]);
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 16
    for (int v = 0; v < V; ++v) {
      const Vec sum = bias == nullptr ? acc[r][v] : add(acc[r][v], load(bias + size_t(v) * kLanes));
      store(c + size_t(r) * ldc + size_t(v) * kLanes, sum);
    }
  }
}

template <typename W>
using TileFn = void (*)(const float*, size_t, const typename W::Type*, size_t, const float*, float*, size_t);

// All of a's rows fit one tile: V vectors at a time, over all panels.
template <typename W, int R>
inline void gemmNarrow(const GemmArgs& g) {
  const auto* w = static_cast<const typename W::Type*>(g.panels);
  const size_t vectors = g.panelCount * 2;
  constexpr int V = tileVectors(R);
  size_t v = 0;
  const auto at = [&](size_t vector) { return w + vector / 2 * g.k * kPanelWidth + vector % 2 * kLanes; };
  const auto biasAt = [&](size_t vector) { return g.bias == nullptr ? nullptr : g.bias + vector * kLanes; };
  for (; v + V <= vectors; v += V) {
    tile<W, R, V>(g.a, g.lda, at(v), g.k, biasAt(v), g.c + v * kLanes, g.ldc);
  }
  // Rest panels together as far as the registers allow: one vector's chain alone would wait for each of its
  // additions.
  if constexpr (V > 6) {
    for (; v + 6 <= vectors; v += 6)
      tile<W, R, 6>(g.a, g.lda, at(v), g.k, biasAt(v), g.c + v * kLanes, g.ldc);
  }
  if constexpr (V > 4) {
    for (; v + 4 <= vectors; v += 4)
      tile<W, R, 4>(g.a, g.lda, at(v), g.k, biasAt(v), g.c + v * kLanes, g.ldc);
  }
  if constexpr (V > 2) {
    for (; v < vectors; v += 2) tile<W, R, 2>(g.a, g.lda, at(v), g.k, biasAt(v), g.c + v * kLanes, g.ldc);
  }
}

// Indexed by the number of rows.
template <typename W>
struct TileTable {
  TileFn<W> wide[kMaxTileRows + 1] = {};
  void (*narrow[kMaxTileRows + 1])(const GemmArgs&) = {};

  constexpr TileTable() { fill<kMaxTileRows>(); }
  template <int R>
  constexpr void fill() {
    wide[R] = &tile<W, R, kWideTileVectors>;
    narrow[R] = &gemmNarrow<W, R>;
    if constexpr (R > 1) fill<R - 1>();
  }
};

// More rows than a tile holds: a panel stays in the nearest cache while all rows pass.
template <typename W>
inline void gemmOf(const GemmArgs& g) {
  static constexpr TileTable<W> kTable;
  if (g.rows <= size_t(kMaxTileRows)) {
    kTable.narrow[g.rows](g);
    return;
  }
  const auto* w = static_cast<const typename W::Type*>(g.panels);
  const size_t tiles = (g.rows + kMaxTileRows - 1) / kMaxTileRows;
  for (size_t v = 0; v < g.panelCount * 2; v += size_t(kWideTileVectors)) {
    const auto* wv = w + v / 2 * g.k * kPanelWidth + v % 2 * kLanes;
    const float* bias = g.bias == nullptr ? nullptr : g.bias + v * kLanes;
    for (size_t t = 0, row = 0; t < tiles; ++t) {
      const size_t end = g.rows * (t + 1) / tiles;
      kTable.wide[end - row](g.a + row * g.lda, g.lda, wv, g.k, bias, g.c + row * g.ldc + v * kLanes, g.ldc);
      row = end;
    }
  }
}

inline void gemm(const GemmArgs& g) {
  if (g.rows == 0 || g.panelCount == 0) return;
  switch (g.dtype) {
    case DType::kF32:
      return gemmOf<F32>(g);
    case DType::kF16:
      return gemmOf<F16>(g);
    case DType::kBF16:
      return gemmOf<BF16>(g);
  }
}

// ---- attention ----

// Up to sixteen keys that lie side by side in a page: element d of key i is at keys[d * pageSize + i].
struct KeyChunk {
  const float* keys;
  size_t index;       // of its first key in the scores
  const float* next;  // keys to fetch meanwhile: pages lie anywhere, so the processor cannot guess them
};

// scores[q][chunk] = scale * q . key; each a chain over d. Lanes past a chunk's end hold what lies there in
// the pool.
template <int Q, int C>
inline void scoreTile(const float* const* q, float* const* scores, const KeyChunk* chunks, size_t headDim,
                      size_t pageSize, float scale) {
  Vec acc[Q][C];
#pragma GCC unroll 16
  for (int i = 0; i < Q; ++i) {
#pragma GCC unroll 16
    for (int c = 0; c < C; ++c) acc[i][c] = zero();
  }
  for (size_t d = 0; d < headDim; ++d) {
    Vec key[C];
#pragma GCC unroll 16
    for (int c = 0; c < C; ++c) {
      key[c] = load(chunks[c].keys + d * pageSize);
      __builtin_prefetch(chunks[c].next + d * pageSize);
    }
#pragma GCC unroll 16
    for (int i = 0; i < Q; ++i) {
      const Vec x = set1(q[i][d]);
#pragma GCC unroll 16
      for (int c = 0; c < C; ++c) acc[i][c] = fma(x, key[c], acc[i][c]);
    }
  }
#pragma GCC unroll 16
  for (int i = 0; i < Q; ++i) {
    // Ascending, so that a chunk shorter than a vector is followed, and its excess overwritten, by the next.
#pragma GCC unroll 16
    for (int c = 0; c < C; ++c) store(scores[i] + chunks[c].index, mul(acc[i][c], set1(scale)));
  }
}

template <int C>
inline void scoreChunks(const float* const* q, float* const* scores, size_t queries, const KeyChunk* chunks,
                        const AttendArgs& a) {
  const auto dim = size_t(a.headDim);
  const auto pageSize = size_t(a.kv.pageSize);
  size_t i = 0;
  for (; i + kScoreQueries <= queries; i += kScoreQueries) {
    scoreTile<kScoreQueries, C>(q + i, scores + i, chunks, dim, pageSize, a.scale);
  }
  if constexpr (kScoreQueries > 2) {
    for (; i + 2 <= queries; i += 2) scoreTile<2, C>(q + i, scores + i, chunks, dim, pageSize, a.scale);
  }
  for (; i < queries; ++i) scoreTile<1, C>(q + i, scores + i, chunks, dim, pageSize, a.scale);
}

// Scores become exp(score - max); returns their sum. Lane l sums the keys l, l + 16, ... of the row's own
// range.
inline float softmax(float* scores, size_t n) {
  for (size_t i = n; i % kLanes != 0; ++i) scores[i] = -kInfinity;
  Vec largest = set1(-kInfinity);
  for (size_t i = 0; i < n; i += kLanes) largest = max(load(scores + i), largest);
  const Vec shift = set1(reduceMax(largest));
  Vec sum = zero();
  for (size_t i = 0; i < n; i += kLanes) {
    const Vec e = expVec(sub(load(scores + i), shift));
    store(scores + i, e);
    sum = add(sum, e);
  }
  return reduceAdd(sum);
}

// acc[q][0 ... 16 V) += sum over positions [begin, end) of p[q][position - base] * value; one chain over the
// positions.
template <int Q, int V>
inline void valueTile(const float* const* p, float* const* acc, const KvView& kv, size_t headDim,
                      size_t column, size_t base, size_t begin, size_t end) {
  Vec sum[Q][V];
#pragma GCC unroll 16
  for (int i = 0; i < Q; ++i) {
#pragma GCC unroll 16
    for (int v = 0; v < V; ++v) sum[i][v] = load(acc[i] + column + size_t(v) * kLanes);
  }
  const auto pageSize = size_t(kv.pageSize);
  for (size_t position = begin; position < end;) {
    const size_t page = position / pageSize;
    const size_t stop = minOf(end, (page + 1) * pageSize);
    const size_t offset = (position - page * pageSize) * headDim + column;
    const float* row = kv.values + size_t(kv.pages[page]) * kv.pageStride + offset;
    const float* next = kv.values + size_t(kv.pages[stop < end ? page + 1 : page]) * kv.pageStride + offset;
    for (; position < stop; ++position, row += headDim, next += headDim) {
      Vec value[V];
#pragma GCC unroll 16
      for (int v = 0; v < V; ++v) {
        value[v] = load(row + size_t(v) * kLanes);
        __builtin_prefetch(next + size_t(v) * kLanes);
      }
#pragma GCC unroll 16
      for (int i = 0; i < Q; ++i) {
        const Vec weight = set1(p[i][position - base]);
#pragma GCC unroll 16
        for (int v = 0; v < V; ++v) sum[i][v] = fma(weight, value[v], sum[i][v]);
      }
    }
  }
#pragma GCC unroll 16
  for (int i = 0; i < Q; ++i) {
#pragma GCC unroll 16
    for (int v = 0; v < V; ++v) store(acc[i] + column + size_t(v) * kLanes, sum[i][v]);
  }
}

template <int Q>
inline void valueRows(const float* const* p, float* const* acc, const AttendArgs& a, size_t base,
                      size_t begin, size_t end) {
  const auto dim = size_t(a.headDim);
  size_t column = 0;
  for (; column + size_t(kValueVectors) * kLanes <= dim; column += size_t(kValueVectors) * kLanes) {
    valueTile<Q, kValueVectors>(p, acc, a.kv, dim, column, base, begin, end);
  }
  if constexpr (kValueVectors > 2) {
    for (; column + 2 * kLanes <= dim; column += 2 * kLanes)
      valueTile<Q, 2>(p, acc, a.kv, dim, column, base, begin, end);
  }
  for (; column < dim; column += kLanes) valueTile<Q, 1>(p, acc, a.kv, dim, column, base, begin, end);
}

// Position of the first key that the row at `position` sees.
inline size_t firstKey(const AttendArgs& a, size_t position) {
  const auto window = size_t(a.window);
  return window == 0 || position + 1 <= window ? 0 : position + 1 - window;
}

inline void attendTile(const AttendArgs& a) {
  // A tile is one row of any number of heads, worked off kAttendTile heads at a time, or several rows with
  // few heads.
  constexpr size_t kMax = size_t(kAttendTile);
  const auto dim = size_t(a.headDim);
  const auto heads = size_t(a.heads);
  const auto pageSize = size_t(a.kv.pageSize);
  const size_t queries = size_t(a.rows) * heads;
  const auto first = size_t(a.firstPosition);
  const size_t last = first + size_t(a.rows) - 1;
  const size_t firstPage = firstKey(a, first) / pageSize;
  const size_t base = firstPage * pageSize;
  const size_t accStride = (dim + kLanes - 1) / kLanes * kLanes;
  const size_t scoreStride = attendScratch(1, 1, dim, last - base, pageSize) - accStride;

  const float* q[kMax];
  float* scores[kMax];
  float* acc[kMax];
  float sums[kMax];
  for (size_t i = 0; i < queries; ++i) {
    q[i] = a.q + i / heads * a.qStride + i % heads * dim;
    scores[i] = a.scratch + i * (scoreStride + accStride);
    acc[i] = scores[i] + scoreStride;
  }

  KeyChunk chunks[kScoreChunks];
  size_t pending = 0;
  // As many pages ahead as make one group of chunks.
  const size_t ahead = (size_t(kScoreChunks) * kLanes + pageSize - 1) / pageSize;
  for (size_t page = firstPage; page * pageSize <= last; ++page) {
    const float* keys = a.kv.keys + size_t(a.kv.pages[page]) * a.kv.pageStride;
    const size_t nextPage = (page + ahead) * pageSize <= last ? page + ahead : page;
    const float* next = a.kv.keys + size_t(a.kv.pages[nextPage]) * a.kv.pageStride;
    for (size_t i = 0; i < pageSize && page * pageSize + i <= last; i += kLanes) {
      chunks[pending++] = {keys + i, page * pageSize + i - base, next + i};
      if (pending == size_t(kScoreChunks)) {
        scoreChunks<kScoreChunks>(q, scores, queries, chunks, a);
        pending = 0;
      }
    }
  }
  for (size_t c = 0; c < pending; ++c) scoreChunks<1>(q, scores, queries, chunks + c, a);

  for (size_t i = 0; i < queries; ++i) {
    const size_t position = first + i / heads;
    const size_t start = firstKey(a, position);
    sums[i] = softmax(scores[i] + (start - base), position - start + 1);
    for (size_t d = 0; d < accStride; d += kLanes) store(acc[i] + d, zero());
  }

  // Keys that all rows see are read once; what single rows see before (a window) and after is added row by
  // row.
  const size_t commonBegin = firstKey(a, last);
  const size_t commonEnd = first + 1;
  const bool shared = a.rows == 1 || commonBegin < commonEnd;
  if (shared) {
    for (size_t i = 0; i < queries; ++i) {
      const size_t start = firstKey(a, first + i / heads);
      if (start < commonBegin) valueRows<1>(scores + i, acc + i, a, base, start, commonBegin);
    }
    size_t i = 0;
    for (; i + kValueQueries <= queries; i += kValueQueries) {
      valueRows<kValueQueries>(scores + i, acc + i, a, base, commonBegin, commonEnd);
    }
    if constexpr (kValueQueries > 2) {
      for (; i + 2 <= queries; i += 2) valueRows<2>(scores + i, acc + i, a, base, commonBegin, commonEnd);
    }
    for (; i < queries; ++i) valueRows<1>(scores + i, acc + i, a, base, commonBegin, commonEnd);
  }
  for (size_t i = 0; i < queries; ++i) {
    const size_t position = first + i / heads;
    const size_t begin = shared ? commonEnd : firstKey(a, position);
    if (begin <= position) valueRows<1>(scores + i, acc + i, a, base, begin, position + 1);
    float* out = a.out + i / heads * a.outStride + i % heads * dim;
    const Vec inverse = set1(1.0F / sums[i]);
    for (size_t d = 0; d < dim; d += kLanes) storePartial(out + d, mul(load(acc[i] + d), inverse), dim - d);
  }
}

inline void attend(const AttendArgs& a) {
  if (a.rows * a.heads <= kAttendTile) return attendTile(a);
  for (int32_t row = 0; row < a.rows; ++row) {
    for (int32_t head = 0; head < a.heads; head += kAttendTile) {
      AttendArgs part = a;
      part.rows = 1;
      part.heads = a.heads - head < kAttendTile ? a.heads - head : kAttendTile;
      part.q = a.q + size_t(row) * a.qStride + size_t(head) * size_t(a.headDim);
      part.out = a.out + size_t(row) * a.outStride + size_t(head) * size_t(a.headDim);
      part.firstPosition = a.firstPosition + row;
      attendTile(part);
    }
  }
}

// ---- rows ----

inline void rmsNorm(const float* x, const float* weight, float eps, size_t width, float* out) {
  Vec squares = zero();
  for (size_t i = 0; i < width; i += kLanes) {
    const Vec v = loadPartial(x + i, width - i);
    squares = fma(v, v, squares);
  }
  const float mean = reduceAdd(squares) / float(width);
  const Vec inverse = set1(1.0F / __builtin_sqrtf(mean + eps));
  for (size_t i = 0; i < width; i += kLanes) {
    const size_t n = width - i;
    storePartial(out + i, mul(mul(loadPartial(x + i, n), inverse), loadPartial(weight + i, n)), n);
  }
}

inline void addRow(const float* a, const float* b, size_t width, float* out) {
  for (size_t i = 0; i < width; i += kLanes) {
    storePartial(out + i, add(loadPartial(a + i, width - i), loadPartial(b + i, width - i)), width - i);
  }
}

inline Vec sigmoidTimes(Vec x, Vec argument) {
  const Vec one = set1(1.0F);
  return div(x, add(one, expVec(sub(zero(), argument))));
}

inline void siluMul(const float* gate, const float* up, size_t width, float* out) {
  for (size_t i = 0; i < width; i += kLanes) {
    const size_t n = width - i;
    const Vec g = loadPartial(gate + i, n);
    storePartial(out + i, mul(sigmoidTimes(g, g), loadPartial(up + i, n)), n);
  }
}

// 0.5 x (1 + tanh u) = x / (1 + e^-2u).
inline void geluMul(const float* gate, const float* up, size_t width, float* out) {
  for (size_t i = 0; i < width; i += kLanes) {
    const size_t n = width - i;
    const Vec g = loadPartial(gate + i, n);
    const Vec cubic = mul(mul(g, g), mul(g, set1(0.044715F)));
    const Vec twice = mul(add(g, cubic), set1(1.5957691216057308F));  // 2 sqrt(2 / pi)
    storePartial(out + i, mul(sigmoidTimes(g, twice), loadPartial(up + i, n)), n);
  }
}

inline void rope(float* head, const float* cos, const float* sin, size_t headDim) {
  const size_t half = headDim / 2;
  for (size_t i = 0; i < half; i += kLanes) {
    const size_t n = half - i;
    const Vec c = loadPartial(cos + i, n);
    const Vec s = loadPartial(sin + i, n);
    const Vec x = loadPartial(head + i, n);
    const Vec y = loadPartial(head + half + i, n);
    storePartial(head + i, sub(mul(x, c), mul(y, s)), n);
    storePartial(head + half + i, add(mul(y, c), mul(x, s)), n);
  }
}

// ---- logits ----

inline float maxOf(const float* x, size_t n, bool* hasNan) {
  Vec largest = set1(-kInfinity);
  uint32_t nan = 0;
  for (size_t i = 0; i < n; i += kLanes) {
    const Vec v = loadOrTail(x, i, n);
    largest = max(v, largest);
    nan |= maskNan(v);
  }
  *hasNan = nan != 0;
  return reduceMax(largest);
}

inline size_t firstAtLeast(const float* x, size_t n, float bound) {
  const Vec limit = set1(bound);
  for (size_t i = 0; i < n; i += kLanes) {
    uint32_t mask = maskGreaterEqual(loadOrTail(x, i, n), limit);
    if (n - i < kLanes) mask &= (1U << (n - i)) - 1U;
    if (mask != 0) return i + size_t(__builtin_ctz(mask));
  }
  return n;
}

inline Vec scaledExp(Vec x, Vec largest, Vec scale) {
  return expVec(mul(sub(x, largest), scale));
}

// Block sums keep the rounding error of a large vocabulary small.
inline float sumExp(const float* x, size_t n, float largest, float scale) {
  Vec total = zero();
  for (size_t block = 0; block < n; block += kSumBlock) {
    Vec sum = zero();
    const size_t end = minOf(n, block + kSumBlock);
    for (size_t i = block; i < end; i += kLanes) {
      sum = add(sum, scaledExp(loadOrTail(x, i, n), set1(largest), set1(scale)));
    }
    total = add(total, sum);
  }
  return reduceAdd(total);
}

inline void expBlocks(const float* x, size_t n, float largest, float scale, float bound, float* out,
                      float* sums) {
  for (size_t block = 0; block < n; block += kSumBlock) {
    Vec sum = zero();
    const size_t end = minOf(n, block + kSumBlock);
    for (size_t i = block; i < end; i += kLanes) {
      const Vec v = loadOrTail(x, i, n);
      const Vec e = zeroBelow(scaledExp(v, set1(largest), set1(scale)), v, set1(bound));
      storePartial(out + i, e, n - i);
      sum = add(sum, e);
    }
    sums[block / kSumBlock] = reduceAdd(sum);
  }
}

inline void blockMax(const float* x, size_t n, float* out) {
  for (size_t i = 0; i < n; i += kLanes) out[i / kLanes] = reduceMax(loadOrTail(x, i, n));
}

inline size_t collectAtLeast(const float* x, size_t n, float bound, int32_t* out) {
  const Vec limit = set1(bound);
  size_t count = 0;
  for (size_t i = 0; i < n; i += kLanes) {
    uint32_t mask = maskGreaterEqual(loadOrTail(x, i, n), limit);
    if (n - i < kLanes) mask &= (1U << (n - i)) - 1U;
    for (; mask != 0; mask &= mask - 1) out[count++] = int32_t(i) + __builtin_ctz(mask);
  }
  return count;
}

inline constexpr Kernels makeKernels(const char* name) {
  return {name,     gemm,  attend,       rmsNorm, addRow,    siluMul,  geluMul,       rope,
          expArray, maxOf, firstAtLeast, sumExp,  expBlocks, blockMax, collectAtLeast};
}

}  // namespace nt::cpu::NT_SIMD
