import { describe, expect, it } from 'vitest'
import { Constraint, Driver, oddThenEven, randomPrompt, randomSource, request, soloText } from './drive'
import fc from '../../support/fast_check'

interface Scenario {
  seed: number
  requests: number
  pageSize: number
  numPages: number
  maxSlots: number
  maxStepTokens: number
  runAhead: number
  prefixCache: boolean
  badHash: boolean
  abortRate: number
  timeoutRate: number
  failureRate: number
  maxRetries: number
}

const scenario: fc.Arbitrary<Scenario> = fc.record({
  seed: fc.integer({ min: 0, max: 2 ** 31 }),
  requests: fc.integer({ min: 1, max: 40 }),
  pageSize: fc.constantFrom(1, 2, 4, 7),
  numPages: fc.integer({ min: 12, max: 60 }),
  maxSlots: fc.integer({ min: 1, max: 12 }),
  maxStepTokens: fc.integer({ min: 1, max: 48 }),
  runAhead: fc.constantFrom(0, 1, 1, 2, 3),
  prefixCache: fc.boolean(),
  badHash: fc.boolean(),
  abortRate: fc.constantFrom(0, 0, 0.1),
  timeoutRate: fc.constantFrom(0, 0, 0.2),
  failureRate: fc.constantFrom(0, 0, 0.05, 0.2),
  maxRetries: fc.constantFrom(1, 1000),
})

function runScenario(s: Scenario): Driver {
  const random = randomSource(s.seed)
  const driver = new Driver(
    { pageSize: s.pageSize, numPages: s.numPages, maxSlots: s.maxSlots, maxStepTokens: s.maxStepTokens },
    {
      runAhead: s.runAhead,
      prefixCache: s.prefixCache,
      maxRetries: s.maxRetries,
      agingMs: 50,
      ...(s.badHash ? { hash: (_parent, tokens, offset) => tokens[offset]! % 2 } : {}),
    },
  )
  // Bounded, or a sequence of many steps would hardly ever get through without a failure.
  let failures = 100
  driver.executor.fault = () =>
    random() < s.failureRate && failures-- > 0 ? { code: 'ERR_CUDA', message: 'injected', retryable: true } : undefined
  const poolTokens = s.numPages * s.pageSize
  const preambles = [randomPrompt(random, 9), randomPrompt(random, 5)]
  const aborted = new Set<string>()
  const live: string[] = []

  for (let i = 0; i < s.requests;) {
    if (random() < 0.4) {
      const preamble = preambles[Math.floor(random() * 3)] ?? []
      const room = poolTokens - preamble.length
      const own = randomPrompt(random, 1 + Math.floor(random() * Math.min(20, room - 1)))
      const prompt = Int32Array.from([...preamble, ...own])
      const maxTokens = Math.max(1, Math.min(1 + Math.floor(random() * 24), poolTokens - prompt.length))
      const id = `r${i++}`
      driver.add(
        request(id, prompt, {
          maxTokens,
          n: random() < 0.2 ? 1 + Math.floor(random() * 4) : 1,
          eosTokenIds: Int32Array.of(3, 5),
          priority: Math.floor(random() * 3),
          constrain: random() < 0.1 ? () => new Constraint(oddThenEven) : undefined,
          timeoutMs: random() < s.timeoutRate ? 1 + Math.floor(random() * 60) : undefined,
          cacheSalt: random() < 0.2 ? 'other' : undefined,
        }),
      )
      live.push(id)
    } else {
      driver.step()
    }
    if (random() < s.abortRate && live.length > 0) {
      const id = live[Math.floor(random() * live.length)]!
      if (driver.scheduler.abort(id)) aborted.add(id)
      driver.scheduler.check()
    }
  }
  driver.runToEnd()

  for (const [seq, outcome] of driver.outcomes) {
    const allowed = seq.constraint === null ? undefined : oddThenEven
    const solo = soloText(seq.request.prompt, seq.maxTokens, [3, 5], allowed)
    if (aborted.has(seq.id as string) || outcome.error !== null) {
      if (outcome.error !== null) expect(['ERR_TIMEOUT', 'ERR_STEP_FAILED']).toContain(outcome.error)
      expect(outcome.tokens).toEqual(solo.slice(0, outcome.tokens.length))
    } else {
      expect(outcome.tokens).toEqual(solo)
      expect(outcome.finish).toBe([3, 5].includes(solo.at(-1)!) ? 'stop' : 'length')
    }
    if (outcome.error === 'ERR_STEP_FAILED') expect(s.maxRetries).toBe(1)
    if (outcome.error === 'ERR_TIMEOUT') expect(seq.request.timeoutMs).toBeDefined()
  }
  return driver
}

describe('the scheduler against its executor', () => {
  it('gives every sequence the text of its solo run, and loses no page', () => {
    fc.assert(
      fc.property(scenario, (s) => void runScenario(s)),
      { numRuns: 400 },
    )
  }, 600_000)

  const oversubscribed: Scenario = {
    seed: 7,
    requests: 200,
    pageSize: 4,
    numPages: 40,
    maxSlots: 32,
    maxStepTokens: 64,
    runAhead: 1,
    prefixCache: true,
    badHash: false,
    abortRate: 0,
    timeoutRate: 0,
    failureRate: 0,
    maxRetries: 1000,
  }

  it('finishes 200 requests in a pool that is ten times too small', () => {
    const driver = runScenario(oversubscribed)
    const finished = [...driver.outcomes.values()].filter((outcome) => outcome.finish !== null)
    expect(finished.length).toBe(driver.outcomes.size)
    expect(driver.scheduler.stats().preemptions).toBeGreaterThan(10)
  })

  it('does so under aborts, priorities, timeouts and failing steps', () => {
    const driver = runScenario({ ...oversubscribed, seed: 8, abortRate: 0.1, timeoutRate: 0.1, failureRate: 0.1 })
    const stats = driver.scheduler.stats()
    expect(stats.stepFailures).toBeGreaterThan(5)
    expect(stats.sequencesAborted).toBeGreaterThan(5)
    expect(stats.sequencesFailed).toBeGreaterThan(0)
    expect(stats.prefixHitTokens).toBeGreaterThan(0)
  })
})
