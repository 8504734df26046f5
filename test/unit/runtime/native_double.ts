/**
 * The native surface in JavaScript, for tests of what lies above it: calls are written down, and every promise settles when the test says so.
 * What the native side does itself is tested with the real addon.
 */
import type {
  NativeClosable,
  NativeContext,
  NativeEngine,
  NativeEngineInfo,
  NativeEvent,
  NativeMemory,
  NativeRuntime,
  NativeRuntimeInfo,
  NativeStream,
  NativeTensorInfo,
} from '../../../lib/native'

export const runtimeInfo: NativeRuntimeInfo = {
  device: 0,
  name: 'Double',
  computeCapability: '9.0',
  memoryBytes: 2 ** 30,
  multiprocessors: 1,
  libraryVersion: 100_600,
  libraryPath: '/lib/double.so',
  driverCuda: 13_000,
  runtimeCuda: 13_000,
  maxPriority: 5,
}

export function tensorInfo(overrides: Partial<NativeTensorInfo> & { name: string }): NativeTensorInfo {
  return {
    mode: 'input',
    dtype: 'float32',
    shape: [-1, 4],
    location: 'device',
    isShapeTensor: false,
    formats: ['linear'],
    profiles: overrides.mode === 'output' ? null : [range([1, 4], [2, 4], [8, 4]), range([1, 4], [32, 4], [64, 4])],
    values: null,
    ...overrides,
  }
}

export function range(min: number[], opt: number[], max: number[]): { min: number[]; opt: number[]; max: number[] } {
  return { min, opt, max }
}

export const engineInfo: NativeEngineInfo = {
  name: 'double',
  tensors: [
    tensorInfo({ name: 'input' }),
    tensorInfo({ name: 'fixed', shape: [2], dtype: 'int32', profiles: [range([2], [2], [2]), range([2], [2], [2])] }),
    tensorInfo({
      name: 'size',
      shape: [2],
      dtype: 'int64',
      location: 'host',
      isShapeTensor: true,
      profiles: [range([2], [2], [2]), range([2], [2], [2])],
      values: [range([1, 1], [2, 2], [4, 4]), range([1, 1], [2, 2], [9, 9])],
    }),
    tensorInfo({ name: 'output', mode: 'output', shape: [-1, 3] }),
    tensorInfo({ name: 'count', mode: 'output', shape: [1], dtype: 'int64', location: 'host' }),
  ],
  profiles: 2,
  layers: 3,
  deviceMemory: [1000, 2000],
  streamableWeights: 0,
  auxStreams: 0,
  refittable: true,
  hardwareCompatibility: 'none',
  capability: 'standard',
  profilingVerbosity: 'detailed',
}

export type Call = [object: string, method: string, ...args: unknown[]]

export class NativeDouble {
  readonly calls: Call[] = []
  /** Names of methods whose promises wait for {@link release}. */
  readonly held = new Set<string>()
  readonly open = new Set<string>()
  /** What the n-th method of a name throws, once. */
  readonly failures = new Map<string, Error>()
  readonly #waiting: { method: string; settle: () => void }[] = []
  #made = 0

  /** Lets the promises of a method settle. */
  release(method: string): void {
    this.held.delete(method)
    for (const waiting of this.#waiting.splice(0)) {
      if (waiting.method === method) waiting.settle()
      else this.#waiting.push(waiting)
    }
  }

  called(method: string): Call[] {
    return this.calls.filter((call) => call[1] === method)
  }

  #note(object: string, method: string, ...args: unknown[]): void {
    this.calls.push([object, method, ...args])
    const failure = this.failures.get(method)
    this.failures.delete(method)
    if (failure !== undefined) throw failure
  }

  async #later<T>(method: string, value: () => T): Promise<T> {
    if (this.held.has(method)) await new Promise<void>((settle) => this.#waiting.push({ method, settle }))
    return value()
  }

  #closable(kind: string): { id: string; closable: NativeClosable } {
    const id = `${kind}${this.#made++}`
    this.open.add(id)
    const close = async (): Promise<void> => {
      this.#note(id, 'close')
      await this.#later('close', () => this.open.delete(id))
    }
    return { id, closable: { close } }
  }

  #object<T extends NativeClosable>(kind: string, methods: Omit<T, 'close'> & ThisType<void>): T {
    const { closable } = this.#closable(kind)
    return Object.defineProperties({ ...closable }, Object.getOwnPropertyDescriptors(methods)) as T
  }

  memory(kind: 'device' | 'pinned', bytes: number): NativeMemory {
    const buffer = new ArrayBuffer(kind === 'pinned' ? bytes : 0)
    return this.#object<NativeMemory>('memory', { bytes, kind, address: 0x7000n, arrayBuffer: () => buffer })
  }

  event(): NativeEvent {
    return this.#object<NativeEvent>('event', { elapsedSince: () => 1.5, isComplete: () => true })
  }

  context(): NativeContext {
    const note =
      (method: string) =>
      (...args: unknown[]): void =>
        this.#note('context', method, ...args)
    return this.#object<NativeContext>('context', {
      setProfile: note('setProfile'),
      setInputShape: note('setInputShape'),
      setShapeValues: note('setShapeValues'),
      setAddress: note('setAddress'),
      setDeviceMemory: note('setDeviceMemory'),
      setProfiling: note('setProfiling'),
      output: () => ({ shape: [2, 3], memory: this.memory('device', 24) }),
      takeProfile: () => '[{"name":"layer","ms":0.5,"runs":1}]',
    })
  }

  stream(): NativeStream {
    const note =
      (method: string) =>
      (...args: unknown[]): void =>
        this.#note('stream', method, ...args)
    return this.#object<NativeStream>('stream', {
      copy: note('copy'),
      copyRows: note('copyRows'),
      fill: note('fill'),
      enqueue: note('enqueue'),
      resolve: () => this.#later('resolve', () => engineInfo.tensors.map(({ shape }) => shape)),
      record: note('record'),
      wait: note('wait'),
      beginCapture: note('beginCapture'),
      endCapture: () => {
        this.#note('stream', 'endCapture')
        return this.#later('endCapture', () => this.#closable('graph').closable)
      },
      launch: note('launch'),
      synchronize: () => {
        this.#note('stream', 'synchronize')
        return this.#later('synchronize', () => {})
      },
      counters: () => ({ commands: 1, enqueues: 0, graphLaunches: 0, reshapes: 0, enqueueUs: 0, queueUs: 0, voluntarySwitches: 0, involuntarySwitches: 0 }),
    })
  }

  engine(): NativeEngine {
    return this.#object<NativeEngine>('engine', {
      info: JSON.stringify(engineInfo),
      layers: (profile) => this.#later('layers', () => JSON.stringify({ Layers: [`layer of ${profile}`], Bindings: ['input'] })),
      createContext: () => this.#later('createContext', () => this.context()),
      refittableWeights: () => this.#later('refittableWeights', () => ['encoder.weight', 'encoder.bias']),
      refit: (weights) => {
        this.#note('engine', 'refit', weights)
        return this.#later('refit', () => {})
      },
      serialize: () => this.#later('serialize', () => Buffer.from('plan')),
    })
  }

  runtime(device: number): NativeRuntime {
    return this.#object<NativeRuntime>('runtime', {
      info: JSON.stringify({ ...runtimeInfo, device }),
      deserialize: (plan, hostCode) => {
        this.#note('runtime', 'deserialize', Buffer.from(plan.slice(0)), hostCode)
        structuredClone(plan, { transfer: [plan] })
        return this.#later('deserialize', () => this.engine())
      },
      allocate: (kind, bytes, pooled) => {
        this.#note('runtime', 'allocate', kind, bytes, pooled)
        return this.#later('allocate', () => this.memory(kind, bytes))
      },
      createStream: (options) => {
        this.#note('runtime', 'createStream', options)
        return this.#later('createStream', () => this.stream())
      },
      createEvent: () => this.#later('createEvent', () => this.event()),
      memory: () => ({ freeBytes: 1, totalBytes: 2, deviceBytes: 0, pinnedBytes: 0, pooledDeviceBytes: 0, pooledPinnedBytes: 0 }),
      counters: () => ({ deviceAllocations: 0, deviceFrees: 0, pinnedAllocations: 0, pinnedFrees: 0, poolHits: 0 }),
      trim: () => this.#later('trim', () => {}),
    })
  }
}
