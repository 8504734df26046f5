/** A backend that died comes back, on the real CPU backend in every part: traffic returns, and no output shows it. */
import { afterEach, beforeAll, describe, expect, it, vi } from 'vitest'
import '../unit/matchers'
import {
  type Executor,
  type FromExecutorOptions,
  type GenerationResult,
  LLM,
  type LLMWarning,
  TensorRTError,
} from '../../lib'
import { seededRandom } from '../../lib/cli/load_generator'
import { GatedExecutor } from '../support/gated_executor'
import { PATIENTLY } from '../support/patience'
import type { WrappedExecutor } from '../support/wrapped_executor'
import { type Death, DyingExecutor } from './dying_executor'
import { codes, cpu, expectWhole, plan, solos, STREAMS, stream, substance, tokenizer } from './storyteller'

const NOW = { initialDelayMs: 0, maxDelayMs: 0 }
const requests = plan(11)
let solo: GenerationResult[]

beforeAll(async () => {
  solo = await solos(requests)
})

const open: LLM[] = []
const made: WrappedExecutor[] = []
afterEach(async () => {
  for (const llm of open.splice(0)) await llm.close()
  // Whatever was made has been closed, once.
  for (const executor of made.splice(0)) expect(executor.closed).toBe(1)
})

/** The model's own executor, which dies at step `at`. */
async function mortal(at: number, how?: Death): Promise<DyingExecutor> {
  const executor = new DyingExecutor(await cpu(), at, how)
  made.push(executor)
  return executor
}

/**
 * What takes over meanwhile, under a name of its own.
 * @param steps after which it stands still: outputs end neither before the first backend is back nor before `close`, however fast they are
 */
async function substitute({ at = Infinity, steps = Infinity } = {}): Promise<WrappedExecutor> {
  const executor = new GatedExecutor(new DyingExecutor(await cpu(), at))
  void executor.release(steps)
  made.push(executor)
  const { info } = executor
  vi.spyOn(executor, 'info', 'get').mockReturnValue({ ...info, name: 'substitute' })
  return executor
}

async function serve(first: Promise<DyingExecutor>, options: FromExecutorOptions) {
  const warnings: LLMWarning[] = []
  const executor = await first
  const llm = LLM.fromExecutor(executor, { tokenizer, onWarning: (warning) => void warnings.push(warning), ...options })
  open.push(llm)
  return { llm, first: executor, warnings, warned: () => warnings.map(({ code }) => code) }
}

/** Executors that come when the test says so. */
function gate() {
  const waiting: ((executor: Promise<Executor>) => void)[] = []
  const ready: Promise<Executor>[] = []
  const make = vi.fn(() => ready.shift() ?? new Promise<Executor>((resolve) => waiting.push(resolve)))
  const asked = (times = 1): Promise<void> => vi.waitFor(() => expect(make).toHaveBeenCalledTimes(times), PATIENTLY)
  const open = (executor: Promise<Executor>): void => {
    const first = waiting.shift()
    if (first === undefined) ready.push(executor)
    else first(executor)
  }
  return { make, asked, open }
}

const state = (llm: LLM, expected: string): Promise<void> => vi.waitFor(() => expect(llm.health().state).toBe(expected), PATIENTLY)

function expectSolo(results: { result: GenerationResult }[]): void {
  results.forEach(({ result }, i) => expect(substance(result), `request ${i}`).toEqual(substance(solo[i]!)))
}

describe('with failover', () => {
  it('traffic returns while 64 streams run, and each ends as in its solo run', async () => {
    const back = gate()
    const { llm, warnings, warned } = await serve(mortal(12), {
      failover: () => substitute({ steps: 30 }),
      restart: { create: back.make, ...NOW },
    })
    expect(llm.health()).toMatchObject({ state: 'ready', ready: true, stuck: false, restartable: true, lastError: undefined })
    const all = Promise.all(requests.map((request) => stream(llm, request)))
    await back.asked()
    await state(llm, 'fallback')
    expect(llm.health()).toMatchObject({ ready: true, backend: 'substitute', failovers: 1, restarts: 0, nextRestartMs: 0 })
    expect(llm.health().lastError).toHaveCode('ERR_BACKEND_DEAD', /illegal memory access/)
    await vi.waitFor(() => expect(llm.stats().tokens.generated).toBeGreaterThan(15 * STREAMS), PATIENTLY)
    back.open(mortal(Infinity))
    await state(llm, 'ready')
    expectSolo(await all)
    expect(warned()).toEqual(['BACKEND_FAILED_OVER', 'BACKEND_RESTARTED'])
    expect(warnings[1]).toMatchObject({ sequences: expect.any(Number), durationMs: expect.any(Number) })
    expect(warnings[1]!.sequences).toBeGreaterThan(0)
    expect(llm.backend).toBe('mortal')
    expect(llm.health()).toMatchObject({ state: 'ready', ready: true, failovers: 1, restarts: 1, nextRestartMs: undefined })
    expect(llm.stats()).toMatchObject({ restarts: 1, sequences: { finished: STREAMS, failed: 0 }, requests: { added: STREAMS } })
    expect(llm.stats().tokens.generated).toBe(solo.reduce((sum, { tokens }) => sum + tokens.length, 0))
    await expectWhole(llm)
  })

  it('dies, comes back, dies again and comes back again', async () => {
    const back = gate()
    const failover = vi.fn(() => substitute({ steps: 12 }))
    const { llm, warned } = await serve(mortal(10), { failover, restart: { create: back.make, ...NOW } })
    const all = Promise.all(requests.map((request) => stream(llm, request)))
    await back.asked()
    await state(llm, 'fallback')
    back.open(mortal(8, 'submit'))
    await back.asked(2)
    await state(llm, 'fallback')
    back.open(mortal(Infinity))
    expectSolo(await all)
    await state(llm, 'ready')
    expect(failover).toHaveBeenCalledTimes(2)
    expect(warned()).toEqual(['BACKEND_FAILED_OVER', 'BACKEND_RESTARTED', 'BACKEND_FAILED_OVER', 'BACKEND_RESTARTED'])
    await expectWhole(llm)
  })

  it('comes back before the other does: that one is closed when it comes', async () => {
    const other = gate()
    const { llm, warned } = await serve(mortal(10), {
      failover: other.make,
      restart: { create: () => mortal(Infinity), ...NOW },
    })
    const all = Promise.all(requests.map((request) => stream(llm, request)))
    await other.asked()
    expectSolo(await all)
    expect(warned()).toEqual(['BACKEND_RESTARTED'])
    const late = await substitute()
    other.open(Promise.resolve(late))
    await vi.waitFor(() => expect(late.closed).toBe(1), PATIENTLY)
    expect(llm.health()).toMatchObject({ state: 'ready', failovers: 0, restarts: 1 })
    await expectWhole(llm)
  })

  it('the substitute dies, too: live requests reject, later ones are refused, until the first is back', async () => {
    const back = gate()
    const { llm, warned } = await serve(mortal(10), {
      failover: () => substitute({ at: 6 }),
      restart: { create: back.make, ...NOW },
    })
    const outcomes = await Promise.allSettled(requests.map((request) => stream(llm, request)))
    expect(new Set(codes(outcomes))).toEqual(new Set(['ERR_BACKEND_DEAD']))
    expect(llm.health()).toMatchObject({ state: 'restarting', ready: false, restartable: true, backend: 'substitute' })
    await expect(llm.generate({ tokens: [7] }).result()).rejects.toHaveCode('ERR_BACKEND_DEAD', /retry later/)
    expect(warned()).toEqual(['BACKEND_FAILED_OVER', 'BACKEND_DOWN'])
    back.open(mortal(Infinity))
    await state(llm, 'ready')
    expectSolo(await Promise.all(requests.map((request) => stream(llm, request))))
    await expectWhole(llm)
  })

  it('the substitute cannot be made: the same', async () => {
    const back = gate()
    const { llm } = await serve(mortal(10), {
      failover: () => Promise.reject(new TensorRTError('ERR_OUT_OF_MEMORY', 'no memory left')),
      restart: { create: back.make, ...NOW },
    })
    await expect(llm.generate(requests[0]!).result()).rejects.toHaveCode('ERR_BACKEND_DEAD', /no memory left/)
    await state(llm, 'restarting')
    back.open(mortal(Infinity))
    await state(llm, 'ready')
    expect((await llm.generate(requests[0]!).result()).tokens).toEqual(solo[0]!.tokens)
  })

  it('a device error that stays: attempts go on and fail, the CPU serves, and health tells to replace the process', async () => {
    const create = vi.fn(() => Promise.reject(new TensorRTError('ERR_CUDA', 'an illegal memory access was encountered')))
    const { llm, warned } = await serve(mortal(10), {
      failover: () => substitute(),
      restart: { create, initialDelayMs: 1, maxDelayMs: 4 },
    })
    const all = Promise.all(requests.map((request) => stream(llm, request)))
    await vi.waitFor(() => expect(create.mock.calls.length).toBeGreaterThan(4), PATIENTLY)
    expectSolo(await all)
    const { state: now, ready, restartable, restartAttempts } = llm.health()
    expect({ now, ready, restartable }).toEqual({ now: 'fallback', ready: true, restartable: false })
    expect(restartAttempts).toBeGreaterThan(3)
    expect(warned().sort()).toEqual(['BACKEND_FAILED_OVER', 'BACKEND_RESTART_FAILED'])
    await expectWhole(llm)
  })

  it('deadlines and aborts take effect while nothing runs, and the rest goes on after the return', async () => {
    const back = gate()
    const { llm } = await serve(mortal(10), { failover: gate().make, restart: { create: back.make, ...NOW } })
    const controller = new AbortController()
    const aborted = llm.generate({ ...requests[0]!, signal: controller.signal }).result()
    const late = llm.generate({ ...requests[1]!, deadlineMs: 1500 }).result()
    const goesOn = llm.generate(requests[2]!).result()
    const settled = Promise.allSettled([aborted, late, goesOn])
    await back.asked()
    await state(llm, 'switching')
    expect(llm.health()).toMatchObject({ ready: false, oldestStepMs: 0, stuck: false })
    controller.abort()
    await expect(aborted).rejects.toHaveCode('ABORT_ERR')
    await expect(late).rejects.toHaveCode('ERR_DEADLINE_EXCEEDED')
    llm.check()
    back.open(mortal(Infinity))
    expect((await goesOn).tokens).toEqual(solo[2]!.tokens)
    await settled
    await expectWhole(llm)
  })

  it('twelve deaths in a row under load, whichever way and wherever they come', { timeout: 300_000 }, async () => {
    const random = seededRandom(5)
    const ways: Death[] = ['ERR_CUDA', 'ERR_BACKEND_DEAD', 'submit', 'openSlot']
    let lives = 12
    const next = (): Promise<DyingExecutor> => {
      const at = lives-- > 0 ? 1 + Math.floor(random() * 12) : Infinity
      return mortal(at, ways[Math.floor(random() * ways.length)])
    }
    const { llm } = await serve(next(), { prefixCache: false, failover: () => substitute({ steps: 5 }), restart: { create: next, ...NOW } })
    // The one that lives has been made, and serves.
    const over = (): boolean => lives < 0 && llm.health().state === 'ready'
    for (let round = 0; !over(); round++) {
      // One that dies by openSlot may do so only in the next round.
      if (round === 24) throw new Error('The deaths do not come to an end')
      expectSolo(await Promise.all(requests.map((request) => stream(llm, request))))
      // So that each round begins on one that is mortal.
      await state(llm, 'ready')
    }
    expect(llm.stats()).toMatchObject({ restarts: 12, sequences: { failed: 0 } })
    await expectWhole(llm)
  })
})

describe('without failover', () => {
  it('live requests reject, later ones are refused, and then it serves again', async () => {
    const back = gate()
    const { llm, warned } = await serve(mortal(20), { restart: { create: back.make, ...NOW } })
    const outcomes = await Promise.allSettled(requests.map((request) => stream(llm, request)))
    for (const outcome of outcomes) {
      expect((outcome as PromiseRejectedResult).reason).toHaveCode('ERR_BACKEND_DEAD', /illegal memory access/)
    }
    expect(llm.health()).toMatchObject({ state: 'restarting', ready: false, restartable: true })
    llm.check()
    const refused = await llm.generate({ tokens: [7] }).result().catch((error: unknown) => error)
    expect(refused).toHaveCode('ERR_BACKEND_DEAD', /being restarted/)
    expect(refused).toMatchObject({ hint: 'retry later' })
    await back.asked()
    back.open(mortal(Infinity))
    await state(llm, 'ready')
    expectSolo(await Promise.all(requests.map((request) => stream(llm, request))))
    expect(warned()).toEqual(['BACKEND_DOWN', 'BACKEND_RESTARTED'])
    expect(llm.stats()).toMatchObject({ requests: { added: 2 * STREAMS }, restarts: 1 })
    await expectWhole(llm)
  })

  it('after the last attempt it is dead, for both reasons', async () => {
    const create = vi.fn(() => Promise.reject(new TensorRTError('ERR_NO_GPU', 'the GPU fell off the bus')))
    const { llm, warned } = await serve(mortal(5), { restart: { create, ...NOW, maxAttempts: 3 } })
    await expect(llm.generate(requests[0]!).result()).rejects.toHaveCode('ERR_BACKEND_DEAD')
    await state(llm, 'dead')
    expect(create).toHaveBeenCalledTimes(3)
    expect(llm.health()).toMatchObject({ ready: false, restartable: false, restartAttempts: 3, nextRestartMs: undefined })
    await expect(llm.generate({ tokens: [7] }).result()).rejects.toHaveCode('ERR_BACKEND_DEAD', /fell off the bus/)
    expect(warned()).toEqual(['BACKEND_DOWN', 'BACKEND_RESTART_FAILED', 'BACKEND_RESTART_FAILED'])
    llm.check()
  })

  it.each<[string, () => Promise<Executor>]>([
    ['fails its first step', () => mortal(0, 'ERR_CUDA')],
    ['takes no slot', () => mortal(0, 'openSlot')],
    ['is none', () => Promise.resolve({} as Executor)],
    [
      'has another vocabulary',
      async () => {
        const executor = await mortal(Infinity)
        vi.spyOn(executor, 'info', 'get').mockReturnValue({ ...executor.info, vocabSize: 97 })
        return executor
      },
    ],
  ])('one that comes back and %s is not taken, and another attempt is made', async (_, create) => {
    const attempts = vi.fn(create).mockImplementationOnce(create).mockImplementationOnce(create)
    attempts.mockImplementation(() => mortal(Infinity))
    attempts.mockImplementationOnce(create)
    const { llm } = await serve(mortal(5), { restart: { create: attempts, ...NOW } })
    await expect(llm.generate(requests[0]!).result()).rejects.toHaveCode('ERR_BACKEND_DEAD')
    await state(llm, 'ready')
    expect(attempts.mock.calls.length).toBeGreaterThan(1)
    expect((await llm.generate(requests[0]!).result()).tokens).toEqual(solo[0]!.tokens)
  })

  it('profiling ends with the outage, and who observes steps sees those after it', async () => {
    const back = gate()
    const { llm } = await serve(mortal(10), { restart: { create: back.make, ...NOW } })
    let observed = 0
    llm.observe(() => void observed++)
    const profile = llm.profile({ steps: 1000 })
    await Promise.allSettled([llm.generate(requests[0]!).result(), profile])
    await expect(profile).rejects.toHaveCode('ERR_BACKEND_DEAD')
    expect(observed).toBe(10)
    back.open(mortal(Infinity))
    await state(llm, 'ready')
    await llm.generate(requests[0]!).result()
    expect(observed).toBeGreaterThan(10 + 38)
  })
})

describe('close', () => {
  const drive = (llm: LLM): Promise<unknown[]> =>
    Promise.allSettled(requests.slice(0, 8).map((request) => llm.generate(request).result())).then(codes)

  it('while the substitute serves and the next attempt is far away', async () => {
    const create = vi.fn(() => Promise.reject(new Error('not yet')))
    const { llm } = await serve(mortal(6), {
      failover: () => substitute({ steps: 3 }),
      restart: { create, initialDelayMs: 600_000, maxDelayMs: 600_000 },
    })
    const pending = drive(llm)
    await state(llm, 'fallback')
    // At least half of the delay, less what has passed.
    expect(llm.health().nextRestartMs).toBeGreaterThan(200_000)
    await llm.close()
    expect(new Set(await pending)).toEqual(new Set(['ERR_DISPOSED']))
    expect(llm.health()).toMatchObject({ state: 'closed', ready: false, nextRestartMs: undefined })
    expect(create).not.toHaveBeenCalled()
  })

  it.each(['substitute', 'none'])('while an attempt is under way, %s serving: what comes of it is closed', async (serving) => {
    const back = gate()
    const { llm, warned } = await serve(mortal(6), {
      ...(serving === 'none' ? {} : { failover: () => substitute({ steps: 3 }) }),
      restart: { create: back.make, ...NOW },
    })
    const pending = drive(llm)
    await back.asked()
    await state(llm, serving === 'none' ? 'restarting' : 'fallback')
    await llm.close()
    expect(new Set(await pending)).toEqual(new Set([serving === 'none' ? 'ERR_BACKEND_DEAD' : 'ERR_DISPOSED']))
    const late = await mortal(Infinity)
    back.open(Promise.resolve(late))
    await vi.waitFor(() => expect(late.closed).toBe(1), PATIENTLY)
    expect(warned()).not.toContain('BACKEND_RESTARTED')
  })

  it('while both are on their way', async () => {
    const back = gate()
    const other = gate()
    const { llm } = await serve(mortal(6), { failover: other.make, restart: { create: back.make, ...NOW } })
    const pending = drive(llm)
    await Promise.all([back.asked(), other.asked()])
    await llm.close()
    expect(new Set(await pending)).toEqual(new Set(['ERR_DISPOSED']))
    back.open(mortal(Infinity))
    other.open(substitute())
    await vi.waitFor(() => expect(made.map(({ closed }) => closed)).toEqual([1, 1, 1]), PATIENTLY)
  })

  it('with a drain over a return lets them end', async () => {
    const back = gate()
    const { llm } = await serve(mortal(6), { failover: () => substitute({ steps: 3 }), restart: { create: back.make, ...NOW } })
    const pending = requests.slice(0, 8).map((request) => llm.generate(request).result())
    await state(llm, 'fallback')
    const closing = llm.close({ drain: 60_000 })
    expect(llm.health()).toMatchObject({ state: 'closing', ready: false })
    await back.asked()
    back.open(mortal(Infinity))
    expect((await Promise.all(pending)).map(({ tokens }) => tokens)).toEqual(solo.slice(0, 8).map(({ tokens }) => tokens))
    await closing
  })
})

describe('a device that hangs', () => {
  it('is told by health, and with stepTimeoutMs replaced: nothing of the output is lost', async () => {
    const { llm, warnings } = await serve(mortal(9, 'hang'), {
      failover: () => substitute(),
      stepTimeoutMs: 5000,
      stuckAfterMs: 400,
    })
    const all = Promise.all(requests.map((request) => stream(llm, request)))
    const health = await vi.waitFor(() => {
      const now = llm.health()
      expect(now.stuck).toBe(true)
      return now
    }, PATIENTLY)
    expect(health).toMatchObject({ state: 'ready', ready: false, backend: 'mortal' })
    expect(health.oldestStepMs).toBeGreaterThan(400)
    expectSolo(await all)
    expect(warnings[0]!.message).toMatch(/Step \d+ did not end within \d+ ms/)
    expect((warnings[0]!.cause as Error).cause).toHaveCode('ERR_TIMEOUT')
    expect(llm.health()).toMatchObject({ state: 'fallback', ready: true, stuck: false })
    await expectWhole(llm)
  })

  it('without failover requests reject, and with restart it serves again', async () => {
    const { llm } = await serve(mortal(3, 'hang'), { stepTimeoutMs: 2000, restart: { create: () => mortal(Infinity), ...NOW } })
    await expect(llm.generate(requests[0]!).result()).rejects.toHaveCode('ERR_BACKEND_DEAD', /did not end within/)
    await state(llm, 'ready')
    expect((await llm.generate(requests[0]!).result()).tokens).toEqual(solo[0]!.tokens)
  })

  it('an event loop that is blocked is no device that hangs', async () => {
    const { llm, warnings } = await serve(mortal(Infinity), { stepTimeoutMs: 2000 })
    const tokens: number[] = []
    for await (const chunk of llm.generate(requests[0]!)) {
      const isFirst = tokens.length === 0
      tokens.push(...chunk.tokens)
      const until = performance.now() + (isFirst ? 3000 : 0)
      while (performance.now() < until) {
        // the event loop is blocked, with the next step in flight
      }
    }
    expect(tokens).toEqual(solo[0]!.tokens)
    expect(warnings).toEqual([])
  })
})

it.each<[unknown, RegExp]>([
  [{ create: 7 }, /"restart.create" must be a function/],
  [{ create: () => cpu(), initialDelayMs: -1 }, /"initialDelayMs"/],
  [{ create: () => cpu(), initialDelayMs: 10, maxDelayMs: 5 }, /"maxDelayMs" must be at least/],
  [{ create: () => cpu(), maxAttempts: 0 }, /"maxAttempts"/],
  [{ creat: () => cpu() }, /no option/],
])('restart: %j is refused', async (restart, message) => {
  const executor = await cpu()
  expect(() => LLM.fromExecutor(executor, { restart } as never)).toThrowCode('ERR_INVALID_ARGUMENT', message)
  await executor.close()
})
