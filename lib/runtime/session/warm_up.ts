/** What is run before a session is ready. */
import { TensorRTError } from '../../errors'
import { describeValue } from '../argument_reader'
import { throwIfAborted } from '../handle'
import { Tensor } from '../tensor'
import type { CheckedSessionOptions, TensorMap } from './options'
import { BATCH, type RequestShapes, type ShapeClass } from './request_shapes'
import type { SessionBackend } from './session_backend'
import { type SessionBatch, SessionRequest } from './session_request'

/** Runs of each prepared batch: the first ones are slow, the last ones tell its time. */
const RUNS = 3
/** Requests that run before a session is ready. */
const REQUESTS = 20
/** Requests after which V8 has compiled the code that serves them for good, which the first session of a process sees to. */
const COMPILED_AFTER = 2500
/** Fewer where they take longer than that in all. */
const REQUESTS_MS = 1000
/** Or than this where each is slow: what code that is not compiled adds to a request, a millisecond or two at first, is little then. */
const SLOW_REQUESTS_MS = 200
const SLOW_REQUEST_MS = 2
const LEAST_REQUESTS = 3
let servedToCompile = 0

/** Runs every declared shape on every lane, and requests through the session, so that the first one that matters is as fast as the next. */
export class WarmUp {
  /** Batches that run, with what ends the wait for them. */
  private readonly running = new Map<SessionBatch, (error: unknown) => void>()

  constructor(
    private readonly backend: SessionBackend,
    private readonly shapes: RequestShapes,
    private readonly options: CheckedSessionOptions,
  ) {}

  /**
   * @param request sends a request the way that all of them go
   * @throws (as a rejection) ERR_INVALID_TENSOR, ERR_INVALID_ARGUMENT, what runs of the backend throw, AbortError
   */
  async run(request: (inputs: TensorMap) => Promise<unknown>): Promise<void> {
    const { backend } = this
    const targets = warmUpTargets(this.shapes, this.options)
    for (const target of targets) {
      throwIfAborted(this.options.signal)
      await backend.prepare(target.shape, target.size)
      await Promise.all(Array.from({ length: backend.lanes }, (_, lane) => this.runOnLane(lane, target)))
    }
    if (targets[0] !== undefined) await this.compile(targets[0], request)
  }

  /** To be told of each batch that ended. @returns whether it was one of the warm-up's */
  done(batch: SessionBatch, error: unknown): boolean {
    const end = this.running.get(batch)
    end?.(error)
    return end !== undefined
  }

  private async runOnLane(lane: number, target: WarmUpTarget): Promise<void> {
    const { shape, size } = target
    for (let run = 0; run < RUNS * this.backend.depth; run++) {
      throwIfAborted(this.options.signal)
      const startedAt = performance.now()
      const batch: SessionBatch = { lane, requests: [zeroRequest(this.shapes, target)], shape, rows: size, size, startedAt }
      await new Promise<void>((resolve, reject) => {
        this.running.set(batch, (error) => (error === null ? resolve() : reject(error as Error)))
        this.backend.submit(batch)
      }).finally(() => this.running.delete(batch))
      if (run > 0) shape.cost.observe(size, performance.now() - startedAt)
    }
  }

  /** The way of a request through the session, which is slow before it is compiled. */
  private async compile(target: WarmUpTarget, request: (inputs: TensorMap) => Promise<unknown>): Promise<void> {
    const { tensors } = zeroRequest(this.shapes, target)
    const inputs = Object.fromEntries(this.shapes.signature.inputs.map(({ name }, i) => [name, tensors[i]!]))
    const started = performance.now()
    const isEnough = (i: number): boolean => {
      const ms = performance.now() - started
      return (i >= REQUESTS && servedToCompile >= COMPILED_AFTER) || ms >= REQUESTS_MS || (ms >= SLOW_REQUESTS_MS && ms >= i * SLOW_REQUEST_MS)
    }
    for (let i = 0; i < LEAST_REQUESTS || !isEnough(i); i++) {
      throwIfAborted(this.options.signal)
      await request(inputs)
      servedToCompile++
    }
  }
}

interface WarmUpTarget {
  shape: ShapeClass
  size: number
}

/**
 * Shapes that are known to come: every profile's OPT, every bucket, every declared batch size, and what the caller names.
 *
 * @throws ERR_INVALID_TENSOR for a declared shape that no profile takes, ERR_INVALID_ARGUMENT
 */
function warmUpTargets(shapes: RequestShapes, options: CheckedSessionOptions): WarmUpTarget[] {
  const targets = new Map<ShapeClass, Set<number>>()
  const add = (inputs: readonly (readonly number[])[], sizes: readonly number[] | undefined): void => {
    const shape = shapes.classOfShapes(inputs)
    const known = targets.get(shape) ?? new Set<number>()
    targets.set(shape, known)
    for (const size of sizes ?? declaredSizes(shape)) known.add(size)
  }
  for (const named of options.warmUpShapes) {
    const inputs = namedShapes(shapes, named)
    add(inputs, shapes.isBatched ? [inputs[0]?.[0] ?? 1] : [1])
  }
  for (const inputs of knownShapes(shapes)) for (const filled of withBuckets(shapes, inputs)) add(filled, undefined)
  // The smallest first: they are what a session that has just begun will need.
  return [...targets].flatMap(([shape, sizes]) => [...sizes].sort((a, b) => a - b).map((size) => ({ shape, size })))
}

function declaredSizes({ runSizes, preferredSizes, maxRows }: ShapeClass): readonly number[] {
  return runSizes.length > 0 ? runSizes : [...new Set([1, ...preferredSizes, maxRows])]
}

/** Input shapes by profile. None where a dimension has no limit, as nobody knows then what will come. */
function knownShapes(shapes: RequestShapes): number[][][] {
  const { inputs } = shapes.signature
  if (inputs.some(({ isShapeTensor }) => isShapeTensor)) return []
  const all: number[][][] = []
  const profiles = inputs[0]?.ranges.length ?? 1
  for (let profile = 0; profile < profiles; profile++) {
    const ranges = inputs.map(({ ranges }) => ranges[profile]!)
    const isRagged = (input: number, axis: number): boolean => shapes.ragged.some(({ inputs: of }) => of.get(inputs[input]!.name)?.axis === axis)
    const isOpen = ranges.some(({ max }, input) => max.some((size, axis) => size === Infinity && !(axis === 0 && shapes.isBatched) && !isRagged(input, axis)))
    if (isOpen) continue
    const opt = ranges.map(({ opt }) => [...opt])
    all.push(opt)
    if (shapes.isBatched) continue
    // One row is what most requests have, whatever OPT says.
    const single = opt.map((shape, input) => shape.map((size, axis) => (axis === 0 && ranges[input]!.min[0]! <= 1 ? Math.min(size, 1) : size)))
    all.push(single)
  }
  return all
}

/** The same with every bucket in place of ragged dimensions. */
function withBuckets(shapes: RequestShapes, inputs: readonly (readonly number[])[]): number[][][] {
  let all = [inputs.map((shape) => [...shape])]
  for (const { inputs: axes, buckets } of shapes.ragged) {
    all = all.flatMap((shaped) =>
      buckets.map((bucket) =>
        shaped.map((shape, input) => {
          const axis = axes.get(shapes.signature.inputs[input]!.name)?.axis
          return shape.map((size, at) => (at === axis ? bucket : size))
        }),
      ),
    )
  }
  return all
}

function namedShapes(shapes: RequestShapes, named: Readonly<Record<string, readonly number[]>>): (readonly number[])[] {
  const { inputs } = shapes.signature
  for (const name of Object.keys(named)) {
    if (inputs.some((input) => input.name === name)) continue
    throw new TensorRTError('ERR_INVALID_ARGUMENT', `"warmUp" names the input ${describeValue(name)}, which the model does not have`, {
      hint: `it takes ${inputs.map((input) => input.name).join(', ')}`,
    })
  }
  return inputs.map(({ name, shape }) => {
    const given = named[name]
    if (given !== undefined) return given
    if (shape.every((size) => size >= 0)) return shape
    throw new TensorRTError('ERR_INVALID_ARGUMENT', `"warmUp" names shapes without that of input "${name}", which is dynamic`)
  })
}

/** A request of zeros that fills a batch. */
function zeroRequest(shapes: RequestShapes, { shape, size }: WarmUpTarget): SessionRequest {
  const tensors = shapes.signature.inputs.map(({ dtype }, input) => Tensor.zeros(dtype, shape.inputs[input]!.map((dim) => (dim === BATCH ? size : dim))))
  const ignore = (): void => {}
  return new SessionRequest({ shape, rows: size, tensors, lengths: null }, 0, 0, Infinity, Infinity, null, ignore, ignore)
}
