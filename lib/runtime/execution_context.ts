/** A run of an engine in the making: shapes, memory, profile. */
import { TensorRTError } from '../errors'
import { native, type NativeContext } from '../native'
import { ArgumentReader, describeValue, invalidArgument } from './argument_reader'
import { type BufferLayout, DeviceBuffer, MemoryBuffer, PinnedBuffer } from './buffers'
import { byteLengthOf } from './dtype'
import { checkProfile, type ShapeRange, type TensorInfo, type TensorTable } from './engine_info'
import { NativeHandle, readWaitOptions, type WaitOptions } from './handle'
import { type LayerTime, parseLayerTimes } from './layer_profile'
import { checkShape, formatShape, volume } from './shape'
import type { Stream } from './stream'

export interface ContextOptions {
  /** Number of the optimization profile to begin with. Default 0. */
  profile?: number | undefined
  /**
   * Activation memory: `'static'`, enough for every profile; `'on-profile-change'`, as much as the profile in use needs; `'user'`, what
   * `setDeviceMemory()` gives, which contexts that never run at the same time may share. Default 'static'.
   */
  memory?: 'static' | 'on-profile-change' | 'user' | undefined
  signal?: AbortSignal | undefined
}

export interface SetTensorOptions {
  /** Bytes from the start of the buffer. Default 0. */
  offset?: number | undefined
}

/** What an output was in the last run. */
export interface OutputView {
  shape: readonly number[]
  /** Where the context allocated it itself: its memory, to be closed; null where the caller gave the memory. */
  buffer: DeviceBuffer | null
}

/** @throws ERR_INVALID_ARGUMENT, AbortError @internal */
export function readContextOptions(options: unknown, profiles: number) {
  const reader = new ArgumentReader(options, ['profile', 'memory', 'signal'], 'createContext()')
  return {
    profile: checkProfile(reader.get('profile') ?? 0, profiles),
    memory: reader.choice('memory', ['static', 'on-profile-change', 'user']) ?? ('static' as const),
    signal: reader.signal('signal'),
  }
}

type ContextMemory = NonNullable<ContextOptions['memory']>

/** What a context is made of. */
export interface ContextParts {
  /** Closes it. */
  engine: NativeHandle
  /** Closes memory that it hands out, which may outlive it. */
  runtime: NativeHandle
  table: TensorTable
  profile: number
  memory: ContextMemory
}

/** Where a tensor's data is: bytes from there on, or memory that the context allocates. */
type Place = { bytes: number } | 'own'

/**
 * State for running an engine: input shapes, the memory of inputs and outputs, activations. One run at a time; for several at
 * once make several contexts. Made by `engine.createContext()`.
 *
 * Setters take effect with the next `stream.enqueue(context)`, so the next run can be prepared while one is on the device.
 */
export class ExecutionContext extends NativeHandle {
  readonly #native: NativeContext
  readonly #table: TensorTable
  readonly #memory: ContextMemory
  readonly #runtime: NativeHandle
  readonly #shapes = new Map<number, readonly number[]>()
  readonly #valued = new Set<number>()
  readonly #places = new Map<number, Place>()
  #profile: number
  /** Of the memory that the caller gave for activations. */
  #activationBytes = 0
  #ready = false

  private constructor(context: NativeContext, { engine, runtime, table, profile, memory }: ContextParts) {
    super('ExecutionContext', context, engine)
    this.#native = context
    this.#runtime = runtime
    this.#table = table
    this.#profile = profile
    this.#memory = memory
  }

  /** @internal */
  static wrap(context: NativeContext, parts: ContextParts): ExecutionContext {
    return new ExecutionContext(context, parts)
  }

  /** @throws ERR_DISPOSED @internal */
  get native(): NativeContext {
    this.checkOpen()
    return this.#native
  }

  /** Number of the optimization profile that the next run uses. */
  get profile(): number {
    return this.#profile
  }

  /**
   * Shapes and values of inputs are to be set again afterwards.
   * @throws ERR_INVALID_ARGUMENT for a profile that the engine has not, ERR_DISPOSED
   */
  setProfile(profile: number): void {
    const context = this.native
    checkProfile(profile, this.#table.profiles.length)
    native(() => context.setProfile(profile))
    this.#profile = profile
    this.#shapes.clear()
    this.#valued.clear()
    this.#ready = false
  }

  /**
   * @throws ERR_INVALID_TENSOR for what is no input, another rank, another size where the engine's is fixed, or a size outside the
   * profile; ERR_DISPOSED
   */
  setInputShape(name: string, shape: readonly number[]): void {
    const context = this.native
    const index = this.#table.index(name, 'input')
    const input = this.#table.tensors[index]!
    const sizes = checkShape(shape, `Input "${name}"`)
    const range = input.profiles?.[this.#profile]
    const fits = sizes.length === input.shape.length && sizes.every((size, i) => (input.shape[i]! < 0 ? inRange(size, range, i) : size === input.shape[i]))
    if (!fits) throw wrongShape(input, range, this.#profile, sizes)
    native(() => context.setInputShape(index, sizes))
    this.#shapes.set(index, sizes)
    this.#ready = false
  }

  /**
   * Values of an input that decides shapes; it needs no memory.
   * @throws ERR_INVALID_TENSOR for what is no such input, another number of values, or one outside the profile; ERR_DISPOSED
   */
  setShapeValues(name: string, values: readonly number[]): void {
    const context = this.native
    const index = this.#table.index(name, 'input')
    const input = this.#table.tensors[index]!
    if (!input.isShapeTensor) {
      throw new TensorRTError('ERR_INVALID_TENSOR', `Input "${name}" is no shape tensor: its data goes into memory`, { hint: 'use setTensor()' })
    }
    if (!Array.isArray(values) || !values.every((value) => Number.isSafeInteger(value))) {
      throw new TensorRTError('ERR_INVALID_TENSOR', `Shape tensor "${name}" takes an array of integers, not ${describeValue(values)}`)
    }
    const shape = this.#shapes.get(index) ?? input.shape
    const range = input.values?.[this.#profile]
    const countFits = shape.some((size) => size < 0) || volume(shape) === values.length
    if (!countFits || !values.every((value, i) => inRange(value, range, i))) {
      const expected = countFits && range !== undefined ? `values from ${formatShape(range.min)} to ${formatShape(range.max)}` : `${volume(shape)} values`
      const given = countFits ? formatShape(values) : `${values.length}`
      throw new TensorRTError('ERR_INVALID_TENSOR', `Shape tensor "${name}" takes ${expected} in profile ${this.#profile}, not ${given}`)
    }
    native(() => context.setShapeValues(index, [...values]))
    this.#valued.add(index)
    this.#ready = false
  }

  /**
   * Where an input is read from, or an output written to. The memory is kept for as long as runs use it.
   * @throws ERR_INVALID_TENSOR for an unknown name or a buffer made for another type; ERR_INVALID_ARGUMENT, ERR_DISPOSED
   */
  setTensor(name: string, buffer: MemoryBuffer, options: SetTensorOptions = {}): void {
    const context = this.native
    const index = this.#table.index(name)
    const tensor = this.#table.tensors[index]!
    if (!(buffer instanceof MemoryBuffer)) throw invalidArgument('buffer', 'a DeviceBuffer or a PinnedBuffer', buffer)
    if (tensor.location === 'host' && !(buffer instanceof PinnedBuffer)) {
      throw new TensorRTError('ERR_INVALID_TENSOR', `Tensor "${name}" lives on the host, and a ${buffer.constructor.name} was given`, {
        hint: tensor.mode === 'input' ? 'use setShapeValues()' : 'use a PinnedBuffer',
      })
    }
    const offset = new ArgumentReader(options, ['offset'], 'setTensor()').integer('offset', 0, buffer.bytes) ?? 0
    checkLayout(tensor, buffer.layout, offset)
    native(() => context.setAddress(index, buffer.native, offset))
    this.#places.set(index, { bytes: buffer.bytes - offset })
    this.#ready = false
  }

  /**
   * Has the context allocate an output itself, in the size that each run turns out to need; for outputs whose size depends on the data.
   * {@link output} gives its memory.
   * @throws ERR_INVALID_TENSOR for what is no output, ERR_DISPOSED
   */
  allocateOutput(name: string): void {
    const context = this.native
    const index = this.#table.index(name, 'output')
    native(() => context.setAddress(index, null, 0))
    this.#places.set(index, 'own')
    this.#ready = false
  }

  /**
   * Memory for activations, of a context made with `memory: 'user'`.
   * @throws ERR_INVALID_ARGUMENT for another context, or less than `engine.profiles[profile].deviceMemory`; ERR_DISPOSED
   */
  setDeviceMemory(buffer: DeviceBuffer, offset = 0): void {
    const context = this.native
    if (!(buffer instanceof DeviceBuffer)) throw invalidArgument('buffer', 'a DeviceBuffer', buffer)
    if (this.#memory !== 'user') {
      throw new TensorRTError('ERR_INVALID_ARGUMENT', `The context has activation memory of its own ('${this.#memory}')`, {
        hint: "make it with memory: 'user'",
      })
    }
    buffer.checkRange('buffer', offset, 0)
    checkActivations(buffer.bytes - offset, this.#table, this.#profile)
    native(() => context.setDeviceMemory(buffer.native, offset))
    this.#activationBytes = buffer.bytes - offset
    this.#ready = false
  }

  /**
   * Measures each layer in the runs that follow. Such a run blocks its stream's queue until it is done, and cannot be captured.
   * @throws ERR_DISPOSED
   */
  setProfiling(on: boolean): void {
    const context = this.native
    if (typeof on !== 'boolean') throw invalidArgument('on', 'true or false', on)
    native(() => context.setProfiling(on))
  }

  /** What was measured since the last call. @throws ERR_DISPOSED */
  takeProfile(): LayerTime[] {
    return parseLayerTimes(native(() => this.native.takeProfile()))
  }

  /**
   * An output as it was in the last run, once its stream has completed. Where the context allocated it, the buffer is a new handle at
   * each call, and to be closed.
   * @throws ERR_INVALID_TENSOR for what is no output; ERR_INVALID_ARGUMENT before the first run; ERR_DISPOSED
   */
  output(name: string): OutputView {
    const context = this.native
    const index = this.#table.index(name, 'output')
    const { shape, memory } = native(() => context.output(index))
    const { dtype } = this.#table.tensors[index]!
    const sizes = Object.freeze([...shape])
    return { shape: sizes, buffer: memory === null ? null : DeviceBuffer.wrap(memory, this.#runtime, Object.freeze({ dtype, shape: sizes })) }
  }

  /**
   * Shapes of all tensors under the input shapes set so far, without a run; -1 where they depend on the data.
   * @throws (as a rejection) ERR_INVALID_TENSOR, ERR_DISPOSED, AbortError, ERR_INVALID_ARGUMENT during a capture of the stream
   */
  async resolveShapes(stream: Stream, options: WaitOptions = {}): Promise<Record<string, readonly number[]>> {
    this.checkOpen()
    const signal = readWaitOptions(options, 'resolveShapes()')
    if (typeof (stream as Stream | undefined)?.resolve !== 'function') throw invalidArgument('stream', 'a Stream', stream)
    this.#checkShapes()
    const shapes = await this.track(stream.resolve(this, signal), undefined)
    return Object.fromEntries(shapes.map((shape, i) => [this.#table.tensors[i]!.name, shape]))
  }

  /**
   * Throws unless the next run has all that it needs, as far as that can be told here.
   * @throws ERR_INVALID_TENSOR, ERR_INVALID_ARGUMENT, ERR_DISPOSED
   * @internal
   */
  checkReady(): void {
    this.checkOpen()
    if (this.#ready) return
    this.#checkShapes()
    for (const [index, tensor] of this.#table.tensors.entries()) {
      if (tensor.mode === 'input' && tensor.isShapeTensor && this.#valued.has(index)) continue
      const place = this.#places.get(index)
      if (place === undefined) throw withoutMemory(tensor)
      const shape = this.#shapes.get(index) ?? tensor.shape
      if (place === 'own' || shape.some((size) => size < 0)) continue
      const needed = byteLengthOf(tensor.dtype, volume(shape))
      if (needed <= place.bytes) continue
      throw new TensorRTError(
        'ERR_INVALID_TENSOR',
        `Tensor "${tensor.name}" of shape ${formatShape(shape)} and type ${tensor.dtype} takes ${needed} bytes, its buffer has ${place.bytes}`,
      )
    }
    if (this.#memory === 'user') checkActivations(this.#activationBytes, this.#table, this.#profile)
    this.#ready = true
  }

  #checkShapes(): void {
    for (const [index, { name, mode, shape, isShapeTensor, profiles }] of this.#table.tensors.entries()) {
      if (mode !== 'input' || this.#shapes.has(index)) continue
      if (shape.some((size) => size < 0)) {
        const range = profiles?.[this.#profile]
        throw new TensorRTError('ERR_INVALID_TENSOR', `Input "${name}" of shape ${formatShape(shape)} has no shape for this run`, {
          hint: `call setInputShape("${name}", ...) with ${describeRange(shape, range)}`,
        })
      }
      if (isShapeTensor && !this.#valued.has(index) && !this.#places.has(index)) throw withoutMemory(this.#table.tensors[index]!)
    }
  }
}

function inRange(value: number, range: ShapeRange | undefined, i: number): boolean {
  return range === undefined || (value >= (range.min[i] ?? -Infinity) && value <= (range.max[i] ?? Infinity))
}

/** '[1..8, 128]' */
function describeRange(shape: readonly number[], range: ShapeRange | undefined): string {
  const sizes = shape.map((size, i) => {
    if (size >= 0) return size
    if (range === undefined) return 'any'
    return range.min[i] === range.max[i] ? range.min[i] : `${range.min[i]}..${range.max[i]}`
  })
  return `[${sizes.join(', ')}]`
}

function wrongShape(input: TensorInfo, range: ShapeRange | undefined, profile: number, given: readonly number[]): TensorRTError {
  const dynamic = input.shape.some((size) => size < 0)
  return new TensorRTError(
    'ERR_INVALID_TENSOR',
    `Input "${input.name}" takes the shape ${describeRange(input.shape, range)}${dynamic ? ` in profile ${profile}` : ''}, not ${formatShape(given)}`,
    dynamic && given.length === input.shape.length ? { hint: 'for other shapes take another profile, or build the engine with one' } : {},
  )
}

function withoutMemory({ name, mode, isShapeTensor }: TensorInfo): TensorRTError {
  if (mode === 'output') {
    return new TensorRTError('ERR_INVALID_TENSOR', `Output "${name}" has no memory`, { hint: `call setTensor("${name}", buffer) or allocateOutput("${name}")` })
  }
  const [what, how] = isShapeTensor ? ['values', 'setShapeValues'] : ['memory', 'setTensor']
  return new TensorRTError('ERR_INVALID_TENSOR', `Input "${name}" has no ${what}`, { hint: `call ${how}("${name}", ...)` })
}

function checkLayout({ name, dtype }: TensorInfo, layout: BufferLayout | undefined, offset: number): void {
  if (layout === undefined || offset !== 0 || layout.dtype === dtype) return
  throw new TensorRTError('ERR_INVALID_TENSOR', `Tensor "${name}" is ${dtype}, and the buffer was made for ${layout.dtype}`)
}

function checkActivations(bytes: number, table: TensorTable, profile: number): void {
  const needed = table.profiles[profile]?.deviceMemory ?? 0
  if (bytes >= needed) return
  throw new TensorRTError(
    'ERR_INVALID_ARGUMENT',
    `Profile ${profile} needs ${needed} bytes of activation memory, and ${bytes} were given`,
    bytes === 0 ? { hint: 'call setDeviceMemory()' } : {},
  )
}
