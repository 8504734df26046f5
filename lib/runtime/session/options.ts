/** Public options of sessions, and what they come to once checked. */
import { availableParallelism } from 'node:os'
import { TensorRTError } from '../../errors'
import { ArgumentReader, describeValue, invalidArgument } from '../argument_reader'
import { tellListener } from '../listeners'
import type { AnyTensor, Tensor } from '../tensor'

/** One dimension that differs between requests, such as the length of a text. It is filled up so that requests can share a batch. */
export interface RaggedDimension {
  /** Inputs that have the dimension, with the axis and the value that fills it up (default 0). They agree on its size in a request. */
  inputs: Readonly<Record<string, { axis: number; value?: number | bigint | undefined }>>
  /** Outputs that have it: their axis. They are cut to the request's own size. */
  outputs?: Readonly<Record<string, number>> | undefined
  /** Sizes that run, ascending. A request is filled up to the next one. Default: each profile's OPT and MAX. */
  buckets?: readonly number[] | undefined
}

/** How requests are put together along the first axis of every input and output. */
export interface BatchingOptions {
  /** Most rows of a batch. A request has as many rows as its inputs' first dimension says. Default: the profiles' maximum. */
  maxBatch?: number | undefined
  /** Milliseconds that a request waits at most for others while a lane is idle. Default 0: a batch is what waits at the moment. */
  maxDelayMs?: number | undefined
  /** Row counts at which a batch is sent off without waiting for more, ascending. Default: `maxBatch` alone. */
  preferredSizes?: readonly number[] | undefined
  /**
   * Row counts that are run, ascending: a batch is filled up to the next one with copies of its last row, whose outputs are dropped.
   * Each is captured as a CUDA graph. `exact` runs every batch as it is. Default: with CUDA graphs 1, 2, 4, 6, 8, 10, 12, 14, 16, 20, 24, 28, 32 and so
   * on, four sizes in each doubling; else `exact`.
   */
  runSizes?: readonly number[] | 'exact' | undefined
  /** Dimensions beside the first one in which requests may differ. Without it only requests of equal shapes share a batch. */
  padding?: readonly RaggedDimension[] | undefined
}

/** Something a caller should know although no request failed of it. */
export interface SessionWarning {
  /**
   * `ONNXRUNTIME_FALLBACK`: no GPU is usable, onnxruntime runs the model on the CPU. `SESSION_FAILED_OVER`: the GPU died, and onnxruntime
   * has taken over. `GRAPH_CAPTURE_FAILED`: the model cannot be captured as a CUDA graph, and runs as plain commands.
   */
  code: 'ONNXRUNTIME_FALLBACK' | 'SESSION_FAILED_OVER' | 'GRAPH_CAPTURE_FAILED'
  message: string
  /** The error behind it. */
  cause?: unknown
}

/** Options of a session, whatever runs the model. */
export interface SessionOptions {
  /** Lanes: batches that run at the same time, each with a stream, execution contexts and memory of its own. Default 1. */
  contexts?: number | undefined
  /** Use this optimization profile alone. Default: of all profiles the one that fits a batch best. */
  profile?: number | undefined
  /** Put requests together. Default: each request runs by itself. `true`: with the defaults. */
  batching?: BatchingOptions | boolean | undefined
  /** Requests that may wait; more are refused with ERR_QUEUE_FULL. Default 1024. */
  maxQueue?: number | undefined
  /** A waiting request becomes one priority level more urgent each so many milliseconds. Default 1000. */
  agingMs?: number | undefined
  /**
   * Run every context in every declared shape before the session is ready, so that the first request is as fast as the next. An array adds
   * shapes, by input, to those that are known from batching and profiles. Default true.
   */
  warmUp?: boolean | readonly Readonly<Record<string, readonly number[]>>[] | undefined
  /**
   * GPU: replay copies and inference as one CUDA graph for each shape. A number says how many shapes are kept as graphs on each lane. Default 64.
   */
  cudaGraphs?: boolean | number | undefined
  /** GPU: batches that stand by on a lane behind the running one, so that the device need not wait for the host. 0 or 1, default 1. */
  runAhead?: number | undefined
  /** GPU: priority of the streams, from 0 (default). Higher runs first, as far as the device has levels. */
  streamPriority?: number | undefined
  /**
   * GPU: microseconds for which a stream's threads spin before they sleep, and for which the event loop goes on turning after a batch was
   * handed to the device. More than a batch takes gives the least and the steadiest latency, for processor time. Default: 1000 where the
   * process may use processors enough (four, and two more for each context), else 50.
   */
  spinUs?: number | undefined
  /** Called for each warning, in place of `process.emitWarning`. */
  onWarning?: ((warning: SessionWarning) => void) | undefined
  /** Aborts the creation, which rejects at once. What was made until then is closed in the background. */
  signal?: AbortSignal | undefined
}

/** Inputs by name. */
export type TensorMap = Readonly<Record<string, Tensor>>

/** Outputs by name; `output.dtype === 'float32'` narrows `output.data`. */
export type OutputMap<N extends string = string> = Readonly<Record<N, AnyTensor>>

/** Options of one request. */
export interface RunOptions<N extends string = string> {
  /** Aborts the request: it rejects with an AbortError whose `cause` is `signal.reason`. What runs already is left to end. */
  signal?: AbortSignal | undefined
  /** Lower is more urgent. Integer in [-1000, 1000], default 0. */
  priority?: number | undefined
  /**
   * When the outputs must be there: a Date, or milliseconds since the epoch. A request that cannot meet it is refused with
   * ERR_DEADLINE_EXCEEDED as soon as that is known.
   */
  deadline?: Date | number | undefined
  /** Milliseconds from the call after which the request fails with ERR_TIMEOUT. */
  timeoutMs?: number | undefined
  /** Outputs to hand out. Default: all. */
  outputs?: readonly N[] | undefined
}

export interface SessionCloseOptions {
  /** Milliseconds to let pending requests end before they are rejected. New ones are refused at once. Default 0. */
  drain?: number | undefined
}

export interface CheckedRagged {
  inputs: ReadonlyMap<string, { axis: number; value: number | bigint }>
  outputs: ReadonlyMap<string, number>
  buckets: readonly number[] | undefined
}

export interface CheckedBatching {
  maxBatch: number | undefined
  maxDelayMs: number
  preferredSizes: readonly number[] | undefined
  runSizes: readonly number[] | 'exact' | undefined
  padding: readonly CheckedRagged[]
}

export interface CheckedSessionOptions {
  contexts: number
  profile: number | undefined
  batching: CheckedBatching | undefined
  maxQueue: number
  agingMs: number
  warmUp: boolean
  warmUpShapes: readonly Readonly<Record<string, readonly number[]>>[]
  /** 0 = none */
  maxGraphs: number
  runAhead: number
  streamPriority: number
  spinUs: number
  onWarning: ((warning: SessionWarning) => void) | undefined
  signal: AbortSignal | undefined
}

export const SESSION_OPTION_NAMES = [
  'contexts',
  'profile',
  'batching',
  'maxQueue',
  'agingMs',
  'warmUp',
  'cudaGraphs',
  'runAhead',
  'streamPriority',
  'spinUs',
  'onWarning',
  'signal',
] as const

const MAX_DIMENSION = 2 ** 31 - 1
const MAX_DELAY_MS = 60_000
const DEFAULT_GRAPHS = 64

/** @throws ERR_INVALID_ARGUMENT */
export function checkSessionOptions(options: unknown, what: string, others: readonly string[] = []): CheckedSessionOptions {
  const reader = new ArgumentReader(options, [...SESSION_OPTION_NAMES, ...others], what)
  const warmUp = reader.get('warmUp') ?? true
  if (typeof warmUp !== 'boolean' && !Array.isArray(warmUp)) throw invalidArgument('warmUp', 'true, false or an array of shapes', warmUp)
  const contexts = reader.integer('contexts', 1, 64) ?? 1
  return {
    contexts,
    profile: reader.integer('profile', 0, MAX_DIMENSION),
    batching: checkBatching(reader.get('batching')),
    maxQueue: reader.integer('maxQueue', 1, 1_000_000) ?? 1024,
    agingMs: reader.positive('agingMs') ?? 1000,
    warmUp: warmUp !== false,
    warmUpShapes: Array.isArray(warmUp) ? warmUp.map(checkShapes) : [],
    maxGraphs: checkGraphs(reader.get('cudaGraphs')),
    runAhead: reader.integer('runAhead', 0, 1) ?? 1,
    streamPriority: reader.integer('streamPriority', 0, 100) ?? 0,
    spinUs: reader.integer('spinUs', 0, 1_000_000) ?? defaultSpinUs(contexts, availableParallelism()),
    onWarning: reader.callback('onWarning') as CheckedSessionOptions['onWarning'],
    signal: reader.signal('signal'),
  }
}

/**
 * Threads that spin must not take processors from those that work. Each context has two threads, beside the event loop and what else there is.
 *
 * @returns microseconds
 */
export function defaultSpinUs(contexts: number, processors: number): number {
  return processors >= 4 + 2 * contexts ? 1000 : 50
}

function checkGraphs(value: unknown): number {
  if (value === undefined || value === true) return DEFAULT_GRAPHS
  if (value === false) return 0
  if (typeof value === 'number' && Number.isInteger(value) && value >= 0 && value <= 4096) return value
  throw invalidArgument('cudaGraphs', 'true, false or an integer from 0 to 4096', value)
}

function checkBatching(value: unknown): CheckedBatching | undefined {
  if (value === undefined || value === false) return undefined
  const known = ['maxBatch', 'maxDelayMs', 'preferredSizes', 'runSizes', 'padding']
  const reader = new ArgumentReader(value === true ? {} : value, known, 'batching')
  const maxBatch = reader.integer('maxBatch', 1, MAX_DIMENSION)
  const runSizes = reader.get('runSizes')
  const batching: CheckedBatching = {
    maxBatch,
    maxDelayMs: reader.number('maxDelayMs', 0, MAX_DELAY_MS) ?? 0,
    preferredSizes: checkSizes('batching.preferredSizes', reader.get('preferredSizes')),
    runSizes: runSizes === 'exact' ? runSizes : checkSizes('batching.runSizes', runSizes),
    padding: checkPadding(reader.get('padding')),
  }
  for (const name of ['preferredSizes', 'runSizes'] as const) {
    const largest = batching[name] === 'exact' ? undefined : (batching[name] as readonly number[] | undefined)?.at(-1)
    if (maxBatch !== undefined && largest !== undefined && largest > maxBatch) {
      throw new TensorRTError('ERR_INVALID_ARGUMENT', `"batching.${name}" goes up to ${largest}, and "batching.maxBatch" is ${maxBatch}`)
    }
  }
  return batching
}

function checkSizes(name: string, value: unknown): readonly number[] | undefined {
  if (value === undefined) return undefined
  const isSize = (size: unknown, i: number, all: readonly unknown[]): boolean =>
    Number.isInteger(size) && (size as number) >= 1 && (size as number) <= MAX_DIMENSION && (i === 0 || (size as number) > (all[i - 1] as number))
  if (Array.isArray(value) && value.length > 0 && value.length <= 4096 && value.every(isSize)) return [...(value as number[])]
  const shown = Array.isArray(value) && value.length > 0 && value.length <= 16 ? `[${value.map(describeValue).join(', ')}]` : describeValue(value)
  throw new TensorRTError('ERR_INVALID_ARGUMENT', `"${name}" must be an array of integers from 1, ascending, not ${shown}`)
}

function checkPadding(value: unknown): CheckedRagged[] {
  if (value === undefined) return []
  if (!Array.isArray(value)) throw invalidArgument('batching.padding', 'an array of { inputs, outputs, buckets }', value)
  return value.map((item: unknown, i): CheckedRagged => {
    const where = `batching.padding[${i}]`
    const reader = new ArgumentReader(item, ['inputs', 'outputs', 'buckets'], where)
    const inputs = new Map<string, { axis: number; value: number | bigint }>()
    for (const [name, rule] of entries(`${where}.inputs`, reader.get('inputs'))) {
      const rules = new ArgumentReader(rule, ['axis', 'value'], `${where}.inputs.${name}`)
      const fill = rules.get('value') ?? 0
      if (typeof fill !== 'number' && typeof fill !== 'bigint') throw invalidArgument(`${where}.inputs.${name}.value`, 'a number or a bigint', fill)
      inputs.set(name, { axis: checkAxis(`${where}.inputs.${name}.axis`, rules.get('axis')), value: fill })
    }
    if (inputs.size === 0) throw invalidArgument(`${where}.inputs`, 'an object with at least one input', reader.get('inputs'))
    const outputs = new Map<string, number>()
    for (const [name, axis] of entries(`${where}.outputs`, reader.get('outputs') ?? {})) outputs.set(name, checkAxis(`${where}.outputs.${name}`, axis))
    return { inputs, outputs, buckets: checkSizes(`${where}.buckets`, reader.get('buckets')) }
  })
}

function checkAxis(name: string, value: unknown): number {
  if (typeof value === 'number' && Number.isInteger(value) && value >= 1 && value < 16) return value
  throw invalidArgument(name, 'an axis from 1 (0 is that of the batch)', value)
}

function entries(name: string, value: unknown): [string, unknown][] {
  if (typeof value === 'object' && value !== null && !Array.isArray(value)) return Object.entries(value)
  throw invalidArgument(name, 'an object', value)
}

function checkShapes(value: unknown): Readonly<Record<string, readonly number[]>> {
  const shapes: Record<string, readonly number[]> = {}
  for (const [name, shape] of entries('warmUp', value)) {
    const isShape = Array.isArray(shape) && shape.every((dim) => Number.isInteger(dim) && dim >= 0 && dim <= MAX_DIMENSION)
    if (!isShape) throw invalidArgument(`warmUp.${name}`, 'a shape: an array of integers', shape)
    shapes[name] = [...(shape as number[])]
  }
  return shapes
}

/** Tells `onWarning`, or the process. */
export function warnOf({ onWarning }: CheckedSessionOptions, warning: SessionWarning): void {
  if (onWarning === undefined) {
    process.emitWarning(warning.message, { type: 'NodeTensorRTWarning', code: warning.code })
    return
  }
  tellListener('onWarning', onWarning, warning)
}
