/**
 * Every method of every class in every state: open, closed, its parent closed, during a capture, with work in flight. On a stand-in for the
 * native side, and on the real one over a GPU of host memory.
 */
import { afterEach, beforeEach, describe, expect, it, vi } from 'vitest'
import { type CudaGraph, type DeviceBuffer, Engine, type Event, type ExecutionContext, KvCache, type KvSequence, type NativeHandle, type PinnedBuffer, Runtime, type Stream, Tensor } from '../../../lib/runtime'
import { fakeGpu, type FakePlan, makePlan } from '../../support/fake_gpu'
import '../matchers'
import { NativeDouble } from './native_double'

type NativeModule = typeof import('../../../lib/native')
const { current } = vi.hoisted(() => ({ current: { native: undefined as NativeDouble | undefined } }))
vi.mock('../../../lib/native', async (original) => {
  const real = await original<NativeModule>()
  const createNativeRuntime: NativeModule['createNativeRuntime'] = async (options) => current.native?.runtime(options.device) ?? real.createNativeRuntime(options)
  return { ...real, createNativeRuntime }
})

/** The same tensors as the stand-in's. */
const plan: FakePlan = {
  name: 'double',
  refittable: true,
  activationBytes: [1000, 2000],
  tensors: [
    { name: 'input', mode: 'input', shape: [-1, 4] },
    { name: 'size', mode: 'input', dtype: 'int64', shape: [2], location: 'host', shapeTensor: true },
    { name: 'output', mode: 'output', shape: [-1, 4] },
    { name: 'filled', mode: 'output', shape: [-1, -1] },
  ],
  profiles: [8, 64].map((rows) => ({
    input: { min: [1, 4], opt: [2, 4], max: [rows, 4] },
    size: { min: [2], opt: [2], max: [2], values: { min: [1, 1], opt: [2, 2], max: [rows, rows] } },
  })),
  weights: { 'encoder.bias': { values: [2] } },
  layers: [
    { op: 'scale', inputs: ['input'], output: 'output', weight: 'encoder.bias' },
    { op: 'fill', inputs: ['size'], output: 'filled', a: 1 },
    { op: 'sleep', us: 2000 },
  ],
}

interface World {
  plan: Uint8Array
  Runtime: Runtime
  Engine: Engine
  ExecutionContext: ExecutionContext
  Stream: Stream
  Event: Event
  DeviceBuffer: DeviceBuffer
  PinnedBuffer: PinnedBuffer
  CudaGraph: CudaGraph
  KvCache: KvCache
  sequence: KvSequence
  /** Others of their kinds, which stay open. */
  other: { stream: Stream; event: Event; device: DeviceBuffer; pinned: PinnedBuffer }
}

async function makeWorld(): Promise<World> {
  const source = current.native === undefined ? makePlan(plan) : Buffer.from('plan')
  const runtime = await Runtime.create()
  const stream = await runtime.createStream()
  const engine = await Engine.load(source, { runtime })
  const context = await engine.createContext({ memory: 'user' })
  const device = await runtime.allocateDevice(4096)
  const pinned = await runtime.allocatePinned(4096)
  context.setInputShape('input', [1, 4])
  context.setShapeValues('size', [2, 2])
  for (const { name, location, isShapeTensor } of [...engine.inputs, ...engine.outputs]) {
    if (!isShapeTensor) context.setTensor(name, location === 'host' ? pinned : device)
  }
  context.setDeviceMemory(await runtime.allocateDevice(2048))
  const cache = await KvCache.create(runtime, { layers: 2, pages: 4, kvHeads: 1, headDim: 2, dtype: 'float16', stream })
  const sequence = cache.allocate()
  const event = await runtime.createEvent({ timing: true })
  const other = {
    stream: await runtime.createStream(),
    event: await runtime.createEvent({ timing: true }),
    device: await runtime.allocateDevice(64),
    pinned: await runtime.allocatePinned(64),
  }
  stream.record(other.event)
  stream.enqueue(context)
  stream.record(event)
  await stream.synchronize()
  return {
    plan: source,
    Runtime: runtime,
    Engine: engine,
    ExecutionContext: context,
    Stream: stream,
    Event: event,
    DeviceBuffer: device,
    PinnedBuffer: pinned,
    CudaGraph: await stream.capture(() => stream.fill(device, 0)),
    KvCache: cache,
    sequence,
    other,
  }
}

type ClassName = Exclude<keyof World, 'plan' | 'sequence' | 'other'>
/** What made it, whose closing closes it. */
const PARENTS: Record<ClassName, ClassName | undefined> = {
  Runtime: undefined,
  Engine: 'Runtime',
  ExecutionContext: 'Engine',
  Stream: 'Runtime',
  Event: 'Runtime',
  DeviceBuffer: 'Runtime',
  PinnedBuffer: 'Runtime',
  CudaGraph: 'Runtime',
  KvCache: 'Runtime',
}

interface Method {
  of: ClassName
  name: string
  call: (world: World) => unknown
  /** In a capture of the stream it is refused, as it cannot be part of a graph or would wait for what does not run. */
  refusedInCapture?: true | 'by the native side'
}

const page = (): Tensor<'float16'> => Tensor.zeros('float16', [2, 2, 16, 1, 2])
const methods: Method[] = [
  { of: 'Runtime', name: 'allocateDevice', call: ({ Runtime }) => Runtime.allocateDevice(16) },
  { of: 'Runtime', name: 'allocatePinned', call: ({ Runtime }) => Runtime.allocatePinned({ dtype: 'float32', shape: [4] }) },
  { of: 'Runtime', name: 'createStream', call: ({ Runtime }) => Runtime.createStream({ priority: 1 }) },
  { of: 'Runtime', name: 'createEvent', call: ({ Runtime }) => Runtime.createEvent() },
  { of: 'Runtime', name: 'memory', call: ({ Runtime }) => Runtime.memory() },
  { of: 'Runtime', name: 'counters', call: ({ Runtime }) => Runtime.counters() },
  { of: 'Runtime', name: 'trim', call: ({ Runtime }) => Runtime.trim() },
  { of: 'Runtime', name: 'Engine.load', call: ({ Runtime, plan }) => Engine.load(plan, { runtime: Runtime }) },
  { of: 'Runtime', name: 'KvCache.create', call: ({ Runtime }) => KvCache.create(Runtime, { layers: 1, pages: 1, kvHeads: 1, headDim: 1, dtype: 'float16' }) },
  { of: 'Engine', name: 'layers', call: ({ Engine }) => Engine.layers(1) },
  { of: 'Engine', name: 'createContext', call: ({ Engine }) => Engine.createContext() },
  { of: 'Engine', name: 'refittableWeights', call: ({ Engine }) => Engine.refittableWeights() },
  { of: 'Engine', name: 'refit', call: ({ Engine }) => Engine.refit({ 'encoder.bias': Tensor.float32([1]) }) },
  { of: 'Engine', name: 'serialize', call: ({ Engine }) => Engine.serialize() },
  { of: 'ExecutionContext', name: 'setProfile', call: ({ ExecutionContext }) => ExecutionContext.setProfile(1) },
  { of: 'ExecutionContext', name: 'setInputShape', call: ({ ExecutionContext }) => ExecutionContext.setInputShape('input', [2, 4]) },
  { of: 'ExecutionContext', name: 'setShapeValues', call: ({ ExecutionContext }) => ExecutionContext.setShapeValues('size', [1, 1]) },
  { of: 'ExecutionContext', name: 'setTensor', call: ({ ExecutionContext, other }) => ExecutionContext.setTensor('input', other.device) },
  { of: 'ExecutionContext', name: 'allocateOutput', call: ({ ExecutionContext }) => ExecutionContext.allocateOutput('output') },
  { of: 'ExecutionContext', name: 'setDeviceMemory', call: ({ ExecutionContext, DeviceBuffer }) => ExecutionContext.setDeviceMemory(DeviceBuffer) },
  { of: 'ExecutionContext', name: 'setProfiling', call: ({ ExecutionContext }) => ExecutionContext.setProfiling(true) },
  { of: 'ExecutionContext', name: 'takeProfile', call: ({ ExecutionContext }) => ExecutionContext.takeProfile() },
  { of: 'ExecutionContext', name: 'output', call: ({ ExecutionContext }) => ExecutionContext.output('output') },
  { of: 'ExecutionContext', name: 'resolveShapes', call: ({ ExecutionContext, Stream }) => ExecutionContext.resolveShapes(Stream), refusedInCapture: true },
  { of: 'ExecutionContext', name: 'stream.enqueue', call: ({ ExecutionContext, other }) => other.stream.enqueue(ExecutionContext), refusedInCapture: 'by the native side' },
  { of: 'Stream', name: 'copy', call: ({ Stream, other }) => Stream.copy(other.device, other.pinned) },
  { of: 'Stream', name: 'copyRows', call: ({ Stream, other }) => Stream.copyRows(other.device, other.pinned, { rows: 2, bytes: 8, toPitch: 16 }) },
  { of: 'Stream', name: 'fill', call: ({ Stream, other }) => Stream.fill(other.device, 7) },
  { of: 'Stream', name: 'enqueue', call: ({ Stream, ExecutionContext }) => Stream.enqueue(ExecutionContext) },
  { of: 'Stream', name: 'record', call: ({ Stream, other }) => Stream.record(other.event), refusedInCapture: true },
  { of: 'Stream', name: 'wait', call: ({ Stream, other }) => Stream.wait(other.event), refusedInCapture: true },
  { of: 'Stream', name: 'launch', call: ({ Stream, CudaGraph }) => Stream.launch(CudaGraph), refusedInCapture: true },
  { of: 'Stream', name: 'capture', call: ({ Stream, other }) => Stream.capture(() => Stream.fill(other.device, 1)), refusedInCapture: true },
  { of: 'Stream', name: 'synchronize', call: ({ Stream }) => Stream.synchronize(), refusedInCapture: true },
  { of: 'Stream', name: 'counters', call: ({ Stream }) => Stream.counters() },
  { of: 'Event', name: 'elapsedSince', call: ({ Event, other }) => Event.elapsedSince(other.event) },
  { of: 'Event', name: 'elapsedSince (as start)', call: ({ Event, other }) => other.event.elapsedSince(Event) },
  { of: 'Event', name: 'isComplete', call: ({ Event }) => Event.isComplete() },
  { of: 'Event', name: 'stream.record', call: ({ Event, other }) => other.stream.record(Event) },
  { of: 'Event', name: 'stream.wait', call: ({ Event, other }) => other.stream.wait(Event) },
  { of: 'DeviceBuffer', name: 'address', call: ({ DeviceBuffer }) => DeviceBuffer.address },
  { of: 'DeviceBuffer', name: 'stream.copy (to)', call: ({ DeviceBuffer, other }) => other.stream.copy(DeviceBuffer, other.pinned) },
  { of: 'DeviceBuffer', name: 'stream.copy (from)', call: ({ DeviceBuffer, other }) => other.stream.copy(other.pinned, DeviceBuffer, { bytes: 8 }) },
  { of: 'DeviceBuffer', name: 'stream.fill', call: ({ DeviceBuffer, other }) => other.stream.fill(DeviceBuffer, 0) },
  { of: 'DeviceBuffer', name: 'context.setTensor', call: ({ DeviceBuffer, ExecutionContext }) => ExecutionContext.setTensor('input', DeviceBuffer) },
  { of: 'PinnedBuffer', name: 'address', call: ({ PinnedBuffer }) => PinnedBuffer.address },
  { of: 'PinnedBuffer', name: 'arrayBuffer', call: ({ PinnedBuffer }) => PinnedBuffer.arrayBuffer },
  { of: 'PinnedBuffer', name: 'view', call: ({ PinnedBuffer }) => PinnedBuffer.view('float32') },
  { of: 'PinnedBuffer', name: 'write', call: ({ PinnedBuffer }) => PinnedBuffer.write(Tensor.float32([1, 2])) },
  { of: 'PinnedBuffer', name: 'read', call: ({ PinnedBuffer }) => PinnedBuffer.read('float32', [2]) },
  { of: 'PinnedBuffer', name: 'stream.copy', call: ({ PinnedBuffer, other }) => other.stream.copy(PinnedBuffer, other.device) },
  { of: 'CudaGraph', name: 'stream.launch', call: ({ CudaGraph, other }) => other.stream.launch(CudaGraph) },
  { of: 'KvCache', name: 'allocate', call: ({ KvCache }) => KvCache.allocate() },
  { of: 'KvCache', name: 'append', call: ({ KvCache, sequence }) => KvCache.append(sequence, 3) },
  { of: 'KvCache', name: 'truncate', call: ({ KvCache, sequence }) => KvCache.truncate(sequence, 0) },
  { of: 'KvCache', name: 'fork', call: ({ KvCache, sequence }) => KvCache.fork(sequence) },
  { of: 'KvCache', name: 'free', call: ({ KvCache, sequence }) => KvCache.free(KvCache.fork(sequence)) },
  { of: 'KvCache', name: 'pageTable', call: ({ KvCache, sequence }) => KvCache.pageTable(sequence) },
  { of: 'KvCache', name: 'pageTables', call: ({ KvCache, sequence }) => KvCache.pageTables([sequence]) },
  { of: 'KvCache', name: 'copy', call: ({ KvCache }) => KvCache.copy(0, 1) },
  { of: 'KvCache', name: 'readPage', call: ({ KvCache }) => KvCache.readPage(0) },
  { of: 'KvCache', name: 'writePage', call: ({ KvCache }) => KvCache.writePage(0, page()) },
]

/** The end of a call, thrown or rejected. */
async function outcome(call: () => unknown): Promise<Error | undefined> {
  try {
    await call()
  } catch (error) {
    return error as Error
  }
  return undefined
}

/** Whether a failing call throws or rejects: never a mix of both for one method. */
function isPromised(call: () => unknown): boolean {
  try {
    const value = call()
    if (value instanceof Promise) {
      value.catch(() => {})
      return true
    }
  } catch {
    return false
  }
  return false
}

let world: World

const places = [
  { place: 'a stand-in for the native side', isReal: false },
  { place: 'a GPU of host memory', isReal: true },
]

describe.each(places.filter(({ isReal }) => !isReal || fakeGpu.available))('on $place', ({ isReal }) => {
  beforeEach(async () => {
    current.native = isReal ? undefined : new NativeDouble()
    if (isReal) fakeGpu.use()
    world = await makeWorld()
  })
  afterEach(() => world.Runtime.close())

  describe.each(methods)('$of: $name', ({ of, call, refusedInCapture }) => {
    const refused = refusedInCapture === true || (isReal && refusedInCapture !== undefined)

    it('works while it is open', async () => {
      expect(await outcome(() => call(world))).toBeUndefined()
    })

    it('says that it is closed, at once and afterwards', async () => {
      const promised = isPromised(() => call(world))
      const closing = world[of].close()
      expect(await outcome(() => call(world))).toHaveCode('ERR_DISPOSED', /is closed/)
      await closing
      expect(await outcome(() => call(world))).toHaveCode('ERR_DISPOSED', /is closed/)
      if (promised) expect(isPromised(() => call(world))).toBe(true)
    })

    const parent = PARENTS[of]
    it.runIf(parent !== undefined)('says that it is closed when its parent was', async () => {
      await world[parent!].close()
      expect(await outcome(() => call(world))).toHaveCode('ERR_DISPOSED', /is closed/)
    })

    it(refused ? 'is refused during a capture' : 'is taken during a capture', async () => {
      let error: Promise<Error | undefined> | undefined
      await world.Stream.capture(() => {
        error = outcome(() => call(world))
      })
      if (refused) expect(await error).toHaveCode('ERR_INVALID_ARGUMENT', /capture/)
      else expect(await error).toBeUndefined()
      // And works again after it.
      expect(await outcome(() => call(world))).toBeUndefined()
      expect(await outcome(() => world.Stream.synchronize())).toBeUndefined()
    })

    it('works with work in flight', async () => {
      current.native?.held.add('synchronize')
      world.Stream.enqueue(world.ExecutionContext)
      const waiting = outcome(() => world.Stream.synchronize())
      const ending = outcome(() => call(world))
      // What waits for the device ends with it.
      current.native?.release('synchronize')
      expect(await ending).toBeUndefined()
      expect(await waiting).toBeUndefined()
    })
  })

  describe.each(Object.keys(PARENTS) as ClassName[])('closing a %s', (name) => {
    it('is one end, however often it is asked for', async () => {
      const object: Pick<NativeHandle, 'close' | 'closed'> & AsyncDisposable = world[name]
      expect(object.closed).toBe(false)
      const first = object.close()
      expect(object.closed).toBe(true)
      expect(object.close()).toBe(first)
      expect(object[Symbol.asyncDispose]()).toBe(first)
      await first
      expect(object.close()).toBe(first)
    })

    it('with work in flight ends that work or its wait', async () => {
      world.Stream.enqueue(world.ExecutionContext)
      world.Stream.launch(world.CudaGraph)
      const waiting = outcome(() => world.Stream.synchronize())
      await world[name].close()
      const error = await waiting
      if (error !== undefined) expect(error).toHaveCode('ERR_DISPOSED')
      await world.Runtime.close()
    })

    it('after its runtime is nothing', async () => {
      await world.Runtime.close()
      expect(world[name].closed).toBe(true)
      await world[name].close()
    })
  })

  it('a closed engine makes no session', async () => {
    await world.Runtime.close()
    expect(await outcome(() => world.Engine.createSession())).toHaveCode('ERR_DISPOSED', /The Engine is closed/)
  })
})

describe('on a stand-in for the native side', () => {
  beforeEach(async () => {
    current.native = new NativeDouble()
    world = await makeWorld()
  })

  it.each(Object.keys(PARENTS) as ClassName[])('close() of a %s resolves when the memory has gone back', async (name) => {
    const native = current.native!
    native.held.add('close')
    let closed = false
    const closing = world[name].close().then(() => (closed = true))
    await new Promise(setImmediate)
    expect(closed).toBe(false)
    native.release('close')
    expect(await closing).toBe(true)
  })

  it('a closed runtime leaves nothing behind', async () => {
    const native = current.native!
    expect(native.open.size).toBeGreaterThan(10)
    await world.Runtime.close()
    expect([...native.open]).toEqual([])
    for (const name of Object.keys(PARENTS) as ClassName[]) expect(world[name].closed).toBe(true)
  })

  it('every method of every class is in the table', () => {
    const special = new Set(['constructor', 'close', 'closed', 'native', 'nativeRuntime'])
    // Facts that stay, and checks that touch no memory.
    const facts = new Set(['Engine.inputs', 'Engine.outputs', 'Engine.profiles', 'Engine.tensor', 'ExecutionContext.profile', 'KvCache.stats', 'KvCache.check', 'KvCache.bytes'])
    const internal = new Set(['ExecutionContext.checkReady', 'Stream.resolve', 'Engine.afterClose', 'Engine.createSession', 'Engine.requireWeights'])
    const known = new Set(methods.map(({ of, name }) => `${of}.${name.replace(/ .*/, '')}`))
    const missing: string[] = []
    for (const name of Object.keys(PARENTS) as ClassName[]) {
      for (const member of Object.getOwnPropertyNames(Object.getPrototypeOf(world[name]))) {
        const full = `${name}.${member}`
        if (!special.has(member) && !facts.has(full) && !internal.has(full) && !known.has(full)) missing.push(full)
      }
    }
    expect(missing).toEqual([])
  })
})
