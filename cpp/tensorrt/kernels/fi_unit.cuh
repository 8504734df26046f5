// Common part of the FlashInfer units. One unit is compiled for one element type (NT_T, NT_DTYPE) and head
// size (NT_HEAD_DIM).
//
// FlashInfer's dispatch macros are expanded where its launchers are written, so they are narrowed here,
// before any of its other headers: this takes a unit from minutes to seconds. They must be the same in all
// units. Some launchers dispatch on the head size but are templates of the element type alone, and the linker
// keeps one of their definitions for the whole module.
#pragma once

#include <flashinfer/utils.cuh>

#undef DISPATCH_HEAD_DIM
#define DISPATCH_HEAD_DIM(value, HEAD_DIM, ...)      \
  switch (value) {                                   \
    case 64: {                                       \
      constexpr size_t HEAD_DIM = 64;                \
      __VA_ARGS__                                    \
    } break;                                         \
    case 128: {                                      \
      constexpr size_t HEAD_DIM = 128;               \
      __VA_ARGS__                                    \
    } break;                                         \
    default:                                         \
      FLASHINFER_ERROR("head size not compiled in"); \
  }

#undef DISPATCH_CTA_TILE_Q
#define DISPATCH_CTA_TILE_Q(value, CTA_TILE_Q, ...)   \
  switch (value) {                                    \
    case 128: {                                       \
      constexpr uint32_t CTA_TILE_Q = 128;            \
      __VA_ARGS__                                     \
    } break;                                          \
    case 64: {                                        \
      constexpr uint32_t CTA_TILE_Q = 64;             \
      __VA_ARGS__                                     \
    } break;                                          \
    case 16: {                                        \
      constexpr uint32_t CTA_TILE_Q = 16;             \
      __VA_ARGS__                                     \
    } break;                                          \
    default:                                          \
      FLASHINFER_ERROR("query tile not compiled in"); \
  }

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <algorithm>
#include <exception>
#include <flashinfer/attention/default_prefill_params.cuh>
#include <flashinfer/attention/scheduler.cuh>
#include <flashinfer/attention/variants.cuh>
#include <vector>

#include "tensorrt/kernels/fi_units.h"

namespace nt::kernels::fi {

// Unnamed: the units differ by NT_T and NT_HEAD_DIM, so each needs its own copy of what follows.
namespace {

using Element = NT_T;

template <bool Window>
using Variant = flashinfer::DefaultAttention</*use_custom_mask=*/false, Window, /*use_logits_soft_cap=*/false,
                                             /*use_alibi=*/false>;

// FlashInfer takes non-const pointers to what it only reads.
template <class T>
T* mutablePointer(const T* pointer) {
  return const_cast<T*>(pointer);
}

flashinfer::paged_kv_t<Element, int32_t> toFlashInfer(const PagedKv& kv) {
  // Its NHD order of strides: page, token, head.
  const int64_t strides[3] = {kv.pageStride, kv.tokenStride, kv.headStride};
  return {kv.kvHeads,
          kv.pageSize,
          NT_HEAD_DIM,
          kv.batch,
          flashinfer::QKVLayout::kNHD,
          static_cast<Element*>(kv.k),
          static_cast<Element*>(kv.v),
          strides,
          mutablePointer(kv.indices),
          mutablePointer(kv.indptr),
          mutablePointer(kv.lastPageLen)};
}

template <class Info>
void pack(const Info& info, Plan* plan) {
  const std::vector<int64_t> values = info.ToVector();
  plan->count = static_cast<int32_t>(values.size());
  std::copy(values.begin(), values.end(), plan->values.begin());
}

template <class Info>
Info unpack(const Plan& plan) {
  Info info;
  info.FromVector(std::vector<int64_t>(plan.values.begin(), plan.values.begin() + plan.count));
  return info;
}

// FlashInfer counts the keys left of the row's own; negative means all.
int32_t windowLeft(int32_t window) {
  return window > 0 ? window - 1 : -1;
}

template <class Params>
Params attentionParams(const AttentionArgs& args) {
  Params params;
  params.q = static_cast<Element*>(const_cast<void*>(args.q));
  params.paged_kv = toFlashInfer(args.kv);
  params.o = static_cast<Element*>(args.out);
  params.lse = nullptr;
  params.num_qo_heads = args.heads;
  params.q_stride_n = args.qStride == 0 ? args.heads * NT_HEAD_DIM : static_cast<uint32_t>(args.qStride);
  params.q_stride_h = NT_HEAD_DIM;
  params.window_left = windowLeft(args.window);
  params.sm_scale = args.scale;
  params.rope_rcp_scale = 1.0F;
  params.rope_rcp_theta = 1.0F;
  return params;
}

// FlashInfer reports refused shapes by exceptions; none may cross this boundary.
template <class Fn>
cudaError_t guarded(Fn&& fn) noexcept {
  try {
    return fn();
  } catch (const std::exception&) {
    return cudaErrorInvalidConfiguration;
  }
}

}  // namespace

}  // namespace nt::kernels::fi
