// A C surface over the attention kernels for attention_check.py (ctypes).
#include <cstdint>
#include <cstring>
#include <vector>

#include "tensorrt/kernels/attention.h"

extern "C" {

// Everything one step needs; the layout is mirrored in attention_check.py.
struct CheckArgs {
  int32_t type;   // 0 float32, 1 float16, 2 bfloat16
  int32_t path;   // 0 prefill, 1 decode
  int32_t plain;  // 1: the plain kernels
  int32_t graph;  // 1: plan for a CUDA graph, and run from a captured one
  int32_t heads, kvHeads, headDim, pageSize, window;
  uint32_t rows, batch;
  float scale;
  const void* qkv;  // device [rows, (heads + 2 kvHeads) * headDim]
  void *rotated, *out, *pool;
  const float* cosSin;
  const int32_t *batchIndices, *positions, *qIndptr, *kvIndptr, *kvIndices, *lastPageLen;  // device
  const int32_t *qIndptrHost, *kvIndptrHost;
  void* floats;
  uint64_t floatBytes;
  void *ints, *intsHost;
  uint64_t intBytes;
};

__attribute__((visibility("default"))) int checkStep(const CheckArgs* a) {
  using namespace nt::kernels;
  const auto type = static_cast<nt::DType>(a->type);
  const AttentionKernels* kernels =
      findAttentionKernels(type, static_cast<uint32_t>(a->headDim), a->plain != 0);
  if (kernels == nullptr) return -1;
  const int64_t bytes = static_cast<int64_t>(nt::sizeOf(type));
  PagedKv kv;
  kv.headStride = a->headDim;
  kv.tokenStride = int64_t{a->kvHeads} * a->headDim;
  kv.pageStride = 2 * a->pageSize * kv.tokenStride;
  kv.k = a->pool;
  kv.v = static_cast<char*>(a->pool) + kv.pageStride / 2 * bytes;
  kv.indices = a->kvIndices;
  kv.indptr = a->kvIndptr;
  kv.lastPageLen = a->lastPageLen;
  kv.batch = a->batch;
  kv.kvHeads = static_cast<uint32_t>(a->kvHeads);
  kv.pageSize = static_cast<uint32_t>(a->pageSize);
  const Workspace ws{a->floats, a->floatBytes, a->ints, a->intsHost, a->intBytes};
  const auto heads = static_cast<uint32_t>(a->heads);

  RopeAppendArgs append;
  append.q = a->qkv;
  append.k = static_cast<const char*>(a->qkv) + int64_t{a->heads} * a->headDim * bytes;
  append.v = static_cast<const char*>(a->qkv) + int64_t{a->heads + a->kvHeads} * a->headDim * bytes;
  append.rowStride = int64_t{a->heads + 2 * a->kvHeads} * a->headDim;
  append.qOut = a->rotated;
  append.kv = kv;
  append.batchIndices = a->batchIndices;
  append.positions = a->positions;
  append.cosSin = a->cosSin;
  append.rows = a->rows;
  append.heads = heads;

  AttentionArgs attention;
  attention.q = a->rotated;
  attention.out = a->out;
  attention.qIndptr = a->qIndptr;
  attention.batchIndices = a->batchIndices;
  attention.positions = a->positions;
  attention.kv = kv;
  attention.rows = a->rows;
  attention.heads = heads;
  attention.scale = a->scale;
  attention.window = a->window;

  cudaStream_t stream = nullptr;
  cudaError_t status = cudaStreamCreate(&stream);
  if (status != cudaSuccess) return status;
  std::vector<int32_t> lastPageLen(a->batch);
  status = cudaMemcpy(lastPageLen.data(), a->lastPageLen, lastPageLen.size() * sizeof(int32_t),
                      cudaMemcpyDeviceToHost);
  if (status != cudaSuccess) return status;
  Plan plan;
  const PlanArgs planArgs{a->qIndptrHost,
                          a->kvIndptrHost,
                          lastPageLen.data(),
                          a->rows,
                          a->batch,
                          heads,
                          static_cast<uint32_t>(a->kvHeads),
                          static_cast<uint32_t>(a->pageSize),
                          a->window,
                          a->graph != 0};
  const auto path = a->path == 1 ? nt::AttentionPath::kDecode : nt::AttentionPath::kPrefill;
  status = (*kernels)[path].plan(ws, planArgs, &plan, stream);
  if (status != cudaSuccess) return status;
  const auto run = [&] {
    const cudaError_t first = kernels->ropeAppend(append, stream);
    return first != cudaSuccess ? first : (*kernels)[path].run(ws, plan, attention, stream);
  };
  if (a->graph != 0) {
    cudaGraph_t graph = nullptr;
    cudaGraphExec_t exec = nullptr;
    status = cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal);
    if (status != cudaSuccess) return status;
    const cudaError_t ran = run();
    status = cudaStreamEndCapture(stream, &graph);
    if (ran != cudaSuccess) return ran;
    if (status == cudaSuccess) status = cudaGraphInstantiate(&exec, graph, 0);
    if (status == cudaSuccess) status = cudaGraphLaunch(exec, stream);
    const cudaError_t synced = cudaStreamSynchronize(stream);
    cudaGraphExecDestroy(exec);
    cudaGraphDestroy(graph);
    if (status == cudaSuccess) status = synced;
  } else {
    status = run();
    const cudaError_t synced = cudaStreamSynchronize(stream);
    if (status == cudaSuccess) status = synced;
  }
  cudaStreamDestroy(stream);
  return status;
}
}
