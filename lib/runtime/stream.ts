/** A queue of work for the device. */
import { TensorRTError } from '../errors'
import { native, nativeAsync, type NativeStream } from '../native'
import { ArgumentReader, invalidArgument } from './argument_reader'
import { MemoryBuffer } from './buffers'
import { CudaGraph } from './cuda_graph'
import { Event } from './event'
import { ExecutionContext } from './execution_context'
import { discard, NativeHandle, readWaitOptions, type WaitOptions } from './handle'

export interface StreamOptions {
  /** 0 is the lowest, `runtime.info.maxPriority` the highest. Work of a higher one starts first, as far as the device can. Default 0. */
  priority?: number | undefined
  /**
   * Microseconds for which the stream's threads spin for work and for the device before they sleep. Waking up takes tens of
   * microseconds, spinning a processor core. Default 50.
   */
  spinUs?: number | undefined
  signal?: AbortSignal | undefined
}

export interface CopyOptions {
  /** Bytes from the start of `to`. Default 0. */
  toOffset?: number | undefined
  /** Bytes from the start of `from`. Default 0. */
  fromOffset?: number | undefined
  /** Default: all from `fromOffset` on. */
  bytes?: number | undefined
}

export interface CopyRowsOptions {
  /** Number of ranges. */
  rows: number
  /** Bytes of each. */
  bytes: number
  /** Bytes from the start of one range to the start of the next. Default: `bytes`. */
  toPitch?: number | undefined
  fromPitch?: number | undefined
  toOffset?: number | undefined
  fromOffset?: number | undefined
}

export interface FillOptions {
  /** Default 0. */
  offset?: number | undefined
  /** Default: all from `offset` on. */
  bytes?: number | undefined
}

export interface StreamCounters {
  commands: number
  enqueues: number
  graphLaunches: number
  /** Changes of a context's shape or profile that TensorRT had to take in. */
  reshapes: number
  /** Microseconds of host time in TensorRT's enqueue and in graph launches. */
  enqueueUs: number
  /** Microseconds from the calls to the starts on the stream's thread, over all commands. */
  queueUs: number
  /** Context switches of the stream's threads, as the operating system counts them. */
  voluntarySwitches: number
  involuntarySwitches: number
}

const MAX_SPIN_US = 1_000_000

/** @throws ERR_INVALID_ARGUMENT @internal */
export function readStreamOptions(options: unknown, maxPriority: number) {
  const reader = new ArgumentReader(options, ['priority', 'spinUs', 'signal'], 'createStream()')
  return {
    priority: reader.integer('priority', 0, maxPriority) ?? 0,
    spinUs: reader.integer('spinUs', 0, MAX_SPIN_US) ?? 50,
    signal: reader.signal('signal'),
  }
}

/**
 * Work for the device, done in the order of the calls. Calls queue and return at once; {@link synchronize} waits. The order holds between
 * streams only where events make it so.
 *
 * After a command that fails, the rest up to the next {@link synchronize} is skipped, and that one rejects with the first error. Made by
 * `runtime.createStream()`.
 */
export class Stream extends NativeHandle {
  readonly #native: NativeStream
  readonly #owner: NativeHandle
  #capturing = false

  private constructor(stream: NativeStream, owner: NativeHandle) {
    super('Stream', stream, owner)
    this.#native = stream
    this.#owner = owner
  }

  /** @internal */
  static wrap(stream: NativeStream, owner: NativeHandle): Stream {
    return new Stream(stream, owner)
  }

  /** @throws ERR_DISPOSED @internal */
  get native(): NativeStream {
    this.checkOpen()
    return this.#native
  }

  /**
   * Copies bytes between device and pinned memory, in any combination. Pinned memory must stay as it is until the copy is done.
   * @throws ERR_INVALID_ARGUMENT for ranges outside the buffers, ERR_DISPOSED
   */
  copy(to: MemoryBuffer, from: MemoryBuffer, options: CopyOptions = {}): void {
    const stream = this.native
    checkBuffer('to', to)
    checkBuffer('from', from)
    const range = new ArgumentReader(options, COPY_OPTIONS, 'copy()')
    const toOffset = range.integer('toOffset', 0, to.bytes) ?? 0
    const fromOffset = range.integer('fromOffset', 0, from.bytes) ?? 0
    const bytes = range.integer('bytes', 0, Number.MAX_SAFE_INTEGER) ?? from.bytes - fromOffset
    from.checkRange('from', fromOffset, bytes)
    to.checkRange('to', toOffset, bytes)
    native(() => stream.copy(to.native, toOffset, from.native, fromOffset, bytes))
  }

  /**
   * Copies `rows` ranges of `bytes` each, whose starts lie `toPitch` and `fromPitch` bytes apart.
   * @throws ERR_INVALID_ARGUMENT, ERR_DISPOSED
   */
  copyRows(to: MemoryBuffer, from: MemoryBuffer, options: CopyRowsOptions): void {
    const stream = this.native
    checkBuffer('to', to)
    checkBuffer('from', from)
    const reader = new ArgumentReader(options, COPY_ROWS_OPTIONS, 'copyRows()')
    const size = (name: string, min: number): number | undefined => reader.integer(name, min, Number.MAX_SAFE_INTEGER)
    const rows = size('rows', 0) ?? required('rows')
    const bytes = size('bytes', 0) ?? required('bytes')
    const toPitch = size('toPitch', bytes) ?? bytes
    const fromPitch = size('fromPitch', bytes) ?? bytes
    const toOffset = size('toOffset', 0) ?? 0
    const fromOffset = size('fromOffset', 0) ?? 0
    const spanned = (pitch: number): number => (rows === 0 ? 0 : (rows - 1) * pitch + bytes)
    from.checkRange('from', fromOffset, spanned(fromPitch))
    to.checkRange('to', toOffset, spanned(toPitch))
    native(() => stream.copyRows(to.native, toOffset, toPitch, from.native, fromOffset, fromPitch, bytes, rows))
  }

  /**
   * Sets every byte of a range to `value`, 0 to 255.
   * @throws ERR_INVALID_ARGUMENT, ERR_DISPOSED
   */
  fill(buffer: MemoryBuffer, value: number, options: FillOptions = {}): void {
    const stream = this.native
    checkBuffer('buffer', buffer)
    if (!Number.isInteger(value) || value < 0 || value > 255) throw invalidArgument('value', 'a byte, an integer from 0 to 255', value)
    const range = new ArgumentReader(options, FILL_OPTIONS, 'fill()')
    const offset = range.integer('offset', 0, buffer.bytes) ?? 0
    const bytes = range.integer('bytes', 0, Number.MAX_SAFE_INTEGER) ?? buffer.bytes - offset
    buffer.checkRange('buffer', offset, bytes)
    native(() => stream.fill(buffer.native, offset, bytes, value))
  }

  /**
   * Runs a context with the changes made to it so far; those of later calls belong to its next run.
   * @throws ERR_INVALID_TENSOR where an input has no shape or no memory, an output no memory, or one too little; ERR_DISPOSED. What
   * TensorRT finds later comes with {@link synchronize}
   */
  enqueue(context: ExecutionContext): void {
    const stream = this.native
    if (!(context instanceof ExecutionContext)) throw invalidArgument('context', 'an ExecutionContext', context)
    context.checkReady()
    native(() => stream.enqueue(context.native))
  }

  /** Sets an event here. @throws ERR_INVALID_ARGUMENT, also during a capture; ERR_DISPOSED */
  record(event: Event): void {
    const stream = this.native
    checkEvent(event)
    this.#checkNotCapturing('record()')
    native(() => stream.record(event.native))
  }

  /**
   * What follows here starts once the device has reached the event, as it was recorded before this call.
   * @throws ERR_INVALID_ARGUMENT, also during a capture; ERR_DISPOSED
   */
  wait(event: Event): void {
    const stream = this.native
    checkEvent(event)
    this.#checkNotCapturing('wait()')
    native(() => stream.wait(event.native))
  }

  /**
   * Takes down what `commands` queues on this stream, instead of running it. It must do all of that before it returns, with shapes and
   * addresses that stay. Copies, fills and runs can be captured; on this stream everything else is refused meanwhile.
   *
   * @throws (as a rejection) what `commands` throws; ERR_INVALID_ARGUMENT for a function that returns a promise and for a capture within
   * a capture; ERR_CUDA for commands that cannot be captured; ERR_DISPOSED; AbortError
   */
  async capture(commands: () => void, options: WaitOptions = {}): Promise<CudaGraph> {
    const stream = this.native
    if (typeof commands !== 'function') throw invalidArgument('commands', 'a function', commands)
    const signal = readWaitOptions(options, 'capture()')
    this.#checkNotCapturing('capture()')
    native(() => stream.beginCapture())
    this.#capturing = true
    let failure: { error: unknown } | undefined
    try {
      const returned = commands() as unknown
      if (typeof (returned as PromiseLike<unknown> | undefined)?.then === 'function') {
        throw new TensorRTError('ERR_INVALID_ARGUMENT', 'The function given to capture() must not return a promise', {
          hint: 'what is queued after its first await would run instead of being captured',
        })
      }
    } catch (error) {
      failure = { error }
    } finally {
      this.#capturing = false
    }
    const ending = nativeAsync(() => stream.endCapture())
    if (failure !== undefined) {
      ending.then(discard, () => {})
      throw failure.error
    }
    const graph = await this.track(ending, signal, discard)
    return CudaGraph.wrap(graph, this.#owner)
  }

  /** Queues a captured graph. @throws ERR_INVALID_ARGUMENT, also during a capture; ERR_DISPOSED */
  launch(graph: CudaGraph): void {
    const stream = this.native
    if (!(graph instanceof CudaGraph)) throw invalidArgument('graph', 'a CudaGraph', graph)
    this.#checkNotCapturing('launch()')
    native(() => stream.launch(graph.native))
  }

  /**
   * Resolves when the device has done all that was queued before this call.
   *
   * @throws (as a rejection) the first error of a command since the last call: ERR_INVALID_TENSOR, ERR_EXECUTION_FAILED, ERR_CUDA,
   * ERR_OUT_OF_DEVICE_MEMORY, ERR_BACKEND_DEAD; ERR_INVALID_ARGUMENT during a capture; ERR_DISPOSED, also when the stream is closed
   * meanwhile; AbortError, where the device's work goes on
   */
  async synchronize(options: WaitOptions = {}): Promise<void> {
    const stream = this.native
    const signal = readWaitOptions(options, 'synchronize()')
    this.#checkNotCapturing('synchronize()')
    await this.track(nativeAsync(() => stream.synchronize()), signal)
  }

  /**
   * Shapes of all tensors of a context's engine, in its order.
   * @internal
   */
  async resolve(context: ExecutionContext, signal: AbortSignal | undefined): Promise<number[][]> {
    const stream = this.native
    this.#checkNotCapturing('resolveShapes()')
    return this.track(nativeAsync(() => stream.resolve(context.native)), signal)
  }

  /** Figures since the stream was made. @throws ERR_DISPOSED */
  counters(): StreamCounters {
    return native(() => this.native.counters())
  }

  #checkNotCapturing(what: string): void {
    if (!this.#capturing) return
    throw new TensorRTError('ERR_INVALID_ARGUMENT', `${what} cannot be called on a stream during its capture`)
  }
}

const COPY_OPTIONS = ['toOffset', 'fromOffset', 'bytes'] as const satisfies readonly (keyof CopyOptions)[]
const COPY_ROWS_OPTIONS = ['rows', 'bytes', 'toPitch', 'fromPitch', 'toOffset', 'fromOffset'] as const satisfies readonly (keyof CopyRowsOptions)[]
const FILL_OPTIONS = ['offset', 'bytes'] as const satisfies readonly (keyof FillOptions)[]

function checkBuffer(name: string, value: unknown): asserts value is MemoryBuffer {
  if (!(value instanceof MemoryBuffer)) throw invalidArgument(name, 'a DeviceBuffer or a PinnedBuffer', value)
}

function checkEvent(value: unknown): asserts value is Event {
  if (!(value instanceof Event)) throw invalidArgument('event', 'an Event', value)
}

function required(name: string): never {
  throw invalidArgument(name, 'given', undefined)
}
