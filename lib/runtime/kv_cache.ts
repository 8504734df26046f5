/** A paged KV cache on the device: one pool of pages, and sequences that share it. */
import { TensorRTError } from '../errors'
import { ArgumentReader, describeValue, invalidArgument } from './argument_reader'
import type { DeviceBuffer, PinnedBuffer } from './buffers'
import { byteLengthOf } from './dtype'
import { throwIfAborted, type WaitOptions } from './handle'
import { KvPages, type KvCacheStats, type KvPageTables, type KvSequence } from './kv_pages'
import { Runtime } from './runtime'
import { formatShape, sameShape, volume } from './shape'
import { Stream } from './stream'
import { Tensor } from './tensor'

/** Types that keys and values are kept in. */
export type KvDataType = 'float32' | 'float16' | 'bfloat16' | 'float8' | 'int8'

export interface KvGeometry<D extends KvDataType = KvDataType> {
  layers: number
  /** Pages in the pool; a page holds `pageSize` tokens of all layers. */
  pages: number
  /** Tokens in a page. */
  pageSize: number
  kvHeads: number
  headDim: number
  dtype: D
}

export interface KvCacheOptions<D extends KvDataType = KvDataType> extends Omit<KvGeometry<D>, 'pageSize'> {
  /** Default 16. */
  pageSize?: number | undefined
  /**
   * Runs the cache's copies: the one that the work on the cache runs on, so that the order is right without events. It is not closed with the
   * cache. Default: a stream of the cache's own, {@link KvCache.stream}.
   */
  stream?: Stream | undefined
  signal?: AbortSignal | undefined
}

export interface KvPageOptions extends WaitOptions {
  /** Of one layer alone. Default: all. */
  layer?: number | undefined
}

const DATA_TYPES: readonly KvDataType[] = ['float32', 'float16', 'bfloat16', 'float8', 'int8']
const MAX_SIZE = 2 ** 31 - 1

/**
 * A pool `[layers, pages, 2, pageSize, kvHeads, headDim]` of keys (index 0 of the third dimension) and values (1) in one {@link DeviceBuffer},
 * and the sequences that own its pages. Freed pages keep their content until they are reused, the pool is zero at first.
 *
 * Sequences may share pages ({@link fork}); a shared page that would be written to is copied first. Nothing here waits for the device except
 * {@link create}, {@link readPage} and {@link writePage}: copies are queued on the cache's stream.
 */
export class KvCache<D extends KvDataType = KvDataType> implements AsyncDisposable {
  readonly geometry: Readonly<KvGeometry<D>>
  /** The pool. */
  readonly buffer: DeviceBuffer
  /** Runs the copies. */
  readonly stream: Stream
  /** Bytes of one page of one layer. */
  readonly layerPageBytes: number
  readonly #runtime: Runtime
  readonly #pages: KvPages
  readonly #ownsStream: boolean
  #closing: Promise<void> | undefined

  private constructor(geometry: KvGeometry<D>, runtime: Runtime, buffer: DeviceBuffer, stream: Stream, ownsStream: boolean) {
    this.geometry = Object.freeze(geometry)
    this.buffer = buffer
    this.stream = stream
    this.layerPageBytes = layerPageBytes(geometry)
    this.#runtime = runtime
    this.#pages = new KvPages(geometry.pages, geometry.pageSize)
    this.#ownsStream = ownsStream
  }

  /**
   * Allocates the pool and sets it to zero.
   *
   * @throws (as a rejection) ERR_INVALID_ARGUMENT, ERR_OUT_OF_DEVICE_MEMORY, ERR_CUDA, ERR_BACKEND_DEAD, ERR_DISPOSED, AbortError
   */
  static async create<D extends KvDataType>(runtime: Runtime, options: KvCacheOptions<D>): Promise<KvCache<D>> {
    if (!(runtime instanceof Runtime)) throw invalidArgument('runtime', 'a Runtime', runtime)
    runtime.checkOpen()
    const { geometry, stream: given, signal } = readOptions<D>(options)
    throwIfAborted(signal)
    const bytes = geometry.layers * geometry.pages * layerPageBytes(geometry)
    if (!Number.isSafeInteger(bytes)) throw new TensorRTError('ERR_INVALID_ARGUMENT', 'The KV cache would have more than 2^53 bytes')
    const buffer = await runtime.allocateDevice(bytes, { pooled: false, signal })
    let stream = given
    try {
      stream ??= await runtime.createStream({ signal })
      stream.fill(buffer, 0)
      await stream.synchronize({ signal })
      return new KvCache(geometry, runtime, buffer, stream, given === undefined)
    } catch (error) {
      await buffer.close()
      if (given === undefined) await stream?.close()
      throw error
    }
  }

  /** Bytes of the pool. */
  get bytes(): number {
    return this.buffer.bytes
  }

  get closed(): boolean {
    return this.#closing !== undefined || this.buffer.closed
  }

  /** A sequence without tokens. @throws ERR_DISPOSED */
  allocate(): KvSequence {
    this.#checkOpen()
    return this.#pages.allocate()
  }

  /**
   * Makes room for more tokens, all of it or none. A last page that other sequences have too is copied first, on the cache's stream.
   *
   * @throws ERR_OUT_OF_DEVICE_MEMORY where too few pages are free; ERR_INVALID_ARGUMENT, ERR_DISPOSED
   */
  append(sequence: KvSequence, tokens: number): void {
    this.#checkOpen()
    const copy = this.#pages.append(sequence, tokens)
    if (copy !== null) this.#copyPage(copy.from, copy.to)
  }

  /** Drops the tokens from `length` on; pages that become empty are free. @throws ERR_INVALID_ARGUMENT, ERR_DISPOSED */
  truncate(sequence: KvSequence, length: number): void {
    this.#checkOpen()
    this.#pages.truncate(sequence, length)
  }

  /** A sequence with the same tokens, on the same pages. @throws ERR_INVALID_ARGUMENT, ERR_DISPOSED */
  fork(sequence: KvSequence): KvSequence {
    this.#checkOpen()
    return this.#pages.fork(sequence)
  }

  /**
   * Gives a sequence's pages back, except those that others have too. Work that was queued before may still use them where it runs on the
   * cache's stream; elsewhere wait for it first.
   * @throws ERR_INVALID_ARGUMENT, ERR_DISPOSED
   */
  free(sequence: KvSequence): void {
    this.#checkOpen()
    this.#pages.free(sequence)
  }

  /** Pages of a sequence, in the order of its tokens. @throws ERR_INVALID_ARGUMENT, ERR_DISPOSED */
  pageTable(sequence: KvSequence): Int32Array {
    this.#checkOpen()
    return Int32Array.from(this.#pages.check('sequence', sequence).pages)
  }

  /** Page tables of a batch. @throws ERR_INVALID_ARGUMENT, ERR_DISPOSED */
  pageTables(sequences: readonly KvSequence[]): KvPageTables {
    this.#checkOpen()
    return this.#pages.tables(sequences)
  }

  /** Queues a copy of a page's keys and values, of all layers. @throws ERR_INVALID_ARGUMENT, ERR_DISPOSED */
  copy(fromPage: number, toPage: number): void {
    this.#checkOpen()
    this.#copyPage(this.#pages.checkPage('fromPage', fromPage), this.#pages.checkPage('toPage', toPage))
  }

  /**
   * A page as it is once what is queued on the cache's stream is done: `[layers, 2, pageSize, kvHeads, headDim]`, or
   * `[2, pageSize, kvHeads, headDim]` of one layer.
   *
   * @throws (as a rejection) ERR_INVALID_ARGUMENT, what `stream.synchronize()` throws, ERR_DISPOSED, AbortError
   */
  async readPage(page: number, options: KvPageOptions = {}): Promise<Tensor<D>> {
    this.#checkOpen()
    const { first, layers, shape, signal } = this.#readPageOptions(page, options, 'readPage()')
    return this.#withStaging(layers, signal, async (staging) => {
      const bytes = this.layerPageBytes
      this.stream.copyRows(staging, this.buffer, { rows: layers, bytes, fromPitch: this.#layerBytes, fromOffset: this.#offset(first, page) })
      await this.stream.synchronize({ signal })
      return staging.read(this.geometry.dtype, shape)
    })
  }

  /**
   * Sets a page, or that of one layer; resolves when it is there.
   *
   * @param data of the cache's type and the shape that {@link readPage} gives; it is copied before this returns
   * @throws (as a rejection) ERR_INVALID_TENSOR for another type or shape; what {@link readPage} throws
   */
  async writePage(page: number, data: Tensor<D>, options: KvPageOptions = {}): Promise<void> {
    this.#checkOpen()
    const { first, layers, shape, signal } = this.#readPageOptions(page, options, 'writePage()')
    const { dtype } = this.geometry
    if (!(data instanceof Tensor) || data.dtype !== dtype || !sameShape(data.shape, shape)) {
      const given = data instanceof Tensor ? `${data.dtype} ${formatShape(data.shape)}` : describeValue(data)
      throw new TensorRTError('ERR_INVALID_TENSOR', `A page takes a tensor of ${dtype} and shape ${formatShape(shape)}, not ${given}`)
    }
    const copied = Tensor.wrap(dtype, data.data.slice() as typeof data.data, shape)
    await this.#withStaging(layers, signal, async (staging) => {
      staging.write(copied)
      const bytes = this.layerPageBytes
      this.stream.copyRows(this.buffer, staging, { rows: layers, bytes, toPitch: this.#layerBytes, toOffset: this.#offset(first, page) })
      await this.stream.synchronize({ signal })
    })
  }

  stats(): KvCacheStats {
    return this.#pages.stats()
  }

  /**
   * Checks that free and used pages make up the pool, and that each page's users are those that have it. Takes time in proportion to the
   * pool; meant for tests and for idle moments.
   * @throws ERR_INTERNAL
   */
  check(): void {
    this.#pages.checkPages()
  }

  /** Frees the pool; idempotent. Queued work on it is done first. */
  close(): Promise<void> {
    this.#closing ??= this.#end()
    return this.#closing
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.close()
  }

  /** Bytes of one layer's pages. */
  get #layerBytes(): number {
    return this.geometry.pages * this.layerPageBytes
  }

  #offset(layer: number, page: number): number {
    return layer * this.#layerBytes + page * this.layerPageBytes
  }

  #copyPage(from: number, to: number): void {
    if (from === to) return
    const pitch = this.#layerBytes
    this.stream.copyRows(this.buffer, this.buffer, {
      rows: this.geometry.layers,
      bytes: this.layerPageBytes,
      fromPitch: pitch,
      toPitch: pitch,
      fromOffset: this.#offset(0, from),
      toOffset: this.#offset(0, to),
    })
  }

  #readPageOptions(page: number, options: KvPageOptions, what: string) {
    this.#pages.checkPage('page', page)
    const reader = new ArgumentReader(options, ['layer', 'signal'], what)
    const layer = reader.integer('layer', 0, this.geometry.layers - 1)
    const signal = reader.signal('signal')
    throwIfAborted(signal)
    const { layers, pageSize, kvHeads, headDim } = this.geometry
    const shape = layer === undefined ? [layers, 2, pageSize, kvHeads, headDim] : [2, pageSize, kvHeads, headDim]
    return { first: layer ?? 0, layers: layer === undefined ? layers : 1, shape, signal }
  }

  async #withStaging<T>(layers: number, signal: AbortSignal | undefined, use: (staging: PinnedBuffer) => Promise<T>): Promise<T> {
    const staging = await this.#runtime.allocatePinned(layers * this.layerPageBytes, { signal })
    try {
      return await use(staging)
    } finally {
      // A copy that is still queued keeps the memory.
      void staging.close()
    }
  }

  async #end(): Promise<void> {
    await Promise.all([this.buffer.close(), this.#ownsStream ? this.stream.close() : undefined])
  }

  #checkOpen(): void {
    if (this.closed || this.stream.closed) throw new TensorRTError('ERR_DISPOSED', 'The KvCache is closed')
  }
}

function layerPageBytes({ pageSize, kvHeads, headDim, dtype }: KvGeometry): number {
  return byteLengthOf(dtype, volume([2, pageSize, kvHeads, headDim]))
}

const OPTION_NAMES = ['layers', 'pages', 'pageSize', 'kvHeads', 'headDim', 'dtype', 'stream', 'signal'] as const satisfies readonly (keyof KvCacheOptions)[]

function readOptions<D extends KvDataType>(options: KvCacheOptions<D>) {
  const reader = new ArgumentReader(options, OPTION_NAMES, 'KvCache.create()')
  const size = (name: keyof KvGeometry): number => {
    const value = reader.integer(name, 1, MAX_SIZE)
    if (value === undefined) throw invalidArgument(name, 'given, a number from 1', value)
    return value
  }
  const stream = reader.get('stream')
  if (stream !== undefined && !(stream instanceof Stream)) throw invalidArgument('stream', 'a Stream', stream)
  stream?.checkOpen()
  const dtype = reader.choice('dtype', DATA_TYPES)
  if (dtype === undefined) throw invalidArgument('dtype', `given: ${DATA_TYPES.join(', ')}`, dtype)
  const geometry = {
    layers: size('layers'),
    pages: size('pages'),
    pageSize: reader.get('pageSize') === undefined ? 16 : size('pageSize'),
    kvHeads: size('kvHeads'),
    headDim: size('headDim'),
    dtype: dtype as D,
  }
  return { geometry, stream, signal: reader.signal('signal') }
}
