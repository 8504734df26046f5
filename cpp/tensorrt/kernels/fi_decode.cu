// FlashInfer's decode kernel: one query row a sequence, on CUDA cores, with the KV cache split among blocks.
#include <flashinfer/attention/decode.cuh>

#include "tensorrt/kernels/fi_unit.cuh"

namespace nt::kernels::fi {

namespace {

using Params = flashinfer::BatchDecodeParams<Element, Element, Element, int32_t>;
constexpr auto kNoPositions = flashinfer::PosEncodingMode::kNone;

// The split is planned with the variant that has no window: a window only skips keys inside a chunk.
using PlanVariant = Variant<false>;

template <bool Window>
cudaError_t launch(Params params, Element* partial, float* partialLse, bool overlap, cudaStream_t stream) {
  return flashinfer::BatchDecodeWithPagedKVCacheDispatched<NT_HEAD_DIM, kNoPositions, Variant<Window>>(
      params, partial, partialLse, overlap, stream);
}

}  // namespace

template <DType Type, uint32_t HeadDim>
cudaError_t Decode<Type, HeadDim>::plan(const Workspace& ws, const PlanArgs& args, Plan* plan,
                                        cudaStream_t stream) noexcept {
  if (args.rows != args.batch || args.kvHeads == 0) return cudaErrorInvalidValue;
  return guarded([&] {
    flashinfer::DecodePlanInfo info;
    cudaError_t status = cudaErrorInvalidConfiguration;
    DISPATCH_GQA_GROUP_SIZE(args.heads / args.kvHeads, GROUP_SIZE, {
      auto estimate =
          flashinfer::BatchDecodeWithPagedKVCacheWorkEstimationDispatched<GROUP_SIZE, HeadDim, kNoPositions,
                                                                          PlanVariant, Params>;
      status = flashinfer::DecodePlan<HeadDim, kNoPositions, PlanVariant, Params>(
          ws.floats, ws.floatBytes, ws.ints, ws.intsHost, ws.intBytes, info, mutablePointer(args.kvIndptr),
          args.batch, args.heads, args.pageSize, args.cudaGraph, stream, estimate);
    });
    if (status == cudaSuccess) pack(info, plan);
    return status;
  });
}

template <DType Type, uint32_t HeadDim>
cudaError_t Decode<Type, HeadDim>::run(const Workspace& ws, const Plan& plan, const AttentionArgs& args,
                                       cudaStream_t stream) noexcept {
  return guarded([&] {
    using flashinfer::GetPtrFromBaseOffset;
    const auto info = unpack<flashinfer::DecodePlanInfo>(plan);
    auto params = attentionParams<Params>(args);
    params.request_indices = GetPtrFromBaseOffset<int32_t>(ws.ints, info.request_indices_offset);
    params.kv_tile_indices = GetPtrFromBaseOffset<int32_t>(ws.ints, info.kv_tile_indices_offset);
    params.o_indptr = GetPtrFromBaseOffset<int32_t>(ws.ints, info.o_indptr_offset);
    params.kv_chunk_size_ptr = GetPtrFromBaseOffset<int32_t>(ws.ints, info.kv_chunk_size_ptr_offset);
    params.padded_batch_size = static_cast<uint32_t>(info.padded_batch_size);
    Element* partial = nullptr;
    float* partialLse = nullptr;
    if (info.split_kv) {
      partial = GetPtrFromBaseOffset<Element>(ws.floats, info.v_offset);
      partialLse = GetPtrFromBaseOffset<float>(ws.floats, info.s_offset);
      if (info.enable_cuda_graph)
        params.block_valid_mask = GetPtrFromBaseOffset<bool>(ws.ints, info.block_valid_mask_offset);
    }
    return args.window > 0 ? launch<true>(params, partial, partialLse, args.overlap, stream)
                           : launch<false>(params, partial, partialLse, args.overlap, stream);
  });
}

template struct Decode<NT_DTYPE, NT_HEAD_DIM>;

}  // namespace nt::kernels::fi
