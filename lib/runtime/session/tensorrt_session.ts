/** Runs the batches of a session on a GPU. */
import { TensorRTError } from '../../errors'
import { native, nativeAsync, type NativeEngine, type NativeEngineInfo, type NativeRuntime, type NativeRuntimeInfo } from '../../native'
import { throwIfAborted } from '../handle'
import type { CheckedSessionOptions } from './options'
import type { RequestShapes, ShapeClass } from './request_shapes'
import type { BackendEvents, LaneCounters, SessionBackend } from './session_backend'
import type { SessionBatch } from './session_request'
import { engineSignature, type ModelSignature } from './signature'
import { TensorRTLane } from './tensorrt_lane'
import { align, bestProfile, place, TensorRTPlan, tensorOrder, type TensorOrder } from './tensorrt_plan'

/** What a session needs of an engine. */
export interface SessionEngine {
  readonly native: NativeEngine
  readonly nativeRuntime: NativeRuntime
}

/** Of a shape without a limit, as far as memory is set aside for it. */
const MAX_BLOCK_BYTES = 2 ** 36

export class TensorRTBackend implements SessionBackend {
  readonly kind = 'tensorrt'
  readonly device: string
  readonly signature: ModelSignature
  readonly lanes: number
  readonly depth: number
  readonly notBatchable: string | null
  private lane: TensorRTLane[] = []
  private shapes: RequestShapes | undefined
  private events: BackendEvents | undefined
  private warned = false

  private constructor(
    private readonly runtime: NativeRuntime,
    private readonly order: TensorOrder,
    private readonly profiles: readonly number[],
    options: CheckedSessionOptions,
    { dependent, outputShapes }: LargestShapes,
  ) {
    this.device = (JSON.parse(runtime.info) as NativeRuntimeInfo).name
    const signature = engineSignature(order.info, options.profile)
    this.signature = { ...signature, outputs: signature.outputs.map((output, i) => ({ ...output, shape: outputShapes[i]! })) }
    this.lanes = options.contexts
    // Where outputs belong to the context, the next run would overwrite them.
    this.depth = dependent.length > 0 ? 1 : 1 + options.runAhead
    this.notBatchable = dependent.length > 0 ? `the size of output "${dependent[0]!}" depends on the data` : null
  }

  /**
   * Makes the lanes with all their memory.
   *
   * @throws (as a rejection) ERR_INVALID_ARGUMENT, ERR_OUT_OF_DEVICE_MEMORY, ERR_CUDA, AbortError
   */
  static async create(engine: SessionEngine, options: CheckedSessionOptions): Promise<TensorRTBackend> {
    const info = JSON.parse(engine.native.info) as NativeEngineInfo
    const order = tensorOrder(info)
    const { profile, batching } = options
    if (profile !== undefined && profile >= info.profiles) {
      throw new TensorRTError('ERR_INVALID_ARGUMENT', `"profile" is ${profile}, and the engine's profiles are numbered 0 to ${info.profiles - 1}`)
    }
    for (const { name, dtype } of info.tensors) {
      if (dtype === 'int4') throw new TensorRTError('ERR_INVALID_ARGUMENT', `A session takes no int4 tensors, and "${name}" is one`)
    }
    const profiles = profile === undefined ? Array.from({ length: info.profiles }, (_, i) => i) : [profile]
    const largest = await largestShapes(engine, order, profiles, batching?.maxBatch)
    const backend = new TensorRTBackend(engine.nativeRuntime, order, profiles, options, largest)
    const laneOptions = {
      runtime: engine.nativeRuntime,
      engine: engine.native,
      order,
      profiles,
      depth: backend.depth,
      blockBytes: largest.blockBytes,
      maxGraphs: options.maxGraphs,
      streamPriority: options.streamPriority,
      spinUs: options.spinUs,
    }
    try {
      for (let i = 0; i < options.contexts; i++) {
        throwIfAborted(options.signal)
        backend.lane.push(
          await TensorRTLane.create(laneOptions, () => backend.shapes!, {
            done: (batch, error, outputs, submitMs) => backend.events!.done(batch, error, outputs, submitMs),
            captureFailed: (cause) => backend.warnOfCapture(cause),
          }),
        )
      }
      return backend
    } catch (error) {
      await backend.close()
      throw error
    }
  }

  open(shapes: RequestShapes, events: BackendEvents): void {
    this.shapes = shapes
    this.events = events
  }

  async prepare(shape: ShapeClass, size: number): Promise<void> {
    const plan = this.planOf(shape, size)
    await Promise.all(this.lane.map((lane) => lane.prepare(plan)))
  }

  submit(batch: SessionBatch): void {
    this.lane[batch.lane]!.submit(batch, this.planOf(batch.shape, batch.size))
  }

  counters(): LaneCounters[] {
    return this.lane.map(({ stream }) => {
      const { enqueueUs, enqueues, graphLaunches, reshapes, voluntarySwitches, involuntarySwitches } = native(() => stream.counters())
      return { enqueueUs, enqueues, graphLaunches, contextSwitches: reshapes, voluntarySwitches, involuntarySwitches }
    })
  }

  deviceAllocations(): number {
    return native(() => this.runtime.counters()).deviceAllocations
  }

  async close(): Promise<void> {
    await Promise.all(this.lane.map((lane) => lane.close()))
  }

  private planOf(shape: ShapeClass, size: number): TensorRTPlan {
    const known = shape.plans.get(size) as TensorRTPlan | undefined
    if (known !== undefined) return known
    const shapes = this.order.inputs.map((_, input) => shape.inputShape(input, size))
    // The shape class was made of what some profile takes.
    const plan = new TensorRTPlan(this.order, shape, size, bestProfile(this.order, this.profiles, shapes))
    shape.plans.set(size, plan)
    return plan
  }

  private warnOfCapture(cause: unknown): void {
    if (this.warned) return
    this.warned = true
    const message = `The model is not replayed as a CUDA graph, as its capture failed: ${(cause as Error).message}`
    this.events!.warn({ code: 'GRAPH_CAPTURE_FAILED', message, cause })
  }
}

/** What the profiles' largest shapes come to. */
interface LargestShapes {
  /** Of inputs and outputs. */
  blockBytes: number
  /** Outputs whose size depends on the data. */
  dependent: string[]
  /** By output, -1 = dynamic. TensorRT's own word on them is that of the first profile: a size that is fixed there may vary in the others. */
  outputShapes: number[][]
}

async function largestShapes(
  { native: engine, nativeRuntime }: SessionEngine,
  order: TensorOrder,
  profiles: readonly number[],
  maxBatch = Infinity,
): Promise<LargestShapes> {
  const { info, inputs, outputs } = order
  let blockBytes = 0
  const outputShapes = outputs.map((tensor) => [...info.tensors[tensor]!.shape])
  const dependent = new Set<string>()
  const stream = await nativeAsync(() => nativeRuntime.createStream({ priority: 0, spinUs: 0 }))
  try {
    for (const profile of profiles) {
      const context = await nativeAsync(() => engine.createContext({ profile, memory: 'user' }))
      try {
        const shapes: number[][] = []
        for (const tensor of inputs) {
          const { shape, isShapeTensor, profiles, values } = info.tensors[tensor]!
          const max = [...profiles![profile]!.max]
          if (shape[0] === -1 && !isShapeTensor) max[0] = Math.max(Math.min(max[0]!, maxBatch), profiles![profile]!.min[0]!)
          shapes.push(isShapeTensor ? [0] : max)
          native(() => (isShapeTensor ? context.setShapeValues(tensor, values![profile]!.max) : context.setInputShape(tensor, max)))
        }
        const all = await nativeAsync(() => stream.resolve(context))
        const resolved = outputs.map((tensor) => all[tensor]!)
        for (const [i, shape] of resolved.entries()) {
          if (shape.some((dim) => dim < 0)) dependent.add(info.tensors[outputs[i]!]!.name)
          outputShapes[i] = outputShapes[i]!.map((dim, axis) => (dim === shape[axis] ? dim : -1))
        }
        const { end } = place(order, inputs, shapes, 0)
        const sized = resolved.every((shape) => shape.every((dim) => dim >= 0))
        blockBytes = Math.max(blockBytes, sized ? place(order, outputs, resolved, align(end)).end : align(end))
      } finally {
        await context.close()
      }
    }
  } finally {
    await stream.close()
  }
  if (blockBytes > MAX_BLOCK_BYTES) {
    throw new TensorRTError('ERR_INVALID_ARGUMENT', `Inputs and outputs of the largest shapes take ${blockBytes} bytes`, {
      hint: 'limit "batching.maxBatch", or choose a smaller profile',
    })
  }
  return { blockBytes, dependent: [...dependent], outputShapes }
}
