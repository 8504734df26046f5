// FlashInfer's FA3 prefill kernel over pages, causal, for Hopper: query rows in tiles of 128 (192 at head
// size 64), wgmma, keys never cut. Not in one unit with FA2: both define flashinfer::BatchPrefillPagedParams.
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

template <bool SameSchedule>
cudaError_t launch(Params& params, cudaStream_t stream) {
  return flashinfer::BatchPrefillWithPagedKVCacheDispatched<NT_HEAD_DIM, NT_HEAD_DIM, MaskMode::kCausal,
                                                            /*LEFT_SLIDING_WINDOW=*/false, SameSchedule,
                                                            flashinfer::StandardAttention>(
      params, /*enable_pdl=*/false, stream);
}

}  // namespace

template <DType Type, uint32_t HeadDim>
cudaError_t WidePrefill<Type, HeadDim>::plan(const Workspace& ws, const PlanArgs& args, Plan* plan,
                                             cudaStream_t stream) noexcept {
  if (args.kvHeads == 0 || args.batch == 0 || args.window > 0 || args.cudaGraph) return cudaErrorInvalidValue;
  return guarded([&] {
    // The planner writes to none of them.
    auto* qIndptr = const_cast<int32_t*>(args.qIndptr);
    auto* kvIndptr = const_cast<int32_t*>(args.kvIndptr);
    std::vector<int32_t> keys(args.batch);
    for (uint32_t i = 0; i < args.batch; ++i) {
      const int32_t pages = kvIndptr[i + 1] - kvIndptr[i];
      keys[i] = pages == 0 ? 0 : (pages - 1) * static_cast<int32_t>(args.pageSize) + args.lastPageLen[i];
    }
    flashinfer::PrefillPlanSM90Info info;
    const cudaError_t status = flashinfer::PrefillSM90Plan<int32_t>(
        ws.floats, ws.floatBytes, ws.ints, ws.intsHost, ws.intBytes, info, qIndptr, kvIndptr, keys.data(),
        static_cast<uint32_t>(qIndptr[args.batch]), args.batch, args.heads, args.kvHeads, HeadDim, HeadDim,
        args.pageSize, /*causal=*/true, /*enable_cuda_graph=*/false, sizeof(Element), stream);
    if (status != cudaSuccess) return status;
    const std::vector<int64_t> values = info.ToVector();
    plan->count = static_cast<int32_t>(values.size());
    for (size_t i = 0; i < values.size(); ++i) plan->values[i] = values[i];
    return status;
  });
}

template <DType Type, uint32_t HeadDim>
cudaError_t WidePrefill<Type, HeadDim>::run(const Workspace& ws, const Plan& plan, const AttentionArgs& args,
                                            cudaStream_t stream) noexcept {
  return guarded([&] {
    flashinfer::PrefillPlanSM90Info info;
    info.FromVector(std::vector<int64_t>(plan.values.begin(), plan.values.begin() + plan.count));
    const auto at = [&](int64_t offset) {
      return flashinfer::GetPtrFromBaseOffset<int32_t>(ws.ints, offset);
    };
    Params params{};
    params.q_ptr = static_cast<Element*>(const_cast<void*>(args.q));
    params.k_ptr = static_cast<Element*>(args.kv.k);
    params.v_ptr = static_cast<Element*>(args.kv.v);
    params.o_ptr = static_cast<Element*>(args.out);
    params.q_stride_n = params.o_stride_n = static_cast<int64_t>(args.heads) * HeadDim;
    params.q_stride_h = params.o_stride_h = HeadDim;
    params.k_stride_n = params.v_stride_n = args.kv.tokenStride;
    params.k_stride_h = params.v_stride_h = args.kv.headStride;
    params.k_page_stride = params.v_page_stride = args.kv.pageStride;
    params.nnz_qo = args.rows;
    params.num_qo_heads = static_cast<int>(args.heads);
    params.num_kv_heads = static_cast<int>(args.kv.kvHeads);
    params.group_size = static_cast<int>(args.heads / args.kv.kvHeads);
    params.page_size = static_cast<int>(args.kv.pageSize);
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
    params.kv_indices = const_cast<int32_t*>(args.kv.indices);
    return info.same_schedule_for_all_heads ? launch<true>(params, stream) : launch<false>(params, stream);
  });
}

template struct WidePrefill<NT_DTYPE, NT_HEAD_DIM>;

}  // namespace nt::kernels::fi
