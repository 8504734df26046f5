/** Profiles of a running engine: what they count is what ran, and they end when they should. */
import { setTimeout as sleep } from 'node:timers/promises'
import { afterEach, describe, expect, it, vi } from 'vitest'
import '../matchers'
import { HashExecutor } from '../../../examples/custom-executor/hash_executor'
import { type Executor, LLM, type LLMProfile, type ProfileOptions, StepMode, type StepResult } from '../../../lib'
import { inOneOf, PATIENTLY } from '../../support/patience'
import { demoModel, failure } from '../tensorrt/fixtures'

const open: LLM[] = []
afterEach(async () => {
  vi.useRealTimers()
  for (const llm of open.splice(0)) await llm.close()
})

function serve(executor: Executor = new HashExecutor(), failover?: () => Promise<Executor>): LLM {
  const llm = LLM.fromExecutor(executor, failover === undefined ? {} : { failover, onWarning: () => {} })
  open.push(llm)
  return llm
}

/** Each result comes 10 ms after its step, and says that the work took the last one of them. */
class SlowHost extends HashExecutor {
  private readonly submitted: number[] = []
  override start(onResult: (result: StepResult) => void): void {
    super.start((result) => {
      const waitedUs = (performance.now() - this.submitted.shift()!) * 1000
      onResult({ ...result, timings: { queueUs: waitedUs - 1000, runUs: 1000, deviceUs: 900 } })
    })
  }
  override submit(step: Int32Array): void {
    this.submitted.push(performance.now())
    super.submit(step)
  }
  protected override defer(work: () => void): void {
    setTimeout(work, 10)
  }
}

const tokens = [1, 2, 3, 4, 5, 6]
const sum = (profile: LLMProfile, name: keyof LLMProfile['perStep']): number => profile.recent.reduce((total, step) => total + step[name], 0)

describe('a profile', () => {
  it('counts what ran on the CPU backend, and where the time went', async () => {
    const llm = await LLM.load(demoModel, { backend: 'cpu', numPages: 256 })
    open.push(llm)
    // Of tokens, as a thread would encode what a slow machine has no time for in one turn, and those would come later.
    const prompts = Array.from({ length: 12 }, (_, i) => llm.tokenize(`Once upon a time, there were ${i} snails`))
    const load = () => Promise.all(prompts.map((tokens, i) => llm.generate({ tokens, maxTokens: 20 + i, ignoreEos: true }).result()))
    const before = llm.stats()
    const profile = await llm.profile({ until: load(), keep: 1000 })
    const after = llm.stats()
    const steps = after.steps.completed - before.steps.completed
    expect(profile).toMatchObject({ backend: 'cpu', steps, device: llm.info.device })
    expect(profile.recent).toHaveLength(steps)
    expect(profile.decodeSteps.steps + profile.prefillSteps.steps).toBe(steps)
    expect(profile.prefillSteps.steps).toBeGreaterThan(0)
    expect(sum(profile, 'prefillRows')).toBe(after.tokens.prefill - before.tokens.prefill)
    expect(sum(profile, 'decodeRows')).toBe(after.tokens.decode - before.tokens.decode)
    expect(sum(profile, 'runUs') / 1000).toBeCloseTo(after.steps.runMs - before.steps.runMs, 3)
    expect(sum(profile, 'queueUs') / 1000).toBeCloseTo(after.steps.queueMs - before.steps.queueMs, 3)
    expect(profile.perStep.decodeRows.max).toBe(12)
    expect(profile.perStep.runUs.p50).toBeGreaterThan(0)
    // The processor is its own clock.
    expect(profile.shares.device).toBeNaN()
    expect(profile.perStep.deviceUs.mean).toBeNaN()
    expect(profile.perStep.kvPagesUsed.max).toBeLessThanOrEqual(1)
    for (const name of ['planUs', 'packUs', 'submitUs', 'completeUs', 'emitUs'] as const) expect(profile.perStep[name].mean).toBeGreaterThan(0)
    // The executor either works on a step or waits for one, from the first to the last.
    expect(profile.shares.run + profile.shares.gap).toBeGreaterThan(0.999)
    // Where this thread is held up between a hand-over and the look at the clock after it, that counts twice.
    await inOneOf(20, async () => {
      const { shares, workMs, restMs, durationMs } = await llm.profile({ until: load() })
      expect(shares.run + shares.gap).toBeLessThan(1.2)
      expect(workMs + restMs).toBeLessThanOrEqual(durationMs + 1)
    })
    expect(profile.shares.scheduler).toBeGreaterThan(0)
    expect(profile.shares.scheduler).toBeLessThan(profile.shares.host)
    expect(profile.eventLoop.utilisation).toBeGreaterThan(0)
    expect(profile.eventLoop.utilisation).toBeLessThanOrEqual(1)
  })

  it('finds the gaps that a slow host leaves', async () => {
    const llm = serve(new SlowHost())
    const profile = await llm.profile({ until: llm.generate({ tokens, maxTokens: 30 }).result() })
    expect(profile.steps).toBeGreaterThanOrEqual(30)
    expect(profile.shares.gap).toBeGreaterThan(0.6)
    expect(profile.shares.run).toBeLessThan(0.4)
    expect(profile.perStep.runUs).toEqual({ mean: 1000, p50: 1000, p90: 1000, p99: 1000, max: 1000 })
    expect(profile.perStep.deviceUs.max).toBe(900)
    expect(profile.shares.device).toBeCloseTo(0.9 * profile.shares.run, 10)
    expect(profile.restMs).toBe(0)
  })

  it('asks for the times of parts only where they are wanted', async () => {
    const modes: number[] = []
    class Parts extends HashExecutor {
      override start(onResult: (result: StepResult) => void): void {
        super.start((result) => onResult(modes.at(-1) === StepMode.TIME_PARTS ? { ...result, partUs: Float32Array.of(1, 10, 20, 30, 40, 5, 2) } : result))
      }
      override submit(step: Int32Array): void {
        modes.push(step[5]!)
        super.submit(step)
      }
    }
    const llm = serve(new Parts())
    const without = await llm.profile({ until: llm.generate({ tokens, maxTokens: 8 }).result() })
    expect(without.layers).toBeUndefined()
    expect(new Set(modes)).toEqual(new Set([0]))
    modes.length = 0
    const { layers, steps, decodeSteps } = await llm.profile({ until: llm.generate({ tokens, maxTokens: 8 }).result(), layers: true })
    const times = { embeddingUs: 1, layers: [{ attentionUs: 10, linearUs: 20 }, { attentionUs: 30, linearUs: 40 }], headUs: 5, samplingUs: 2 }
    expect(layers).toEqual({ decode: { steps: decodeSteps.steps, ...times }, prefill: { steps: steps - decodeSteps.steps, ...times } })
    expect(modes[0]).toBe(StepMode.TIME_PARTS)
    modes.length = 0
    await llm.generate({ tokens, maxTokens: 2 }).result()
    expect(new Set(modes)).toEqual(new Set([0]))
  })

  it('takes a rest between requests for no gap', async () => {
    const llm = serve(new SlowHost())
    await inOneOf(5, async () => {
      let rested = 0
      const both = (async () => {
        await llm.generate({ tokens, maxTokens: 3 }).result()
        await vi.waitFor(() => expect(llm.stats().steps.inFlight).toBe(0), PATIENTLY)
        const from = performance.now()
        await sleep(300)
        rested = performance.now() - from
        await llm.generate({ tokens, maxTokens: 3 }).result()
      })()
      const profile = await llm.profile({ until: both })
      expect(profile.restMs).toBeGreaterThan(0.9 * rested)
      expect(profile.workMs).toBeLessThan(profile.durationMs - 0.9 * rested)
      expect(profile.perStep.gapUs.max).toBeLessThan(0.9 * rested * 1000)
    })
  })

  it('sees a blocked event loop', async () => {
    const llm = serve()
    let blocked = 0
    const block = async (): Promise<void> => {
      await sleep(50)
      const from = performance.now()
      while (performance.now() < from + 80);
      blocked = performance.now() - from
      await sleep(50)
    }
    const { eventLoop, durationMs } = await llm.profile({ until: block() })
    expect(eventLoop.delayMs.max).toBeGreaterThan(0.75 * blocked)
    expect(eventLoop.utilisation).toBeGreaterThan((0.75 * blocked) / durationMs)
  })

  it('ends after so many steps, and keeps the last of them', async () => {
    const llm = serve()
    const profiling = llm.profile({ steps: 10, keep: 3 })
    await llm.generate({ tokens, maxTokens: 50 }).result()
    const profile = await profiling
    expect(profile.steps).toBe(10)
    expect(profile.recent).toHaveLength(3)
    expect(profile.recent.map(({ stepId }) => stepId)).toEqual([7, 8, 9])
    expect((await llm.profile({ steps: 1, keep: 0, durationMs: 1 })).recent).toEqual([])
  })

  it('of an idle engine is empty', async () => {
    vi.useFakeTimers({ toFake: ['setTimeout', 'clearTimeout', 'performance'] })
    const profiling = serve().profile({ durationMs: 20 })
    await vi.advanceTimersByTimeAsync(20)
    const profile = await profiling
    expect(profile).toMatchObject({ steps: 0, workMs: 0, restMs: 0, shares: { run: 0, gap: 0, host: 0, scheduler: 0 }, recent: [] })
    expect(profile.perStep.runUs.mean).toBeNaN()
    expect(profile.durationMs).toBe(20)
  })

  it('may overlap others, and begin in the middle', async () => {
    const llm = serve()
    const generation = llm.generate({ tokens, maxTokens: 60 })
    const first = llm.profile({ steps: 30 })
    let later: Promise<LLMProfile> | undefined
    for await (const { tokens } of generation) if (tokens.length > 0) later ??= llm.profile({ steps: 20 })
    const [one, two] = [await first, await later!]
    expect([one.steps, two.steps]).toEqual([30, 20])
    // What was in flight when it began is not in it.
    expect(two.recent[0]!.stepId).toBeGreaterThan(one.recent[0]!.stepId)
    expect(two.recent.map(({ stepId }, i) => stepId - i)).toEqual(Array(20).fill(two.recent[0]!.stepId))
  })

  it('leaves results as they are', async () => {
    const plain = await serve().generate({ tokens, maxTokens: 40 }).result()
    const llm = serve()
    const running = llm.generate({ tokens, maxTokens: 40 }).result()
    await llm.profile({ until: running })
    expect((await running).tokens).toEqual(plain.tokens)
  })
})

describe('a profile ends', () => {
  it('with an AbortError on an abort', async () => {
    const llm = serve()
    expect(await failure(llm.profile({ signal: AbortSignal.abort('early') }))).toMatchObject({ code: 'ABORT_ERR', cause: 'early' })
    const controller = new AbortController()
    const profiling = failure(llm.profile({ steps: 5, signal: controller.signal }))
    controller.abort('late')
    expect(await profiling).toMatchObject({ code: 'ABORT_ERR', cause: 'late' })
  })

  it('when the LLM is closed', async () => {
    const llm = serve()
    const profiling = failure(llm.profile({ steps: 5 }))
    await llm.close()
    expect(await profiling).toHaveCode('ERR_DISPOSED')
    expect(await failure(llm.profile())).toHaveCode('ERR_DISPOSED')
  })

  it('when the promise given is rejected, and leaves that to others', async () => {
    const failing = Promise.reject(new Error('a load that failed'))
    expect((await serve().profile({ until: failing })).steps).toBe(0)
  })

  it('with the death of the backend, unless another takes over', async () => {
    const dying = (): Executor => {
      const executor = new HashExecutor()
      let left = 5
      const { submit } = executor
      executor.submit = (step) => {
        if (left-- === 0) throw Object.assign(new Error('gone'), { code: 'ERR_BACKEND_DEAD' })
        submit.call(executor, step)
      }
      const { start } = executor
      executor.start = (listener) =>
        start.call(executor, (result) => listener(left < 0 ? { ...result, error: { code: 'ERR_BACKEND_DEAD', message: 'gone', retryable: false } } : result))
      return executor
    }
    const alone = serve(dying())
    const profiling = failure(alone.profile({ steps: 1000 }))
    expect(await failure(alone.generate({ tokens, maxTokens: 20 }).result())).toHaveCode('ERR_BACKEND_DEAD')
    expect(await profiling).toHaveCode('ERR_BACKEND_DEAD')

    const llm = serve(dying(), () => Promise.resolve(new HashExecutor()))
    const running = llm.generate({ tokens, maxTokens: 20 }).result()
    const profile = await llm.profile({ until: running })
    expect((await running).tokens).toHaveLength(20)
    expect(llm.stats().failovers).toBe(1)
    expect(profile.steps).toBeGreaterThan(15)
  })

  it.each<[ProfileOptions, RegExp]>([
    [{ steps: 0 }, /"steps" must be an integer from 1/],
    [{ durationMs: 0.5 }, /"durationMs" must be a number from 1/],
    [{ keep: -1 }, /"keep" must be an integer from 0/],
    [{ until: 5 as never }, /"until" must be a promise, not 5/],
    [{ duration: 5 } as never, /has no option "duration".*did you mean "durationMs"/],
  ])('at once with %j', async (options, message) => {
    expect(await failure(serve().profile(options))).toHaveCode('ERR_INVALID_ARGUMENT', message)
  })
})

describe('stats', () => {
  it('have sums whose differences are those of the steps between', async () => {
    const llm = serve(new SlowHost())
    await llm.generate({ tokens, maxTokens: 4 }).result()
    await vi.waitFor(() => expect(llm.stats().steps.inFlight).toBe(0), PATIENTLY)
    const { steps, tokens: counts } = llm.stats()
    expect(steps.runMs).toBeCloseTo(steps.completed, 6)
    expect(steps.meanRunMs).toBeCloseTo(1, 6)
    expect(steps.queueMs).toBeCloseTo(steps.meanQueueMs * steps.completed, 6)
    expect(counts.cachedPrompt).toBe(0)
    await llm.generate({ tokens, maxTokens: 1 }).result()
    expect(llm.stats().tokens.cachedPrompt).toBe(4)
  })
})
