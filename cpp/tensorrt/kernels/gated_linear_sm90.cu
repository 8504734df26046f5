// CUTLASS's warp-specialised kernels for Hopper. A tile of the product holds as many columns of the gate as
// of up, so that each thread's accumulators hold both of an output: the epilogue multiplies them and stores a
// tile of half the width.
#define CUTE_SM90_EXTENDED_MMA_SHAPES_ENABLED  // widths other than powers of two
#define CUTLASS_ENABLE_GDC_FOR_SM90  // waits for the kernel before it (programmatic dependent launch)
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <array>
#include <type_traits>

#include "cutlass/cutlass.h"
#include "cutlass/epilogue/collective/collective_builder.hpp"
#include "cutlass/gemm/collective/collective_builder.hpp"
#include "cutlass/gemm/device/gemm_universal_adapter.h"
#include "cutlass/gemm/kernel/gemm_universal.hpp"
#include "tensorrt/kernels/gated_linear_sm90.h"
#include "tensorrt/kernels/launch.cuh"

namespace nt::kernels {

namespace {

using namespace cute;

constexpr bool kIsHalf = std::is_same_v<NT_T, __half>;
using Element = std::conditional_t<kIsHalf, cutlass::half_t, cutlass::bfloat16_t>;
using Pair = std::conditional_t<kIsHalf, __half2, __nv_bfloat162>;
using RowMajor = cutlass::layout::RowMajor;
using ColumnMajor = cutlass::layout::ColumnMajor;

template <class P>
CUTLASS_DEVICE P toPair(float x, float y) {
  if constexpr (std::is_same_v<P, __half2>) {
    return __floats2half2_rn(x, y);
  } else {
    return __floats2bfloat162_rn(x, y);
  }
}
template <class P>
CUTLASS_DEVICE float2 toFloats(P pair) {
  if constexpr (std::is_same_v<P, __half2>) {
    return __half22float2(pair);
  } else {
    return __bfloat1622float2(pair);
  }
}

// Rounded as activate() of gate.cuh; division by the reciprocal.
CUTLASS_DEVICE float2 gated(float gate0, float gate1, float up0, float up1) {
  const float2 f = toFloats(toPair<Pair>(gate0, gate1));
  const Pair active =
      toPair<Pair>(__fdividef(f.x, 1.0F + __expf(-f.x)), __fdividef(f.y, 1.0F + __expf(-f.y)));
  return toFloats(__hmul2(active, toPair<Pair>(up0, up1)));
}

// Reads the weight [2n, k] as it is stored: the first half of a tile's rows are the gate's, the second are
// up's of the same columns. The halves lie n rows apart: TMA sees [2, n, k], and what is beyond n is zero. A
// cluster of two blocks loads a tile together, each its half.
template <class Base>
class StackedMainloop : public Base {
 public:
  using typename Base::Arguments;
  using typename Base::Params;
  using typename Base::TileShape;

  static_assert(size<0>(typename Base::DispatchPolicy::ClusterShape{}) == 2);

  template <class ProblemShape>
  static constexpr Params to_underlying_arguments(const ProblemShape& shape, const Arguments& args,
                                                  void* workspace) {
    Params params = Base::to_underlying_arguments(shape, args, workspace);
    const int32_t n = get<1>(shape) / 2;
    const int32_t k = get<2>(shape);
    auto strides = args.dB;
    get<2>(strides) = int64_t{n} * k;
    params.tma_load_b =
        make_tma_copy_B_sm90(typename Base::GmemTiledCopyB{},
                             make_tensor(reinterpret_cast<const typename Base::InternalElementB*>(args.ptr_B),
                                         make_layout(make_shape(n, k, int32_t{2}), strides)),
                             typename Base::SmemLayoutB{}(_, _, Int<0>{}), TileShape{},
                             typename Base::DispatchPolicy::ClusterShape{});
    return params;
  }

  template <class ProblemShape>
  CUTLASS_DEVICE auto load_init(const ProblemShape& shape, const Params& params) const {
    auto inputs = Base::load_init(shape, params);
    const auto [m, n, k, l] = shape;
    const Tensor weight = params.tma_load_b.get_tma_tensor(make_shape(n / 2, k, Int<2>{}));  // (n,k,half)
    const Tensor halves =
        local_tile(weight, make_shape(Int<size<1>(TileShape{}) / 2>{}, size<2>(TileShape{})),
                   make_coord(_, _, _));  // (N/2,BLK_K,n,k,half)
    const auto of = halves.layout();
    // (BLK_N,BLK_K,n,k,l), where BLK_N = (N/2,half)
    const Tensor tiles = make_tensor(
        halves.data(), make_layout(make_layout(layout<0>(of), layout<4>(of)), layout<1>(of), layout<2>(of),
                                   layout<3>(of), make_layout(Int<1>{}, stride<4>(of))));
    return cute::make_tuple(get<0>(inputs), tiles);
  }
};

// An epilogue of tiles of half the columns behind a mainloop of whole ones.
template <class Base, class HalfTile, class HalfMma, bool IsCooperative>
class GatedEpilogue : public Base {
 public:
  using Base::Base;
  using typename Base::Arguments;
  using typename Base::LoadPipeline;
  using typename Base::LoadPipelineState;
  using typename Base::Params;
  using typename Base::StorePipeline;
  using typename Base::StorePipelineState;
  using typename Base::TensorStorage;

  template <class Shape>
  CUTLASS_HOST_DEVICE static constexpr auto half(const Shape& shape) {
    auto result = shape;
    get<1>(result) = get<1>(shape) / 2;
    return result;
  }
  template <class Shape>
  static constexpr Params to_underlying_arguments(const Shape& shape, const Arguments& args,
                                                  void* workspace) {
    return Base::to_underlying_arguments(half(shape), args, workspace);
  }
  // One for cooperative kernels: more would let a scheduler reduce parts of tiles by themselves.
  template <class Tile>
  CUTLASS_HOST_DEVICE static constexpr int get_load_pipe_increment(Tile) {
    return IsCooperative ? 1 : Base::get_load_pipe_increment(HalfTile{});
  }
  template <class Tile>
  CUTLASS_HOST_DEVICE static constexpr int get_store_pipe_increment(Tile) {
    return IsCooperative ? 1 : Base::get_store_pipe_increment(HalfTile{});
  }

  template <class Shape, class Tile, class Coordinates, class Engine, class Layout, class Mma>
  CUTLASS_DEVICE auto store(LoadPipeline load, LoadPipelineState loadState, StorePipeline store,
                            StorePipelineState storeState, Shape shape, Tile, Coordinates at,
                            cute::Tensor<Engine, Layout> whole, Mma, int thread, TensorStorage& shared,
                            int subtile = -1) {
    // ((2,2,N/16),MMA_M,1): two neighbouring columns, two rows, each 8th column
    Tensor part = partition_fragment_C(HalfMma{}, take<0, 2>(HalfTile{}));
    constexpr int kColumns = size<0, 2>(part);
    static_assert(size<2>(Layout{}) == 1 && size<2>(part) == 1,
                  "One instruction must span the tile's columns");
    static_assert(size(Layout{}) == 2 * size(part) && size<1>(Layout{}) == size<1>(part));
    static_assert(size<0, 0>(Layout{}) == 2 && size<0, 1>(Layout{}) == 2 &&
                  size<0, 2>(Layout{}) == 2 * kColumns);
    CUTLASS_PRAGMA_UNROLL
    for (int m = 0; m < size<1>(part); ++m) {
      CUTLASS_PRAGMA_UNROLL
      for (int j = 0; j < kColumns; ++j) {
        CUTLASS_PRAGMA_UNROLL
        for (int row = 0; row < 2; ++row) {
          const auto in = [&](int e, int column) { return whole(make_coord(e, row, column), m, 0); };
          const float2 y = gated(in(0, j), in(1, j), in(0, j + kColumns), in(1, j + kColumns));
          part(make_coord(0, row, j), m, 0) = y.x;
          part(make_coord(1, row, j), m, 0) = y.y;
        }
      }
    }
    return Base::store(load, loadState, store, storeState, half(shape), HalfTile{}, at, part, HalfMma{},
                       thread, shared, subtile);
  }
};

constexpr int32_t kTileRows = 128;
constexpr int32_t kClusterSize = 2;  // blocks of neighbouring rows

// Columns are the product's, of gate and up.
template <int Columns, class Schedule>
struct Tiling {
  static constexpr bool kCooperative =
      std::is_same_v<Schedule, cutlass::gemm::KernelTmaWarpSpecializedCooperative>;
  using Tile = Shape<Int<kTileRows>, Int<Columns>, _64>;
  using HalfTile = Shape<Int<kTileRows>, Int<Columns / 2>, _64>;
  using Cluster = Shape<Int<kClusterSize>, _1, _1>;
  using Atoms = std::conditional_t<kCooperative, Layout<Shape<_2, _1, _1>>, Layout<Shape<_1, _1, _1>>>;
  using HalfMma = decltype(make_tiled_mma(
      GMMA::ss_op_selector<Element, Element, float, HalfTile, GMMA::Major::K, GMMA::Major::K>(), Atoms{}));
  using Epilogue =
      GatedEpilogue<typename cutlass::epilogue::collective::CollectiveBuilder<
                        cutlass::arch::Sm90, cutlass::arch::OpClassTensorOp, HalfTile, Cluster,
                        cutlass::epilogue::collective::EpilogueTileAuto, float, float, void, RowMajor, 8,
                        Element, RowMajor, 8,
                        std::conditional_t<kCooperative, cutlass::epilogue::TmaWarpSpecializedCooperative,
                                           cutlass::epilogue::TmaWarpSpecialized>>::CollectiveOp,
                    HalfTile, HalfMma, kCooperative>;
  using Mainloop = StackedMainloop<typename cutlass::gemm::collective::CollectiveBuilder<
      cutlass::arch::Sm90, cutlass::arch::OpClassTensorOp, Element, RowMajor, 8, Element, ColumnMajor, 8,
      float, Tile, Cluster,
      cutlass::gemm::collective::StageCountAutoCarveout<static_cast<int>(
          sizeof(typename Epilogue::TensorStorage))>,
      Schedule>::CollectiveOp>;
  using Kernel = cutlass::gemm::kernel::GemmUniversal<Shape<int, int, int, int>, Mainloop, Epilogue,
                                                      cutlass::gemm::PersistentScheduler>;
};

using Narrow = Tiling<176, cutlass::gemm::KernelTmaWarpSpecializedCooperative>;
using Wide = Tiling<224, cutlass::gemm::KernelTmaWarpSpecializedCooperative>;
// Takes the least power for a product, and many rows are bound by the device's limit of it.
using Widest = Tiling<256, cutlass::gemm::KernelTmaWarpSpecializedCooperative>;
// Two tiles at a time, one's epilogue beside the other's products.
using Alternating = Tiling<128, cutlass::gemm::KernelTmaWarpSpecializedPingpong>;

template <class Tiling>
cudaError_t launch(const GatedLinearArgs& args, int processors, bool overlap, cudaStream_t stream) {
  using Kernel = typename Tiling::Kernel;
  typename Kernel::Arguments from{};
  from.mode = cutlass::gemm::GemmUniversalMode::kGemm;
  from.problem_shape = {args.rows, 2 * args.n, args.k, 1};
  from.mainloop.ptr_A = static_cast<const Element*>(args.x);
  from.mainloop.ptr_B = static_cast<const Element*>(args.weight);
  get<0>(from.mainloop.dA) = args.k;
  get<0>(from.mainloop.dB) = args.k;
  from.epilogue.thread.alpha = 1;
  from.epilogue.thread.beta = 0;
  from.epilogue.ptr_D = static_cast<Element*>(args.y);
  get<0>(from.epilogue.dD) = args.n;
  from.hw_info.sm_count = processors - processors % kClusterSize;  // a grid of whole clusters
  // Down the rows first: x stays in the L2 cache while the weight is read once. Beyond 4096 rows x has no
  // room there, and a few columns of tiles go together.
  using Raster = std::remove_cvref_t<decltype(from.scheduler.raster_order)>;
  from.scheduler.raster_order = Raster::AlongM;
  from.scheduler.max_swizzle_size = args.rows > 4096 ? 8 : 1;

  const auto params = Kernel::to_underlying_arguments(from, nullptr);
  const auto kernel = cutlass::device_kernel<Kernel>;
  // Of the device's context: nothing remembers for which it was done.
  const cudaError_t error =
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, Kernel::SharedStorageSize);
  if (error != cudaSuccess) return error;
  std::array<cudaLaunchAttribute, 2> attributes{};
  attributes[0].id = cudaLaunchAttributeClusterDimension;
  attributes[0].val.clusterDim.x = kClusterSize;
  attributes[0].val.clusterDim.y = 1;
  attributes[0].val.clusterDim.z = 1;
  attributes[1].id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attributes[1].val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = Kernel::get_grid_shape(params);
  config.blockDim = Kernel::get_block_shape();
  config.dynamicSmemBytes = Kernel::SharedStorageSize;
  config.stream = stream;
  config.attrs = attributes.data();
  config.numAttrs = overlap ? 2 : 1;
  return cudaLaunchKernelEx(&config, kernel, params);
}

// In columns: the time goes by a launch's rounds and how wide they are.
int64_t costOf(const GatedLinearArgs& args, int64_t columns, int64_t processors) {
  const auto roundedUp = [](int64_t count, int64_t step) { return (count + step - 1) / step; };
  const int64_t tiles =
      roundedUp(args.rows, kTileRows * kClusterSize) * kClusterSize * roundedUp(2 * int64_t{args.n}, columns);
  return roundedUp(tiles, processors) * columns;
}

}  // namespace

template <DType Type>
cudaError_t gatedLinearSm90(const GatedLinearArgs& args, bool overlap, cudaStream_t stream) noexcept {
  int processors = 0;
  if (const cudaError_t error = multiprocessorCount(&processors); error != cudaSuccess) return error;
  if (args.rows > 512) {
    return costOf(args, 256, processors) <= costOf(args, 128, processors)
               ? launch<Widest>(args, processors, overlap, stream)
               : launch<Alternating>(args, processors, overlap, stream);
  }
  return costOf(args, 224, processors) < costOf(args, 176, processors)
             ? launch<Wide>(args, processors, overlap, stream)
             : launch<Narrow>(args, processors, overlap, stream);
}

template cudaError_t gatedLinearSm90<NT_DTYPE>(const GatedLinearArgs&, bool, cudaStream_t) noexcept;

}  // namespace nt::kernels
