/** Every method of every class in every state: open, closed, its parent closed, during a capture, with work in flight. */
import { beforeEach, describe, expect, it, vi } from 'vitest'
import { type CudaGraph, type DeviceBuffer, Engine, type Event, type ExecutionContext, KvCache, type KvSequence, type NativeHandle, type PinnedBuffer, Runtime, type Stream, Tensor } from '../../../lib/runtime'
import '../matchers'
import { NativeDouble } from './native_double'

const { current } = vi.hoisted(() => ({ current: {} as { native: NativeDouble } }))
vi.mock('../../../lib/native', async (original) => ({
  ...(await original<object>()),
  createNativeRuntime: async ({ device }: { device: number }) => current.native.runtime(device),
}))

interface World {
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
  const runtime = await Runtime.create()
  const stream = await runtime.createStream()
  const engine = await Engine.load(Buffer.from('plan'), { runtime })
  const context = await engine.createContext({ memory: 'user' })
  const device = await runtime.allocateDevice(4096)
  const pinned = await runtime.allocatePinned(4096)
  context.setInputShape('input', [1, 4])
  context.setTensor('input', device)
  context.setTensor('fixed', device)
  context.setShapeValues('size', [2, 2])
  context.setTensor('output', device)
  context.setTensor('count', pinned)
  context.setDeviceMemory(device)
  const cache = await KvCache.create(runtime, { layers: 2, pages: 4, kvHeads: 1, headDim: 2, dtype: 'float16', stream })
  const sequence = cache.allocate()
  const event = await runtime.createEvent({ timing: true })
  return {
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
    other: { stream: await runtime.createStream(), event: await runtime.createEvent(), device: await runtime.allocateDevice(64), pinned: await runtime.allocatePinned(64) },
  }
}

type ClassName = Exclude<keyof World, 'sequence' | 'other'>
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
  /** In a capture of the stream it is refused, as it would wait for what does not run. */
  refusedInCapture?: boolean
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
  { of: 'Runtime', name: 'Engine.load', call: ({ Runtime }) => Engine.load(Buffer.from('plan'), { runtime: Runtime }) },
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
  { of: 'ExecutionContext', name: 'stream.enqueue', call: ({ ExecutionContext, other }) => other.stream.enqueue(ExecutionContext) },
  { of: 'Stream', name: 'copy', call: ({ Stream, other }) => Stream.copy(other.device, other.pinned) },
  { of: 'Stream', name: 'copyRows', call: ({ Stream, other }) => Stream.copyRows(other.device, other.pinned, { rows: 2, bytes: 8, toPitch: 16 }) },
  { of: 'Stream', name: 'fill', call: ({ Stream, other }) => Stream.fill(other.device, 7) },
  { of: 'Stream', name: 'enqueue', call: ({ Stream, ExecutionContext }) => Stream.enqueue(ExecutionContext) },
  { of: 'Stream', name: 'record', call: ({ Stream, other }) => Stream.record(other.event) },
  { of: 'Stream', name: 'wait', call: ({ Stream, other }) => Stream.wait(other.event) },
  { of: 'Stream', name: 'launch', call: ({ Stream, CudaGraph }) => Stream.launch(CudaGraph) },
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
beforeEach(async () => {
  current.native = new NativeDouble()
  world = await makeWorld()
})

describe.each(methods)('$of: $name', ({ of, call, refusedInCapture }) => {
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

  it(refusedInCapture === true ? 'is refused during a capture' : 'works during a capture', async () => {
    let error: Promise<Error | undefined> | undefined
    await world.Stream.capture(() => {
      error = outcome(() => call(world))
    })
    if (refusedInCapture === true) expect(await error).toHaveCode('ERR_INVALID_ARGUMENT', /during its capture/)
    else expect(await error).toBeUndefined()
    // And works again after it.
    expect(await outcome(() => call(world))).toBeUndefined()
  })

  it('works with work in flight', async () => {
    current.native.held.add('synchronize')
    const waiting = outcome(() => world.Stream.synchronize())
    const ending = outcome(() => call(world))
    // What waits for the device ends with it.
    current.native.release('synchronize')
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

  it('resolves when the memory has gone back', async () => {
    current.native.held.add('close')
    let closed = false
    const closing = world[name].close().then(() => (closed = true))
    await new Promise(setImmediate)
    expect(closed).toBe(false)
    current.native.release('close')
    expect(await closing).toBe(true)
  })
})

it('a closed engine makes no session', async () => {
  await world.Runtime.close()
  expect(await outcome(() => world.Engine.createSession())).toHaveCode('ERR_DISPOSED', /The Engine is closed/)
})

it('a closed runtime leaves nothing behind', async () => {
  expect(current.native.open.size).toBeGreaterThan(10)
  await world.Runtime.close()
  expect([...current.native.open]).toEqual([])
  for (const name of Object.keys(PARENTS) as ClassName[]) expect(world[name].closed).toBe(true)
  await Promise.all((Object.keys(PARENTS) as ClassName[]).map((name) => world[name].close()))
})

it('every method of every class is in the table', () => {
  const special = new Set(['constructor', 'close', 'closed', 'native', 'nativeRuntime'])
  // Facts that stay, and checks that touch no memory.
  const facts = new Set(['Engine.inputs', 'Engine.outputs', 'Engine.profiles', 'Engine.tensor', 'ExecutionContext.profile', 'KvCache.stats', 'KvCache.check', 'KvCache.bytes'])
  const internal = new Set(['ExecutionContext.checkReady', 'Stream.resolve', 'Engine.afterClose', 'Engine.createSession'])
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
