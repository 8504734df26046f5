// Sequences, their cache and a step's rows for the tests of attention: random, on host and device.
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <random>
#include <stdexcept>
#include <vector>

#include "support/device_array.h"
#include "tensorrt/kernels/attention.h"

namespace nt::test {

template <class T>
struct Traits;
template <>
struct Traits<__half> {
  static constexpr DType kType = DType::kF16;
  static constexpr double kRounding = 1.0 / 2048;  // of a value, at most
  static __half of(float x) { return __float2half_rn(x); }
};
template <>
struct Traits<__nv_bfloat16> {
  static constexpr DType kType = DType::kBF16;
  static constexpr double kRounding = 1.0 / 256;
  static __nv_bfloat16 of(float x) { return __float2bfloat16_rn(x); }
};

template <class Buffer>
Buffer allocate(uint64_t bytes) {
  auto memory = Buffer::allocate(bytes, "test");
  if (!memory) throw std::runtime_error(memory.status().message());
  return *std::move(memory);
}

template <class T>
DeviceBuffer toDevice(const std::vector<T>& host) {
  auto device = allocate<DeviceBuffer>(host.size() * sizeof(T));
  cuda(cudaMemcpy(device.template as<void>(), host.data(), host.size() * sizeof(T), cudaMemcpyHostToDevice));
  return device;
}

template <class T>
std::vector<T> toHost(const void* device, size_t count) {
  std::vector<T> host(count);
  cuda(cudaMemcpy(host.data(), device, count * sizeof(T), cudaMemcpyDeviceToHost));
  return host;
}

// Normal values, from a table: hundreds of millions are wanted.
template <class T>
std::vector<T> randomValues(size_t count, std::mt19937& random) {
  static const std::vector<T> table = [] {
    std::mt19937 source(11);
    std::normal_distribution<float> normal;
    std::vector<T> values(1 << 16);
    for (T& x : values) x = Traits<T>::of(normal(source));
    return values;
  }();
  std::vector<T> values(count);
  uint32_t state = random();
  for (T& x : values) {
    state = state * 1664525 + 1013904223;
    x = table[state >> 16];
  }
  return values;
}

struct Sequence {
  int32_t cached = 0;
  int32_t tokens = 0;
  int32_t length() const { return cached + tokens; }
};

struct Heads {
  uint32_t heads = 0;
  uint32_t kvHeads = 0;
  uint32_t size = 0;
};

inline constexpr int32_t kPageSize = 16;

// The step's tables, as kernels and planners want them.
struct Tables {
  Tables(const std::vector<Sequence>& sequences, int32_t padding, std::mt19937& random) {
    qIndptr = kvIndptr = {0};
    for (const Sequence& sequence : sequences) {
      for (int32_t i = 0; i < sequence.tokens; ++i) {
        batchIndices.push_back(static_cast<int32_t>(lastPageLen.size()));
        positions.push_back(sequence.cached + i);
      }
      qIndptr.push_back(static_cast<int32_t>(positions.size()));
      kvIndptr.push_back(kvIndptr.back() + (sequence.length() + kPageSize - 1) / kPageSize);
      lastPageLen.push_back((sequence.length() - 1) % kPageSize + 1);
    }
    for (int32_t i = 0; i < padding; ++i) {
      batchIndices.push_back(-1);
      positions.push_back(0);
    }
    // A few pages belong to nobody.
    pages = kvIndptr.back() + 3;
    indices.resize(static_cast<size_t>(pages));
    for (int32_t i = 0; i < pages; ++i) indices[static_cast<size_t>(i)] = i;
    std::shuffle(indices.begin(), indices.end(), random);
    indices.resize(static_cast<size_t>(kvIndptr.back()));
    for (size_t i = 0; i < device.size(); ++i) device[i] = toDevice(*all()[i]);
  }

  std::array<const std::vector<int32_t>*, 6> all() const {
    return {&batchIndices, &positions, &qIndptr, &kvIndptr, &lastPageLen, &indices};
  }
  uint32_t rows() const { return static_cast<uint32_t>(positions.size()); }
  uint32_t batch() const { return static_cast<uint32_t>(lastPageLen.size()); }
  const int32_t* at(size_t table) const { return device[table].as<int32_t>(); }

  std::vector<int32_t> batchIndices, positions, qIndptr, kvIndptr, lastPageLen, indices;
  int32_t pages = 0;
  std::array<DeviceBuffer, 6> device;  // as `all` has them
};

// Cosines and sines of the usual frequencies, of which kernels know nothing.
inline std::vector<float> makeCosSin(int32_t positions, uint32_t size) {
  const uint32_t half = size / 2;
  std::vector<float> table(static_cast<size_t>(positions) * size);
  for (int32_t p = 0; p < positions; ++p) {
    float* row = table.data() + static_cast<size_t>(p) * size;
    for (uint32_t i = 0; i < half; ++i) {
      const double angle = p * std::pow(10000.0, -2.0 * i / size);
      row[i] = static_cast<float>(std::cos(angle));
      row[half + i] = static_cast<float>(std::sin(angle));
    }
  }
  return table;
}

struct Workspaces {
  static constexpr size_t kInts = size_t{16} << 20;
  static constexpr size_t kFloats = size_t{256} << 20;

  kernels::Workspace part(size_t i) const {
    kernels::Workspace workspace;
    workspace.floats = floats.as<>();
    workspace.floatBytes = kFloats;
    workspace.ints = ints.as<char>() + i * kInts;
    workspace.intsHost = host.as<char>() + i * kInts;
    workspace.intBytes = kInts;
    return workspace;
  }

  DeviceBuffer floats = allocate<DeviceBuffer>(kFloats);
  DeviceBuffer ints = allocate<DeviceBuffer>(2 * kInts);
  PinnedBuffer host = allocate<PinnedBuffer>(2 * kInts);
};

// qkv and a pool of two layers, of which the second one is used.
template <class T>
struct Problem {
  Problem(Heads shape, std::vector<Sequence> list, int32_t padding, std::mt19937& random)
      : heads(shape),
        sequences(std::move(list)),
        tables(sequences, padding, random),
        rowWidth(size_t{heads.heads + 2 * heads.kvHeads} * heads.size),
        pageElements(size_t{2} * kPageSize * heads.kvHeads * heads.size),
        layerElements(pageElements * static_cast<size_t>(tables.pages)),
        qkv(randomValues<T>(rowWidth * tables.rows(), random)),
        pool(randomValues<T>(2 * layerElements, random)),
        qkvDevice(toDevice(qkv)),
        poolDevice(toDevice(pool)) {
    int32_t longest = 1;
    for (const Sequence& sequence : sequences) longest = std::max(longest, sequence.length());
    cosSin = makeCosSin(longest, heads.size);
    cosSinDevice = toDevice(cosSin);
  }

  void restore() {
    cuda(cudaMemcpy(qkvDevice.as<void>(), qkv.data(), qkv.size() * sizeof(T), cudaMemcpyHostToDevice));
    cuda(cudaMemcpy(poolDevice.as<void>(), pool.data(), pool.size() * sizeof(T), cudaMemcpyHostToDevice));
  }

  // Of K in the pool; V is half a page behind.
  size_t place(size_t sequence, int32_t position) const {
    const int32_t entry = tables.kvIndptr[sequence] + position / kPageSize;
    const auto page = static_cast<size_t>(tables.indices[static_cast<size_t>(entry)]);
    return layerElements + page * pageElements +
           static_cast<size_t>(position % kPageSize) * heads.kvHeads * heads.size;
  }

  kernels::PagedKv pagedKv() const {
    kernels::PagedKv kv;
    kv.headStride = heads.size;
    kv.tokenStride = int64_t{heads.kvHeads} * heads.size;
    kv.pageStride = static_cast<int64_t>(pageElements);
    kv.k = poolDevice.as<T>() + layerElements;
    kv.v = poolDevice.as<T>() + layerElements + pageElements / 2;
    kv.indptr = tables.at(3);
    kv.lastPageLen = tables.at(4);
    kv.indices = tables.at(5);
    kv.batch = tables.batch();
    kv.kvHeads = heads.kvHeads;
    kv.pageSize = kPageSize;
    return kv;
  }

  kernels::RopeAppendArgs ropeAppend() const {
    kernels::RopeAppendArgs args;
    args.q = qkvDevice.as<T>();
    args.k = qkvDevice.as<T>() + size_t{heads.heads} * heads.size;
    args.v = qkvDevice.as<T>() + size_t{heads.heads + heads.kvHeads} * heads.size;
    args.rowStride = static_cast<int64_t>(rowWidth);
    args.kv = pagedKv();
    args.batchIndices = tables.at(0);
    args.positions = tables.at(1);
    args.cosSin = cosSinDevice.as<float>();
    args.rows = tables.rows();
    args.heads = heads.heads;
    return args;
  }

  Heads heads;
  std::vector<Sequence> sequences;
  Tables tables;
  size_t rowWidth;
  size_t pageElements;
  size_t layerElements;
  std::vector<T> qkv;
  std::vector<T> pool;
  std::vector<float> cosSin;
  DeviceBuffer qkvDevice, poolDevice, cosSinDevice;
};

}  // namespace nt::test
