// Stands in for cuBLASLt: the products that the module asks for, as NVIDIA documents them, on the fake GPU.
// What the real library refuses, and addresses out of bounds, are CUBLAS_STATUS_INVALID_VALUE. LACKING:
// one of its functions is not there.
#include "cublas_stand_in.h"

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstring>
#include <vector>

#include "core/convert.h"
#include "fake_gpu.h"

#define EXPORT extern "C" __attribute__((visibility("default")))

namespace {

constexpr int32_t kInvalidValue = 7;
constexpr int32_t kReal32F = 0;
constexpr int32_t kReal16F = 2;
constexpr int32_t kReal16BF = 14;
constexpr int32_t kCompute32F = 68;
constexpr uint64_t kAlgorithm = 0xA160;

struct Descriptor {
  int32_t transA = 0;
  int32_t epilogue = 1;
  const void* bias = nullptr;
};
struct Layout {
  int32_t type;
  uint64_t rows;
  uint64_t columns;
  int64_t stride;
  uint64_t bytes() const { return ((columns - 1) * static_cast<uint64_t>(stride) + rows) * 2; }
};
struct Preference {
  uint64_t workspaceBytes = 0;
};
struct Algorithm {
  uint64_t data[8];
};
struct HeuristicResult {
  Algorithm algorithm;
  size_t workspaceBytes;
  int32_t status;
  float waves;
  int32_t reserved[4];
};

CublasStandIn state;

template <class T>
int32_t take(T& field, const void* value, size_t bytes) {
  if (bytes != sizeof field) return kInvalidValue;
  std::memcpy(&field, value, bytes);
  return 0;
}

template <class T, class... Args>
int32_t make(void** to, Args... args) {
  *to = new T{args...};
  ++state.living;
  return 0;
}

template <class T>
int32_t destroy(void* object) {
  delete static_cast<T*>(object);
  --state.living;
  return 0;
}

// D [m, n] = A^T B + beta C + bias, by columns; A is [k, m], B [k, n].
bool fits(const Descriptor& descriptor, const Layout& a, const Layout& b, const Layout& c, const Layout& d) {
  return descriptor.transA == 1 && (descriptor.epilogue == 1 || descriptor.epilogue == 4) &&
         a.rows == b.rows && d.rows == a.columns && d.columns == b.columns && c.rows == d.rows &&
         c.columns == d.columns && a.type == b.type && b.type == c.type && c.type == d.type &&
         (a.type == kReal16F || a.type == kReal16BF) && a.stride >= static_cast<int64_t>(a.rows) &&
         b.stride >= static_cast<int64_t>(b.rows) && c.stride >= static_cast<int64_t>(c.rows) &&
         d.stride >= static_cast<int64_t>(d.rows);
}

float read(const void* from, int32_t type, uint64_t at) {
  const uint16_t bits = static_cast<const uint16_t*>(from)[at];
  return type == kReal16F ? nt::f16ToFloat(bits) : nt::bf16ToFloat(bits);
}

void multiply(const Layout& a, const Layout& b, const Layout& d, const void* weight, const void* x,
              const void* c, float beta, const void* bias, void* y) {
  for (uint64_t column = 0; column < d.columns; ++column) {
    for (uint64_t row = 0; row < d.rows; ++row) {
      float sum = 0;
      for (uint64_t i = 0; i < a.rows; ++i) {
        sum += read(weight, a.type, row * static_cast<uint64_t>(a.stride) + i) *
               read(x, b.type, column * static_cast<uint64_t>(b.stride) + i);
      }
      const uint64_t at = column * static_cast<uint64_t>(d.stride) + row;
      // With a factor of zero C is not read.
      if (beta != 0) sum += beta * read(c, d.type, at);
      if (bias != nullptr) sum += read(bias, d.type, row);
      static_cast<uint16_t*>(y)[at] = d.type == kReal16F ? nt::floatToF16(sum) : nt::floatToBf16(sum);
    }
  }
}

}  // namespace

EXPORT CublasStandIn* cublasStandIn() {
  return &state;
}
EXPORT size_t cublasLtGetVersion() {
  return 130102;
}
EXPORT int32_t cublasLtCreate(void** handle) {
  return state.createStatus == 0 ? make<char>(handle) : state.createStatus;
}
EXPORT int32_t cublasLtDestroy(void* handle) {
  return destroy<char>(handle);
}
EXPORT int32_t cublasLtMatmulDescCreate(void** to, int32_t compute, int32_t scale) {
  return compute == kCompute32F && scale == kReal32F ? make<Descriptor>(to) : kInvalidValue;
}
#ifndef LACKING
EXPORT int32_t cublasLtMatmulDescDestroy(void* descriptor) {
  return destroy<Descriptor>(descriptor);
}
#endif
EXPORT int32_t cublasLtMatmulDescSetAttribute(void* object, int32_t attribute, const void* value,
                                              size_t bytes) {
  auto& descriptor = *static_cast<Descriptor*>(object);
  switch (attribute) {
    case 3:
      return take(descriptor.transA, value, bytes);
    case 7:
      return take(descriptor.epilogue, value, bytes);
    case 8:
      return take(descriptor.bias, value, bytes);
    default:
      return kInvalidValue;
  }
}
EXPORT int32_t cublasLtMatrixLayoutCreate(void** to, int32_t type, uint64_t rows, uint64_t columns,
                                          int64_t stride) {
  return make<Layout>(to, type, rows, columns, stride);
}
EXPORT int32_t cublasLtMatrixLayoutDestroy(void* layout) {
  return destroy<Layout>(layout);
}
EXPORT int32_t cublasLtMatmulPreferenceCreate(void** to) {
  return make<Preference>(to);
}
EXPORT int32_t cublasLtMatmulPreferenceDestroy(void* preference) {
  return destroy<Preference>(preference);
}
EXPORT int32_t cublasLtMatmulPreferenceSetAttribute(void* preference, int32_t attribute, const void* value,
                                                    size_t bytes) {
  return attribute == 1 ? take(static_cast<Preference*>(preference)->workspaceBytes, value, bytes)
                        : kInvalidValue;
}
EXPORT int32_t cublasLtMatmulAlgoGetHeuristic(void*, void* descriptor, void* a, void* b, void* c, void* d,
                                              void* preference, int32_t wanted, HeuristicResult* results,
                                              int32_t* found) {
  ++state.heuristics;
  *found = 0;
  if (wanted < 1 || static_cast<Preference*>(preference)->workspaceBytes == 0 ||
      !fits(*static_cast<Descriptor*>(descriptor), *static_cast<Layout*>(a), *static_cast<Layout*>(b),
            *static_cast<Layout*>(c), *static_cast<Layout*>(d))) {
    return kInvalidValue;
  }
  if (state.heuristicStatus != 0) return state.heuristicStatus;
  *found = state.kernelsFound;
  results[0] = {};
  results[0].algorithm.data[0] = kAlgorithm;
  return 0;
}
EXPORT int32_t cublasLtMatmul(void* handle, void* object, const void* alpha, const void* weight,
                              void* aLayout, const void* x, void* bLayout, const void* beta, const void* c,
                              void* cLayout, void* y, void* dLayout, const Algorithm* algorithm,
                              void* workspace, size_t workspaceBytes, cudaStream_t stream) {
  const Descriptor descriptor = *static_cast<Descriptor*>(object);
  const Layout a = *static_cast<Layout*>(aLayout);
  const Layout b = *static_cast<Layout*>(bLayout);
  const Layout d = *static_cast<Layout*>(dLayout);
  const float addend = *static_cast<const float*>(beta);
  const bool biased = descriptor.epilogue == 4;
  const auto at = [](const void* address, uint64_t bytes) {
    return reinterpret_cast<uintptr_t>(address) % 256 == 0 ? nt::fake::reach(address, bytes) : nullptr;
  };
  const void* hostWeight = at(weight, a.bytes());
  const void* hostX = at(x, b.bytes());
  const void* hostC = at(c, d.bytes());
  void* hostY = at(y, d.bytes());
  const void* hostBias = biased ? at(descriptor.bias, d.rows * 2) : nullptr;
  if (handle == nullptr || *static_cast<const float*>(alpha) != 1 || algorithm->data[0] != kAlgorithm ||
      !fits(descriptor, a, b, *static_cast<Layout*>(cLayout), d) || hostWeight == nullptr ||
      hostX == nullptr || hostC == nullptr || hostY == nullptr || biased != (hostBias != nullptr) ||
      at(workspace, workspaceBytes) == nullptr) {
    return kInvalidValue;
  }
  if (state.matmulStatus != 0) return state.matmulStatus;
  ++state.products;
  state.lastRows = static_cast<int32_t>(d.columns);
  const cudaError_t error = nt::fake::submit(stream, [=] {
    multiply(a, b, d, hostWeight, hostX, hostC, addend, hostBias, hostY);
    return cudaSuccess;
  });
  return error == cudaSuccess ? 0 : 13;
}
