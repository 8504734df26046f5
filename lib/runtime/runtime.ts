/** A device with TensorRT on it. */
import { createNativeRuntime, native, nativeAsync, type NativeMemory, type NativeRuntime, type NativeRuntimeInfo } from '../native'
import { ArgumentReader } from './argument_reader'
import { type AllocateOptions, type BufferLayout, type BufferSize, DeviceBuffer, PinnedBuffer, readBufferSize } from './buffers'
import type { DataType } from './dtype'
import { Event } from './event'
import { discard, NativeHandle, readWaitOptions, throwIfAborted, untilAborted, type WaitOptions } from './handle'
import { readStreamOptions, Stream, type StreamOptions } from './stream'

export interface RuntimeOptions {
  /** Number of the GPU, as CUDA counts. Default 0. */
  device?: number | undefined
  /** libnvinfer, or the folder that has it. Default: TENSORRT_LIB_DIR, then the system's search path. */
  libraryPath?: string | undefined
  signal?: AbortSignal | undefined
}

export interface RuntimeInfo {
  /** Number of the GPU. */
  readonly device: number
  /** Of the GPU. */
  readonly name: string
  /** '9.0' */
  readonly computeCapability: string
  readonly memoryBytes: number
  readonly multiprocessors: number
  /** TensorRT's: 10000 * major + 100 * minor + patch. */
  readonly libraryVersion: number
  readonly libraryPath: string
  /** Newest CUDA that the driver serves: 1000 * major + 10 * minor. */
  readonly driverCuda: number
  /** CUDA of the backend module, likewise. */
  readonly runtimeCuda: number
  /** Stream priorities are 0 to this. */
  readonly maxPriority: number
}

/** Bytes. */
export interface MemoryFigures {
  /** Of the device, whoever uses the rest. */
  freeBytes: number
  totalBytes: number
  /** In use by this process through this library, TensorRT's own included. */
  deviceBytes: number
  pinnedBytes: number
  /** Freed, and kept for the next allocation. */
  pooledDeviceBytes: number
  pooledPinnedBytes: number
}

export interface DeviceCounters {
  /** Calls of cudaMalloc and its kin. */
  deviceAllocations: number
  deviceFrees: number
  pinnedAllocations: number
  pinnedFrees: number
  /** Allocations that a freed block served. */
  poolHits: number
}

export interface EventOptions {
  /** Without timing an event costs less, and `elapsedSince()` throws. Default false. */
  timing?: boolean | undefined
  signal?: AbortSignal | undefined
}

const MAX_DEVICE = 1023

/** The pool is the device's: once its last runtime is closed, nobody could trim it. */
async function closeAndTrim(runtime: NativeRuntime, ownedClosed: Promise<unknown> | undefined): Promise<void> {
  await ownedClosed
  // A device that is dead has lost its memory anyway.
  await nativeAsync(() => runtime.trim()).catch(() => {})
  await runtime.close()
}

/** @throws ERR_INVALID_ARGUMENT @internal */
export function readDeviceOptions(reader: ArgumentReader): { device: number; libraryPath: string } {
  return { device: reader.integer('device', 0, MAX_DEVICE) ?? 0, libraryPath: reader.path('libraryPath') ?? '' }
}

/**
 * TensorRT's runtime on one device: engines, memory, streams and events are made of it. Closing it closes all of them, and gives the device's
 * pooled memory back. Several may be open at a time, for one device or for several.
 */
export class Runtime extends NativeHandle {
  readonly info: RuntimeInfo
  readonly #native: NativeRuntime

  private constructor(runtime: NativeRuntime) {
    super('Runtime', { close: (ownedClosed) => closeAndTrim(runtime, ownedClosed) }, undefined)
    this.#native = runtime
    this.info = Object.freeze(JSON.parse(runtime.info) as NativeRuntimeInfo)
  }

  /**
   * The first one of a process may take a second, as the driver wakes up.
   *
   * @throws (as a rejection) the addon's load errors; ERR_TENSORRT_MODULE_NOT_FOUND, ERR_TENSORRT_MODULE_LOAD_FAILED, ERR_VERSION_MISMATCH;
   * ERR_DRIVER_NOT_FOUND, ERR_DRIVER_TOO_OLD, ERR_NO_GPU, ERR_TENSORRT_NOT_FOUND; ERR_INVALID_ARGUMENT for a device that is not
   * there; ERR_CUDA; AbortError
   */
  static async create(options: RuntimeOptions = {}): Promise<Runtime> {
    const reader = new ArgumentReader(options, ['device', 'libraryPath', 'signal'], 'Runtime.create()')
    const place = readDeviceOptions(reader)
    const signal = reader.signal('signal')
    throwIfAborted(signal)
    return new Runtime(await untilAborted(createNativeRuntime(place), signal, discard))
  }

  /** @throws ERR_DISPOSED @internal */
  get native(): NativeRuntime {
    this.checkOpen()
    return this.#native
  }

  /**
   * Memory of the device, of 256-byte alignment; its content is undefined.
   *
   * @param size bytes, or type and shape of a tensor
   * @throws (as a rejection) ERR_INVALID_ARGUMENT, ERR_INVALID_TENSOR, ERR_OUT_OF_DEVICE_MEMORY, ERR_CUDA, ERR_BACKEND_DEAD, ERR_DISPOSED,
   * AbortError
   */
  async allocateDevice<D extends DataType>(size: BufferSize<D>, options: AllocateOptions = {}): Promise<DeviceBuffer> {
    const { memory, layout } = await this.#allocate('device', size, options)
    return DeviceBuffer.wrap(memory, this, layout)
  }

  /**
   * Pinned memory of the host; its content is undefined.
   *
   * @param size bytes, or type and shape of a tensor
   * @throws (as a rejection) what {@link allocateDevice} throws, ERR_OUT_OF_MEMORY
   */
  async allocatePinned<D extends DataType>(size: BufferSize<D>, options: AllocateOptions = {}): Promise<PinnedBuffer> {
    const { memory, layout } = await this.#allocate('pinned', size, options)
    return PinnedBuffer.wrap(memory, this, layout)
  }

  /** @throws (as a rejection) ERR_INVALID_ARGUMENT, ERR_CUDA, ERR_BACKEND_DEAD, ERR_OUT_OF_DEVICE_MEMORY, ERR_DISPOSED, AbortError */
  async createStream(options: StreamOptions = {}): Promise<Stream> {
    const runtime = this.native
    const { signal, priority, spinUs } = readStreamOptions(options, this.info.maxPriority)
    throwIfAborted(signal)
    return Stream.wrap(await this.track(nativeAsync(() => runtime.createStream({ priority, spinUs })), signal, discard), this)
  }

  /** @throws (as a rejection) ERR_INVALID_ARGUMENT, ERR_CUDA, ERR_BACKEND_DEAD, ERR_DISPOSED, AbortError */
  async createEvent(options: EventOptions = {}): Promise<Event> {
    const runtime = this.native
    const reader = new ArgumentReader(options, ['timing', 'signal'], 'createEvent()')
    const timing = reader.boolean('timing') ?? false
    const signal = reader.signal('signal')
    throwIfAborted(signal)
    return Event.wrap(await this.track(nativeAsync(() => runtime.createEvent(timing)), signal, discard), this)
  }

  /** @throws ERR_CUDA, ERR_BACKEND_DEAD, ERR_DISPOSED */
  memory(): MemoryFigures {
    return native(() => this.native.memory())
  }

  /** Since the process began, over all runtimes of the device. @throws ERR_DISPOSED */
  counters(): DeviceCounters {
    return native(() => this.native.counters())
  }

  /** Gives pooled memory back to the system, which may wait for the device. @throws (as a rejection) ERR_DISPOSED, AbortError */
  async trim(options: WaitOptions = {}): Promise<void> {
    const runtime = this.native
    const signal = readWaitOptions(options, 'trim()')
    await this.track(nativeAsync(() => runtime.trim()), signal)
  }

  async #allocate(kind: 'device' | 'pinned', size: BufferSize, options: AllocateOptions): Promise<{ memory: NativeMemory; layout: BufferLayout | undefined }> {
    const runtime = this.native
    const what = kind === 'device' ? 'allocateDevice()' : 'allocatePinned()'
    const { bytes, layout } = readBufferSize(size, what)
    const reader = new ArgumentReader(options, ['pooled', 'signal'], what)
    const pooled = reader.boolean('pooled') ?? true
    const signal = reader.signal('signal')
    throwIfAborted(signal)
    return { memory: await this.track(nativeAsync(() => runtime.allocate(kind, bytes, pooled)), signal, discard), layout }
  }
}
