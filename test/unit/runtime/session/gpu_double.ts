/**
 * A GPU in JavaScript behind the native surface, for sessions to run on: commands are carried out in order, later than the call, on real
 * bytes; graphs replay what was captured; models are functions. What no correct caller does is a violation.
 */
import type {
  NativeClosable,
  NativeContext,
  NativeDeviceCounters,
  NativeEngine,
  NativeEngineInfo,
  NativeGraph,
  NativeMemory,
  NativeRuntime,
  NativeStream,
  NativeTensorInfo,
} from '../../../../lib/native'
import { arrayTypeOf, byteLengthOf, type TensorData } from '../../../../lib/runtime/dtype'
import { volume } from '../../../../lib/runtime/shape'
import { runtimeInfo } from '../native_double'

export interface Value {
  data: TensorData
  shape: number[]
}

export interface ModelDouble {
  tensors: NativeTensorInfo[]
  profiles: number
  /** Output shapes of input shapes, in the order of the tensors; -1 = depends on the data. */
  infer(inputs: number[][], values: (number[] | null)[]): number[][]
  /** Throws where TensorRT would fail. */
  compute(inputs: Value[], values: (number[] | null)[]): Value[]
}

export function nativeError(code: string, message: string): Error {
  return Object.assign(new Error(message), { code })
}

type Work = () => void

interface Block {
  bytes: Uint8Array
  alive: boolean
}

interface ContextState {
  profile: number
  shapes: Map<number, number[]>
  values: Map<number, number[]>
  addresses: Map<number, { block: Block; offset: number } | null>
  activations: Block | null
}

export class GpuDouble {
  readonly violations: string[] = []
  /** Everything that was made and not closed, by kind. */
  readonly open = new Map<string, number>()
  readonly counters: NativeDeviceCounters = { deviceAllocations: 0, deviceFrees: 0, pinnedAllocations: 0, pinnedFrees: 0, poolHits: 0 }
  readonly enqueued: { profile: number; shapes: number[][] }[] = []
  graphLaunches = 0
  /** Milliseconds that a run takes; 0 = at once. */
  runMs = 0
  /** Fails calls by their name, as often as they are listed. */
  readonly failures: { method: string; error: Error }[] = []
  /** Runs that are held back until they are let go. */
  private gate: Promise<void> | undefined
  private openGate: (() => void) | undefined
  private dead: Error | undefined

  constructor(readonly model: ModelDouble) {}

  /** The device hangs until `resume`. */
  pause(): void {
    this.gate ??= new Promise((resolve) => (this.openGate = resolve))
  }

  resume(): void {
    this.openGate?.()
    this.gate = undefined
  }

  kill(): void {
    this.dead = nativeError('ERR_BACKEND_DEAD', 'the device has fallen off the bus')
    this.resume()
  }

  /** Objects that are not closed. */
  get leaks(): Record<string, number> {
    return Object.fromEntries([...this.open].filter(([, count]) => count !== 0))
  }

  engine(): { native: NativeEngine; nativeRuntime: NativeRuntime } {
    return { native: this.nativeEngine(), nativeRuntime: this.nativeRuntime() }
  }

  get info(): NativeEngineInfo {
    return {
      name: 'double',
      tensors: this.model.tensors,
      profiles: this.model.profiles,
      layers: 1,
      deviceMemory: Array.from({ length: this.model.profiles }, () => 1000),
      streamableWeights: 0,
      auxStreams: 0,
      refittable: false,
      hardwareCompatibility: 'none',
      capability: 'standard',
      profilingVerbosity: 'none',
    }
  }

  private violation(what: string): void {
    this.violations.push(what)
  }

  private fail(method: string): void {
    if (this.dead !== undefined && method !== 'close') throw this.dead
    const at = this.failures.findIndex((failure) => failure.method === method)
    if (at >= 0) throw this.failures.splice(at, 1)[0]!.error
  }

  private closable(kind: string, onClose: () => void = () => {}): NativeClosable & { isClosed(): boolean } {
    this.open.set(kind, (this.open.get(kind) ?? 0) + 1)
    let closing: Promise<void> | undefined
    const close = (): Promise<void> => {
      if (closing === undefined) {
        onClose()
        closing = Promise.resolve().then(() => void this.open.set(kind, this.open.get(kind)! - 1))
      }
      return closing
    }
    return { close, isClosed: () => closing !== undefined }
  }

  readonly blocks = new WeakMap<NativeMemory, Block>()

  private memory(kind: 'device' | 'pinned', bytes: number): NativeMemory {
    const buffer = new ArrayBuffer(bytes)
    // What was not written is no value that a model takes.
    const block: Block = { bytes: new Uint8Array(buffer).fill(0xee), alive: true }
    const closable = this.closable(kind, () => {
      block.alive = false
      // A view of closed pinned memory is empty; queued commands still have the memory.
      if (kind === 'pinned') block.bytes = new Uint8Array(structuredClone(buffer, { transfer: [buffer] }))
    })
    const memory: NativeMemory = {
      ...closable,
      bytes,
      kind,
      address: 0n,
      arrayBuffer: () => {
        if (kind === 'device') throw nativeError('ERR_INVALID_ARGUMENT', 'device memory')
        return buffer
      },
    }
    this.blocks.set(memory, block)
    return memory
  }

  private block(memory: NativeMemory, what: string): Block {
    const block = this.blocks.get(memory)!
    if (!block.alive) this.violation(`${what} uses closed memory`)
    return block
  }

  private nativeRuntime(): NativeRuntime {
    return {
      ...this.closable('runtime'),
      info: JSON.stringify(runtimeInfo),
      deserialize: () => Promise.reject(new Error('not here')),
      allocate: async (kind, bytes) => {
        this.fail('allocate')
        if (kind === 'device') this.counters.deviceAllocations++
        else this.counters.pinnedAllocations++
        return this.memory(kind, bytes)
      },
      createStream: async () => {
        this.fail('createStream')
        return this.stream()
      },
      createEvent: () => Promise.reject(new Error('not here')),
      memory: () => ({ freeBytes: 0, totalBytes: 0, deviceBytes: 0, pinnedBytes: 0, pooledDeviceBytes: 0, pooledPinnedBytes: 0 }),
      counters: () => ({ ...this.counters }),
      trim: () => Promise.resolve(),
    }
  }

  private nativeEngine(): NativeEngine {
    return {
      ...this.closable('engine'),
      info: JSON.stringify(this.info),
      layers: () => Promise.resolve('{}'),
      createContext: async ({ profile }) => {
        this.fail('createContext')
        this.counters.deviceAllocations++
        return this.context(profile)
      },
      refittableWeights: () => Promise.resolve([]),
      refit: () => Promise.resolve(),
      serialize: () => Promise.resolve(Buffer.alloc(0)),
    }
  }

  private readonly states = new WeakMap<NativeContext, ContextState>()
  private readonly outputs = new WeakMap<ContextState, Map<number, { shape: number[]; block: Block | null }>>()

  private context(profile: number): NativeContext {
    const state: ContextState = { profile, shapes: new Map(), values: new Map(), addresses: new Map(), activations: null }
    const inRange = (tensor: number, shape: readonly number[]): void => {
      const { name, profiles } = this.model.tensors[tensor]!
      const { min, max } = profiles![state.profile]!
      if (shape.length !== min.length || shape.some((size, axis) => size < min[axis]! || size > max[axis]!)) {
        throw nativeError('ERR_INVALID_TENSOR', `${name} [${shape.join()}] is outside of profile ${state.profile}`)
      }
    }
    const context: NativeContext = {
      ...this.closable('context'),
      setProfile: (wanted) => void (state.profile = wanted),
      setInputShape: (tensor, shape) => {
        inRange(tensor, shape)
        state.shapes.set(tensor, [...shape])
      },
      setShapeValues: (tensor, values) => void state.values.set(tensor, [...values]),
      setAddress: (tensor, memory, offset) => {
        if (offset % 256 !== 0) this.violation(`address of tensor ${tensor} is not aligned`)
        state.addresses.set(tensor, memory === null ? null : { block: this.block(memory, 'setAddress'), offset })
      },
      setDeviceMemory: (memory) => void (state.activations = this.block(memory, 'setDeviceMemory')),
      setProfiling: () => {},
      output: (tensor) => {
        const output = this.outputs.get(state)?.get(tensor)
        if (output === undefined) throw nativeError('ERR_INVALID_ARGUMENT', 'no run yet')
        if (output.block === null) return { shape: output.shape, memory: null }
        const memory = this.memory('device', output.block.bytes.length)
        this.blocks.get(memory)!.bytes.set(output.block.bytes)
        return { shape: output.shape, memory }
      },
      takeProfile: () => '[]',
    }
    this.states.set(context, state)
    return context
  }

  private inputsOf(state: ContextState): { indices: number[]; shapes: number[][]; values: (number[] | null)[] } {
    const indices = [...this.model.tensors.keys()].filter((i) => this.model.tensors[i]!.mode === 'input')
    const shapes = indices.map((i) => state.shapes.get(i) ?? this.model.tensors[i]!.shape)
    return { indices, shapes, values: indices.map((i) => state.values.get(i) ?? null) }
  }

  private run(context: NativeContext): Work {
    const live = this.states.get(context)!
    // What was set by now counts, whatever is set before it runs.
    const state = { ...live, shapes: new Map(live.shapes), values: new Map(live.values), addresses: new Map(live.addresses) }
    return () => {
      const { indices, shapes, values } = this.inputsOf(state)
      if (state.activations === null) this.violation('a run without activation memory')
      this.enqueued.push({ profile: state.profile, shapes })
      const inputs = indices.map((tensor, i): Value => {
        const { dtype, isShapeTensor } = this.model.tensors[tensor]!
        if (isShapeTensor) return { data: new Int32Array(0), shape: [] }
        const { block, offset } = state.addresses.get(tensor)!
        const bytes = byteLengthOf(dtype, volume(shapes[i]!))
        if (offset + bytes > block.bytes.length) this.violation(`input ${tensor} ends behind its memory`)
        return { data: new (arrayTypeOf(dtype))(block.bytes.slice(offset, offset + bytes).buffer), shape: shapes[i]! }
      })
      const results = this.model.compute(inputs, values)
      const tensors = [...this.model.tensors.keys()].filter((i) => this.model.tensors[i]!.mode === 'output')
      for (const [i, tensor] of tensors.entries()) {
        const { data, shape } = results[i]!
        const bytes = new Uint8Array(data.buffer, data.byteOffset, data.byteLength)
        const address = state.addresses.get(tensor)
        const outputs = this.outputs.get(live) ?? new Map<number, { shape: number[]; block: Block | null }>()
        this.outputs.set(live, outputs)
        if (address === undefined) this.violation(`output ${tensor} has no address`)
        if (address == null) {
          outputs.set(tensor, { shape, block: { bytes: bytes.slice(), alive: true } })
        } else {
          if (address.offset + bytes.length > address.block.bytes.length) this.violation(`output ${tensor} ends behind its memory`)
          address.block.bytes.set(bytes, address.offset)
          outputs.set(tensor, { shape, block: null })
        }
      }
    }
  }

  private stream(): NativeStream {
    let tail: Promise<void> = Promise.resolve()
    let failure: Error | undefined
    let captured: Work[] | null = null
    const counters = { commands: 0, enqueues: 0, graphLaunches: 0, reshapes: 0, enqueueUs: 0, queueUs: 0, voluntarySwitches: 0, involuntarySwitches: 0 }
    const closable = this.closable('stream')
    const queue = (method: string, work: Work, takes = 0): void => {
      if (closable.isClosed()) this.violation(`${method} on a closed stream`)
      this.fail(method)
      counters.commands++
      if (captured !== null) {
        captured.push(work)
        return
      }
      tail = after(tail, work, takes)
    }
    const after = async (before: Promise<void>, work: Work, takes: number): Promise<void> => {
      await before
      await this.gate
      if (takes > 0) await new Promise((resolve) => setTimeout(resolve, takes))
      failure ??= this.dead
      if (failure !== undefined) return
      try {
        work()
      } catch (error) {
        failure = error as Error
      }
    }
    const settled = async (before: Promise<void>): Promise<void> => {
      await before
      const first = failure ?? this.dead
      failure = undefined
      if (first !== undefined) throw first
    }
    const graphs = new WeakMap<NativeGraph, Work[]>()
    const copyWork = (to: NativeMemory, toOffset: number, from: NativeMemory, fromOffset: number, bytes: number): Work => {
      const [target, source] = [this.block(to, 'copy'), this.block(from, 'copy')]
      return () => {
        if (toOffset + bytes > target.bytes.length || fromOffset + bytes > source.bytes.length) this.violation('a copy past the end of memory')
        target.bytes.set(source.bytes.subarray(fromOffset, fromOffset + bytes), toOffset)
      }
    }
    const stream: NativeStream = {
      ...closable,
      copy: (to, toOffset, from, fromOffset, bytes) => queue('copy', copyWork(to, toOffset, from, fromOffset, bytes)),
      copyRows: () => this.violation('copyRows'),
      fill: (memory, offset, bytes, value) => {
        const block = this.block(memory, 'fill')
        queue('fill', () => block.bytes.fill(value, offset, offset + bytes))
      },
      enqueue: (context) => {
        counters.enqueues++
        queue('enqueue', this.run(context), captured === null ? this.runMs : 0)
      },
      resolve: (context) => {
        if (captured !== null) this.violation('resolve within a capture')
        const { indices, shapes, values } = this.inputsOf(this.states.get(context)!)
        return new Promise((resolve, reject) => {
          queue('resolve', () => {
            const inferred = this.model.infer(shapes, values)
            let output = 0
            resolve(this.model.tensors.map(({ mode }, i) => (mode === 'input' ? shapes[indices.indexOf(i)]! : inferred[output++]!)))
          })
          void tail.then(() => (failure === undefined ? undefined : reject(failure)))
        })
      },
      record: () => this.violation('record'),
      wait: () => this.violation('wait'),
      beginCapture: () => {
        this.fail('beginCapture')
        if (captured !== null) this.violation('a capture within a capture')
        captured = []
      },
      endCapture: () => {
        const work = captured ?? []
        captured = null
        this.fail('endCapture')
        const graph: NativeGraph = this.closable('graph')
        graphs.set(graph, work)
        return tail.then(() => graph)
      },
      launch: (graph) => {
        this.graphLaunches++
        counters.graphLaunches++
        queue(
          'launch',
          () => {
            for (const work of graphs.get(graph)!) work()
          },
          this.runMs,
        )
      },
      synchronize: () => {
        if (captured !== null) this.violation('synchronize within a capture')
        this.fail('synchronize')
        return settled(tail)
      },
      counters: () => ({ ...counters }),
    }
    return stream
  }
}

export function tensor(overrides: Partial<NativeTensorInfo> & { name: string }): NativeTensorInfo {
  return { mode: 'input', dtype: 'float32', shape: [-1, 4], location: 'device', isShapeTensor: false, formats: [], profiles: null, values: null, ...overrides }
}

export function range(min: number[], opt: number[], max: number[]): { min: number[]; opt: number[]; max: number[] } {
  return { min, opt, max }
}

/** y = 2 x + 1, and the sum of each row: `x` float32 [rows, width]. Rows of NaN fail the run. */
export function affineModel(profiles: { min: number[]; opt: number[]; max: number[] }[], shape = [-1, 4]): ModelDouble {
  return {
    tensors: [
      tensor({ name: 'x', shape, profiles }),
      tensor({ name: 'y', mode: 'output', shape }),
      tensor({ name: 'sum', mode: 'output', shape: [shape[0]!, 1] }),
    ],
    profiles: profiles.length,
    infer: ([x]) => [x!, [x![0]!, 1]],
    compute: ([x]) => {
      const data = x!.data as Float32Array
      const [rows, width] = x!.shape as [number, number]
      if (data.includes(Number.NaN)) throw nativeError('ERR_EXECUTION_FAILED', 'a row is not a number')
      const sums = Array.from({ length: rows }, (_, row) => data.subarray(row * width, (row + 1) * width).reduce((sum, value) => sum + value, 0))
      return [
        { data: data.map((value) => 2 * value + 1), shape: x!.shape },
        { data: Float32Array.from(sums), shape: [rows, 1] },
      ]
    },
  }
}

