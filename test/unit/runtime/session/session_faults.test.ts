/** What a session does when something goes wrong, comes too late, or ends. */
import { afterEach, describe, expect, it, vi } from 'vitest'
import type { SessionOptions, SessionWarning } from '../../../../lib/runtime/session/options'
import { checkSessionOptions } from '../../../../lib/runtime/session/options'
import { Session } from '../../../../lib/runtime/session/session'
import { TensorRTBackend } from '../../../../lib/runtime/session/tensorrt_session'
import { PATIENTLY } from '../../../support/patience'
import { affineModel, GpuDouble, nativeError, range } from './gpu_double'
import { closeAll, codeOf, dynamic, numbers, open, row } from './open_session'

afterEach(closeAll)

const sleep = (ms: number): Promise<void> => new Promise((resolve) => setTimeout(resolve, ms))
const bad = row(Number.NaN, 0, 0, 0)

describe('a failed run', () => {
  it('concerns the request that is to blame alone', async () => {
    const { session } = await open(dynamic, { batching: { maxBatch: 8 } })
    const outs = await Promise.allSettled([session.run(row(1, 1, 1, 1)), session.run(bad), session.run(row(2, 2, 2, 2))])
    expect(outs.map(({ status }) => status)).toEqual(['fulfilled', 'rejected', 'fulfilled'])
    expect(outs[1]).toMatchObject({ reason: { name: 'TensorRTError', code: 'ERR_EXECUTION_FAILED' } })
    expect(numbers((outs[2] as PromiseFulfilledResult<Record<string, never>>).value.y)).toEqual([5, 5, 5, 5])
    expect(session.stats()).toMatchObject({ completed: 2, failed: 1, retried: 3, running: 0, queued: 0 })
    expect(numbers((await session.run(row(3, 3, 3, 3))).y)).toEqual([7, 7, 7, 7])
  })

  it('is one error for a request that runs by itself', async () => {
    const { session } = await open(dynamic)
    expect(await codeOf(session.run(bad))).toBe('ERR_EXECUTION_FAILED')
    expect(session.stats()).toMatchObject({ failed: 1, retried: 0 })
    expect(numbers((await session.run(row(3, 3, 3, 3))).y)).toEqual([7, 7, 7, 7])
  })

  it.each(['copy', 'enqueue', 'synchronize'])('in %s, at the call, is heard by its request and nobody else', async (method) => {
    const { gpu, session } = await open(dynamic, { cudaGraphs: false })
    gpu.failures.push({ method, error: nativeError('ERR_CUDA', 'injected') })
    await expect(session.run(row(1, 1, 1, 1))).rejects.toMatchObject({ name: 'TensorRTError', code: 'ERR_CUDA', message: 'injected' })
    expect(numbers((await session.run(row(3, 3, 3, 3))).y)).toEqual([7, 7, 7, 7])
  })

  it('of a graph launch is heard too', async () => {
    const { gpu, session } = await open(dynamic)
    gpu.failures.push({ method: 'launch', error: nativeError('ERR_CUDA', 'injected') })
    expect(await codeOf(session.run(row(1, 1, 1, 1)))).toBe('ERR_CUDA')
    expect(numbers((await session.run(row(3, 3, 3, 3))).y)).toEqual([7, 7, 7, 7])
  })

  it('leaves nothing behind when memory runs out, wherever that is', async () => {
    for (let nth = 0; nth < 30; nth++) {
      for (const method of ['allocate', 'createContext', 'createStream']) {
        const gpu = new GpuDouble(dynamic)
        const original = gpu.failures
        // The n-th call of that name fails.
        let seen = 0
        Object.defineProperty(gpu, 'failures', {
          value: new Proxy(original, {
            get: (target, key) => {
              if (key !== 'findIndex') return Reflect.get(target, key) as unknown
              return (match: (failure: { method: string }) => boolean) => {
                if (!match({ method }) || seen++ !== nth) return -1
                target.push({ method, error: nativeError('ERR_OUT_OF_DEVICE_MEMORY', 'injected') })
                return target.length - 1
              }
            },
          }),
        })
        const checked = checkSessionOptions({ contexts: 2, batching: { runSizes: [1, 8] }, onWarning: () => {} } satisfies SessionOptions, 'createSession()')
        const outcome = await codeOf(
          (async () => {
            const backend = await TensorRTBackend.create(gpu.engine(), checked)
            const session = await Session.open(backend, checked)
            expect(numbers((await session.run(row(3, 3, 3, 3))).y)).toEqual([7, 7, 7, 7])
            await session.close()
          })(),
        )
        expect([undefined, 'ERR_OUT_OF_DEVICE_MEMORY']).toContain(outcome)
        expect(gpu.violations).toEqual([])
        await sleep(0)
        for (const kind of ['stream', 'context', 'graph', 'device', 'pinned']) expect(gpu.leaks, `${method} ${nth}`).not.toHaveProperty(kind)
      }
    }
  })
})

describe('a dead device', () => {
  it('rejects everything that is pending and all that comes', async () => {
    const { gpu, session } = await open(dynamic, { batching: { maxBatch: 2 } })
    gpu.pause()
    const pending = [1, 2, 3, 4, 5, 6, 7].map((value) => session.run(row(value, value, value, value)))
    await sleep(1)
    gpu.kill()
    expect(await Promise.all(pending.map(codeOf))).toEqual(pending.map(() => 'ERR_BACKEND_DEAD'))
    const late = session.run(row(1, 1, 1, 1))
    await expect(late).rejects.toMatchObject({ code: 'ERR_BACKEND_DEAD', message: expect.stringContaining('fallen off the bus') as string })
    expect(session.stats()).toMatchObject({ failed: 7, running: 0, queued: 0 })
    await session.close()
  })

  it('is replaced, and nobody notices but the warning', async () => {
    const warnings: SessionWarning[] = []
    const options: SessionOptions = { batching: { maxBatch: 2 }, onWarning: (warning) => warnings.push(warning) }
    const substitute = new GpuDouble(affineModel([range([1, 4], [4, 4], [16, 4])]))
    const { gpu, session } = await open(dynamic, options, () => TensorRTBackend.create(substitute.engine(), checkSessionOptions({}, 'test')))
    gpu.pause()
    const abort = new AbortController()
    const pending = [1, 2, 3, 4, 5, 6, 7].map((value) => session.run(row(value, value, value, value), { outputs: ['y'] }))
    const aborted = session.run(row(1, 1, 1, 1), { signal: abort.signal })
    await sleep(1)
    gpu.kill()
    await Promise.resolve()
    abort.abort()
    const outs = await Promise.all(pending)
    expect(outs.map(({ y }) => numbers(y)[0])).toEqual([3, 5, 7, 9, 11, 13, 15])
    expect(await codeOf(aborted)).toBe('ABORT_ERR')
    expect(session.stats()).toMatchObject({ completed: 7, failed: 0, aborted: 1, failedOver: 7, running: 0, queued: 0 })
    expect(warnings.map(({ code }) => code)).toEqual(['SESSION_FAILED_OVER'])
    expect(numbers((await session.run(row(3, 3, 3, 3))).y)).toEqual([7, 7, 7, 7])
    await session.close()
    for (const kind of ['stream', 'context', 'graph', 'device', 'pinned']) expect(substitute.leaks).not.toHaveProperty(kind)
  })

  it('says both reasons where nothing takes over', async () => {
    const { gpu, session } = await open(dynamic, {}, () => Promise.reject(new Error('no substitute')))
    gpu.kill()
    await expect(session.run(row(1, 1, 1, 1))).rejects.toMatchObject({
      code: 'ERR_BACKEND_DEAD',
      message: expect.stringMatching(/fallen off the bus.*no substitute/) as string,
      cause: expect.any(AggregateError) as AggregateError,
    })
  })
})

describe('signals, timeouts and deadlines', () => {
  it('takes an aborted request out of the queue', async () => {
    const { gpu, session } = await open(dynamic)
    gpu.pause()
    const abort = new AbortController()
    const before = gpu.enqueued.length
    const running = [session.run(row(1, 1, 1, 1)), session.run(row(2, 2, 2, 2))]
    const queued = session.run(row(3, 3, 3, 3), { signal: abort.signal })
    abort.abort(new Error('enough'))
    await expect(queued).rejects.toMatchObject({ name: 'AbortError', code: 'ABORT_ERR', cause: { message: 'enough' } })
    expect(session.stats()).toMatchObject({ queued: 0, running: 2, aborted: 1 })
    gpu.resume()
    await Promise.all(running)
    expect(gpu.enqueued.length - before).toBe(2)
  })

  it('rejects a running request at once, and the lane goes on', async () => {
    const { gpu, session } = await open(dynamic, { batching: { maxBatch: 2 } })
    gpu.pause()
    const abort = new AbortController()
    const kept = session.run(row(2, 2, 2, 2))
    const dropped = session.run(row(1, 1, 1, 1), { signal: abort.signal })
    await sleep(1)
    abort.abort()
    expect(await codeOf(dropped)).toBe('ABORT_ERR')
    expect(session.stats()).toMatchObject({ running: 1 })
    gpu.resume()
    expect(numbers((await kept).y)).toEqual([5, 5, 5, 5])
    expect(numbers((await session.run(row(3, 3, 3, 3))).y)).toEqual([7, 7, 7, 7])
    expect(session.stats()).toMatchObject({ running: 0, completed: 2, aborted: 1 })
  })

  it('refuses what was aborted before it came', async () => {
    const { session } = await open(dynamic)
    await expect(session.run(row(1, 1, 1, 1), { signal: AbortSignal.abort('no') })).rejects.toMatchObject({ code: 'ABORT_ERR', cause: 'no' })
  })

  it('ends a request whose time is over, queued or running', async () => {
    // Nothing has run yet that would tell that a deadline cannot be met.
    const { gpu, session } = await open(dynamic, { warmUp: false })
    gpu.pause()
    const outcomes = [
      session.run(row(1, 1, 1, 1), { timeoutMs: 20 }),
      session.run(row(1, 1, 1, 1), { deadline: Date.now() + 20 }),
      session.run(row(1, 1, 1, 1), { timeoutMs: 25 }),
      session.run(row(1, 1, 1, 1), { deadline: new Date(Date.now() + 40) }),
    ]
    expect(await Promise.all(outcomes.map(codeOf))).toEqual(['ERR_TIMEOUT', 'ERR_DEADLINE_EXCEEDED', 'ERR_TIMEOUT', 'ERR_DEADLINE_EXCEEDED'])
    expect(session.stats()).toMatchObject({ failed: 4, running: 0, queued: 0 })
    gpu.resume()
    expect(numbers((await session.run(row(3, 3, 3, 3), { timeoutMs: 60_000 })).y)).toEqual([7, 7, 7, 7])
  })

  it('refuses at once what cannot be done in time', async () => {
    const gpu = new GpuDouble(dynamic)
    gpu.runMs = 30
    const { session } = await open(gpu)
    await expect(session.run(row(1, 1, 1, 1), { deadline: Date.now() + 5 })).rejects.toMatchObject({ code: 'ERR_DEADLINE_EXCEEDED' })
    expect(session.stats()).toMatchObject({ refused: 1, failed: 0 })
    expect(await codeOf(session.run(row(1, 1, 1, 1), { deadline: Date.now() + 60_000 }))).toBeUndefined()
  })

  it('refuses what the queue does not hold', async () => {
    const { gpu, session } = await open(dynamic, { maxQueue: 2 })
    gpu.pause()
    const taken = [1, 2, 3, 4].map((value) => session.run(row(value, value, value, value)))
    expect(await codeOf(session.run(row(5, 5, 5, 5)))).toBe('ERR_QUEUE_FULL')
    gpu.resume()
    expect((await Promise.all(taken)).map(({ y }) => numbers(y)[0])).toEqual([3, 5, 7, 9])
  })

  it('serves the more urgent first', async () => {
    const { gpu, session } = await open(dynamic, { runAhead: 0 })
    gpu.pause()
    const order: string[] = []
    const send = async (name: string, priority: number): Promise<void> => {
      await session.run(row(1, 1, 1, 1), { priority })
      order.push(name)
    }
    const all = [send('first', 0), send('low', 5), send('normal', 0), send('high', -5)]
    gpu.resume()
    await Promise.all(all)
    expect(order).toEqual(['first', 'high', 'normal', 'low'])
  })
})

describe('the end', () => {
  it('rejects what is pending and what comes, and can be called again', async () => {
    const { gpu, session } = await open(dynamic)
    gpu.pause()
    const pending = [1, 2, 3, 4].map((value) => session.run(row(value, value, value, value)))
    const closing = session.close()
    expect(await Promise.all(pending.map(codeOf))).toEqual(pending.map(() => 'ERR_DISPOSED'))
    expect(await codeOf(session.run(row(1, 1, 1, 1)))).toBe('ERR_DISPOSED')
    gpu.resume()
    await closing
    await session.close()
    await session[Symbol.asyncDispose]()
    expect(session.stats()).toMatchObject({ failed: 4, running: 0, queued: 0 })
    for (const { enqueueMs, enqueues, graphLaunches } of session.stats().lanes) expect(Math.min(enqueueMs, enqueues, graphLaunches)).toBeGreaterThanOrEqual(0)
    expect(session.info.backend).toBe('tensorrt')
  })

  it('lets pending requests end where it is told to', async () => {
    const gpu = new GpuDouble(dynamic)
    gpu.runMs = 5
    const { session } = await open(gpu)
    const pending = [1, 2, 3, 4].map((value) => session.run(row(value, value, value, value)))
    const closing = session.close({ drain: 60_000 })
    expect(await codeOf(session.run(row(1, 1, 1, 1)))).toBe('ERR_DISPOSED')
    expect((await Promise.all(pending)).map(({ y }) => numbers(y)[0])).toEqual([3, 5, 7, 9])
    await closing
  })

  it('waits for them no longer than it is told to, nor than a second call allows', async () => {
    for (const [drain, second] of [[20, false], [60_000, true]] as const) {
      const { gpu, session } = await open(dynamic)
      gpu.pause()
      const pending = session.run(row(1, 1, 1, 1))
      const closing = session.close({ drain })
      if (second) void session.close()
      expect(await codeOf(pending)).toBe('ERR_DISPOSED')
      gpu.resume()
      await closing
    }
  })

  it('can come while another backend is being made', async () => {
    let made: ((backend: TensorRTBackend) => void) | undefined
    const substitute = new GpuDouble(dynamic)
    const { gpu, session } = await open(dynamic, {}, () => new Promise((resolve) => (made = resolve)))
    gpu.kill()
    const pending = session.run(row(1, 1, 1, 1))
    await vi.waitFor(() => expect(made).toBeDefined(), PATIENTLY)
    const closing = session.close()
    expect(await codeOf(pending)).toBe('ERR_DISPOSED')
    made!(await TensorRTBackend.create(substitute.engine(), checkSessionOptions({}, 'test')))
    await closing
    await vi.waitFor(() => {
      for (const kind of ['stream', 'context', 'graph', 'device', 'pinned']) expect(substitute.leaks).not.toHaveProperty(kind)
    }, PATIENTLY)
  })

  it('takes only what it knows', async () => {
    const { session } = await open(dynamic)
    expect(await codeOf(session.close({ drain: -1 }))).toBe('ERR_INVALID_ARGUMENT')
    expect(numbers((await session.run(row(3, 3, 3, 3))).y)).toEqual([7, 7, 7, 7])
  })
})
