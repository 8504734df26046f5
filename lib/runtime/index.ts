export { followSignal } from './abort_signals'
export { ArgumentReader, closest, describeValue, invalidArgument } from './argument_reader'
export { buildEngine, type BuiltOnnxEngine } from './build_engine'
export type { OnnxBuildOptions, OnnxBuildProgress } from './build_options'
export { type AllocateOptions, type BufferLayout, type BufferSize, DeviceBuffer, MemoryBuffer, PinnedBuffer } from './buffers'
export { CudaGraph } from './cuda_graph'
export { DATA_TYPES, type DataType, type TensorData, type TensorDataTypes } from './dtype'
export { Engine, type EngineLayers, type EngineLoadOptions } from './engine'
export {
  type EngineFolder,
  isEngineFolder,
  locateWeights,
  readEngineFolder,
  readEngineManifest,
  readPlan,
  requireFit,
  requireUsable,
  requireWritable,
  verifyPlan,
  writeEngineFolder,
  writeVerification,
  type WeightsOptions,
} from './engine_folder'
export { type EngineInfo, type ProfileInfo, type ShapeRange, type TensorInfo } from './engine_info'
export { Event } from './event'
export { type ContextOptions, ExecutionContext, type OutputView, type SetTensorOptions } from './execution_context'
export { sha256File } from './file_hash'
export { type GpuInfo, gpus } from './gpus'
export { NativeHandle, type WaitOptions } from './handle'
export { KvCache, type KvCacheOptions, type KvDataType, type KvGeometry, type KvPageOptions } from './kv_cache'
export type { KvCacheStats, KvPageTables, KvSequence } from './kv_pages'
export type { LayerTime } from './layer_profile'
export { guardListener, tellListener } from './listeners'
export { type LoggerOptions, type LogLine, type LogSeverity, setLogger } from './logger'
export {
  ENGINE_FORMAT,
  type EngineKind,
  type EngineManifest,
  formatCudaVersion,
  formatLibraryVersion,
  type LLMEngineManifest,
  parseManifest,
  type WeightFile,
} from './manifest'
export type { LayerRule, OnnxBuildFlags, OnnxEngineManifest, OnnxReference } from './onnx_manifest'
export {
  type OnnxExternalFile,
  type OnnxModelInfo,
  type OnnxNode,
  type OnnxTensorInfo,
  readOnnxModel,
  requireExternalFiles,
} from './onnx_model'
export { inspectOnnxModel, type OnnxProblem, type OnnxSupport, type OnnxSupportOptions } from './onnx_support'
export { checkInputProfiles, type InputProfile, type InputRange } from './onnx_profiles'
export { checkProfiles, DEFAULT_MAX_STEP_TOKENS, defaultHeadProfiles, defaultProfiles, packProfiles, type RowProfile } from './profiles'
export { type DeviceCounters, type EventOptions, type MemoryFigures, Runtime, type RuntimeInfo, type RuntimeOptions } from './runtime'
export {
  type BatchingOptions,
  type DurationStats,
  type LaneStats,
  type OutputMap,
  type RaggedDimension,
  type RunOptions,
  Session,
  type SessionCloseOptions,
  type SessionInfo,
  type SessionLoadOptions,
  type SessionOptions,
  type SessionStats,
  type SessionWarning,
  type TensorMap,
  type TensorSignature,
} from './session'
export { type CopyOptions, type CopyRowsOptions, type FillOptions, Stream, type StreamCounters, type StreamOptions } from './stream'
export { type AnyTensor, Tensor } from './tensor'
export type { Float16ArrayLike, TensorSource } from './tensor_data'
export { tryEngine, type TryEngineOptions, type TryEngineResult } from './try_engine'
export { type EngineVerification, excesses, requireVerifiedFit, type VerificationLimits } from './verification'
