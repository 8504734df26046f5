// FlashInfer's fused kernel: rotates q and k (the halves of a head form the pairs), writes k and v to their
// pages.
#include <flashinfer/pos_enc.cuh>

#include "tensorrt/kernels/fi_unit.cuh"

namespace nt::kernels::fi {

template <DType Type, uint32_t HeadDim>
cudaError_t RopeAppend<Type, HeadDim>::run(const RopeAppendArgs& args, cudaStream_t stream) noexcept {
  if (args.rows == 0) return cudaSuccess;  // an empty grid is a launch error
  const bool packed = args.qOutStride == 0 || args.qOutStride == static_cast<int64_t>(args.heads) * HeadDim;
  if (args.qOut == args.q || !packed || args.kOut != nullptr) return cudaErrorInvalidValue;
  return guarded([&] {
    const auto element = [](const void* p) { return static_cast<Element*>(const_cast<void*>(p)); };
    const auto row = static_cast<size_t>(args.rowStride);
    // The head is rotated whole, so there is no "nope" part; the quantisation scales are 1: the cache has q's
    // type.
    return flashinfer::RopeQuantizeAppendPagedKVCache<Element, int32_t, int32_t, Element>(
        element(args.q), element(args.k), /*q_nope_in=*/nullptr, /*k_nope_in=*/nullptr, element(args.v),
        static_cast<Element*>(args.qOut), /*q_nope_out=*/nullptr, toFlashInfer(args.kv),
        mutablePointer(args.batchIndices), mutablePointer(args.positions), mutablePointer(args.cosSin),
        mutablePointer(args.positions), args.rows, args.heads, args.kv.kvHeads, /*rope_dim=*/HeadDim,
        /*no_rope_dim=*/0, row, HeadDim, 0, 0, /*q_rope_out_stride=*/args.heads * HeadDim, HeadDim, 0, 0,
        /*k_rope_in_stride=*/row, HeadDim, 0, 0, /*v_in_stride=*/row, HeadDim, 1.0F, 1.0F,
        /*interleave=*/false, args.overlap, stream);
  });
}

template struct RopeAppend<NT_DTYPE, NT_HEAD_DIM>;

}  // namespace nt::kernels::fi
