/**
 * The hand-typed native surface of the generic runtime: cpp/core/runtime.h as JavaScript sees it. Commands of a stream are queued and
 * return at once; what waits is a promise, and rejects where others throw. A call on a closed object is ERR_DISPOSED.
 *
 * Every object is closed by `close()`, in any order. A handle holds one reference: to what it stands for, whose memory goes back once queued
 * commands and objects made of it (an engine's contexts) have let go too. `close()` resolves when the handle's own reference is gone, so the
 * memory has gone back where nobody else held it; nobody waits for a child that stays open. What is collected without a `close()`, or open
 * when the process or Worker ends, is let go of likewise.
 *
 * Arguments are checked again in C++: a wrong one is an Error with `code` (an ErrorCode) and maybe `hint`.
 */

/** Types of tensors, by their names in TypeScript. Sub-byte types are packed. */
export type DataType = 'float32' | 'float16' | 'bfloat16' | 'float8' | 'int8' | 'uint8' | 'int32' | 'int64' | 'bool' | 'int4'

export interface NativeTensorInfo {
  name: string
  mode: 'input' | 'output'
  dtype: DataType
  /** -1 = dynamic; an output whose size depends on the data has -1 there in every shape. */
  shape: number[]
  /** Where TensorRT wants it: shape tensors live on the host. */
  location: 'device' | 'host'
  isShapeTensor: boolean
  /** TensorRT's words, such as 'Row major linear FP32 format (kLINEAR)', per profile. */
  formats: string[]
  /** Of an input, by profile. Null for an output. */
  profiles: { min: number[]; opt: number[]; max: number[] }[] | null
  /** Of a shape tensor that is an input, by profile; null elsewhere. */
  values: { min: number[]; opt: number[]; max: number[] }[] | null
}

/** Parsed from the JSON that C++ gives. */
export interface NativeEngineInfo {
  name: string
  tensors: NativeTensorInfo[]
  profiles: number
  layers: number
  /** Bytes of activation memory, by profile. */
  deviceMemory: number[]
  /** Bytes of weights on the device, as far as TensorRT tells: those that streaming could move; 0 = unknown. */
  streamableWeights: number
  auxStreams: number
  refittable: boolean
  /** 'none' | 'ampere+' | 'same-compute-capability' */
  hardwareCompatibility: string
  /** Of the plan's build: 'standard' | 'safe' */
  capability: string
  profilingVerbosity: 'layer-names' | 'none' | 'detailed'
}

export interface NativeRuntimeInfo {
  device: number
  name: string
  computeCapability: string
  memoryBytes: number
  multiprocessors: number
  /** 10000 * major + 100 * minor + patch */
  libraryVersion: number
  libraryPath: string
  driverCuda: number
  runtimeCuda: number
  /** Range of stream priorities: 0 ... this. */
  maxPriority: number
}

export interface NativeMemoryFigures {
  freeBytes: number
  totalBytes: number
  deviceBytes: number
  pinnedBytes: number
  pooledDeviceBytes: number
  pooledPinnedBytes: number
}

export interface NativeDeviceCounters {
  deviceAllocations: number
  deviceFrees: number
  pinnedAllocations: number
  pinnedFrees: number
  poolHits: number
}

export interface NativeStreamCounters {
  commands: number
  enqueues: number
  graphLaunches: number
  reshapes: number
  enqueueUs: number
  queueUs: number
  voluntarySwitches: number
  involuntarySwitches: number
}

export interface NativeClosable {
  /** Idempotent: every call returns a promise of the same end. */
  close(): Promise<void>
}

export interface NativeMemory extends NativeClosable {
  readonly bytes: number
  readonly kind: 'device' | 'pinned'
  /** Of device memory, or of the host's: a BigInt, for interoperation. */
  readonly address: bigint
  /**
   * Pinned memory as bytes of JavaScript's: the same ArrayBuffer at every call. `close()` detaches it at once, the memory itself stays
   * until queued commands are done. It keeps the memory where only the handle is collected. Throws for device memory.
   */
  arrayBuffer(): ArrayBuffer
}

export interface NativeEvent extends NativeClosable {
  /** Milliseconds from `start`'s record to this one's. */
  elapsedSince(start: NativeEvent): number
  isComplete(): boolean
}

export type NativeGraph = NativeClosable

export interface NativeContext extends NativeClosable {
  setProfile(profile: number): void
  setInputShape(tensor: number, shape: readonly number[]): void
  setShapeValues(tensor: number, values: readonly number[]): void
  /** Null memory: the context allocates the output itself. */
  setAddress(tensor: number, memory: NativeMemory | null, offset: number): void
  setDeviceMemory(memory: NativeMemory, offset: number): void
  setProfiling(on: boolean): void
  /** `memory` is a handle of its own (to be closed), null where the caller gave the output's memory. */
  output(tensor: number): { shape: number[]; memory: NativeMemory | null }
  /** JSON text: `{ name, ms, runs }[]` */
  takeProfile(): string
}

export interface NativeStream extends NativeClosable {
  copy(to: NativeMemory, toOffset: number, from: NativeMemory, fromOffset: number, bytes: number): void
  copyRows(
    to: NativeMemory,
    toOffset: number,
    toPitch: number,
    from: NativeMemory,
    fromOffset: number,
    fromPitch: number,
    bytes: number,
    rows: number,
  ): void
  fill(memory: NativeMemory, offset: number, bytes: number, value: number): void
  enqueue(context: NativeContext): void
  /** Shapes of all tensors, by index. */
  resolve(context: NativeContext): Promise<number[][]>
  record(event: NativeEvent): void
  wait(event: NativeEvent): void
  beginCapture(): void
  endCapture(): Promise<NativeGraph>
  launch(graph: NativeGraph): void
  synchronize(): Promise<void>
  counters(): NativeStreamCounters
}

export interface NativeContextOptions {
  profile: number
  memory: 'static' | 'on-profile-change' | 'user'
}

export interface NativeWeights {
  name: string
  dtype: DataType
  /** Its bytes: `count` values, packed. Copied, some MiB in a turn of the event loop; must not change before the promise settles. */
  values: Uint8Array
  count: number
}

export interface NativeEngine extends NativeClosable {
  /** JSON text of a {@link NativeEngineInfo}. */
  readonly info: string
  /** TensorRT's JSON text. `profile` -1 = none. */
  layers(profile: number): Promise<string>
  createContext(options: NativeContextOptions): Promise<NativeContext>
  refittableWeights(): Promise<string[]>
  refit(weights: readonly NativeWeights[]): Promise<void>
  serialize(): Promise<Buffer>
}

export interface NativeRuntime extends NativeClosable {
  /** JSON text of a {@link NativeRuntimeInfo}. */
  readonly info: string
  /**
   * Takes the plan's bytes over: the ArrayBuffer is detached at the call and freed when TensorRT has read it, so that no second copy
   * exists and nobody can change what runs. It must be the plan's alone (not a slice of a larger buffer), and transferable.
   */
  deserialize(plan: ArrayBuffer, hostCode: boolean): Promise<NativeEngine>
  allocate(kind: 'device' | 'pinned', bytes: number, pooled: boolean): Promise<NativeMemory>
  createStream(options: { priority: number; spinUs: number }): Promise<NativeStream>
  createEvent(timing: boolean): Promise<NativeEvent>
  memory(): NativeMemoryFigures
  counters(): NativeDeviceCounters
  /** Freeing may wait for the device, so it happens off the event loop. */
  trim(): Promise<void>
}

export interface NativeRuntimeOptions {
  modulePath: string
  /** libnvinfer or its folder; '' = TENSORRT_LIB_DIR, then the system's search path. */
  libraryPath: string
  device: number
}

export type NativeLogSeverity = 'internal-error' | 'error' | 'warning' | 'info' | 'verbose'

export interface NativeLogLine {
  severity: NativeLogSeverity
  text: string
}

/** n = the n-th call from now on fails, from 1; 0 = none. Verification only. */
export interface NativeFaults {
  failDeviceAllocation: number
  failPinnedAllocation: number
  failEnqueue: number
  failCopy: number
}

/** What the addon exports beside {@link NativeAddon}'s. */
export interface NativeRuntimeExports {
  createRuntime(options: NativeRuntimeOptions): Promise<NativeRuntime>
  /**
   * Lines of TensorRT's log from `severity` up, in batches, on the event loop; `dropped` counts lines lost since the batch before because
   * the event loop did not keep up (4,096 wait at most, the oldest go). Does not keep the process alive. One listener per environment: a later call replaces it, null
   * ends it.
   */
  setLogListener(
    modulePath: string,
    severity: NativeLogSeverity,
    listener: ((lines: NativeLogLine[], dropped: number) => void) | null,
  ): void
  injectFaults(modulePath: string, faults: NativeFaults): void
}
