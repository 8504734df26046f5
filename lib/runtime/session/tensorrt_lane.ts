/**
 * A lane of a GPU: a stream, its contexts, a block of device memory for inputs and outputs, and a block of pinned memory for each batch
 * that it holds at a time. A batch is one copy to the device, the engine, and one copy back; where it was captured, one graph launch.
 *
 * Contexts share the lane's activation memory: they run one after the other. A captured graph keeps a context of its own, which nobody
 * touches any more, as the graph refers to its state.
 */
import { TensorRTError } from '../../errors'
import { fromNativeError, native, nativeAsync, type NativeContext, type NativeEngine, type NativeGraph, type NativeMemory, type NativeRuntime, type NativeStream } from '../../native'
import { arrayLengthOf, arrayTypeOf, byteLengthOf, type TensorData } from '../dtype'
import { volume } from '../shape'
import { gatherBatch } from './gather'
import { loopSpinner } from './loop_spinner'
import type { RequestShapes } from './request_shapes'
import { isDeath } from './session_backend'
import type { BatchOutput, SessionBatch } from './session_request'
import type { TensorOrder, TensorPlace, TensorRTPlan } from './tensorrt_plan'

export interface LaneOptions {
  runtime: NativeRuntime
  engine: NativeEngine
  order: TensorOrder
  profiles: readonly number[]
  depth: number
  /** Of inputs and outputs. Grows where a batch turns out to need more. */
  blockBytes: number
  /** Plans that are kept as graphs; 0 = none. */
  maxGraphs: number
  streamPriority: number
  spinUs: number
}

/** Runs of a plan after which it is worth a graph. */
const RUNS_BEFORE_GRAPH = 4
/** Failed captures after which none is tried any more. */
const MAX_CAPTURE_FAILURES = 2

/** Bytes of the smallest block. */
const MIN_BLOCK = 256

interface LaneEvents {
  done(batch: SessionBatch, error: unknown, outputs: readonly BatchOutput[], submitMs: number): void
  captureFailed(error: unknown): void
}

/** What a lane has of a plan. */
interface LanePlan {
  plan: TensorRTPlan
  runs: number
  lastUse: number
  state: 'plain' | 'capturing' | 'captured' | 'failed'
  /** Of the graphs. */
  context: NativeContext | null
  /** By slot; empty unless captured. */
  graphs: NativeGraph[]
  /** By slot. */
  views: (SlotViews | undefined)[]
}

interface SlotViews {
  /** The slot's, when they were made. */
  buffer: ArrayBuffer
  /** By input of the session; null for shape tensors. */
  inputs: readonly (TensorData | null)[]
  outputs: readonly BatchOutput[]
}

/** Pinned memory of one batch, laid out as the device's block. */
interface Slot {
  index: number
  memory: NativeMemory
  buffer: ArrayBuffer
  batch: SessionBatch | null
  lanePlan: LanePlan | null
  submitMs: number
  /** Made once, as a slot runs one batch at a time. */
  onDone: () => void
  onFailed: (error: unknown) => void
}

interface Closable {
  close(): Promise<void>
}

export class TensorRTLane {
  private readonly plans = new WeakMap<TensorRTPlan, LanePlan>()
  private readonly captured = new Set<LanePlan>()
  /** By profile, for what is not captured; with the plan that it was last set to. */
  private readonly contexts = new Map<number, { context: NativeContext; plan: TensorRTPlan | null }>()
  private readonly slots: Slot[] = []
  private uses = 0
  private failures = 0
  private closing: Promise<void> | undefined

  private constructor(
    private readonly options: LaneOptions,
    private readonly shapes: () => RequestShapes,
    private readonly events: LaneEvents,
    readonly stream: NativeStream,
    private readonly activations: NativeMemory,
    private block: NativeMemory,
  ) {}

  static async create(options: LaneOptions, shapes: () => RequestShapes, events: LaneEvents): Promise<TensorRTLane> {
    const { runtime, order, profiles, depth, streamPriority, spinUs } = options
    const made: Closable[] = []
    const keep = <T extends Closable>(object: T): T => {
      made.push(object)
      return object
    }
    try {
      const stream = keep(await nativeAsync(() => runtime.createStream({ priority: streamPriority, spinUs })))
      const activationBytes = Math.max(MIN_BLOCK, ...profiles.map((profile) => order.info.deviceMemory[profile] ?? 0))
      const activations = keep(await nativeAsync(() => runtime.allocate('device', activationBytes, false)))
      const blockBytes = Math.max(options.blockBytes, MIN_BLOCK)
      const block = keep(await nativeAsync(() => runtime.allocate('device', blockBytes, false)))
      const lane = new TensorRTLane(options, shapes, events, stream, activations, block)
      for (let i = 0; i < depth; i++) {
        const memory = keep(await nativeAsync(() => runtime.allocate('pinned', blockBytes, false)))
        lane.slots.push(lane.makeSlot(i, memory))
      }
      for (const profile of profiles) lane.contexts.set(profile, { context: keep(await lane.makeContext(profile)), plan: null })
      return lane
    } catch (error) {
      await Promise.allSettled(made.map((object) => object.close()))
      throw error
    }
  }

  /** Shapes of all tensors for these of the inputs, -1 for what depends on the data. */
  async resolve(plan: TensorRTPlan): Promise<number[][]> {
    this.setShapes(plan, this.plainContext(plan))
    return nativeAsync(() => this.stream.resolve(this.plainContext(plan)))
  }

  /** Never throws. */
  submit(batch: SessionBatch, plan: TensorRTPlan): void {
    const slot = this.slots.find(({ batch }) => batch === null)!
    slot.batch = batch
    if (this.isKnown(plan, slot)) this.start(slot, plan)
    else void this.startUnknown(slot, plan)
  }

  /** Makes the plan ready, with its graph where there is to be one, by running it on zeros. */
  async prepare(plan: TensorRTPlan): Promise<void> {
    for (const slot of this.slots) await this.learn(plan, slot)
    const lanePlan = this.lanePlan(plan)
    // What is declared first keeps its graph: later ones would only push it out.
    if (this.captured.size < this.options.maxGraphs && this.mayCapture(lanePlan)) await this.capture(lanePlan)
    if (lanePlan.state === 'captured') return
    const context = this.plainContext(plan)
    this.setTo(plan, context)
    await this.runOnZeros(plan, context)
  }

  close(): Promise<void> {
    this.closing ??= this.end()
    return this.closing
  }

  private async end(): Promise<void> {
    const graphs = [...this.captured].flatMap((lanePlan) => this.forgetGraphs(lanePlan))
    const contexts = [...this.contexts.values()].map(({ context }) => context)
    const memories = [...this.slots.map(({ memory }) => memory), this.block, this.activations]
    await Promise.allSettled([...graphs, ...contexts, this.stream, ...memories].map((object) => object.close()))
  }

  private makeSlot(index: number, memory: NativeMemory): Slot {
    const slot: Slot = {
      index,
      memory,
      buffer: native(() => memory.arrayBuffer()),
      batch: null,
      lanePlan: null,
      submitMs: 0,
      onDone: () => {
        loopSpinner.ended()
        this.finish(slot)
      },
      onFailed: (error) => {
        loopSpinner.ended()
        this.settle(slot, error, [])
      },
    }
    return slot
  }

  private async makeContext(profile: number): Promise<NativeContext> {
    const context = await nativeAsync(() => this.options.engine.createContext({ profile, memory: 'user' }))
    native(() => context.setDeviceMemory(this.activations, 0))
    return context
  }

  private lanePlan(plan: TensorRTPlan): LanePlan {
    let lanePlan = this.plans.get(plan)
    if (lanePlan === undefined) {
      lanePlan = { plan, runs: 0, lastUse: 0, state: 'plain', context: null, graphs: [], views: [] }
      this.plans.set(plan, lanePlan)
    }
    return lanePlan
  }

  private plainContext(plan: TensorRTPlan): NativeContext {
    const held = this.contexts.get(plan.profile)!
    return held.context
  }

  private start(slot: Slot, plan: TensorRTPlan): void {
    const started = performance.now()
    const lanePlan = this.lanePlan(plan)
    slot.lanePlan = lanePlan
    lanePlan.lastUse = ++this.uses
    let completed: Promise<void>
    try {
      gatherBatch(this.shapes(), slot.batch!, this.viewsOf(slot, lanePlan).inputs)
      const graph = lanePlan.graphs[slot.index]
      if (graph === undefined) this.enqueuePlain(slot, plan)
      else this.stream.launch(graph)
      completed = this.stream.synchronize()
    } catch (error) {
      completed = this.abandon(error)
    }
    slot.submitMs = performance.now() - started
    loopSpinner.began(this.options.spinUs)
    completed.then(slot.onDone, slot.onFailed)
    if (lanePlan.state === 'plain' && ++lanePlan.runs >= RUNS_BEFORE_GRAPH && this.mayCapture(lanePlan)) void this.capture(lanePlan)
  }

  /** Ends what was queued of a batch whose commands were refused, so that the next one does not hear of it. */
  private async abandon(error: unknown): Promise<never> {
    try {
      await this.stream.synchronize()
    } catch {
      // The first failure is what the batch is told.
    }
    throw error
  }

  /** The first batch of its shape: TensorRT says what its outputs are. */
  private async startUnknown(slot: Slot, plan: TensorRTPlan): Promise<void> {
    try {
      await this.learn(plan, slot)
    } catch (error) {
      this.settle(slot, error, [])
      return
    }
    this.start(slot, plan)
  }

  private isKnown(plan: TensorRTPlan, slot: Slot): boolean {
    return plan.layout !== null && plan.blockBytes <= this.block.bytes && plan.blockBytes <= slot.memory.bytes
  }

  private async learn(plan: TensorRTPlan, slot: Slot): Promise<void> {
    if (plan.layout === null) {
      const shapes = await this.resolve(plan)
      plan.layout ??= plan.layOut(shapes)
    }
    // An output can be larger for smaller inputs, although hardly any model has one. The device keeps memory for as long as it is in use.
    const { runtime } = this.options
    const bytes = plan.blockBytes
    if (this.block.bytes < bytes) {
      const block = await nativeAsync(() => runtime.allocate('device', bytes, false))
      const outgrown = this.block.bytes < bytes ? this.block : block
      if (outgrown !== block) this.block = block
      this.forgetAddresses(outgrown)
    }
    if (slot.memory.bytes < bytes) {
      const outgrown = slot.memory
      slot.memory = await nativeAsync(() => runtime.allocate('pinned', bytes, false))
      slot.buffer = native(() => slot.memory.arrayBuffer())
      this.forgetAddresses(outgrown)
    }
  }

  private forgetAddresses(outgrown: NativeMemory): void {
    for (const held of this.contexts.values()) held.plan = null
    const objects = [...this.captured].flatMap((lanePlan) => this.forgetGraphs(lanePlan))
    void Promise.allSettled([outgrown, ...objects].map((object) => object.close()))
  }

  private viewsOf(slot: Slot, lanePlan: LanePlan): SlotViews {
    const known = lanePlan.views[slot.index]
    if (known?.buffer === slot.buffer) return known
    const { plan } = lanePlan
    const layout = plan.layout!
    const { buffer } = slot
    const viewOf = ({ dtype, shape, offset }: TensorPlace): TensorData => new (arrayTypeOf(dtype))(buffer, offset, arrayLengthOf(dtype, volume(shape)))
    const inputs = plan.order.inputs.map((tensor) => {
      const place = layout.inputs.find((place) => place.tensor === tensor)
      return place === undefined ? null : viewOf(place)
    })
    const outputs = (layout.outputs ?? []).map((place): BatchOutput => ({ data: viewOf(place), shape: place.shape }))
    const views = { buffer, inputs, outputs }
    lanePlan.views[slot.index] = views
    return views
  }

  private enqueuePlain(slot: Slot, plan: TensorRTPlan): void {
    const held = this.contexts.get(plan.profile)!
    if (held.plan !== plan) this.setTo(plan, held.context)
    this.enqueueWith(slot, plan, held.context)
  }

  private enqueueWith(slot: Slot, plan: TensorRTPlan, context: NativeContext): void {
    const { inputBytes, outputOffset, outputBytes } = plan.layout!
    if (inputBytes > 0) this.stream.copy(this.block, 0, slot.memory, 0, inputBytes)
    this.stream.enqueue(context)
    if (outputBytes > 0) this.stream.copy(slot.memory, outputOffset, this.block, outputOffset, outputBytes)
  }

  private setShapes(plan: TensorRTPlan, context: NativeContext): void {
    // What it was set to before holds no longer.
    for (const held of this.contexts.values()) if (held.context === context) held.plan = null
    for (const [input, tensor] of plan.order.inputs.entries()) {
      const values = plan.shape.values[input]!
      native(() => (values === null ? context.setInputShape(tensor, plan.inputShapes[input]!) : context.setShapeValues(tensor, values)))
    }
  }

  /** Shapes and addresses. */
  private setTo(plan: TensorRTPlan, context: NativeContext): void {
    this.setShapes(plan, context)
    const { inputs, outputs } = plan.layout!
    for (const { tensor, offset } of [...inputs, ...(outputs ?? [])]) native(() => context.setAddress(tensor, this.block, offset))
    if (outputs === null) for (const tensor of plan.order.outputs) native(() => context.setAddress(tensor, null, 0))
    for (const held of this.contexts.values()) if (held.context === context) held.plan = plan
  }

  /** Zeros are valid where what lies in the block might be no valid index. */
  private runOnZeros(plan: TensorRTPlan, context: NativeContext): Promise<void> {
    return nativeAsync(() => {
      if (plan.layout!.inputBytes > 0) this.stream.fill(this.block, 0, plan.layout!.inputBytes, 0)
      this.stream.enqueue(context)
      return this.stream.synchronize()
    })
  }

  private mayCapture({ plan, state }: LanePlan): boolean {
    return state === 'plain' && this.options.maxGraphs > 0 && this.failures < MAX_CAPTURE_FAILURES && plan.layout!.outputs !== null
  }

  /**
   * Captures a graph for each slot. Batches may go on meanwhile: what belongs together is queued in one turn of the event loop. Never
   * rejects: a plan that cannot be captured runs as plain commands.
   */
  private async capture(lanePlan: LanePlan): Promise<void> {
    const { plan } = lanePlan
    lanePlan.state = 'capturing'
    const objects: Closable[] = []
    const { block } = this
    try {
      const context = await this.makeContext(plan.profile)
      objects.push(context)
      this.setTo(plan, context)
      // TensorRT does once what cannot be captured. The failure of this run is heard here, not by the next batch.
      const ran = this.runOnZeros(plan, context)
      const captures = this.slots.map((slot) => this.captureSlot(slot, plan, context))
      const [, ...settled] = await Promise.allSettled([ran, ...captures])
      for (const graph of settled) if (graph.status === 'fulfilled') objects.push(graph.value)
      await ran
      const graphs = await Promise.all(captures)
      if (this.closing !== undefined || this.block !== block) throw new TensorRTError('ERR_DISPOSED', 'The lane was closed during a capture')
      lanePlan.graphs = graphs
      lanePlan.context = context
      lanePlan.state = 'captured'
      this.captured.add(lanePlan)
      this.evict()
    } catch (error) {
      void Promise.allSettled(objects.map((object) => object.close()))
      this.captureFailed(lanePlan, error)
    }
  }

  private async captureSlot(slot: Slot, plan: TensorRTPlan, context: NativeContext): Promise<NativeGraph> {
    native(() => this.stream.beginCapture())
    try {
      native(() => this.enqueueWith(slot, plan, context))
    } catch (error) {
      // The capture ends in any case, or the stream would take nothing else.
      void this.stream.endCapture().then((graph) => graph.close()).catch(() => {})
      throw error
    }
    return nativeAsync(() => this.stream.endCapture())
  }

  private captureFailed(lanePlan: LanePlan, error: unknown): void {
    if (this.closing !== undefined || isDeath(error)) {
      lanePlan.state = 'plain'
      return
    }
    lanePlan.state = 'failed'
    this.failures++
    this.events.captureFailed(error)
  }

  /** Gives the graphs back that were not used for the longest time. */
  private evict(): void {
    while (this.captured.size > this.options.maxGraphs) {
      let oldest: LanePlan | undefined
      for (const lanePlan of this.captured) if (oldest === undefined || lanePlan.lastUse < oldest.lastUse) oldest = lanePlan
      void Promise.allSettled(this.forgetGraphs(oldest!).map((object) => object.close()))
    }
  }

  private forgetGraphs(lanePlan: LanePlan): Closable[] {
    const objects = lanePlan.context === null ? lanePlan.graphs : [...lanePlan.graphs, lanePlan.context]
    lanePlan.graphs = []
    lanePlan.context = null
    lanePlan.state = 'plain'
    lanePlan.runs = 0
    this.captured.delete(lanePlan)
    return objects
  }

  private finish(slot: Slot): void {
    const lanePlan = slot.lanePlan!
    if (lanePlan.plan.layout!.outputs === null) void this.collect(slot, lanePlan.plan)
    else this.settle(slot, null, this.viewsOf(slot, lanePlan).outputs)
  }

  /** Fetches outputs whose sizes only the run has shown. */
  private async collect(slot: Slot, plan: TensorRTPlan): Promise<void> {
    const context = this.plainContext(plan)
    const { runtime } = this.options
    const held: Closable[] = []
    const outputs: BatchOutput[] = []
    try {
      for (const tensor of plan.order.outputs) {
        const { dtype } = plan.order.info.tensors[tensor]!
        const { shape, memory } = native(() => context.output(tensor))
        if (memory !== null) held.push(memory)
        const bytes = byteLengthOf(dtype, volume(shape))
        const pinned = await nativeAsync(() => runtime.allocate('pinned', Math.max(bytes, 1), true))
        held.push(pinned)
        if (bytes > 0) native(() => this.stream.copy(pinned, 0, memory!, 0, bytes))
        const data = new (arrayTypeOf(dtype))(native(() => pinned.arrayBuffer()), 0, arrayLengthOf(dtype, volume(shape)))
        outputs.push({ data, shape: Object.freeze(shape) })
      }
      await nativeAsync(() => this.stream.synchronize())
      this.settle(slot, null, outputs)
    } catch (error) {
      this.settle(slot, error, [])
    } finally {
      await Promise.allSettled(held.map((object) => object.close()))
    }
  }

  private settle(slot: Slot, error: unknown, outputs: readonly BatchOutput[]): void {
    const { batch, submitMs } = slot
    slot.batch = null
    slot.lanePlan = null
    if (this.closing === undefined) this.events.done(batch!, fromNativeError(error), outputs, submitMs)
  }
}
