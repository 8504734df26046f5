import { inspect } from 'node:util'
import { afterAll, afterEach, beforeAll, describe, expect, it } from 'vitest'
import type { NativeClosable, NativeRuntime } from '../../../lib/native'
import { fakeGpu } from '../../support/fake_gpu'
import { addon, createRuntime, LATE, newObjects, type Objects, planBuffer, runChild } from './runtime_addon_objects'

const { modulePath, libraryPath } = fakeGpu.native

type Calls = Record<string, unknown>
type AnyCall = (...values: unknown[]) => unknown

/** The error that a call throws or rejects with. */
async function failure(call: () => unknown): Promise<Error & { code?: string }> {
  try {
    await call()
  } catch (error) {
    return error as Error
  }
  throw new Error(`nothing was thrown by ${call.toString()}`)
}

const method = (object: unknown, name: string): AnyCall => ((object as Calls)[name] as AnyCall).bind(object)

describe.skipIf(!fakeGpu.available)('native runtime', () => {
  let runtime: NativeRuntime
  const open: NativeClosable[] = []
  const keep = <T extends NativeClosable>(object: T): T => {
    open.push(object)
    return object
  }
  const objects = async (): Promise<Objects> => {
    const made = await newObjects(runtime)
    for (const object of Object.values(made)) if (object !== runtime) open.push(object as NativeClosable)
    return made
  }
  beforeAll(async () => {
    runtime = await createRuntime()
  })
  afterEach(async () => {
    await Promise.all(open.splice(0).map((object) => object.close()))
  })
  afterAll(() => runtime.close())

  it('runs an engine', async () => {
    const { stream, context, device, pinned } = await objects()
    const input = new Float32Array(pinned.arrayBuffer())
    input.set([1, 2, 3, 4])
    stream.copy(device, 0, pinned, 0, 16)
    context.setInputShape(0, [1, 4])
    context.setAddress(0, device, 0)
    context.setAddress(1, null, 0)
    stream.enqueue(context)
    await stream.synchronize()
    const { shape, memory } = context.output(1)
    expect(shape).toEqual([1, 4])
    stream.copy(pinned, 16, keep(memory!), 0, 16)
    await stream.synchronize()
    expect([...input.subarray(4, 8)]).toEqual([3, 5, 7, 9])
    expect(await stream.resolve(context)).toEqual([[1, 4], [1, 4]])
  })

  it('captures and launches a graph', async () => {
    const { stream, pinned } = await objects()
    const bytes = new Uint8Array(pinned.arrayBuffer()).fill(0)
    stream.beginCapture()
    stream.fill(pinned, 0, 4, 7)
    const graph = keep(await stream.endCapture())
    await stream.synchronize()
    expect([...bytes.subarray(0, 4)]).toEqual([0, 0, 0, 0])
    stream.launch(graph)
    await stream.synchronize()
    expect([...bytes.subarray(0, 4)]).toEqual([7, 7, 7, 7])
    await expect(stream.endCapture()).rejects.toMatchObject({ code: 'ERR_INVALID_ARGUMENT' })
  })

  it('measures events', async () => {
    const { stream, event, device } = await objects()
    const later = keep(await runtime.createEvent(true))
    stream.record(event)
    stream.fill(device, 0, 16, 0)
    stream.record(later)
    stream.wait(later)
    await stream.synchronize()
    expect(later.isComplete()).toBe(true)
    expect(later.elapsedSince(event)).toBeGreaterThanOrEqual(0)
  })

  it('gives figures and counters as numbers', async () => {
    const { stream } = await objects()
    for (const figures of [runtime.memory(), runtime.counters(), stream.counters()]) {
      expect(Object.values(figures).every((value) => typeof value === 'number')).toBe(true)
    }
    await runtime.trim()
  })

  describe('arguments', () => {
    const numbers = [-1, 0.5, Number.NaN, Number.POSITIVE_INFINITY, 2 ** 53, '0', null, undefined, 1n, {}]
    const integers = [0.5, Number.NaN, 2 ** 31, '0', null, undefined, 1n]
    const booleans = [0, 'true', null, undefined, {}]
    const lists = [undefined, null, 1, 'x', { length: 1 }, [0.5], ['1'], [Number.NaN], [2 ** 53], [undefined], new Int32Array(1)]
    const foreign = [undefined, null, 1, 'x', {}, [], () => {}, new Proxy({}, {}), globalThis]

    /** Valid arguments of each method, and what is wrong in each place. */
    const table = (o: Objects): [object: string, name: string, valid: unknown[], wrong: unknown[][]][] => {
      const memory = [...foreign, o.stream, Object.create(o.device)]
      const offset = numbers
      return [
        ['stream', 'copy', [o.device, 0, o.pinned, 0, 4], [memory, offset, memory, offset, offset]],
        [
          'stream',
          'copyRows',
          [o.device, 0, 8, o.pinned, 0, 8, 4, 2],
          [memory, offset, offset, memory, offset, offset, offset, offset],
        ],
        ['stream', 'fill', [o.device, 0, 4, 1], [memory, offset, offset, [...offset, 256]]],
        ['stream', 'enqueue', [o.context], [[...foreign, o.engine]]],
        ['stream', 'resolve', [o.context], [[...foreign, o.engine]]],
        ['stream', 'record', [o.event], [[...foreign, o.stream]]],
        ['stream', 'wait', [o.event], [[...foreign, o.stream]]],
        ['stream', 'launch', [o.graph], [[...foreign, o.event]]],
        ['context', 'setProfile', [0], [integers]],
        ['context', 'setInputShape', [0, [4]], [integers, [...lists, Array.from({ length: 9 }, () => 1)]]],
        ['context', 'setShapeValues', [0, [4]], [integers, lists]],
        ['context', 'setAddress', [0, o.device, 0], [integers, memory.filter((value) => value !== null), offset]],
        ['context', 'setDeviceMemory', [o.device, 0], [memory, offset]],
        ['context', 'setProfiling', [false], [booleans]],
        ['context', 'output', [1], [integers]],
        ['event', 'elapsedSince', [o.event], [[...foreign, o.graph]]],
        ['engine', 'layers', [-1], [integers]],
        [
          'engine',
          'createContext',
          [{ profile: 0, memory: 'static' }],
          [[undefined, null, 1, {}, { profile: 0.5, memory: 'static' }, { profile: 0, memory: 'none' }]],
        ],
        [
          'engine',
          'refit',
          [[]],
          [
            [
              undefined,
              null,
              {},
              [1],
              [{}],
              [{ name: 'w', dtype: 'float32', values: new Float32Array(1), count: 1 }],
              [{ name: 'w', dtype: 'float32', values: new Uint8Array(5), count: 1 }],
              [{ name: 'w', dtype: 'float32', values: new Uint8Array(4), count: 2 ** 52 }],
              [{ name: 'w', dtype: 'float5', values: new Uint8Array(4), count: 1 }],
            ],
          ],
        ],
        [
          'runtime',
          'deserialize',
          [undefined, false],
          [[...foreign, Buffer.alloc(8), new ArrayBuffer(0), new SharedArrayBuffer(8)], booleans],
        ],
        ['runtime', 'allocate', ['device', 16, false], [[undefined, null, 1, 'host', {}], numbers, booleans]],
        [
          'runtime',
          'createStream',
          [{ priority: 0, spinUs: 0 }],
          [[undefined, null, 1, {}, { priority: '0', spinUs: 0 }, { priority: 0, spinUs: Number.NaN }]],
        ],
        ['runtime', 'createEvent', [true], [booleans]],
      ]
    }

    it('are refused one by one, by their names', async () => {
      const made = await objects()
      for (const [object, name, valid, wrong] of table(made)) {
        const call = method(made[object as keyof Objects], name)
        for (const [index, values] of wrong.entries()) {
          for (const value of values) {
            const given = name === 'deserialize' && index !== 0 ? [planBuffer(), false] : [...valid]
            given[index] = value
            const error = await failure(() => call(...given))
            expect(error.code, `${name} with ${inspect(value, { depth: 0 })} at ${index}`).toBe('ERR_INVALID_ARGUMENT')
          }
        }
      }
      await made.stream.synchronize()
    })

    it('that were closed are ERR_DISPOSED', async () => {
      const made = await objects()
      const closed = await newObjects(runtime)
      await Promise.all(Object.values(closed).map((object: NativeClosable) => (object === runtime ? undefined : object.close())))
      for (const [object, name, valid] of table(made)) {
        for (const [index, value] of valid.entries()) {
          const kind = Object.keys(made).find((key) => made[key as keyof Objects] === value)
          if (kind === undefined) continue
          const given = [...valid]
          given[index] = closed[kind as keyof Objects]
          expect(await failure(() => method(made[object as keyof Objects], name)(...given)), `${name} at ${index}`).toMatchObject({
            code: 'ERR_DISPOSED',
          })
        }
      }
    })

    it('may close the object while they are read', async () => {
      const { context, engine } = await objects()
      const shape = [4]
      Object.defineProperty(shape, 0, { get: () => (void context.close(), 4) })
      expect(await failure(() => context.setInputShape(0, shape))).toMatchObject({ code: 'ERR_DISPOSED' })
      const options = {
        profile: 0,
        get memory(): 'static' {
          void engine.close()
          return 'static'
        },
      }
      expect(await failure(() => engine.createContext(options))).toMatchObject({ code: 'ERR_DISPOSED' })
    })

    it('that throw when they are read pass that on', async () => {
      const { context, engine } = await objects()
      const mine = new Error('mine')
      const shape = [4]
      Object.defineProperty(shape, 0, {
        get: () => {
          throw mine
        },
      })
      expect(await failure(() => context.setInputShape(0, shape))).toBe(mine)
      const options = {
        get profile(): number {
          throw mine
        },
        memory: 'static' as const,
      }
      expect(await failure(() => engine.createContext(options))).toBe(mine)
    })
  })

  describe('objects', () => {
    it('come from the addon alone', async () => {
      const made = await objects()
      for (const object of Object.values(made)) {
        const { constructor: Class } = object as { constructor: new () => unknown }
        expect(await failure(() => new Class())).toBeInstanceOf(TypeError)
        expect(await failure(() => (Class as unknown as AnyCall)())).toBeInstanceOf(TypeError)
      }
    })

    it('have methods for themselves only', async () => {
      const made = await objects()
      for (const [kind, object] of Object.entries(made)) {
        const prototype = Object.getPrototypeOf(object) as object
        for (const [name, { value, get }] of Object.entries(Object.getOwnPropertyDescriptors(prototype))) {
          if (name === 'constructor') continue
          const call = (value ?? get) as AnyCall
          for (const other of [...Object.values(made), {}, undefined, prototype] as unknown[]) {
            if (other instanceof (object as { constructor: AnyCall }).constructor && other !== prototype) continue
            expect(await failure(() => call.call(other)), `${kind}.${name} on ${inspect(other)}`).toBeInstanceOf(TypeError)
          }
        }
      }
    })
  })

  describe('close', () => {
    /** Of each class: a method or getter with its arguments. */
    const calls: Record<keyof Objects, unknown[][]> = {
      runtime: [
        ['deserialize', new ArrayBuffer(8), false],
        ['allocate', 'device', 4, false],
        ['createStream', { priority: 0, spinUs: 0 }],
        ['createEvent', true],
        ['memory'],
        ['counters'],
        ['trim'],
      ],
      engine: [
        ['layers', -1],
        ['createContext', { profile: 0, memory: 'static' }],
        ['refittableWeights'],
        ['refit', []],
        ['serialize'],
      ],
      context: [
        ['setProfile', 0],
        ['setInputShape', 0, [4]],
        ['setShapeValues', 0, [4]],
        ['setAddress', 0, null, 0],
        ['setDeviceMemory', LATE, 0],
        ['setProfiling', true],
        ['output', 1],
        ['takeProfile'],
      ],
      stream: [
        ['copy', LATE, 0, LATE, 0, 0],
        ['copyRows', LATE, 0, 1, LATE, 0, 1, 1, 1],
        ['fill', LATE, 0, 1, 1],
        ['enqueue', LATE],
        ['resolve', LATE],
        ['record', LATE],
        ['wait', LATE],
        ['beginCapture'],
        ['endCapture'],
        ['launch', LATE],
        ['synchronize'],
        ['counters'],
      ],
      event: [['elapsedSince', LATE], ['isComplete']],
      graph: [],
      device: [['address'], ['arrayBuffer']],
      pinned: [['address'], ['arrayBuffer']],
    }

    it.each(Object.keys(calls) as (keyof Objects)[])('of a %s happens once, and ends every call', async (kind) => {
      const own = await createRuntime()
      const made = await newObjects(own)
      const object = made[kind]
      const first = object.close()
      expect(object.close()).toBe(first)
      const check = async (): Promise<void> => {
        for (const [name, ...values] of calls[kind]) {
          const call = (): unknown => {
            const member = (object as unknown as Calls)[name as string]
            return typeof member === 'function' ? (member as AnyCall).apply(object, values) : member
          }
          expect(await failure(call), name as string).toMatchObject({ code: 'ERR_DISPOSED' })
        }
      }
      await check()
      await first
      expect(object.close()).toBe(first)
      await check()
      await Promise.all(Object.values(made).map((one: NativeClosable) => one.close()))
    })

    it('of memory leaves size and kind', async () => {
      const { device } = await objects()
      await device.close()
      expect([device.kind, device.bytes]).toEqual(['device', 4096])
    })

    it('of parents leaves children usable, and all memory goes back with them', async () => {
      const before = runtime.memory()
      const own = await createRuntime()
      const { engine, context, stream, device, pinned, event, graph } = await newObjects(own)
      await own.close()
      await engine.close()
      context.setInputShape(0, [1, 4])
      context.setAddress(0, device, 0)
      context.setAddress(1, device, 256)
      stream.enqueue(context)
      stream.record(event)
      await stream.synchronize()
      await Promise.all([context, stream, device, pinned, event, graph].map((object) => object.close()))
      const { deviceBytes, pinnedBytes } = runtime.memory()
      expect({ deviceBytes, pinnedBytes }).toEqual({ deviceBytes: before.deviceBytes, pinnedBytes: before.pinnedBytes })
    })

    it('with commands queued lets them end', async () => {
      const { stream, device, pinned } = await objects()
      const target = keep(await runtime.allocate('pinned', 4096, false))
      const bytes = new Uint8Array(target.arrayBuffer())
      new Uint8Array(pinned.arrayBuffer()).fill(3)
      for (let i = 0; i < 200; i++) stream.copy(device, 0, pinned, 0, 4096)
      stream.copy(target, 0, device, 0, 4096)
      const done = stream.synchronize()
      const closed = [pinned.close(), device.close(), stream.close()]
      await done
      expect(bytes.every((byte) => byte === 3)).toBe(true)
      await Promise.all(closed)
    })

    it('with calls in flight lets them settle', async () => {
      const own = await createRuntime()
      const engine = own.deserialize(planBuffer(), false)
      const memory = own.allocate('device', 64, false)
      const closed = own.close()
      const context = engine.then((it) => {
        const made = it.createContext({ profile: 0, memory: 'static' })
        void it.close()
        return made
      })
      await closed
      for (const object of [await engine, await context, await memory]) await object.close()
    })
  })

  describe('pinned memory', () => {
    it('is one ArrayBuffer, detached by close', async () => {
      const { pinned } = await objects()
      const buffer = pinned.arrayBuffer()
      expect(pinned.arrayBuffer()).toBe(buffer)
      expect(buffer.byteLength).toBe(4096)
      const closed = pinned.close()
      expect(buffer.byteLength).toBe(0)
      await closed
    })

    it('cannot be moved to another thread', async () => {
      const { pinned } = await objects()
      const buffer = pinned.arrayBuffer()
      // Node 20 copies, later ones throw.
      try {
        structuredClone(buffer, { transfer: [buffer] })
      } catch (error) {
        expect(error).toMatchObject({ name: 'DataCloneError' })
      }
      expect(buffer.byteLength).toBe(4096)
      expect(await failure(() => runtime.deserialize(buffer, false))).toMatchObject({ code: 'ERR_INVALID_ARGUMENT' })
    })

    it('of a device there is none', async () => {
      const { device } = await objects()
      expect(await failure(() => device.arrayBuffer())).toMatchObject({ code: 'ERR_INVALID_ARGUMENT', hint: expect.stringContaining('pinned') })
    })
  })

  describe('deserialize', () => {
    it('takes the bytes over', async () => {
      const plan = planBuffer()
      const engine = runtime.deserialize(plan, false)
      expect(plan.byteLength).toBe(0)
      expect(await failure(() => runtime.deserialize(plan, false))).toMatchObject({ code: 'ERR_INVALID_ARGUMENT' })
      expect(JSON.parse(keep(await engine).info)).toBeTypeOf('object')
    })

    it('reports a bad plan, and goes on', async () => {
      expect(await failure(() => runtime.deserialize(new ArrayBuffer(1000), false))).toMatchObject({ code: 'ERR_ENGINE_INVALID' })
      keep(await runtime.deserialize(planBuffer(), false))
    })
  })

  describe('refit', () => {
    it('does not hold the event loop up, and survives arrays that go away', async () => {
      const { engine } = await objects()
      const [name = ''] = await engine.refittableWeights()
      const values = new Uint8Array(64 << 20)
      let turns = 0
      const count = (): void => {
        turns++
        timer = setImmediate(count)
      }
      let timer = setImmediate(count)
      // Of this size no engine has weights: what matters is that the error is TensorRT's, once all was read.
      await engine.refit([{ name, dtype: 'uint8', values, count: values.length }]).catch(() => {})
      clearImmediate(timer)
      expect(turns).toBeGreaterThan(4)
      const gone = engine.refit([{ name, dtype: 'uint8', values, count: values.length }])
      structuredClone(values.buffer, { transfer: [values.buffer] })
      expect(await failure(() => gone)).toMatchObject({ code: 'ERR_INVALID_ARGUMENT', message: expect.stringContaining('detached') })
    })
  })

  it('settles hundreds of calls in their order', async () => {
    const { stream, device } = await objects()
    const order: number[] = []
    const calls = Array.from({ length: 800 }, (_, i) => {
      stream.fill(device, 0, 16, i & 255)
      return stream.synchronize().then(() => order.push(i))
    })
    await Promise.all(calls)
    expect(order).toEqual([...order].sort((a, b) => a - b))
    expect(order).toHaveLength(800)
  })

  it('allocates concurrently', async () => {
    const kind = (i: number): 'device' | 'pinned' => (i % 2 === 0 ? 'device' : 'pinned')
    const made = await Promise.all(Array.from({ length: 200 }, (_, i) => runtime.allocate(kind(i), 64 * (i + 1), true)))
    expect(made.map(({ bytes }) => bytes)).toEqual(Array.from({ length: 200 }, (_, i) => 64 * (i + 1)))
    await Promise.all(made.map((memory) => memory.close()))
  })

  it('refuses arguments of its exports', async () => {
    const wrong = [undefined, null, {}, { modulePath, libraryPath, device: 0.5 }, { modulePath: 1, libraryPath, device: 0 }]
    for (const options of wrong) {
      expect(await failure(() => addon.createRuntime(options as never))).toMatchObject({ code: 'ERR_INVALID_ARGUMENT' })
    }
    expect(await failure(() => addon.createRuntime({ modulePath: '/nowhere.so', libraryPath, device: 0 }))).toMatchObject({
      code: 'ERR_TENSORRT_MODULE_NOT_FOUND',
    })
    const listener = (): void => {}
    for (const values of [[], [1, 'info', listener], [modulePath, 'loud', listener], [modulePath, 'info', 1], [modulePath, 'info']]) {
      expect(await failure(() => (addon.setLogListener as AnyCall)(...values))).toMatchObject({ code: 'ERR_INVALID_ARGUMENT' })
    }
    const faults = { failDeviceAllocation: 0, failPinnedAllocation: 0, failEnqueue: 0, failCopy: 0 }
    for (const values of [[], [modulePath], [modulePath, {}], [modulePath, { ...faults, failCopy: -1 }]]) {
      expect(await failure(() => (addon.injectFaults as AnyCall)(...values))).toMatchObject({ code: 'ERR_INVALID_ARGUMENT' })
    }
  })

  describe('ends of environments', () => {
    const parts = ['idle', 'collected', 'workers', 'worker-log', 'log', 'log-throws', 'moved']
    it.each(parts)('%s: nothing is left but pooled memory', async (name) => {
      const { end, report } = await runChild(name)
      expect(end).toEqual({ code: 0, signal: null, stdout: 'ok\n', stderr: '' })
      expect(report).toMatchObject({ violations: 0, pinnedBlocks: 0, streams: 0, events: 0, graphs: 0 })
    })

    // Node runs no cleanup then: the module's threads stand still at the next call of CUDA's.
    it.each(['exit', 'exit-loading', 'exit-closing'])('%s: the process ends as it should', async (name) => {
      for (let i = 0; i < 5; i++) {
        const { end, report } = await runChild(name)
        expect(end).toEqual({ code: 0, signal: null, stdout: 'ok\n', stderr: '' })
        expect(report).toMatchObject({ violations: 0 })
      }
    })
  })
})
