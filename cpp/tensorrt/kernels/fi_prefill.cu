// FlashInfer's FA2 prefill kernel over pages, causal: any number of query rows a sequence, on tensor cores.
#include <flashinfer/attention/prefill.cuh>

#include "tensorrt/kernels/fi_unit.cuh"
#include "tensorrt/kernels/launch.cuh"

namespace nt::kernels::fi {

namespace {

using Params = flashinfer::BatchPrefillPagedParams<Element, Element, Element, int32_t>;

template <bool Window>
cudaError_t launch(uint32_t ctaTileQ, const Params& params, Element* partial, float* partialLse, bool overlap,
                   cudaStream_t stream) {
  cudaError_t status = cudaErrorInvalidConfiguration;
  DISPATCH_CTA_TILE_Q(ctaTileQ, CTA_TILE_Q, {
    status = flashinfer::BatchPrefillWithPagedKVCacheDispatched<
        /*SAME_KV_STRIDES=*/true, CTA_TILE_Q, NT_HEAD_DIM, NT_HEAD_DIM, flashinfer::PosEncodingMode::kNone,
        /*USE_FP16_QK_REDUCTION=*/false, flashinfer::MaskMode::kCausal, Variant<Window>, Params>(
        params, partial, partialLse, overlap, stream);
  });
  return status;
}

// Whether the planner may cut keys into chunks that are merged afterwards. Merging costs more than the
// attention itself where the queries fill the device anyway (512 tokens, 32 heads: 46 us against 21); it pays
// where few blocks read long contexts.
bool mayCutKeys(const PlanArgs& args) {
  constexpr int64_t kRowsOfBlock = 128;
  constexpr int64_t kLongContext = 2048;
  int processors = 0;
  if (multiprocessorCount(&processors) != cudaSuccess) return true;
  const int64_t group = args.heads / args.kvHeads;
  int64_t blocks = 0;
  for (uint32_t i = 0; i < args.batch; ++i) {
    const int64_t rows = args.qIndptr[i + 1] - args.qIndptr[i];
    const int64_t keys = static_cast<int64_t>(args.kvIndptr[i + 1] - args.kvIndptr[i]) * args.pageSize;
    if (keys > kLongContext) return true;
    blocks += (rows * group + kRowsOfBlock - 1) / kRowsOfBlock * args.kvHeads;
  }
  return blocks * 4 < static_cast<int64_t>(processors) * 3;
}

}  // namespace

template <DType Type, uint32_t HeadDim>
cudaError_t Prefill<Type, HeadDim>::plan(const Workspace& ws, const PlanArgs& args, Plan* plan,
                                         cudaStream_t stream) noexcept {
  if (args.kvHeads == 0 || args.batch == 0) return cudaErrorInvalidValue;
  // Without a graph the merge of partial outputs runs over as many rows as the plan says, and only real rows
  // have any.
  const uint32_t rows = args.cudaGraph ? args.rows : static_cast<uint32_t>(args.qIndptr[args.batch]);
  if (rows < static_cast<uint32_t>(args.qIndptr[args.batch]) || rows < args.batch)
    return cudaErrorInvalidValue;
  return guarded([&] {
    flashinfer::PrefillPlanInfo info;
    const cudaError_t status = flashinfer::PrefillPlan<int32_t>(
        ws.floats, ws.floatBytes, ws.ints, ws.intsHost, ws.intBytes, info, mutablePointer(args.qIndptr),
        mutablePointer(args.kvIndptr), rows, args.batch, args.heads, args.kvHeads, HeadDim, HeadDim,
        args.pageSize, args.cudaGraph, /*sizeof_dtype_o=*/sizeof(Element), windowLeft(args.window),
        /*fixed_split_size=*/-1,
        // A graph's launch is shaped for cut keys, whatever the lengths.
        /*disable_split_kv=*/!args.cudaGraph && !mayCutKeys(args), /*num_colocated_ctas=*/0,
        // 0: where rows == batch the planner sees by itself that each sequence has one row.
        /*uniform_q_len=*/0, stream, sizeof(Element));
    if (status == cudaSuccess) pack(info, plan);
    return status;
  });
}

template <DType Type, uint32_t HeadDim>
cudaError_t Prefill<Type, HeadDim>::run(const Workspace& ws, const Plan& plan, const AttentionArgs& args,
                                        cudaStream_t stream) noexcept {
  return guarded([&] {
    using flashinfer::GetPtrFromBaseOffset;
    const auto info = unpack<flashinfer::PrefillPlanInfo>(plan);
    auto params = attentionParams<Params>(args);
    params.q_indptr = mutablePointer(args.qIndptr);
    params.group_size = flashinfer::uint_fastdiv(args.heads / args.kv.kvHeads);
    params.request_indices = GetPtrFromBaseOffset<int32_t>(ws.ints, info.request_indices_offset);
    params.qo_tile_indices = GetPtrFromBaseOffset<int32_t>(ws.ints, info.qo_tile_indices_offset);
    params.kv_tile_indices = GetPtrFromBaseOffset<int32_t>(ws.ints, info.kv_tile_indices_offset);
    params.o_indptr = GetPtrFromBaseOffset<int32_t>(ws.ints, info.o_indptr_offset);
    params.kv_chunk_size_ptr = GetPtrFromBaseOffset<int32_t>(ws.ints, info.kv_chunk_size_ptr_offset);
    params.padded_batch_size = static_cast<uint32_t>(info.padded_batch_size);
    params.max_total_num_rows = static_cast<uint32_t>(info.total_num_rows);
    Element* partial = nullptr;
    float* partialLse = nullptr;
    if (info.split_kv) {
      params.merge_indptr = GetPtrFromBaseOffset<int32_t>(ws.ints, info.merge_indptr_offset);
      partial = GetPtrFromBaseOffset<Element>(ws.floats, info.v_offset);
      partialLse = GetPtrFromBaseOffset<float>(ws.floats, info.s_offset);
    }
    if (info.enable_cuda_graph) {
      params.total_num_rows = GetPtrFromBaseOffset<uint32_t>(ws.ints, info.total_num_rows_offset);
      // Needed without a split too: the launch is padded, and the tables end at the real blocks.
      params.block_valid_mask = GetPtrFromBaseOffset<bool>(ws.ints, info.block_valid_mask_offset);
    }
    const auto tile = static_cast<uint32_t>(info.cta_tile_q);
    return args.window > 0 ? launch<true>(tile, params, partial, partialLse, args.overlap, stream)
                           : launch<false>(tile, params, partial, partialLse, args.overlap, stream);
  });
}

template struct Prefill<NT_DTYPE, NT_HEAD_DIM>;

}  // namespace nt::kernels::fi
