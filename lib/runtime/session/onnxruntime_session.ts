/** Runs the batches of a session with onnxruntime, on the CPU, in a worker thread. Takes the place of a GPU where there is none. */
import { existsSync, statSync } from 'node:fs'
import { createRequire } from 'node:module'
import { extname, join } from 'node:path'
import { Worker } from 'node:worker_threads'
import { AbortError, TensorRTError } from '../../errors'
import type { DataType } from '../../native'
import { arrayLengthOf, arrayTypeOf, byteLengthOf } from '../dtype'
import { volume } from '../shape'
import { followSignal } from '../abort_signals'
import { gatherBatch } from './gather'
import type { OnnxAnswer, OnnxRun, OnnxTensorFacts, OnnxWorkerData } from './onnxruntime_messages'
import type { RequestShapes } from './request_shapes'
import type { BackendEvents, LaneCounters, SessionBackend } from './session_backend'
import type { BatchOutput, SessionBatch } from './session_request'
import type { InputSignature, ModelSignature, OutputSignature } from './signature'

export interface OnnxRuntimeOptions {
  /** Path of an ONNX file, or its bytes. */
  onnx: string | Uint8Array
  /** Threads that onnxruntime computes with; 0 = as it thinks best. */
  threads: number
  signal: AbortSignal | undefined
}

/** By onnxruntime's names. */
const DATA_TYPES: Readonly<Record<string, DataType>> = {
  float32: 'float32',
  float16: 'float16',
  int8: 'int8',
  uint8: 'uint8',
  int32: 'int32',
  int64: 'int64',
  bool: 'bool',
}

/** One batch runs, the next one stands by. */
const DEPTH = 2

export class OnnxRuntimeBackend implements SessionBackend {
  readonly kind = 'onnxruntime'
  readonly device = 'CPU'
  /** onnxruntime computes a batch on all processors: another at the same time would only compete with it. */
  readonly lanes = 1
  readonly depth = DEPTH
  readonly notBatchable = null
  private shapes: RequestShapes | undefined
  private events: BackendEvents | undefined
  /** By the id of the run. */
  private readonly running = new Map<number, { batch: SessionBatch; submitMs: number }>()
  private lastId = 0
  private runs = 0
  private closing: Promise<void> | undefined
  /** Why nothing runs any more. */
  private death: TensorRTError | undefined
  private readonly exited: Promise<void>

  private constructor(
    private readonly worker: Worker,
    private readonly closingFlag: Int32Array,
    readonly signature: ModelSignature,
  ) {
    this.exited = new Promise((resolve) => worker.once('exit', () => resolve()))
    worker.on('message', (answer: OnnxAnswer) => this.onAnswer(answer))
    worker.on('error', (error) => this.die(error))
    worker.on('exit', () => this.die(new Error('the worker thread has ended')))
    // It keeps the process alive while it has something to do.
    worker.unref()
  }

  /**
   * Loads the model, off the event loop.
   *
   * @throws (as a rejection) ERR_ONNXRUNTIME_NOT_FOUND, ERR_MODEL_NOT_FOUND, ERR_ONNX_INVALID, ERR_ONNX_UNSUPPORTED, AbortError
   */
  static async create(options: OnnxRuntimeOptions): Promise<OnnxRuntimeBackend> {
    const { onnx, threads, signal } = options
    if (signal?.aborted === true) throw new AbortError(signal.reason)
    const modulePath = findOnnxRuntime()
    if (typeof onnx === 'string') requireFile(onnx)
    const name = typeof onnx === 'string' ? onnx : 'the model'
    const closing = new SharedArrayBuffer(4)
    const worker = startWorker({ modulePath, model: onnx, threads, closing })
    try {
      const loaded = await loadedModel(worker, name, signal)
      return new OnnxRuntimeBackend(worker, new Int32Array(closing), signatureOf(loaded, name))
    } catch (error) {
      await worker.terminate()
      throw error
    }
  }

  open(shapes: RequestShapes, events: BackendEvents): void {
    this.shapes = shapes
    this.events = events
  }

  prepare(): Promise<void> {
    // The runs that follow do all there is to do.
    return Promise.resolve()
  }

  submit(batch: SessionBatch): void {
    const started = performance.now()
    const id = ++this.lastId
    if (this.running.size === 0) this.worker.ref()
    const entry = { batch, submitMs: 0 }
    this.running.set(id, entry)
    try {
      if (this.death !== undefined) throw this.death
      const request = this.pack(id, batch)
      this.worker.postMessage(
        request,
        request.inputs.map(({ buffer }) => buffer),
      )
      entry.submitMs = performance.now() - started
    } catch (error) {
      // Told later, as nobody expects to be called back within a call.
      queueMicrotask(() => this.finish(id, error, []))
    }
  }

  counters(): LaneCounters[] {
    return [{ enqueueUs: 0, enqueues: this.runs, graphLaunches: 0, contextSwitches: 0, voluntarySwitches: 0, involuntarySwitches: 0 }]
  }

  deviceAllocations(): number {
    return 0
  }

  close(): Promise<void> {
    this.closing ??= this.end()
    return this.closing
  }

  /** The run that has begun comes to its end: onnxruntime cannot be interrupted, and what it throws in a terminated thread ends the process. */
  private async end(): Promise<void> {
    Atomics.store(this.closingFlag, 0, 1)
    this.worker.ref()
    this.worker.postMessage(null)
    await this.exited
  }

  private pack(id: number, batch: SessionBatch): OnnxRun {
    const { inputs } = this.signature
    const tensors = inputs.map(({ dtype }, input) => {
      const shape = batch.shape.inputShape(input, batch.size)
      return { dtype, shape, buffer: new ArrayBuffer(byteLengthOf(dtype, volume(shape))) }
    })
    gatherBatch(
      this.shapes!,
      batch,
      tensors.map(({ dtype, buffer }) => new (arrayTypeOf(dtype))(buffer)),
    )
    return { id, inputs: tensors }
  }

  private onAnswer(answer: OnnxAnswer): void {
    if (answer.kind === 'ran') {
      this.runs++
      const outputs = answer.outputs.map(({ dtype, shape, buffer }): BatchOutput => {
        return { data: new (arrayTypeOf(dtype))(buffer, 0, arrayLengthOf(dtype, volume(shape))), shape: Object.freeze(shape) }
      })
      this.finish(answer.id, null, outputs)
    } else if (answer.kind === 'run-failed') {
      this.finish(answer.id, new TensorRTError('ERR_EXECUTION_FAILED', `onnxruntime failed: ${answer.message}`), [])
    }
  }

  private finish(id: number, error: unknown, outputs: readonly BatchOutput[]): void {
    const entry = this.running.get(id)
    if (entry === undefined) return
    this.running.delete(id)
    if (this.running.size === 0) this.worker.unref()
    if (this.closing === undefined) this.events!.done(entry.batch, error, outputs, entry.submitMs)
  }

  private die(cause: Error): void {
    this.death ??= new TensorRTError('ERR_BACKEND_DEAD', `onnxruntime's thread died: ${cause.message}`, { cause })
    for (const id of this.running.keys()) this.finish(id, this.death, [])
  }
}

/** @throws ERR_MODEL_NOT_FOUND, ERR_ONNX_INVALID */
function requireFile(path: string): void {
  const found = existsSync(path) ? statSync(path) : undefined
  if (found === undefined) throw new TensorRTError('ERR_MODEL_NOT_FOUND', `There is no ONNX file ${path}`)
  if (!found.isFile()) throw new TensorRTError('ERR_ONNX_INVALID', `${path} is no file`)
}

/** @throws ERR_ONNXRUNTIME_NOT_FOUND */
function findOnnxRuntime(): string {
  try {
    return createRequire(__filename).resolve('onnxruntime-node')
  } catch (cause) {
    throw new TensorRTError('ERR_ONNXRUNTIME_NOT_FOUND', 'onnxruntime-node is not installed', {
      hint: 'npm install onnxruntime-node',
      cause,
    })
  }
}

function startWorker(workerData: OnnxWorkerData): Worker {
  const extension = extname(__filename)
  // Run from the sources, the worker is TypeScript too.
  const execArgv = extension === '.ts' ? ['--require', 'tsx/cjs'] : []
  return new Worker(join(__dirname, `onnxruntime_worker${extension}`), { workerData, execArgv, name: 'node-tensorrt onnxruntime' })
}

type LoadedModel = Extract<OnnxAnswer, { kind: 'loaded' }>

function loadedModel(worker: Worker, name: string, signal: AbortSignal | undefined): Promise<LoadedModel> {
  return new Promise((resolve, reject) => {
    let unfollow: (() => void) | undefined
    const died = (what: string, cause?: Error): void => end(() => reject(new TensorRTError('ERR_INTERNAL', `onnxruntime's thread ${what}`, { cause })))
    const onMessage = (answer: OnnxAnswer): void => end(() => (answer.kind === 'loaded' ? resolve(answer) : reject(loadError(answer, name))))
    const onError = (cause: Error): void => died(`died: ${cause.message}`, cause)
    const onExit = (code: number): void => died(`ended with ${code}`)
    const end = (settle: () => void): void => {
      unfollow?.()
      worker.off('message', onMessage).off('error', onError).off('exit', onExit)
      // Its end is no news any more.
      worker.on('error', () => {})
      settle()
    }
    worker.once('message', onMessage).once('error', onError).once('exit', onExit)
    if (signal !== undefined) unfollow = followSignal(signal, () => end(() => reject(new AbortError(signal.reason))))
  })
}

function loadError(answer: OnnxAnswer, name: string): TensorRTError {
  const { missing, message } = answer as Extract<OnnxAnswer, { kind: 'failed' }>
  if (missing) {
    return new TensorRTError('ERR_ONNXRUNTIME_NOT_FOUND', `onnxruntime-node does not load: ${message}`, { hint: 'install it again: npm install onnxruntime-node' })
  }
  // onnxruntime gives no codes: its words tell what it lacks from what is broken.
  const unsupported = /unsupported data type|not implemented|is not a registered function|opset/i.test(message)
  return new TensorRTError(unsupported ? 'ERR_ONNX_UNSUPPORTED' : 'ERR_ONNX_INVALID', `onnxruntime does not take ${name}: ${message}`)
}

function signatureOf({ inputs, outputs }: LoadedModel, name: string): ModelSignature {
  const typed = <T extends OnnxTensorFacts>(kind: string, tensor: T): DataType => {
    const dtype = DATA_TYPES[tensor.type]
    if (dtype !== undefined) return dtype
    throw new TensorRTError('ERR_ONNX_UNSUPPORTED', `The ${kind} "${tensor.name}" is ${tensor.type}`, {
      hint: `tensors of a session are ${Object.values(DATA_TYPES).join(', ')}`,
    })
  }
  const open = (shape: readonly number[], size: number): number[] => shape.map((dim) => (dim < 0 ? size : dim))
  return {
    name,
    inputs: inputs.map((tensor): InputSignature => {
      const { name, shape } = tensor
      const ranges = [{ min: open(shape, 0), opt: open(shape, 1), max: open(shape, Infinity) }]
      return { name, dtype: typed('input', tensor), shape, isShapeTensor: false, ranges }
    }),
    outputs: outputs.map((tensor): OutputSignature => ({ name: tensor.name, dtype: typed('output', tensor), shape: tensor.shape })),
  }
}

/** What keeps one model from standing in for another; undefined: nothing. */
export function signatureMismatch(expected: ModelSignature, given: ModelSignature): string | undefined {
  for (const kind of ['inputs', 'outputs'] as const) {
    for (const { name, dtype } of expected[kind]) {
      const other = given[kind].find((tensor) => tensor.name === name)
      if (other === undefined) return `it has no ${kind.slice(0, -1)} "${name}"`
      if (other.dtype !== dtype) return `its ${kind.slice(0, -1)} "${name}" is ${other.dtype}, not ${dtype}`
    }
    const extra = given[kind].find(({ name }) => expected[kind].every((tensor) => tensor.name !== name))
    if (extra !== undefined && kind === 'inputs') return `it has an input "${extra.name}" more`
  }
  return undefined
}

