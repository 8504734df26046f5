/**
 * The hand-typed surface of the native addon. Only this room touches a .node file; everything else imports these types.
 * A native call that fails throws, or rejects with, an Error that has `code` (an ErrorCode) and maybe `hint`;
 * `lib/native` turns it into a TensorRTError.
 */
import type { ExecutorInfo, SlotInit } from '../scheduler/executor'
import type { NativeOnnxExports } from './onnx_addon'
import type { NativeRuntimeExports } from './runtime_addon'

/** What a step's result looks like as it leaves C++: flat arrays, one call per step. */
export interface NativeStepResult {
  stepId: number
  /** '' when the step succeeded. */
  errorCode: string
  errorMessage: string
  retryable: boolean
  tokens: Int32Array
  /** `[rows, 5]`: sequence, position, token, rank, number of top entries. */
  logprobRows: Int32Array
  /** `[rows]` */
  logprobValues: Float32Array
  /** Concatenated over rows. */
  topIds: Int32Array
  topLogprobs: Float32Array
  logits: Float32Array
  hidden: Float32Array
  queueUs: number
  runUs: number
  /** -1: the backend has no clock of a device. */
  deviceUs: number
  /** Empty: not asked for, or the backend cannot tell. */
  partUs?: Float32Array
}

export interface NativeCpuOptions {
  /** The Graph as JSON text. */
  graph: string
  /** safetensors files, absolute paths. */
  files: string[]
  pageSize: number
  numPages: number
  maxSlots: number
  maxStepTokens: number
  /** 0 = as many as the process may use. */
  threads: number
  /** '' = the best the processor has; 'avx512' | 'avx2' | 'portable'. */
  simd: string
}

/** Why a part is unusable. */
export interface NativeProblem {
  /** An ErrorCode. */
  code: string
  message: string
  /** '' = none. */
  hint: string
}

export interface GpuFacts {
  name: string
  computeMajor: number
  computeMinor: number
  memoryBytes: number
}

/** What a machine has for TensorRT. Facts are filled as far as they were found, whatever the problems. */
export interface TensorRTFacts {
  /** Null = the driver is usable. */
  driver: NativeProblem | null
  /** '' = not found. */
  driverPath: string
  /** Newest CUDA that the driver serves: 1000 * major + 10 * minor; 0 = unknown. */
  driverCuda: number
  /** CUDA that the module needs, likewise. */
  requiredCuda: number
  gpus: GpuFacts[]
  /** Null = TensorRT's library is usable. */
  library: NativeProblem | null
  libraryPath: string
  /** 10000 * major + 100 * minor + patch; 0 = unknown. */
  libraryVersion: number
  /** "place: what the loader said" */
  placesLooked: string[]
  /** Null = engines can be built. Running them does not need it. */
  builderResource: NativeProblem | null
  builderResourcePath: string
}

export type Precision = 'bf16' | 'fp16' | 'fp32'

export interface NativeProbeOptions {
  modulePath: string
  /** libnvinfer or its folder; '' = TENSORRT_LIB_DIR, then the system's search path. */
  libraryPath: string
}

export interface NativeBuildOptions extends NativeProbeOptions {
  /** The Graph as JSON text. */
  graph: string
  device: number
  precision: Precision
  /** `[profiles, 3]`: min, opt and max rows; rows are the tokens of a step. */
  layerProfiles: Int32Array
  /** The same; rows are those whose logits are wanted. */
  headProfiles: Int32Array
  /** 0 ... 5; -1 = TensorRT's default. */
  optimizationLevel: number
  /** Limit for one kernel's scratch; 0 = TensorRT's default. */
  workspaceBytes: number
  /** Of an earlier build on the same machine; may be empty. */
  timingCache: Buffer
}

export interface NativeBuildProgress {
  /** Index of the engine that is built, and how many there are. */
  part: number
  parts: number
  /** TensorRT's name of what it does. */
  phase: string
  step: number
  /** 0 = unknown. */
  steps: number
}

/** One engine of a plan. */
export interface NativeBuildPart {
  name: string
  planBytes: number
  seconds: number
}

export interface NativeBuildResult {
  plan: Buffer
  timingCache: Buffer
  libraryVersion: number
  computeMajor: number
  computeMinor: number
  parts: NativeBuildPart[]
}

export interface NativeBuild {
  /** Rejects with ABORT_ERR after `cancel`. */
  promise: Promise<NativeBuildResult>
  /** Takes effect within about the time of one of TensorRT's steps. May be called at any time, also after the end. */
  cancel(): void
}

export interface NativeTensorRTOptions extends NativeProbeOptions {
  /** The Graph as JSON text: the one that the plan was built from. */
  graph: string
  /** Copied at the call. */
  plan: Buffer
  /** safetensors files, absolute paths. */
  files: string[]
  device: number
  pageSize: number
  /** 0 = as many as fit. */
  numPages: number
  /** Share of the free memory that the KV cache gets, where `numPages` is 0. In (0, 1]. */
  kvCacheFraction: number
  maxSlots: number
  maxStepTokens: number
  /** Capture decode steps. */
  cudaGraphs: boolean
  /** Attention without FlashInfer, for verification. */
  plainKernels: boolean
  /** The step with this number, from 1, faults on the device; 0 = none. For verification. */
  faultAtStep: number
}

/** A loaded backend. Every method is safe after close(): it throws ERR_DISPOSED. */
export interface NativeBackend {
  readonly info: ExecutorInfo
  /** Once. The thread-safe function behind it is ref'd only while a step is in flight. */
  start(onResult: (result: NativeStepResult) => void): void
  openSlot(init: SlotInit): void
  closeSlot(slot: number): void
  /** Copies the array. */
  setMask(slot: number, mask: Int32Array | null): void
  /** Copies the array. */
  submit(step: Int32Array): void
  /** Idempotent: every call returns a promise of the same end. */
  close(): Promise<void>
}

export interface NativeCpuFeatures {
  /** Processor's name, as the system gives it. */
  model: string
  /** Hardware threads that this process may use. */
  threads: number
  /** Instruction sets that can be asked for, best first. */
  simd: string[]
}

/** What NVIDIA's management library tells of a GPU. A figure that it does not tell is NaN, a text ''. */
export interface NativeGpuUsage {
  /** By PCI bus, whatever CUDA_VISIBLE_DEVICES says. */
  index: number
  name: string
  uuid: string
  pciBusId: string
  utilisation: number
  memoryUsedBytes: number
  memoryTotalBytes: number
  temperatureCelsius: number
  powerWatts: number
}

export interface NativeAddon extends NativeRuntimeExports, NativeOnnxExports {
  /** Version of the package that the binary was built from. */
  readonly version: string
  /** 'release', 'debug', 'asan' */
  readonly buildType: string
  cpuFeatures(): NativeCpuFeatures
  /**
   * Loads weights on a thread of its own (never libuv's pool) and resolves with the backend. It cannot be cancelled: a
   * caller that no longer wants the backend closes it when it arrives.
   */
  createCpuBackend(options: NativeCpuOptions): Promise<NativeBackend>
  /** `libraryPath`: '' = libnvidia-ml.so.1. `available` is false where that, or the driver, is missing. */
  gpuUsage(libraryPath: string): Promise<{ available: boolean; gpus: NativeGpuUsage[] }>
  /** Opens the backend module and looks what this machine has for it. Rejects when the module itself is missing or broken. */
  probeTensorRt(options: NativeProbeOptions): Promise<TensorRTFacts>
  /** Throws for arguments of a wrong type. `onProgress` gets the latest state, not every one. */
  buildEngine(options: NativeBuildOptions, onProgress: ((progress: NativeBuildProgress) => void) | undefined): NativeBuild
  /** Like `createCpuBackend`; at the end of a Worker or process it is waited for. */
  createTensorRtBackend(options: NativeTensorRTOptions): Promise<NativeBackend>
}
