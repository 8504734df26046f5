/** The runtime API on the real module and addon, over a GPU of host memory: results, waits, faults, and what is left in the end. */
import { createHash } from 'node:crypto'
import { mkdirSync, readFileSync, rmSync, truncateSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { afterEach, beforeAll, beforeEach, describe, expect, it } from 'vitest'
import { injectNativeFaults } from '../../../lib/native'
import { Engine, type ExecutionContext, gpus, KvCache, type KvSequence, type LogLine, Runtime, setLogger, type Stream, Tensor } from '../../../lib/runtime'
import fc from '../../support/fast_check'
import { fakeGpu, makePlan, scalePlan } from '../../support/fake_gpu'
import { inOneOf } from '../../support/patience'
import '../matchers'
import { failure, temporaryFolder } from '../tensorrt/fixtures'

const folder = temporaryFolder()

describe.skipIf(!fakeGpu.available)('the runtime API on a GPU of host memory', () => {
  let runtime: Runtime
  let stream: Stream
  beforeAll(() => fakeGpu.use())
  beforeEach(async () => {
    runtime = await Runtime.create()
    stream = await runtime.createStream()
  })
  afterEach(() => runtime.close())

  /** Memory once what was closed before is gone; queued work lets go of it a moment later. */
  async function idle() {
    await runtime.trim()
    await expect.poll(() => runtime.memory()).toMatchObject({ deviceBytes: 0, pinnedBytes: 0 })
    return runtime.memory()
  }

  /** An engine with its context, and memory for up to 8 rows. */
  async function ready(plan = makePlan(scalePlan())) {
    const engine = await Engine.load(plan, { runtime })
    const context = await engine.createContext()
    const size = { dtype: 'float32', shape: [8, 4] } as const
    const [hostIn, hostOut] = await Promise.all([runtime.allocatePinned(size), runtime.allocatePinned(size)])
    const [deviceIn, deviceOut] = await Promise.all([runtime.allocateDevice(size), runtime.allocateDevice(size)])
    context.setTensor('x', deviceIn)
    context.setTensor('y', deviceOut)
    const queue = (rows: number, on = stream): void => {
      on.copy(deviceIn, hostIn, { bytes: rows * 16 })
      on.enqueue(context)
      on.copy(hostOut, deviceOut, { bytes: rows * 16 })
    }
    return { engine, context, hostIn, hostOut, deviceIn, deviceOut, queue }
  }

  it('lists the GPUs', async () => {
    expect(await gpus()).toEqual([{ device: 0, name: 'Fake GPU', computeCapability: '9.0', memoryBytes: expect.any(Number) as number }])
    expect(runtime.info).toMatchObject({ device: 0, name: 'Fake GPU', libraryVersion: 100_600 })
    expect(await failure(Runtime.create({ device: 9 }))).toHaveCode('ERR_INVALID_ARGUMENT', /9/)
  })

  it('runs, with the shapes of each run', async () => {
    const { context, hostIn, hostOut, queue } = await ready()
    for (const rows of [1, 8, 3]) {
      const input = Tensor.float32(Array.from({ length: rows * 4 }, (_, i) => i - rows), [rows, 4])
      hostIn.write(input)
      context.setInputShape('x', input.shape)
      queue(rows)
      await stream.synchronize()
      expect([...hostOut.read('float32', [rows, 4]).data]).toEqual([...input.data].map((value) => 2 * value + 1))
      expect(context.output('y')).toEqual({ shape: [rows, 4], buffer: null })
      expect(await context.resolveShapes(stream)).toEqual({ x: [rows, 4], y: [rows, 4] })
    }
  })

  it('replays a graph on what is in its buffers then', async () => {
    const { context, hostIn, hostOut, queue } = await ready()
    context.setInputShape('x', [2, 4])
    queue(2)
    const graph = await stream.capture(() => queue(2))
    for (const value of [3, 4]) {
      hostIn.view('float32').fill(value)
      stream.launch(graph)
      await stream.synchronize()
      expect([...hostOut.view('float32', 0, 8)]).toEqual(Array.from({ length: 8 }, () => 2 * value + 1))
    }
    expect(stream.counters()).toMatchObject({ graphLaunches: 2 })
  })

  it('orders streams by events, and measures between them', async () => {
    const { context, hostIn, hostOut, queue } = await ready(makePlan(scalePlan({ us: 3000 })))
    const other = await runtime.createStream({ priority: runtime.info.maxPriority })
    const [start, end] = [await runtime.createEvent({ timing: true }), await runtime.createEvent({ timing: true })]
    const copied = await runtime.allocatePinned(16)
    hostIn.view('float32').fill(1)
    context.setInputShape('x', [1, 4])
    stream.record(start)
    queue(1)
    stream.record(end)
    other.wait(end)
    const staging = await runtime.allocateDevice(16)
    other.copy(staging, hostOut, { bytes: 16 })
    other.copy(copied, staging)
    await other.synchronize()
    expect([...copied.view('float32')]).toEqual([3, 3, 3, 3])
    expect(end.isComplete()).toBe(true)
    expect(end.elapsedSince(start)).toBeGreaterThan(2.5)
    expect(() => end.elapsedSince(undefined as never)).toThrowCode('ERR_INVALID_ARGUMENT', /"start" must be an Event/)
    const plain = await runtime.createEvent()
    expect(() => plain.elapsedSince(start)).toThrowCode('ERR_INVALID_ARGUMENT')
  })

  it('has hundreds of waits in flight, each of which ends', async () => {
    const { context, hostIn, queue } = await ready(makePlan(scalePlan({ us: 100 })))
    hostIn.view('float32').fill(1)
    context.setInputShape('x', [1, 4])
    const waits = Array.from({ length: 300 }, (_, i) => {
      queue(1)
      const controller = new AbortController()
      const wait = stream.synchronize({ signal: controller.signal })
      if (i % 3 === 0) controller.abort()
      return wait
    })
    const ends = await Promise.allSettled(waits)
    expect(ends.map(({ status }) => status)).toEqual(waits.map((_, i) => (i % 3 === 0 ? 'rejected' : 'fulfilled')))
  })

  it('does not block the event loop', async () => {
    const { context, hostIn, queue } = await ready(makePlan(scalePlan({ us: 2_000_000 })))
    hostIn.view('float32').fill(1)
    context.setInputShape('x', [1, 4])
    queue(1)
    let ended = false
    const waiting = stream.synchronize().then(() => (ended = true))
    for (let ticks = 0; ticks < 4; ticks++) await new Promise((resolve) => setTimeout(resolve, 5))
    expect(ended).toBe(false)
    await waiting
  })

  it('gives outputs whose size depends on the data', async () => {
    const engine = await Engine.load(
      makePlan({
        tensors: [
          { name: 'x', mode: 'input', shape: [-1] },
          { name: 'indices', mode: 'output', dtype: 'int64', shape: [1, -1] },
        ],
        profiles: [{ x: { min: [1], opt: [8], max: [16] } }],
        layers: [{ op: 'nonzero', inputs: ['x'], output: 'indices' }],
      }),
      { runtime },
    )
    const context = await engine.createContext()
    const [host, device] = [await runtime.allocatePinned(64), await runtime.allocateDevice(64)]
    context.setInputShape('x', [6])
    context.setTensor('x', device)
    context.allocateOutput('indices')
    for (const values of [[0, 1, 0, 1, 1, 0], [0, 0, 0, 0, 0, 2], [1, 1, 1, 1, 1, 1]]) {
      host.write(Tensor.float32(values))
      stream.copy(device, host, { bytes: 24 })
      stream.enqueue(context)
      await stream.synchronize()
      const { shape, buffer } = context.output('indices')
      const expected = values.flatMap((value, i) => (value === 0 ? [] : [BigInt(i)]))
      expect(shape).toEqual([1, expected.length])
      const back = await runtime.allocatePinned({ dtype: 'int64', shape })
      stream.copy(back, buffer!, { bytes: back.bytes })
      await stream.synchronize()
      expect([...(back.view() as BigInt64Array)]).toEqual(expected)
      await buffer!.close()
    }
  })

  it('takes new weights, all or none', async () => {
    const { engine, context, hostIn, hostOut, queue } = await ready()
    hostIn.view('float32').fill(1)
    context.setInputShape('x', [1, 4])
    expect(await engine.refittableWeights()).toEqual(['a'])
    await engine.refit({ a: Tensor.float32([10]) })
    queue(1)
    await stream.synchronize()
    expect(hostOut.view('float32')[0]).toBe(11)
    expect(await failure(engine.refit({ a: Tensor.float32([1, 2]) }))).toHaveCode('ERR_WEIGHTS_INVALID', /'a' take 1 values of float32, given were 2/)
    expect(await failure(engine.refit({ b: Tensor.float32([1]) }))).toHaveCode('ERR_INVALID_TENSOR', /no refittable weights "b"/)
    const again = await Engine.load(await engine.serialize(), { runtime })
    expect(again.inputs).toEqual(engine.inputs)
  })

  it('has the weights of the last refit that was done, whenever others are aborted', async () => {
    const { engine, context, hostIn, hostOut, queue } = await ready()
    hostIn.view('float32').fill(1)
    context.setInputShape('x', [1, 4])
    const output = async (): Promise<number> => {
      queue(1)
      await stream.synchronize()
      return hostOut.view('float32')[0]!
    }
    // Aborted before it begins, and while it waits for another: not done.
    const early = new AbortController()
    const aborted = [failure(engine.refit({ a: Tensor.float32([50]) }, { signal: early.signal }))]
    const done = engine.refit({ a: Tensor.float32([10]) })
    aborted.push(failure(engine.refit({ a: Tensor.float32([60]) }, { signal: early.signal })))
    early.abort('enough')
    for (const error of await Promise.all(aborted)) expect(error).toMatchObject({ code: 'ABORT_ERR', cause: 'enough' })
    await done
    expect(await output()).toBe(11)
    // At any moment: each is done in full or not at all, in order, and the next one begins behind it.
    const ends = await Promise.allSettled(
      Array.from({ length: 60 }, (_, i) => {
        const controller = new AbortController()
        const refitting = engine.refit({ a: Tensor.float32([100 + i]) }, { signal: controller.signal })
        setTimeout(() => controller.abort(), i % 8)
        return refitting
      }),
    )
    expect(ends.some(({ status }) => status === 'rejected')).toBe(true)
    await engine.refit({ a: Tensor.float32([7]) })
    expect(await output()).toBe(8)
    expect(await engine.layers(0, { signal: new AbortController().signal })).toMatchObject({ bindings: ['x', 'y'] })
  })

  it('closes streams that come after an abort', async () => {
    const controller = new AbortController()
    const waits = Array.from({ length: 20 }, () => failure(runtime.createStream({ signal: controller.signal })))
    controller.abort('enough')
    for (const error of await Promise.all(waits)) expect(error).toMatchObject({ code: 'ABORT_ERR', cause: 'enough' })
    expect(await failure(gpus({ signal: AbortSignal.abort('early') }))).toMatchObject({ cause: 'early' })
    await runtime.trim({ signal: new AbortController().signal })
    await idle()
  })

  it('measures layers', async () => {
    const { engine, context, hostIn, queue } = await ready(makePlan(scalePlan({ us: 2000 })))
    hostIn.view('float32').fill(1)
    context.setInputShape('x', [1, 4])
    context.setProfiling(true)
    queue(1)
    queue(1)
    await stream.synchronize()
    const times = context.takeProfile()
    expect(times.map(({ name }) => name)).toEqual((await engine.layers()).layers.map((layer) => (typeof layer === 'string' ? layer : layer.Name)))
    for (const { ms, runs } of times) expect({ ms: ms >= 0, runs }).toEqual({ ms: true, runs: 2 })
    expect(Math.max(...times.map(({ ms }) => ms))).toBeGreaterThan(3)
    expect(context.takeProfile().every(({ runs }) => runs === 0)).toBe(true)
  })

  it('fails a run, skips what follows, and goes on after the wait', async () => {
    const plan = scalePlan()
    plan.layers.unshift({ op: 'refuse', rows: 2 })
    const { context, hostIn, hostOut, queue } = await ready(makePlan(plan))
    hostIn.view('float32').fill(1)
    context.setInputShape('x', [2, 4])
    queue(2)
    expect(await failure(stream.synchronize())).toHaveCode('ERR_EXECUTION_FAILED')
    context.setInputShape('x', [1, 4])
    queue(1)
    await stream.synchronize()
    expect(hostOut.view('float32')[0]).toBe(3)
  })

  it('says that memory is short, leaks none of it, and goes on', async () => {
    const before = await idle()
    for (let n = 1; n <= 4; n++) {
      injectNativeFaults({ failDeviceAllocation: n })
      const made = await Promise.allSettled([1, 2, 3].map(() => runtime.allocateDevice(1 << 20, { pooled: false })))
      const failed = made.filter(({ status }) => status === 'rejected')
      for (const { reason } of failed as PromiseRejectedResult[]) expect(reason).toHaveCode('ERR_OUT_OF_DEVICE_MEMORY')
      expect(failed).toHaveLength(n <= 3 ? 1 : 0)
      await Promise.all(made.map((one) => (one.status === 'fulfilled' ? one.value.close() : undefined)))
      injectNativeFaults({})
    }
    injectNativeFaults({ failPinnedAllocation: 1 })
    expect(await failure(runtime.allocatePinned(1 << 20, { pooled: false }))).toHaveCode('ERR_OUT_OF_MEMORY')
    injectNativeFaults({})
    expect(await failure(runtime.allocateDevice(2 ** 45))).toHaveCode('ERR_OUT_OF_DEVICE_MEMORY')
    expect(await idle()).toEqual(before)
  })

  it('closes what is in use by work that goes on', async () => {
    const { engine, context, hostIn, hostOut, deviceIn, deviceOut, queue } = await ready(makePlan(scalePlan({ us: 20_000 })))
    hostIn.view('float32').fill(1)
    context.setInputShape('x', [1, 4])
    queue(1)
    const event = await runtime.createEvent()
    stream.record(event)
    const waiting = failure(stream.synchronize())
    await Promise.all([stream, context, engine, hostIn, hostOut, deviceIn, deviceOut].map((one) => one.close()))
    expect(await waiting).toHaveCode('ERR_DISPOSED')
    expect(hostOut.closed).toBe(true)
    const other = await runtime.createStream()
    other.wait(event)
    await other.synchronize()
  })

  it('detaches views of closed memory', async () => {
    const pinned = await runtime.allocatePinned(64)
    const view = pinned.view('float32')
    expect(view).toHaveLength(16)
    expect(pinned.arrayBuffer).toBe(pinned.arrayBuffer)
    await pinned.close()
    expect(view).toHaveLength(0)
  })

  it('gives pooled memory back when a runtime is closed', async () => {
    const other = await Runtime.create()
    await (await other.allocateDevice(3 << 20)).close()
    const open = await other.allocatePinned(3 << 20)
    expect(runtime.memory().pooledDeviceBytes).toBeGreaterThanOrEqual(3 << 20)
    await other.close()
    expect(open.closed).toBe(true)
    // What the close itself lets go of is on its way: it must not stay in the pool.
    await expect.poll(() => runtime.memory()).toMatchObject({ pooledDeviceBytes: 0, pooledPinnedBytes: 0 })
  })

  it('keeps pooled memory until it is trimmed', async () => {
    await (await runtime.allocateDevice(1 << 20)).close()
    expect(runtime.memory().pooledDeviceBytes).toBeGreaterThanOrEqual(1 << 20)
    const { poolHits } = runtime.counters()
    await (await runtime.allocateDevice(1 << 20)).close()
    expect(runtime.counters().poolHits).toBe(poolHits + 1)
    await runtime.trim()
    expect(runtime.memory()).toMatchObject({ pooledDeviceBytes: 0, pooledPinnedBytes: 0 })
  })

  it('hands over the log', async () => {
    const lines: LogLine[] = []
    setLogger((line) => lines.push(line), { level: 'info' })
    const plan = { ...scalePlan(), log: [{ severity: 'warning' as const, text: 'a line of the plan' }, { severity: 'verbose' as const, text: 'too much' }] }
    const engine = await Engine.load(makePlan(plan), { runtime })
    await expect.poll(() => lines).toContainEqual({ severity: 'warning', text: expect.stringContaining('a line of the plan') as string })
    setLogger(null)
    expect(lines.some(({ text }) => text.includes('too much'))).toBe(false)
    await engine.close()
    // A listener that throws is its owner's bug, and the lines after it are still told.
    const warnings: string[] = []
    const onWarning = (warning: Error): void => void warnings.push(warning.message)
    process.on('warning', onWarning)
    const told: string[] = []
    setLogger(({ text }) => {
      told.push(text)
      if (text.includes('two')) return Promise.reject(new Error('later')) as never
      throw new Error('wrong')
    })
    const two = { ...scalePlan(), log: ['one', 'two'].map((text) => ({ severity: 'error' as const, text })) }
    await Engine.load(makePlan(two), { runtime })
    await expect.poll(() => told.filter((text) => /one|two/.test(text))).toHaveLength(2)
    await expect.poll(() => warnings.length).toBe(told.length)
    setLogger(null)
    process.off('warning', onWarning)
    expect(new Set(warnings)).toEqual(new Set(['wrong', 'later'].map((what) => `The listener of setLogger() threw: ${what}`)))
    expect(() => setLogger(1 as never)).toThrowCode('ERR_INVALID_ARGUMENT', /"listener" must be a function or null/)
    expect(() => setLogger(() => {}, { level: 'debug' as never })).toThrowCode('ERR_INVALID_ARGUMENT', /"level"/)
  })

  it('refuses plans that are no plans, and stays well', async () => {
    const good = makePlan(scalePlan())
    await fc.assert(
      fc.asyncProperty(fc.nat(good.length - 1), fc.integer({ min: 1, max: 255 }), fc.boolean(), async (at, by, cut) => {
        const bad = cut ? good.slice(0, at) : Uint8Array.from(good, (byte, i) => (i === at ? byte ^ by : byte))
        const error = await failure(Engine.load(bad, { runtime }))
        expect(['ERR_ENGINE_INVALID', 'ERR_ENGINE_INCOMPATIBLE']).toContain((error as { code?: string }).code)
      }),
      { numRuns: 60 },
    )
    expect(await failure(Engine.load(makePlan({ ...scalePlan(), tensorrt: '10.9.0' }), { runtime }))).toHaveCode('ERR_ENGINE_INCOMPATIBLE')
    expect(await failure(Engine.load(makePlan({ ...scalePlan(), hostCode: true }), { runtime }))).toHaveCode('ERR_ENGINE_INCOMPATIBLE', /host code/)
    await Engine.load(makePlan({ ...scalePlan(), hostCode: true }), { runtime, allowHostCode: true })
    const { deviceBytes } = runtime.memory()
    await Promise.all(Array.from({ length: 30 }, () => failure(Engine.load(good.slice(0, 50), { runtime }))))
    expect(runtime.memory().deviceBytes).toBe(deviceBytes)
  })

  it.runIf(process.platform === 'linux')('reads a plan of any size with one copy of it at a time', async () => {
    const bytes = 256 << 20
    const path = join(folder, 'large.plan')
    writeFileSync(path, '')
    truncateSync(path, bytes)
    const hash = createHash('sha256')
    const zeros = Buffer.alloc(1 << 20)
    for (let at = 0; at < bytes; at += zeros.length) hash.update(zeros)
    const sha256 = hash.digest('hex')
    // Code and threads that a first load brings along are no copies.
    expect(await failure(Engine.load(new Uint8Array(2 << 20), { runtime, sha256: '0'.repeat(64) }))).toHaveCode('ERR_ENGINE_INVALID', /SHA-256/)
    const peak = (): number => 1024 * Number(/VmHWM:\s+(\d+) kB/.exec(readFileSync('/proc/self/status', 'utf8'))![1])
    // What garbage collections do meanwhile is no copy either.
    await inOneOf(3, async () => {
      writeFileSync('/proc/self/clear_refs', '5')
      const before = peak()
      expect(await failure(Engine.load(path, { runtime, sha256 }))).toHaveCode('ERR_ENGINE_INVALID', /Magic tag/)
      expect((peak() - before) / bytes).toBeLessThan(1.4)
      expect((peak() - before) / bytes).toBeGreaterThan(0.6)
    })
    rmSync(path)
  })

  it('tries a plan in a process of its own', async () => {
    const path = join(folder, 'tried.plan')
    writeFileSync(path, makePlan(scalePlan()))
    const engine = await Engine.load(path, { runtime, trial: true })
    expect(engine.path).toBe(path)
    writeFileSync(path, makePlan({ ...scalePlan(), compute: '8.0' }))
    expect(await failure(Engine.load(path, { runtime, trial: true }))).toHaveCode('ERR_ENGINE_INCOMPATIBLE')
    expect(await failure(Engine.load(makePlan(scalePlan()), { runtime, trial: true }))).toHaveCode('ERR_INVALID_ARGUMENT', /"trial" goes with a path/)
  })

  it('gives all memory back over many rounds', async () => {
    const path = join(folder, 'rounds')
    mkdirSync(path)
    const plan = makePlan(scalePlan())
    writeFileSync(join(path, 'plan'), plan)
    const before = await idle()
    for (let round = 0; round < 40; round++) {
      const { engine, context, hostIn, hostOut, deviceIn, deviceOut, queue } = await ready(plan)
      context.setInputShape('x', [1, 4])
      hostIn.view('float32').fill(round)
      queue(1)
      if (round % 2 === 0) await stream.synchronize()
      await failure(Engine.load(join(path, 'plan'), { runtime, sha256: createHash('sha256').update('other').digest('hex') }))
      await Promise.all([engine, hostIn, hostOut, deviceIn, deviceOut].map((one) => one.close()))
    }
    await stream.synchronize()
    expect(await idle()).toEqual(before)
    rmSync(path, { recursive: true })
  })

  it('shares activation memory between contexts of the caller', async () => {
    const { engine, hostIn, hostOut, deviceIn, deviceOut } = await ready()
    const scratch = await runtime.allocateDevice(engine.profiles[0]!.deviceMemory)
    const contexts: ExecutionContext[] = []
    for (let i = 0; i < 3; i++) {
      const context = await engine.createContext({ memory: 'user' })
      context.setInputShape('x', [1, 4])
      context.setTensor('x', deviceIn)
      context.setTensor('y', deviceOut)
      expect(() => stream.enqueue(context)).toThrowCode('ERR_INVALID_ARGUMENT', /needs 1024 bytes of activation memory, and 0 were given.*setDeviceMemory/)
      context.setDeviceMemory(scratch)
      contexts.push(context)
    }
    hostIn.view('float32').fill(7)
    stream.copy(deviceIn, hostIn)
    for (const context of contexts) stream.enqueue(context)
    stream.copy(hostOut, deviceOut)
    await stream.synchronize()
    expect(hostOut.view('float32')[0]).toBe(15)
  })

  it('keeps the pages of a KV cache apart, whatever is done', async () => {
    const geometry = { layers: 2, pages: 6, pageSize: 2, kvHeads: 1, headDim: 1, dtype: 'float32' } as const
    const cache = await KvCache.create(runtime, { ...geometry, stream })
    expect([...(await cache.readPage(5)).data]).toEqual(Array.from({ length: 8 }, () => 0))
    /** Writes a mark for each token from `from` on: `[layers, 2, pageSize, 1, 1]`. */
    const live: { sequence: KvSequence; marks: number[] }[] = []
    let next = 1
    const random = fc.sample(fc.record({ kind: fc.constantFrom('append', 'append', 'append', 'fork', 'free', 'new'), which: fc.nat(20), tokens: fc.integer({ min: 1, max: 3 }) }), { numRuns: 80, seed: 7 })
    for (const { kind, which, tokens } of random) {
      const entry = live[which % Math.max(live.length, 1)]
      if (kind === 'new' || entry === undefined) live.push({ sequence: cache.allocate(), marks: [] })
      else if (kind === 'fork') live.push({ sequence: cache.fork(entry.sequence), marks: [...entry.marks] })
      else if (kind === 'free') {
        cache.free(entry.sequence)
        live.splice(live.indexOf(entry), 1)
      } else {
        try {
          cache.append(entry.sequence, tokens)
        } catch (error) {
          expect(error).toHaveCode('ERR_OUT_OF_DEVICE_MEMORY')
          continue
        }
        for (let i = 0; i < tokens; i++) {
          const at = entry.marks.push(next++) - 1
          const page = cache.pageTable(entry.sequence)[Math.floor(at / 2)]!
          const content = (await cache.readPage(page)).data
          for (let part = 0; part < 4; part++) content[part * 2 + (at % 2)] = entry.marks[at]! * 10 + part
          await cache.writePage(page, Tensor.float32(content, [2, 2, 2, 1, 1]))
        }
      }
      cache.check()
    }
    expect(live.length).toBeGreaterThan(0)
    for (const { sequence, marks } of live) {
      const pages = await Promise.all([...cache.pageTable(sequence)].map(async (page) => (await cache.readPage(page)).data))
      for (const [at, mark] of marks.entries()) {
        const found = [0, 1, 2, 3].map((part) => pages[Math.floor(at / 2)]![part * 2 + (at % 2)])
        expect(found).toEqual([0, 1, 2, 3].map((part) => mark * 10 + part))
      }
    }
    await cache.close()
    expect(stream.closed).toBe(false)
  })
})
