/** Memory of the device, and pinned memory of the host, which the device copies from and to at full speed. */
import { TensorRTError } from '../errors'
import { native, type NativeMemory } from '../native'
import { describeValue, invalidArgument } from './argument_reader'
import { arrayLengthOf, arrayTypeOf, byteLengthOf, checkDataType, type DataType, type TensorData } from './dtype'
import { NativeHandle } from './handle'
import { checkShape, formatShape, volume } from './shape'
import { Tensor } from './tensor'

/** How much memory: a number of bytes, or as much as a tensor takes. */
export type BufferSize<D extends DataType = DataType> = number | { dtype: D; shape: readonly number[] }

export interface AllocateOptions {
  /** Of blocks that were freed before, and back among them afterwards: fast. Default true. */
  pooled?: boolean | undefined
  signal?: AbortSignal | undefined
}

/** What a buffer was made for, where its size was given as a tensor's. */
export interface BufferLayout {
  dtype: DataType
  shape: readonly number[]
}

/** @throws ERR_INVALID_ARGUMENT, ERR_INVALID_TENSOR */
export function readBufferSize(size: unknown, what: string): { bytes: number; layout: BufferLayout | undefined } {
  if (typeof size === 'number') {
    if (Number.isSafeInteger(size) && size >= 1) return { bytes: size, layout: undefined }
  } else if (typeof size === 'object' && size !== null && 'dtype' in size && 'shape' in size) {
    const dtype = checkDataType(size.dtype, what)
    const shape = checkShape(size.shape, what)
    // An empty tensor still needs an address.
    return { bytes: Math.max(byteLengthOf(dtype, volume(shape)), 1), layout: Object.freeze({ dtype, shape }) }
  }
  throw invalidArgument('size', 'a number of bytes from 1, or { dtype, shape }', size)
}

/** Memory that commands of a stream work on. */
export abstract class MemoryBuffer extends NativeHandle {
  readonly #native: NativeMemory
  readonly bytes: number
  /** Type and shape that the size was given by; undefined where it was given in bytes. */
  readonly layout: BufferLayout | undefined

  /** @internal */
  constructor(what: string, memory: NativeMemory, owner: NativeHandle, layout: BufferLayout | undefined) {
    super(what, memory, owner)
    this.#native = memory
    this.bytes = memory.bytes
    this.layout = layout
  }

  /** Where it lies, for interoperation. @throws ERR_DISPOSED */
  get address(): bigint {
    return native(() => this.native.address)
  }

  /** @throws ERR_DISPOSED @internal */
  get native(): NativeMemory {
    this.checkOpen()
    return this.#native
  }

  /**
   * @param what of the range, for messages
   * @throws ERR_INVALID_ARGUMENT, ERR_DISPOSED
   * @internal
   */
  checkRange(what: string, offset: number, bytes: number): void {
    this.checkOpen()
    if (!Number.isSafeInteger(offset) || offset < 0) throw invalidArgument(`${what}Offset`, 'a number of bytes from 0', offset)
    if (!Number.isSafeInteger(bytes) || bytes < 0) throw invalidArgument('bytes', 'a number of bytes from 0', bytes)
    if (offset + bytes <= this.bytes) return
    throw new TensorRTError(
      'ERR_INVALID_ARGUMENT',
      `${what === 'byte' ? 'The buffer' : `"${what}"`} has ${this.bytes} bytes, and ${bytes} from byte ${offset} on end at ${offset + bytes}`,
    )
  }
}

/** Memory of the device, made by `runtime.allocateDevice()`. Copies bring data in and out. */
export class DeviceBuffer extends MemoryBuffer {
  private constructor(memory: NativeMemory, owner: NativeHandle, layout: BufferLayout | undefined) {
    super('DeviceBuffer', memory, owner, layout)
  }

  /** @internal */
  static wrap(memory: NativeMemory, owner: NativeHandle, layout?: BufferLayout): DeviceBuffer {
    return new DeviceBuffer(memory, owner, layout)
  }
}

/**
 * Pinned memory of the host, made by `runtime.allocatePinned()`: JavaScript sees it through typed arrays, the device copies from and to it
 * while both go on. After a copy into it was queued, wait for the stream before reading; after one from it, before writing.
 */
export class PinnedBuffer extends MemoryBuffer {
  private constructor(memory: NativeMemory, owner: NativeHandle, layout: BufferLayout | undefined) {
    super('PinnedBuffer', memory, owner, layout)
  }

  /** @internal */
  static wrap(memory: NativeMemory, owner: NativeHandle, layout?: BufferLayout): PinnedBuffer {
    return new PinnedBuffer(memory, owner, layout)
  }

  /** The memory itself. `close()` detaches it: views of it have a length of 0 then. @throws ERR_DISPOSED */
  get arrayBuffer(): ArrayBuffer {
    return native(() => this.native.arrayBuffer())
  }

  /**
   * A typed array over the memory, not a copy; its length is 0 once the buffer is closed.
   *
   * @param dtype default: the one that the buffer was made with, else 'uint8'
   * @param byteOffset a multiple of the array's element size
   * @param length entries of the array. Default: those of the buffer's shape, where type and offset are its own; else as many as fit
   * @throws ERR_INVALID_TENSOR, ERR_INVALID_ARGUMENT for what lies outside, ERR_DISPOSED
   */
  view(): TensorData
  view<D extends DataType>(dtype: D, byteOffset?: number, length?: number): TensorData<D>
  view(dtype: DataType = this.layout?.dtype ?? 'uint8', byteOffset = 0, length?: number): TensorData {
    const array = arrayTypeOf(checkDataType(dtype, 'A view'))
    const size = array.BYTES_PER_ELEMENT
    this.checkRange('byte', byteOffset, 0)
    if (byteOffset % size !== 0) throw invalidArgument('byteOffset', `a multiple of ${size}, the bytes of an element of ${dtype}`, byteOffset)
    const own = dtype === this.layout?.dtype && byteOffset === 0 ? arrayLengthOf(dtype, volume(this.layout.shape)) : undefined
    const entries = length ?? own ?? Math.floor((this.bytes - byteOffset) / size)
    if (!Number.isSafeInteger(entries) || entries < 0) throw invalidArgument('length', 'a number of entries from 0', entries)
    this.checkRange('byte', byteOffset, entries * size)
    return new array(this.arrayBuffer, byteOffset, entries) as TensorData
  }

  /**
   * Copies a tensor's data in.
   * @throws ERR_INVALID_TENSOR where it does not fit, ERR_DISPOSED
   */
  write(tensor: Tensor, byteOffset = 0): void {
    if (!(tensor instanceof Tensor)) throw new TensorRTError('ERR_INVALID_TENSOR', `write() takes a Tensor, not ${describeValue(tensor)}`)
    this.checkRange('byte', byteOffset, 0)
    requireFits(this, tensor.dtype, tensor.shape, tensor.byteLength, byteOffset)
    new Uint8Array(this.arrayBuffer, byteOffset, tensor.byteLength).set(tensor.bytes)
  }

  /**
   * A copy of what is there, as a tensor.
   * @throws ERR_INVALID_TENSOR where it does not fit, ERR_INVALID_ARGUMENT, ERR_DISPOSED
   */
  read<D extends DataType>(dtype: D, shape: readonly number[], byteOffset = 0): Tensor<D> {
    const sizes = checkShape(shape, `A tensor of ${checkDataType(dtype, 'A tensor')}`)
    const bytes = byteLengthOf(dtype, volume(sizes))
    this.checkRange('byte', byteOffset, 0)
    requireFits(this, dtype, sizes, bytes, byteOffset)
    // slice() copies, which lets any offset do.
    const copy = this.arrayBuffer.slice(byteOffset, byteOffset + bytes)
    return Tensor.wrap(dtype, new (arrayTypeOf(dtype))(copy), sizes)
  }
}

function requireFits(buffer: PinnedBuffer, dtype: DataType, shape: readonly number[], bytes: number, byteOffset: number): void {
  if (byteOffset + bytes <= buffer.bytes) return
  throw new TensorRTError(
    'ERR_INVALID_TENSOR',
    `A tensor of ${dtype} and shape ${formatShape(shape)} has ${bytes} bytes, and the PinnedBuffer of ` +
      `${buffer.bytes} has ${buffer.bytes - byteOffset} from byte ${byteOffset} on`,
  )
}
