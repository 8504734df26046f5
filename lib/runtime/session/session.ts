/**
 * Runs a model for many callers: takes requests, puts them into batches, runs those on lanes, and hands each caller its outputs.
 *
 * It owns no thread and polls nothing: it works when a request comes, when a batch ends, and when the one timer is due. There is nothing that
 * keeps an idle process alive.
 */
import { AbortError, TensorRTError } from '../../errors'
import { followSignal } from '../abort_signals'
import { ArgumentReader } from '../argument_reader'
import { throwIfAborted } from '../handle'
import { loadSession, type SessionLoadOptions } from './load_session'
import { DynamicBatcher } from './dynamic_batcher'
import { type BackendSource, deviceFailed, failedOver, nothingTookOver, RequestTransfer } from './failover'
import { scatterRequest } from './gather'
import { type CheckedSessionOptions, type OutputMap, type RunOptions, type SessionCloseOptions, type SessionWarning, type TensorMap, warnOf } from './options'
import { RequestLimits } from './request_limits'
import { RequestShapes } from './request_shapes'
import { DEFAULT_RUN, readRunOptions } from './run_options'
import { isDeath, type SessionBackend } from './session_backend'
import { type BatchOutput, type SessionBatch, SessionRequest } from './session_request'
import { DeviceReadings, SessionCounters, type SessionStats } from './session_stats'
import type { ModelSignature } from './signature'
import { WarmUp } from './warm_up'

/** What a session is. */
export interface SessionInfo {
  /** What runs the model. */
  backend: 'tensorrt' | 'onnxruntime'
  /** The GPU's name, or the CPU's. */
  device: string
  /** Batches that run at the same time. */
  lanes: number
  /** Whether requests are put together. */
  batched: boolean
  inputs: readonly TensorSignature[]
  outputs: readonly TensorSignature[]
}

export interface TensorSignature {
  name: string
  dtype: ModelSignature['inputs'][number]['dtype']
  /** -1 = dynamic */
  shape: readonly number[]
}

const MAX_TIMER_MS = 2 ** 31 - 1
/** Known to those alone who may make one. */
const MAKER = Symbol('Session')

/** Runs requests through a model. Made by `engine.createSession()` and {@link Session.load}. */
export class Session implements AsyncDisposable {
  #backend: SessionBackend
  #shapes: RequestShapes
  #batcher: DynamicBatcher<SessionRequest>
  readonly #options: CheckedSessionOptions
  /** Takes over when the backend dies; once. */
  #fallback: BackendSource | undefined
  readonly #counters = new SessionCounters()
  readonly #device = new DeviceReadings()
  readonly #batches = new Set<SessionBatch>()
  /** Requests that are not settled; of them those that run. */
  #pending = 0
  #running = 0
  readonly #limits = new RequestLimits()
  #timer: NodeJS.Timeout | undefined
  #timerAt = Infinity
  #pumpScheduled = false
  /** Why no request is taken any more. */
  #ended: TensorRTError | undefined
  /** True between the death of a backend and the start of the other. */
  #switching = false
  #closing: Promise<void> | undefined
  /** Ends the wait of a close() for what is pending. */
  #endDrain: (() => void) | undefined
  readonly #afterClose: (() => Promise<void> | void)[] = []
  /** Until the session is ready. */
  #warmUp: WarmUp | undefined

  private constructor(maker: symbol, backend: SessionBackend, options: CheckedSessionOptions, fallback: BackendSource | undefined) {
    // For JavaScript, which knows no private constructors.
    if (maker !== MAKER) {
      throw new TensorRTError('ERR_INVALID_ARGUMENT', 'A Session is not made with new', { hint: 'await Session.load(folderOrFile), or engine.createSession()' })
    }
    this.#backend = backend
    this.#options = options
    this.#fallback = fallback
    this.#shapes = this.#shapesFor(backend)
    // Before the session is ready nobody else comes that could be waited for.
    this.#batcher = this.#batcherFor(backend, 0)
    this.#counters.reset(backend.lanes, performance.now())
  }

  /**
   * Opens a session over a backend, which belongs to it from now on, and warms it up.
   *
   * @throws (as a rejection) ERR_INVALID_ARGUMENT, ERR_INVALID_TENSOR, what runs of the backend throw, AbortError
   * @internal
   */
  static async open(backend: SessionBackend, options: CheckedSessionOptions, fallback?: BackendSource): Promise<Session> {
    let session: Session
    try {
      session = new Session(MAKER, backend, options, fallback)
    } catch (error) {
      await backend.close()
      throw error
    }
    try {
      session.#listen(backend)
      await session.#getReady()
      return session
    } catch (error) {
      await session.close()
      throw error
    }
  }

  /**
   * Runs a model by whatever can run it here.
   *
   * @param source path of a plan, an engine folder or an ONNX file; or the bytes of a plan
   * @throws (as a rejection) ERR_INVALID_ARGUMENT; what Engine.load() throws; with `onnx` ERR_ONNXRUNTIME_NOT_FOUND, ERR_MODEL_NOT_FOUND,
   * ERR_ONNX_INVALID, ERR_ONNX_UNSUPPORTED, whose cause tells why no GPU was used; AbortError
   */
  static load(source: string | Uint8Array | ArrayBuffer, options: SessionLoadOptions = {}): Promise<Session> {
    return loadSession(source, options)
  }

  /** Calls back once when the session has given its memory back. Must not throw. @internal */
  onClosed(callback: () => Promise<void> | void): void {
    this.#afterClose.push(callback)
  }

  get info(): SessionInfo {
    const { kind, device, lanes, signature } = this.#backend
    const describe = ({ name, dtype, shape }: TensorSignature): TensorSignature => ({ name, dtype, shape })
    return {
      backend: kind,
      device,
      lanes,
      batched: this.#shapes.isBatched,
      inputs: signature.inputs.map(describe),
      outputs: signature.outputs.map(describe),
    }
  }

  /**
   * Runs one request. Leave the inputs' arrays as they are until the promise has settled. Outputs have memory of their own.
   *
   * @param inputs a tensor for each input of the model
   * @throws (as a rejection) ERR_INVALID_TENSOR, ERR_INVALID_ARGUMENT; ERR_QUEUE_FULL; ERR_DEADLINE_EXCEEDED, ERR_TIMEOUT; AbortError;
   * ERR_EXECUTION_FAILED, ERR_CUDA, ERR_OUT_OF_DEVICE_MEMORY when the run failed; ERR_BACKEND_DEAD when nothing runs any more; ERR_DISPOSED
   */
  run<N extends string = string>(inputs: TensorMap, options?: RunOptions<N>): Promise<OutputMap<N>> {
    return new Promise<OutputMap>((resolve, reject) => {
      try {
        this.#accept(inputs, options, resolve, reject)
      } catch (error) {
        this.#counters.refused++
        reject(error as Error)
      }
    })
  }

  /** What the session has done since it was ready. May be called at any time, also when it is closed. */
  stats(): SessionStats {
    const counters = this.#counters
    const device = this.#device
    device.read(this.#backend)
    return {
      backend: this.#backend.kind,
      queued: this.#batcher.size,
      running: this.#running,
      completed: counters.completed,
      failed: counters.failed,
      aborted: counters.aborted,
      refused: counters.refused,
      batches: counters.batches,
      batchSizes: Object.fromEntries(counters.batchSizes),
      rows: counters.rows,
      paddedRows: counters.paddedRows,
      retried: counters.retried,
      failedOver: counters.failedOver,
      queueTime: counters.queueTime.stats(),
      runTime: counters.runTime.stats(),
      submitTime: counters.submitTime.stats(),
      deviceAllocations: device.allocations,
      lanes: counters.laneStats(device, performance.now()),
    }
  }

  /**
   * Takes no new requests, lets pending ones end for `drain` milliseconds, rejects the rest with ERR_DISPOSED, and gives all memory back.
   * Idempotent; a call without `drain` ends the wait of an earlier one.
   *
   * @throws (as a rejection) ERR_INVALID_ARGUMENT
   */
  close(options: SessionCloseOptions = {}): Promise<void> {
    let drain: number
    try {
      drain = new ArgumentReader(options, ['drain'], 'close()').number('drain', 0, MAX_TIMER_MS) ?? 0
    } catch (error) {
      return Promise.reject(error)
    }
    if (drain === 0) this.#endDrain?.()
    this.#closing ??= this.#close(drain)
    return this.#closing
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.close()
  }

  async #close(drain: number): Promise<void> {
    const disposed = new TensorRTError('ERR_DISPOSED', 'The session is closed')
    this.#ended ??= disposed
    if (drain > 0 && this.#pending > 0) {
      await new Promise<void>((resolve) => {
        const timer = setTimeout(resolve, drain)
        this.#endDrain = () => {
          clearTimeout(timer)
          resolve()
        }
      })
      this.#endDrain = undefined
    }
    this.#rejectAll(disposed)
    this.#fallback = undefined
    this.#device.read(this.#backend)
    await this.#backend.close()
    for (const callback of this.#afterClose) await callback()
  }

  #shapesFor(backend: SessionBackend): RequestShapes {
    const { batching, maxGraphs } = this.#options
    const { notBatchable } = backend
    if (batching !== undefined && notBatchable !== null) {
      throw new TensorRTError('ERR_INVALID_ARGUMENT', `The model cannot be batched: ${notBatchable}`, {
        hint: 'without "batching" each request runs by itself',
      })
    }
    return new RequestShapes(backend.signature, batching, backend.kind === 'tensorrt' && maxGraphs > 0)
  }

  #batcherFor({ lanes, depth }: SessionBackend, maxDelayMs = this.#options.batching?.maxDelayMs ?? 0): DynamicBatcher<SessionRequest> {
    const { maxQueue, agingMs } = this.#options
    return new DynamicBatcher<SessionRequest>({ lanes, depth, maxDelayMs, maxQueue, agingMs })
  }

  #listen(backend: SessionBackend): void {
    backend.open(this.#shapes, {
      done: (batch, error, outputs, submitMs) => {
        if (backend === this.#backend) this.#onDone(batch, error, outputs, submitMs)
      },
      warn: (warning) => this.#warn(warning),
    })
  }

  #accept(inputs: TensorMap, options: RunOptions | undefined, resolve: (outputs: OutputMap) => void, reject: (error: Error) => void): void {
    if (this.#ended !== undefined) throw this.#ended
    const now = performance.now()
    const { signal, priority, deadline, timeoutAt, wanted } = options === undefined ? DEFAULT_RUN : readRunOptions(options, this.#shapes.signature, now)
    const classified = this.#shapes.classify(inputs)
    const request = new SessionRequest(classified, now, priority, deadline, timeoutAt, wanted, resolve, reject)
    this.#batcher.add(request, now)
    this.#pending++
    this.#limits.add(request)
    if (signal !== undefined) request.unfollow = followSignal(signal, () => this.#abort(request, signal))
    this.#schedulePump()
  }

  /** Requests that come in one turn of the event loop can share a batch. Where none does, there is nothing to wait for. */
  #schedulePump(): void {
    if (!this.#shapes.isBatched) {
      this.#pump()
      return
    }
    if (this.#pumpScheduled) return
    this.#pumpScheduled = true
    queueMicrotask(this.#runPump)
  }

  readonly #runPump = (): void => {
    this.#pumpScheduled = false
    this.#pump()
  }

  #pump(): void {
    const now = performance.now()
    if (!this.#switching) {
      for (let batch = this.#batcher.take(now); batch !== null; batch = this.#batcher.take(now)) this.#start(batch, now)
    }
    for (const request of this.#batcher.takeRefused(now)) {
      this.#fail(request, new TensorRTError('ERR_DEADLINE_EXCEEDED', 'The request could not be run before its deadline'))
    }
    this.#arm(now)
  }

  #start(batch: SessionBatch, now: number): void {
    this.#batches.add(batch)
    for (const request of batch.requests) {
      request.batch = batch
      request.takenAt = now
      this.#counters.queueTime.add(now - request.arrival)
    }
    this.#running += batch.requests.length
    this.#counters.batchTaken(batch.lane, now)
    this.#backend.submit(batch)
  }

  #onDone(batch: SessionBatch, error: unknown, outputs: readonly BatchOutput[], submitMs: number): void {
    if (error === null) error = this.#rowsMissing(batch, outputs)
    if (this.#warmUp?.done(batch, error) === true) return
    // Given up, as another one reported the backend's death.
    if (!this.#batches.delete(batch)) return
    const now = performance.now()
    const { requests } = batch
    const { takenAt } = requests[0]!
    this.#batcher.done(batch, now, error === null)
    this.#counters.batchEnded(batch.lane, batch.rows, batch.size, now - takenAt, submitMs, now)
    for (const request of requests) {
      request.batch = null
      if (!request.settled) this.#running--
    }
    if (error === null) this.#answer(batch, outputs)
    else this.#runFailed(batch, error)
    this.#pump()
  }

  /** Outputs that don't have the batch's rows cannot be told apart. */
  #rowsMissing({ size }: SessionBatch, outputs: readonly BatchOutput[]): TensorRTError | null {
    if (!this.#shapes.isBatched) return null
    for (let i = 0; i < outputs.length; i++) {
      if (outputs[i]!.shape[0] === size) continue
      const { name } = this.#shapes.signature.outputs[i]!
      return new TensorRTError('ERR_EXECUTION_FAILED', `Output "${name}" has ${outputs[i]!.shape[0]} rows for a batch of ${size}: the model cannot be batched`, {
        hint: 'without "batching" each request runs by itself',
      })
    }
    return null
  }

  #answer(batch: SessionBatch, outputs: readonly BatchOutput[]): void {
    let row = 0
    for (const request of batch.requests) {
      if (!request.settled) {
        if (request.failure !== null) {
          this.#fail(request, request.failure)
        } else {
          const own = scatterRequest(this.#shapes, batch, request, row, outputs)
          this.#settle(request)
          this.#counters.completed++
          request.resolve(own)
        }
      }
      row += request.rows
    }
  }

  #runFailed({ requests }: SessionBatch, error: unknown): void {
    if (isDeath(error)) {
      for (const request of requests) if (!request.settled) this.#batcher.restore(request)
      this.#onDeath(error)
      return
    }
    for (const request of requests) {
      if (request.settled) continue
      // One of them may be to blame: by itself it fails alone.
      if (requests.length === 1) {
        this.#fail(request, error as Error)
        continue
      }
      request.alone = true
      this.#counters.retried++
      this.#batcher.restore(request)
    }
  }

  #onDeath(error: unknown): void {
    if (this.#switching || this.#closing !== undefined) return
    const dead = deviceFailed(error)
    const fallback = this.#fallback
    this.#fallback = undefined
    if (fallback === undefined) {
      this.#ended = dead
      this.#rejectAll(dead)
      return
    }
    this.#switching = true
    // Whatever ran is not answered yet, so it runs again.
    for (const { requests } of this.#batches) {
      for (const request of requests) {
        request.batch = null
        if (request.settled) continue
        this.#running--
        this.#batcher.restore(request)
      }
    }
    this.#batches.clear()
    void this.#failOver(fallback, dead)
  }

  async #failOver(fallback: BackendSource, dead: TensorRTError): Promise<void> {
    const from = this.#backend
    let to: SessionBackend | undefined
    try {
      to = await fallback()
      const shapes = this.#shapesFor(to)
      if (this.#closing !== undefined) {
        await to.close()
        return
      }
      this.#takeOver(to, shapes)
    } catch (cause) {
      void to?.close()
      this.#switching = false
      this.#ended = nothingTookOver(dead, cause)
      this.#rejectAll(this.#ended)
      return
    }
    void from.close()
    this.#warn(failedOver(to.device, dead))
    this.#pump()
  }

  #takeOver(to: SessionBackend, shapes: RequestShapes): void {
    const waiting = this.#batcher.clear()
    const transfer = new RequestTransfer(this.#shapes.signature, shapes)
    this.#backend = to
    this.#shapes = shapes
    this.#batcher = this.#batcherFor(to)
    this.#switching = false
    this.#listen(to)
    this.#counters.useLanes(to.lanes, performance.now())
    this.#device.start(to)
    for (const request of waiting) {
      try {
        transfer.move(request)
        this.#batcher.restore(request)
        this.#counters.failedOver++
      } catch (error) {
        this.#fail(request, error as Error)
      }
    }
  }

  #abort(request: SessionRequest, signal: AbortSignal): void {
    if (request.settled) return
    this.#forget(request)
    this.#counters.aborted++
    request.reject(new AbortError(signal.reason))
  }

  #fail(request: SessionRequest, error: Error): void {
    if (request.settled) return
    this.#forget(request)
    this.#counters.failed++
    request.reject(error)
  }

  /** Takes a request out of wherever it is. A batch that it runs in goes on. */
  #forget(request: SessionRequest): void {
    if (request.batch !== null) this.#running--
    else this.#batcher.remove(request)
    this.#settle(request)
  }

  #settle(request: SessionRequest): void {
    request.settled = true
    request.unfollow?.()
    this.#limits.delete(request)
    if (--this.#pending > 0) return
    this.#disarm()
    this.#endDrain?.()
  }

  #rejectAll(error: Error): void {
    for (const request of this.#batcher.clear()) this.#fail(request, error)
    for (const { requests } of this.#batches) for (const request of requests) this.#fail(request, error)
    this.#disarm()
  }

  /** Sets the one timer for what is due next. */
  #arm(now: number): void {
    if (this.#pending === 0) return
    const at = this.#switching ? this.#limits.nextAt : Math.min(this.#batcher.nextWake(), this.#limits.nextAt)
    if (at === Infinity || (this.#timer !== undefined && this.#timerAt <= at)) return
    this.#disarm()
    this.#timerAt = at
    this.#timer = setTimeout(this.#onTimer, Math.min(Math.max(Math.ceil(at - now), 1), MAX_TIMER_MS))
  }

  #disarm(): void {
    if (this.#timer === undefined) return
    clearTimeout(this.#timer)
    this.#timer = undefined
    this.#timerAt = Infinity
  }

  readonly #onTimer = (): void => {
    this.#timer = undefined
    this.#timerAt = Infinity
    for (const { request, error } of this.#limits.takeExpired(performance.now())) this.#fail(request, error)
    this.#pump()
  }

  #warn(warning: SessionWarning): void {
    warnOf(this.#options, warning)
  }

  async #getReady(): Promise<void> {
    const { warmUp, signal } = this.#options
    if (warmUp) {
      this.#warmUp = new WarmUp(this.#backend, this.#shapes, this.#options)
      await this.#warmUp.run((inputs) => this.run(inputs))
      this.#warmUp = undefined
    }
    throwIfAborted(signal)
    // Another one by now, if the first has died on the way.
    const backend = this.#backend
    this.#batcher = this.#batcherFor(backend)
    this.#counters.reset(backend.lanes, performance.now())
    this.#device.start(backend)
  }
}
