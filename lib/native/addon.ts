/**
 * The hand-typed surface of the native addon. Only this room touches a .node file; everything else imports these types.
 * A native call that fails throws, or rejects with, an Error that has `code` (an ErrorCode) and maybe `hint`;
 * `lib/native` turns it into a TensorRTError.
 */
import type { ExecutorInfo, SlotInit } from '../scheduler/executor'

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
  queueUs: number
  runUs: number
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

/** A loaded backend. Every method is safe after close(): it throws ERR_DISPOSED. */
export interface NativeBackend {
  readonly info: ExecutorInfo
  /** Once. The thread-safe function behind it is ref'd only while a step is in flight. */
  start(onResult: (result: NativeStepResult) => void): void
  openSlot(init: SlotInit): void
  closeSlot(slot: number): void
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

export interface NativeAddon {
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
}
