// FlashInfer's FA3 prefill kernels, causal, for Hopper: query rows in tiles of 128 (192 at head size 64),
// wgmma, keys never cut. Over pages, which each thread looks up for itself, and over rows in a row, which TMA
// fetches. Not in one unit with FA2: both define flashinfer::BatchPrefillPagedParams.
#include <cuda_bf16.h>
#include <cuda_fp16.h>

// Stands for flashinfer/cutlass_utils.cuh, of which the kernel needs this alone; the rest wants tools of
// CUTLASS's that the wheel has no headers of.
#define FLASHINFER_CUTLASS_UTILS_CUH_
#include <cutlass/cutlass.h>
#include <cutlass/numeric_types.h>

#include <cute/tensor.hpp>
#include <cutlass/gemm/collective/collective_builder.hpp>

namespace flashinfer {

template <class T>
struct cutlass_dtype;
template <>
struct cutlass_dtype<__half> {
  using type = cutlass::half_t;
};
template <>
struct cutlass_dtype<__nv_bfloat16> {
  using type = cutlass::bfloat16_t;
};
template <class T>
using cutlass_dtype_t = typename cutlass_dtype<T>::type;

}  // namespace flashinfer

#include <exception>
#include <flashinfer/attention/hopper/prefill_sm90.cuh>
#include <flashinfer/attention/hopper/variants.cuh>
#include <flashinfer/attention/mask.cuh>
#include <flashinfer/attention/scheduler.cuh>
#include <vector>

#include "tensorrt/kernels/fi_units.h"

namespace nt::kernels::fi {

namespace {

using Element = flashinfer::cutlass_dtype_t<NT_T>;
using flashinfer::MaskMode;

// What the kernel's templates read, by their names.
struct Params {
  using DTypeQ = Element;
  using DTypeKV = Element;
  using DTypeO = Element;
  using IdType = int32_t;

  Element* q_ptr;
  Element* k_ptr;
  Element* v_ptr;
  Element* o_ptr;
  float* lse_ptr;
  int32_t* qo_tile_indices;
  int32_t* qo_indptr;
  int32_t* kv_indptr;
  int32_t* kv_indices;
  int32_t* qo_lens;
  int32_t* kv_lens;
  int32_t* head_indices;
  int32_t* work_indptr;
  int32_t* batch_indices;
  struct AdditionalParams {
    float logits_soft_cap;
    float sm_scale;
  } additional_params;
  int64_t q_stride_n;
  int64_t k_stride_n;
  int64_t v_stride_n;
  int64_t o_stride_n;
  int64_t q_stride_h;
  int64_t k_stride_h;
  int64_t v_stride_h;
  int64_t o_stride_h;
  int64_t nnz_qo;
  int64_t nnz_kv;
  int64_t k_page_stride;
  int64_t v_page_stride;
  int num_qo_heads;
  int num_kv_heads;
  int group_size;
  int page_size;
  int window_left;
  bool causal;
};

template <class Fn>
cudaError_t guarded(Fn&& fn) noexcept {
  try {
    return fn();
  } catch (const std::exception&) {
    return cudaErrorInvalidConfiguration;
  }
}

// `kvIndptr` and `keys`: where a sequence's keys begin, in pages or rows, and how many there are.
cudaError_t makePlan(const Workspace& ws, const PlanArgs& args, const int32_t* kvIndptr,
                     std::vector<int32_t> keys, Plan* plan, cudaStream_t stream) {
  // The planner writes to none of them.
  auto* qIndptr = const_cast<int32_t*>(args.qIndptr);
  flashinfer::PrefillPlanSM90Info info;
  const cudaError_t status = flashinfer::PrefillSM90Plan<int32_t>(
      ws.floats, ws.floatBytes, ws.ints, ws.intsHost, ws.intBytes, info, qIndptr,
      const_cast<int32_t*>(kvIndptr), keys.data(), static_cast<uint32_t>(qIndptr[args.batch]), args.batch,
      args.heads, args.kvHeads, NT_HEAD_DIM, NT_HEAD_DIM, args.pageSize, /*causal=*/true,
      /*enable_cuda_graph=*/false, sizeof(Element), stream);
  if (status != cudaSuccess) return status;
  // One schedule for all heads is the planner's choice beyond half a million rows, and not compiled.
  if (info.same_schedule_for_all_heads) return cudaErrorInvalidConfiguration;
  const std::vector<int64_t> values = info.ToVector();
  plan->count = static_cast<int32_t>(values.size());
  for (size_t i = 0; i < values.size(); ++i) plan->values[i] = values[i];
  return status;
}

bool isPlannable(const PlanArgs& args) {
  return args.kvHeads > 0 && args.batch > 0 && args.window == 0 && !args.cudaGraph;
}

// All but where the keys are.
Params commonParams(const Workspace& ws, const Plan& plan, const AttentionArgs& args) {
  flashinfer::PrefillPlanSM90Info info;
  info.FromVector(std::vector<int64_t>(plan.values.begin(), plan.values.begin() + plan.count));
  const auto at = [&](int64_t offset) { return flashinfer::GetPtrFromBaseOffset<int32_t>(ws.ints, offset); };
  const int64_t packed = static_cast<int64_t>(args.heads) * NT_HEAD_DIM;
  Params params{};
  params.q_ptr = static_cast<Element*>(const_cast<void*>(args.q));
  params.o_ptr = static_cast<Element*>(args.out);
  params.q_stride_n = args.qStride == 0 ? packed : args.qStride;
  params.o_stride_n = packed;
  params.q_stride_h = params.o_stride_h = NT_HEAD_DIM;
  params.nnz_qo = args.rows;
  params.num_qo_heads = static_cast<int>(args.heads);
  params.num_kv_heads = static_cast<int>(args.kv.kvHeads);
  params.group_size = static_cast<int>(args.heads / args.kv.kvHeads);
  params.window_left = -1;
  params.causal = true;
  params.additional_params = {0.0F, args.scale};
  params.qo_tile_indices = at(info.qo_tile_indices_offset);
  params.qo_indptr = at(info.qo_indptr_offset);
  params.kv_indptr = at(info.kv_indptr_offset);
  params.qo_lens = at(info.qo_len_offset);
  params.kv_lens = at(info.kv_len_offset);
  params.head_indices = at(info.head_indices_offset);
  params.work_indptr = at(info.work_indptr_offset);
  params.batch_indices = at(info.batch_indices_offset);
  return params;
}

}  // namespace

template <DType Type, uint32_t HeadDim>
cudaError_t WidePrefill<Type, HeadDim>::plan(const Workspace& ws, const PlanArgs& args, Plan* plan,
                                             cudaStream_t stream) noexcept {
  if (!isPlannable(args)) return cudaErrorInvalidValue;
  return guarded([&] {
    std::vector<int32_t> keys(args.batch);
    for (uint32_t i = 0; i < args.batch; ++i) {
      const int32_t pages = args.kvIndptr[i + 1] - args.kvIndptr[i];
      keys[i] = pages == 0 ? 0 : (pages - 1) * static_cast<int32_t>(args.pageSize) + args.lastPageLen[i];
    }
    return makePlan(ws, args, args.kvIndptr, std::move(keys), plan, stream);
  });
}

template <DType Type, uint32_t HeadDim>
cudaError_t WidePrefill<Type, HeadDim>::run(const Workspace& ws, const Plan& plan, const AttentionArgs& args,
                                            cudaStream_t stream) noexcept {
  return guarded([&] {
    Params params = commonParams(ws, plan, args);
    params.k_ptr = static_cast<Element*>(args.kv.k);
    params.v_ptr = static_cast<Element*>(args.kv.v);
    params.k_stride_n = params.v_stride_n = args.kv.tokenStride;
    params.k_stride_h = params.v_stride_h = args.kv.headStride;
    params.k_page_stride = params.v_page_stride = args.kv.pageStride;
    params.page_size = static_cast<int>(args.kv.pageSize);
    params.kv_indices = const_cast<int32_t*>(args.kv.indices);
    return flashinfer::BatchPrefillWithPagedKVCacheDispatched<
        HeadDim, HeadDim, MaskMode::kCausal, /*LEFT_SLIDING_WINDOW=*/false,
        /*SAME_SCHEDULE_FOR_ALL_HEADS=*/false, flashinfer::StandardAttention>(params, /*enable_pdl=*/false,
                                                                              stream);
  });
}

template <DType Type, uint32_t HeadDim>
cudaError_t FreshPrefill<Type, HeadDim>::plan(const Workspace& ws, const PlanArgs& args, Plan* plan,
                                              cudaStream_t stream) noexcept {
  if (!isPlannable(args)) return cudaErrorInvalidValue;
  return guarded([&] {
    std::vector<int32_t> keys(args.batch);
    for (uint32_t i = 0; i < args.batch; ++i) keys[i] = args.qIndptr[i + 1] - args.qIndptr[i];
    return makePlan(ws, args, args.qIndptr, std::move(keys), plan, stream);
  });
}

// What TMA asks for: addresses and the bytes between rows are multiples of 16. Rows behind the last one read
// as zeros; those of the next sequence are multiplied by a weight of zero.
template <DType Type, uint32_t HeadDim>
cudaError_t FreshPrefill<Type, HeadDim>::run(const Workspace& ws, const Plan& plan, const AttentionArgs& args,
                                             cudaStream_t stream) noexcept {
  const auto addresses = reinterpret_cast<uintptr_t>(args.q) | reinterpret_cast<uintptr_t>(args.k) |
                         reinterpret_cast<uintptr_t>(args.v) | reinterpret_cast<uintptr_t>(args.out);
  constexpr int64_t kElements = 16 / sizeof(Element);
  if (args.k == nullptr || args.v == nullptr || addresses % 16 != 0 || args.qStride % kElements != 0 ||
      args.kvStride <= 0 || args.kvStride % kElements != 0) {
    return cudaErrorInvalidValue;
  }
  return guarded([&] {
    Params params = commonParams(ws, plan, args);
    params.k_ptr = static_cast<Element*>(const_cast<void*>(args.k));
    params.v_ptr = static_cast<Element*>(const_cast<void*>(args.v));
    params.k_stride_n = params.v_stride_n = args.kvStride;
    params.k_stride_h = params.v_stride_h = HeadDim;
    params.nnz_kv = args.rows;
    return flashinfer::BatchPrefillWithRaggedKVCacheDispatched<
        HeadDim, HeadDim, MaskMode::kCausal, /*LEFT_SLIDING_WINDOW=*/false,
        /*SAME_SCHEDULE_FOR_ALL_HEADS=*/false, flashinfer::StandardAttention>(params, /*enable_pdl=*/false,
                                                                              stream);
  });
}

template struct WidePrefill<NT_DTYPE, NT_HEAD_DIM>;
template struct FreshPrefill<NT_DTYPE, NT_HEAD_DIM>;

}  // namespace nt::kernels::fi
