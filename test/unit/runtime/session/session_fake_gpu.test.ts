/** Sessions on the real module and addon, with a GPU of host memory below them. */
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, afterEach, beforeAll, describe, expect, it } from 'vitest'
import { injectNativeFaults } from '../../../../lib/native'
import { Engine, Runtime, Session, type SessionOptions, type SessionWarning, Tensor } from '../../../../lib/runtime'
import { fakeGpu, type FakePlan, makePlan, runOnFakeGpu, scalePlan } from '../../../support/fake_gpu'
import { codeOf, numbers, row } from './open_session'

describe.skipIf(!fakeGpu.available)('a session on the real module', () => {
  let runtime: Runtime
  let sessions: Session[] = []

  beforeAll(async () => {
    fakeGpu.use()
    runtime = await Runtime.create()
  })
  afterEach(async () => {
    injectNativeFaults({})
    await Promise.all(sessions.map((session) => session.close()))
    sessions = []
  })
  afterAll(() => runtime?.close())

  async function open(plan: FakePlan, options: SessionOptions = {}): Promise<Session> {
    const session = await Session.load(makePlan(plan), { backend: 'tensorrt', runtime, ...options })
    sessions.push(session)
    return session
  }

  it('runs requests alone and together, bit-equal to the batch by hand', async () => {
    const session = await open(scalePlan(), { contexts: 2, batching: { maxBatch: 8, maxDelayMs: 5 } })
    expect(session.info).toMatchObject({ backend: 'tensorrt', lanes: 2, batched: true })
    expect(numbers((await session.run(row(1, 2, 3, 4))).y)).toEqual([3, 5, 7, 9])
    const values = Array.from({ length: 8 }, (_, i) => [i / 3, -i, i * i, 1e-20])
    const outs = await Promise.all(values.map((four) => session.run(row(...four))))
    const byHand = await session.run(row(...values.flat()))
    expect(outs.flatMap(({ y }) => numbers(y))).toEqual(numbers(byHand.y))
    const stats = session.stats()
    expect(stats).toMatchObject({ completed: 10, batches: 3, deviceAllocations: 0 })
    expect(stats.lanes.reduce((sum, { graphLaunches }) => sum + graphLaunches, 0)).toBe(3)
    expect(stats.lanes.reduce((sum, { enqueueMs }) => sum + enqueueMs, 0)).toBeGreaterThan(0)
  })

  it('is aborted at any moment of its creation, at once, and leaves nothing behind', async () => {
    const engine = await Engine.load(makePlan(scalePlan({ us: 2000 })), { runtime })
    await runtime.trim()
    const before = runtime.memory().deviceBytes
    for (let i = 0; i < 12; i++) {
      const controller = new AbortController()
      const options: SessionOptions = { contexts: 3, batching: { maxBatch: 8 }, warmUp: i % 3 > 0, signal: controller.signal }
      const opening = i % 2 === 0 ? engine.createSession(options) : Session.load(makePlan(scalePlan({ us: 2000 })), { backend: 'tensorrt', runtime, ...options })
      await new Promise((resolve) => setTimeout(resolve, i % 4))
      controller.abort('enough')
      let turned = false
      setImmediate(() => (turned = true))
      const end = await opening.then(
        async (session) => {
          await session.close()
          return undefined
        },
        (error: Error) => error,
      )
      if (end === undefined) continue
      expect(end).toMatchObject({ code: 'ABORT_ERR', cause: 'enough' })
      expect(turned).toBe(false)
    }
    await expect
      .poll(async () => {
        await runtime.trim()
        const { deviceBytes, pinnedBytes } = runtime.memory()
        return { deviceBytes, pinnedBytes }
      })
      .toEqual({ deviceBytes: before, pinnedBytes: 0 })
    await engine.close()
  })

  it('answers hundreds of calls in flight', async () => {
    const session = await open(scalePlan(), { contexts: 2, batching: { maxBatch: 8, maxDelayMs: 1 } })
    const outs = await Promise.all(Array.from({ length: 500 }, (_, i) => session.run(row(i, i, i, i), { priority: i % 3 })))
    expect(outs.map(({ y }) => numbers(y)[0])).toEqual(Array.from({ length: 500 }, (_, i) => 2 * i + 1))
  })

  it('runs plain commands where it is to, and shapes that nobody declared', async () => {
    for (const options of [{ cudaGraphs: false }, { warmUp: false }, { cudaGraphs: 1, warmUp: false }] satisfies SessionOptions[]) {
      const session = await open(scalePlan(), options)
      for (let round = 0; round < 8; round++) {
        for (let rows = 1; rows <= 4; rows++) {
          const x = Float32Array.from({ length: 4 * rows }, (_, i) => i)
          expect(numbers((await session.run({ x: Tensor.float32(x, [rows, 4]) })).y)).toEqual(Array.from(x, (value) => 2 * value + 1))
        }
      }
    }
  })

  it('hands out outputs whose size depends on the data', async () => {
    const plan: FakePlan = {
      tensors: [
        { name: 'x', mode: 'input', shape: [-1, 4] },
        { name: 'found', mode: 'output', dtype: 'int64', shape: [2, -1] },
      ],
      profiles: [{ x: { min: [1, 4], opt: [1, 4], max: [8, 4] } }],
      layers: [{ op: 'nonzero', inputs: ['x'], output: 'found' }],
    }
    const session = await open(plan)
    const outs = await Promise.all([session.run(row(1, 0, 1, 0)), session.run(row(0, 0, 0, 0)), session.run(row(0, 1, 0, 0))])
    expect(outs.map(({ found }) => [found!.shape, Array.from(found!.data as BigInt64Array, Number)])).toEqual([
      [[2, 2], [0, 0, 0, 2]],
      [[2, 0], []],
      [[2, 1], [0, 1]],
    ])
    await expect(open(plan, { batching: true })).rejects.toMatchObject({ code: 'ERR_INVALID_ARGUMENT' })
  })

  it('is not made of an engine that is closed meanwhile', async () => {
    const engine = await Engine.load(makePlan(scalePlan()), { runtime })
    const creating = engine.createSession()
    await engine.close()
    await expect(creating).rejects.toMatchObject({ code: 'ERR_DISPOSED', message: expect.stringMatching(/^The (Engine|ExecutionContext|Stream|Session) is closed$/) as string })
  })

  it('takes shape tensors', async () => {
    const session = await open({
      tensors: [
        { name: 'size', mode: 'input', dtype: 'int64', shape: [2], location: 'host', shapeTensor: true },
        { name: 'y', mode: 'output', shape: [-1, -1] },
      ],
      profiles: [{ size: { min: [2], opt: [2], max: [2], values: { min: [1, 1], opt: [2, 2], max: [8, 8] } } }],
      layers: [{ op: 'fill', inputs: ['size'], output: 'y', a: 7 }],
    })
    for (const [a, b] of [[1, 1], [2, 3], [1, 1], [8, 8]] as const) {
      const { y } = await session.run({ size: Tensor.int64([BigInt(a), BigInt(b)]) })
      expect([y!.shape, numbers(y)]).toEqual([[a, b], Array.from({ length: a * b }, () => 7)])
    }
  })

  it('runs the members of a failed batch alone', async () => {
    const session = await open({ ...scalePlan(), layers: [...scalePlan().layers, { op: 'refuse', rows: 3 }] }, { cudaGraphs: false, batching: { maxBatch: 4, runSizes: 'exact', preferredSizes: [4] }, warmUp: false })
    const outs = await Promise.all([1, 2, 3].map((value) => session.run(row(value, value, value, value))))
    expect(outs.map(({ y }) => numbers(y)[0])).toEqual([3, 5, 7])
    expect(session.stats()).toMatchObject({ retried: 3, failed: 0, completed: 3 })
  })

  it.each(['failEnqueue', 'failCopy'] as const)('%s is one error, and the session goes on', async (fault) => {
    const session = await open(scalePlan(), { cudaGraphs: false })
    for (let nth = 1; nth <= (fault === 'failCopy' ? 2 : 1); nth++) {
      injectNativeFaults({ [fault]: nth })
      const code = await codeOf(session.run(row(1, 1, 1, 1)))
      expect(['ERR_CUDA', 'ERR_EXECUTION_FAILED']).toContain(code)
      expect(numbers((await session.run(row(3, 3, 3, 3))).y)).toEqual([7, 7, 7, 7])
    }
  })

  it('leaves nothing behind when memory runs out, wherever that is', async () => {
    const engine = await Engine.load(makePlan(scalePlan()), { runtime })
    const before = runtime.memory()
    for (const kind of ['failDeviceAllocation', 'failPinnedAllocation'] as const) {
      for (let nth = 1; nth <= 20; nth++) {
        await runtime.trim()
        injectNativeFaults({ [kind]: nth })
        const outcome = await codeOf(
          (async () => {
            const session = await engine.createSession({ contexts: 2, batching: { maxBatch: 8, runSizes: [1, 8] }, onWarning: () => {} })
            expect(numbers((await session.run(row(3, 3, 3, 3))).y)).toEqual([7, 7, 7, 7])
            await session.close()
          })(),
        )
        expect([undefined, 'ERR_OUT_OF_DEVICE_MEMORY', 'ERR_OUT_OF_MEMORY'], `${kind} ${nth}`).toContain(outcome)
      }
    }
    injectNativeFaults({})
    await runtime.trim()
    // Queued work lets go of its memory a moment later.
    await expect.poll(() => runtime.memory()).toMatchObject({ deviceBytes: before.deviceBytes, pinnedBytes: before.pinnedBytes })
    await engine.close()
  })

  it('ends with its engine', async () => {
    const engine = await Engine.load(makePlan(scalePlan({ us: 20_000 })), { runtime })
    const session = await engine.createSession({ warmUp: false })
    const pending = [1, 2, 3].map((value) => codeOf(session.run(row(value, value, value, value))))
    await engine.close()
    expect(await Promise.all(pending)).toEqual(['ERR_DISPOSED', 'ERR_DISPOSED', 'ERR_DISPOSED'])
    expect(await codeOf(session.run(row(1, 1, 1, 1)))).toBe('ERR_DISPOSED')
    await session.close()
  })

  it('is closed before its engine, too', async () => {
    const engine = await Engine.load(makePlan(scalePlan()), { runtime })
    const session = await engine.createSession()
    await session.close()
    const another = await engine.createSession()
    expect(numbers((await another.run(row(3, 3, 3, 3))).y)).toEqual([7, 7, 7, 7])
    await another.close()
    await engine.close()
  })

  it('says that the device is dead, and rejects what is pending', async () => {
    // A runtime of its own: the device stays dead, for this process.
    const warnings: SessionWarning[] = []
    const plan: FakePlan = { ...scalePlan(), layers: [{ op: 'assert', inputs: ['x'], max: 100 }, ...scalePlan().layers] }
    const session = await open(plan, { batching: { maxBatch: 2 }, onWarning: (warning) => warnings.push(warning) })
    const fine = await session.run(row(1, 1, 1, 1))
    expect(numbers(fine.y)).toEqual([3, 3, 3, 3])
    const pending = [1, 1000, 2, 3, 4, 5, 6, 7].map((value) => codeOf(session.run(row(value, value, value, value))))
    const codes = await Promise.all(pending)
    expect(new Set(codes)).toEqual(new Set(['ERR_BACKEND_DEAD']))
    expect(await codeOf(session.run(row(1, 1, 1, 1)))).toBe('ERR_BACKEND_DEAD')
    await session.close()
  })

  it.each([1, 2, 3])('breaks no rule of the device and leaves nothing on it, whatever is going on (%i)', async (seed) => {
    const folder = mkdtempSync(join(tmpdir(), 'node-tensorrt-session-'))
    const plan = join(folder, 'model.plan')
    writeFileSync(plan, makePlan(scalePlan({ us: 200, usPerRow: 50 })))
    const { code, stdout, stderr, report } = await runOnFakeGpu(join(__dirname, 'busy_sessions.mjs'), [plan, String(seed)], { FAKE_GPU_JITTER_US: '300' })
    rmSync(folder, { recursive: true })
    expect({ code, stderr }).toEqual({ code: 0, stderr: '' })
    const { counts, ...rest } = JSON.parse(stdout) as { counts: Record<string, number>; queued: number; running: number; completed: number }
    expect(rest).toMatchObject({ queued: 0, running: 0 })
    expect(rest.completed).toBeGreaterThan(300)
    expect(Object.values(counts).reduce((a, b) => a + b)).toBe(640)
    expect(new Set([...Object.keys(counts), 'ABORT_ERR', 'ERR_TIMEOUT', 'ERR_DISPOSED', 'right'])).toEqual(new Set(['ABORT_ERR', 'ERR_TIMEOUT', 'ERR_DISPOSED', 'right']))
    expect(report).toMatchObject({ violations: 0, deviceBlocks: 0, pinnedBlocks: 0, streams: 0, events: 0, graphs: 0 })
  })
})
