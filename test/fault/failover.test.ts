/** A backend dies while it serves, on the real CPU backend on both sides: every request goes on where it was. */
import { setMaxListeners } from 'node:events'
import { setTimeout as sleep } from 'node:timers/promises'
import { afterAll, afterEach, beforeAll, describe, expect, it, vi } from 'vitest'
import '../unit/matchers'
import {
  type Executor,
  type FromExecutorOptions,
  type GenerateOptions,
  type GenerationResult,
  LLM,
  type LLMWarning,
  TensorRTError,
} from '../../lib'
import { PATIENTLY } from '../support/patience'
import { type Death, DyingExecutor } from './dying_executor'
import { codes, cpu, expectWhole, plan, type Sizes, solos, STREAMS, stream, substance, tokenizer } from './storyteller'

const open: LLM[] = []
afterEach(async () => {
  for (const llm of open.splice(0)) await llm.close()
})

interface Served {
  llm: LLM
  first: DyingExecutor
  warnings: LLMWarning[]
  /** When the other took over. */
  takenOverAt: () => number
}

async function serve(at: number, options: FromExecutorOptions = {}, how?: Death, sizes?: Sizes): Promise<Served> {
  const first = new DyingExecutor(await cpu(sizes), at, how)
  const warnings: LLMWarning[] = []
  let takenOverAt = NaN
  const onWarning = (warning: LLMWarning): void => {
    takenOverAt = performance.now()
    warnings.push(warning)
  }
  const llm = LLM.fromExecutor(first, { tokenizer, onWarning, ...options })
  open.push(llm)
  return { llm, first, warnings, takenOverAt: () => takenOverAt }
}

/** A replacement that comes when the test says so. */
function gate() {
  let letThrough!: (executor: Promise<Executor>) => void
  const comes = new Promise<Executor>((resolve) => (letThrough = resolve))
  let asked!: () => void
  const wanted = new Promise<void>((resolve) => (asked = resolve))
  const failover = vi.fn(() => {
    asked()
    return comes
  })
  return { failover, wanted, open: (executor = cpu()) => letThrough(executor) }
}

const requests = plan(7)
let solo: GenerationResult[]

beforeAll(async () => {
  solo = await solos(requests)
})

describe('64 live streams, and the backend dies', () => {
  const report: string[] = []
  afterAll(() => console.log(report.join('\n')))

  // Step 0 has computed nothing that anybody saw; step 60 is late in most of them.
  it.each<[number, Death]>([
    [0, 'ERR_CUDA'],
    [1, 'submit'],
    [15, 'ERR_CUDA'],
    [15, 'ERR_BACKEND_DEAD'],
    [16, 'submit'],
    [35, 'ERR_CUDA'],
    [0, 'openSlot'],
  ])('at step %i by %s: all finish, as in their solo run', async (at, how) => {
    const { llm, first, warnings, takenOverAt } = await serve(at, { failover: () => cpu() }, how)
    const before = llm.info
    const results = await Promise.all(requests.map((request) => stream(llm, request)))
    results.forEach(({ result }, i) => expect(substance(result), `request ${i}`).toEqual(substance(solo[i]!)))

    expect(llm.stats()).toMatchObject({ failovers: 1, requests: { added: STREAMS }, sequences: { finished: STREAMS, failed: 0 } })
    expect(llm.stats().tokens.generated).toBe(solo.reduce((sum, { tokens }) => sum + tokens.length, 0))
    expect(warnings).toHaveLength(1)
    expect(llm.warnings).toEqual(warnings)
    const [warning] = warnings
    expect(warning).toMatchObject({ code: 'BACKEND_FAILED_OVER', sequences: STREAMS })
    expect(warning!.message).toMatch(/mortal .* died, and cpu .* has taken over 64 live sequences/)
    expect(warning!.cause).toHaveCode('ERR_BACKEND_DEAD', /illegal memory access/)
    expect((warning!.cause as Error).cause).toHaveCode(how === 'ERR_CUDA' ? how : 'ERR_BACKEND_DEAD', /illegal memory access/)
    expect(before).toMatchObject({ name: 'mortal' })
    expect(llm.backend).toBe('cpu')
    expect(llm.info).toMatchObject({ name: 'cpu', hasTokenizer: true, eosTokenIds: before.eosTokenIds })
    expect(first.closed).toBe(1)
    if (how === 'ERR_CUDA' && at > 0) expect(first.inFlightAtDeath).toBe(2)
    await expectWhole(llm)

    const waits = results.flatMap(({ times }) => times.find((time) => time > takenOverAt()) ?? []).map((time) => time - first.diedAt)
    waits.sort((a, b) => a - b)
    expect(waits.length).toBe(STREAMS)
    report.push(
      `death at step ${at} by ${how}: next token after ${waits[0]!.toFixed(0)} to ${waits.at(-1)!.toFixed(0)} ms, ` +
        `median ${waits[waits.length >> 1]!.toFixed(0)} ms (${warning!.durationMs!.toFixed(0)} ms to load the other)`,
    )
  })

  it('with a step ahead whose good result comes late: it is ignored', async () => {
    const { llm, first } = await serve(10, { failover: () => cpu() })
    first.zombie = true
    const results = await Promise.all(requests.map((request) => stream(llm, request)))
    results.forEach(({ result }, i) => expect(substance(result), `request ${i}`).toEqual(substance(solo[i]!)))
    expect(first.late).toBeGreaterThan(0)
    await expectWhole(llm)
  })

  it('into a pool and slots that are far too few for all at once, from ones that were too', async () => {
    const { llm, warnings } = await serve(
      30,
      { failover: () => cpu({ numPages: 48, maxSlots: 5, pageSize: 8, maxStepTokens: 32 }) },
      'ERR_CUDA',
      { numPages: 60, maxSlots: 24 },
    )
    const results = await Promise.all(requests.map((request) => stream(llm, request)))
    results.forEach(({ result }, i) => expect(result.tokens, `request ${i}`).toEqual(solo[i]!.tokens))
    expect(warnings[0]!.sequences).toBeGreaterThan(24)
    expect(llm.info).toMatchObject({ maxSlots: 5, pageSize: 8, numPages: 48 })
    expect(llm.stats().kv.totalPages).toBe(48)
    await expectWhole(llm)
  })

  it('choices of one request stay together, and keep their seeds', async () => {
    const request: GenerateOptions = { ...requests[1]!, n: 5, maxTokens: 30, promptLogprobs: 1 }
    const calm = await serve(Infinity)
    const expected = await calm.llm.generate(request).result()
    const { llm, warnings } = await serve(9, { failover: () => cpu() })
    const result = await llm.generate(request).result()
    expect(result.choices).toEqual(expected.choices)
    expect(result.promptLogprobs).toEqual(expected.promptLogprobs)
    expect(warnings[0]).toMatchObject({ sequences: 5 })
  })

  it('what the other has no room for gets a typed error, the rest goes on', async () => {
    const { llm } = await serve(5, { failover: () => cpu({ numPages: 4 }) })
    const outcomes = await Promise.allSettled([
      llm.generate({ tokens: requests[0]!.tokens!, maxTokens: 300, ignoreEos: true }).result(),
      llm.generate({ ...requests[2]!, tokens: [50, 60], maxTokens: 40 }).result(),
    ])
    expect(codes(outcomes)).toEqual(['ERR_REQUEST_TOO_LARGE', 'fulfilled'])
    await expectWhole(llm)
  })
})

describe('without failover', () => {
  it.each<Death>(['ERR_CUDA', 'ERR_BACKEND_DEAD', 'submit', 'openSlot'])(
    'death by %s rejects each live request, the pool is whole, and nothing more is taken',
    async (how) => {
      const { llm, first, warnings } = await serve(how === 'openSlot' ? 0 : 20, {}, how)
      const outcomes = await Promise.allSettled(requests.map((request) => stream(llm, request)))
      expect(new Set(codes(outcomes))).toEqual(new Set(['ERR_BACKEND_DEAD']))
      for (const outcome of outcomes) {
        const error = (outcome as PromiseRejectedResult).reason as TensorRTError
        expect(error.cause).toHaveCode(how === 'ERR_CUDA' ? how : 'ERR_BACKEND_DEAD', /illegal memory access/)
      }
      llm.check()
      const { kv, running, waiting, steps, sequences } = llm.stats()
      expect({ running, waiting, inFlight: steps.inFlight }).toEqual({ running: 0, waiting: 0, inFlight: 0 })
      expect(kv.freePages).toBe(kv.totalPages)
      expect(sequences.finished).toBe(0)
      await expect(llm.generate({ tokens: [7] }).result()).rejects.toHaveCode('ERR_BACKEND_DEAD')
      await llm.close()
      expect(first.closed).toBe(1)
      expect(warnings).toEqual([])
    },
  )

  it('tokens that came out before are delivered before the error', async () => {
    const { llm } = await serve(20)
    const seen: number[] = []
    const reading = (async () => {
      for await (const chunk of llm.generate(requests[0]!)) seen.push(...chunk.tokens)
    })()
    await expect(reading).rejects.toHaveCode('ERR_BACKEND_DEAD')
    expect(seen).toEqual(solo[0]!.tokens.slice(0, 20))
  })

  it('a close that hangs in the driver holds up nobody for long', async () => {
    const { llm, first } = await serve(3)
    first.hangs = true
    await expect(llm.generate(requests[0]!).result()).rejects.toHaveCode('ERR_BACKEND_DEAD')
    const started = performance.now()
    await llm.close()
    // Five seconds, by a timer; without it, for ever.
    expect(performance.now() - started).toBeLessThan(40_000)
  })
})

describe('while the other is on its way', () => {
  it('new requests wait, aborts and timeouts take effect, and the rest goes on', async () => {
    const next = gate()
    const { llm } = await serve(10, { failover: next.failover })
    const controller = new AbortController()
    const aborted = llm.generate({ ...requests[0]!, signal: controller.signal }).result()
    const left = (async () => {
      for await (const _ of llm.generate(requests[1]!)) if (next.failover.mock.calls.length > 0) break
    })()
    const timedOut = llm.generate({ ...requests[2]!, timeoutMs: 2000 }).result()
    const goesOn = llm.generate(requests[3]!).result()
    const settled = Promise.allSettled([aborted, timedOut, goesOn])
    await next.wanted
    const came = llm.generate(requests[4]!).result()
    const cameAndWent = llm.generate({ ...requests[5]!, timeoutMs: 20 }).result()
    const refused = llm.generate({ tokens: [] }).result()
    expect(llm.backend).toBe('mortal')
    expect(llm.stats()).toMatchObject({ running: 0, failovers: 0 })
    controller.abort(new Error('enough'))
    await expect(aborted).rejects.toMatchObject({ code: 'ABORT_ERR', cause: new Error('enough') })
    await expect(refused).rejects.toHaveCode('ERR_INVALID_ARGUMENT')
    await expect(cameAndWent).rejects.toHaveCode('ERR_TIMEOUT')
    await expect(timedOut).rejects.toHaveCode('ERR_TIMEOUT')
    llm.check()
    next.open()
    expect((await goesOn).tokens).toEqual(solo[3]!.tokens)
    expect((await came).tokens).toEqual(solo[4]!.tokens)
    await left
    await settled
    expect(llm.stats()).toMatchObject({ failovers: 1, requests: { added: 6 } })
    await expectWhole(llm)
  })

  it('close rejects what is pending and does not wait for it; what comes later is closed', async () => {
    const next = gate()
    const { llm, first } = await serve(10, { failover: next.failover })
    const pending = requests.map((request) => llm.generate(request).result())
    const settled = Promise.allSettled(pending)
    await next.wanted
    await llm.close()
    expect(new Set(codes(await settled))).toEqual(new Set(['ERR_DISPOSED']))
    expect(first.closed).toBe(1)
    await expect(llm.generate(requests[0]!).result()).rejects.toHaveCode('ERR_DISPOSED')
    const late = await cpu()
    const close = vi.spyOn(late, 'close')
    next.open(Promise.resolve(late))
    await vi.waitFor(() => expect(close).toHaveBeenCalledTimes(1), PATIENTLY)
    expect(llm.stats().failovers).toBe(0)
  })

  it('close with a drain lets them end at the other', async () => {
    const next = gate()
    const { llm } = await serve(10, { failover: next.failover })
    const pending = requests.slice(0, 8).map((request) => llm.generate(request).result())
    await next.wanted
    const closing = llm.close({ drain: 60_000 })
    await sleep(20)
    next.open()
    expect((await Promise.all(pending)).map(({ tokens }) => tokens)).toEqual(solo.slice(0, 8).map(({ tokens }) => tokens))
    await closing
  })

  it('abort of all of them leaves an LLM that serves again', async () => {
    const next = gate()
    const { llm, warnings } = await serve(10, { failover: next.failover })
    const controller = new AbortController()
    setMaxListeners(0, controller.signal)
    const pending = Promise.allSettled(requests.map((request) => llm.generate({ ...request, signal: controller.signal }).result()))
    await next.wanted
    controller.abort()
    expect(new Set(codes(await pending))).toEqual(new Set(['ABORT_ERR']))
    next.open()
    expect((await llm.generate(requests[6]!).result()).tokens).toEqual(solo[6]!.tokens)
    expect(warnings[0]).toMatchObject({ sequences: 1 })
    await expectWhole(llm)
  })
})

describe('when there is no other any more', () => {
  it('a second death is the end', async () => {
    const second = new DyingExecutor(await cpu(), 10)
    const { llm, warnings } = await serve(10, { failover: () => Promise.resolve(second) })
    const outcomes = await Promise.allSettled(requests.map((request) => llm.generate(request).result()))
    expect(new Set(codes(outcomes))).toEqual(new Set(['ERR_BACKEND_DEAD']))
    expect((outcomes[0] as PromiseRejectedResult).reason).toMatchObject({ cause: { code: 'ERR_CUDA' } })
    expect(llm.stats()).toMatchObject({ failovers: 1, running: 0, waiting: 0 })
    expect(llm.stats().kv.freePages).toBe(llm.stats().kv.totalPages)
    llm.check()
    expect(warnings).toHaveLength(1)
    await llm.close()
    expect(second.closed).toBe(1)
  })

  it.each<[string, () => Promise<Executor>, RegExp]>([
    ['cannot be loaded', () => Promise.reject(new TensorRTError('ERR_OUT_OF_MEMORY', 'no memory left')), /no memory left/],
    ['throws at once', () => { throw new Error('not here') }, /not here/],
    ['is none', () => Promise.resolve(undefined as never), /must be an Executor/],
  ])('one that %s: everything rejects, with both causes', async (_, failover, message) => {
    const { llm, first } = await serve(10, { failover })
    const outcomes = await Promise.allSettled(requests.map((request) => llm.generate(request).result()))
    for (const outcome of outcomes) {
      const { reason } = outcome as PromiseRejectedResult
      expect(reason).toHaveCode('ERR_BACKEND_DEAD', message)
      expect(reason).toHaveCode('ERR_BACKEND_DEAD', /illegal memory access/)
      const { errors } = (reason as Error).cause as AggregateError
      expect(errors[0]).toHaveCode('ERR_CUDA')
      expect((errors[1] as Error).message).toMatch(message)
    }
    llm.check()
    expect(llm.stats().kv.freePages).toBe(llm.stats().kv.totalPages)
    await expect(llm.generate({ tokens: [7] }).result()).rejects.toHaveCode('ERR_BACKEND_DEAD')
    await llm.close()
    expect(first.closed).toBe(1)
  })

  it('one of another vocabulary is refused, and closed', async () => {
    const other = new DyingExecutor(await cpu(), Infinity)
    vi.spyOn(other, 'info', 'get').mockReturnValue({ ...other.info, vocabSize: 97 })
    const { llm } = await serve(3, { failover: () => Promise.resolve(other) })
    await expect(llm.generate(requests[0]!).result()).rejects.toHaveCode('ERR_BACKEND_DEAD', /97 tokens/)
    expect(other.closed).toBe(1)
  })

  it('one that does not start is the end, too, and is closed', async () => {
    const other = new DyingExecutor(await cpu(), Infinity)
    other.start = () => {
      throw new Error('started already')
    }
    const { llm } = await serve(3, { failover: () => Promise.resolve(other) })
    await expect(llm.generate(requests[0]!).result()).rejects.toHaveCode('ERR_BACKEND_DEAD', /started already/)
    await llm.close()
    expect(other.closed).toBe(1)
  })
})

it.each([
  ['throws', (error: Error) => { throw error }],
  ['rejects', (error: Error) => Promise.reject(error)],
] as [string, (error: Error) => never][])('a listener that %s does not come in the way', async (_, end) => {
  const emitted = vi.spyOn(process, 'emitWarning').mockImplementation(() => {})
  const { llm } = await serve(10, { failover: () => cpu(), onWarning: () => end(new Error('the listener failed')) })
  expect((await llm.generate(requests[0]!).result()).tokens).toEqual(solo[0]!.tokens)
  expect(emitted).toHaveBeenCalledWith('onWarning threw: the listener failed', 'NodeTensorRTWarning')
  emitted.mockRestore()
})
