import { describe, expect, it } from 'vitest'
import '../matchers'
import { type GenerationRequest, Scheduler } from '../../../lib/scheduler'
import {
  Constraint,
  Driver,
  GREEDY,
  oddThenEven,
  type Outcome,
  randomPrompt,
  randomSource,
  request,
  soloText,
} from './drive'
import fc from '../../support/fast_check'

interface Scenario {
  seed: number
  requests: number
  deaths: number
  prefixCache: boolean
  sizes: { pageSize: number; numPages: number; maxSlots: number; maxStepTokens: number; runAhead: number }[]
  abortRate: number
  failureRate: number
}

const scenario: fc.Arbitrary<Scenario> = fc.record({
  seed: fc.integer({ min: 0, max: 2 ** 31 }),
  requests: fc.integer({ min: 1, max: 30 }),
  deaths: fc.integer({ min: 1, max: 3 }),
  prefixCache: fc.boolean(),
  // Of the executor at the beginning and of those that take over. Each pool has room for the largest request.
  sizes: fc.array(
    fc.record({
      pageSize: fc.constantFrom(1, 2, 4, 7),
      numPages: fc.integer({ min: 60, max: 90 }),
      maxSlots: fc.integer({ min: 1, max: 12 }),
      maxStepTokens: fc.integer({ min: 1, max: 48 }),
      runAhead: fc.constantFrom(0, 1, 1, 2),
    }),
    { minLength: 4, maxLength: 4 },
  ),
  abortRate: fc.constantFrom(0, 0.1),
  failureRate: fc.constantFrom(0, 0.1),
})

function randomRequests(random: () => number, count: number): GenerationRequest[] {
  const preamble = randomPrompt(random, 9)
  return Array.from({ length: count }, (_, i) => {
    const own = randomPrompt(random, 1 + Math.floor(random() * 20))
    const prompt = random() < 0.5 ? own : Int32Array.from([...preamble, ...own])
    return request(i, prompt, {
      maxTokens: Math.floor(random() * 25),
      n: random() < 0.3 ? 1 + Math.floor(random() * 4) : 1,
      eosTokenIds: Int32Array.of(3),
      priority: Math.floor(random() * 3),
      constrain: random() < 0.2 ? () => new Constraint(oddThenEven) : undefined,
      sampling: {
        ...GREEDY,
        temperature: random() < 0.5 ? 0.8 : 0,
        seed: Math.floor(random() * 1e9),
        logprobs: random() < 0.2 ? 2 : -1,
        promptLogprobs: random() < 0.2 ? 1 : -1,
      },
    })
  })
}

/** What of a request must not depend on who computed it: log-probabilities without their row's place in the step. */
function substance({ tokens, finish, error, logprobs, promptLogprobs }: Outcome): unknown {
  const plain = (row: Outcome['logprobs'][number]): unknown => (row === null ? null : { ...row, sequence: 0 })
  return { tokens, finish, error, logprobs: logprobs.map(plain), promptLogprobs: promptLogprobs.map(plain) }
}

function runScenario(s: Scenario): void {
  const random = randomSource(s.seed)
  const requests = randomRequests(random, s.requests)
  const calm = new Driver({ numPages: 512, pageSize: 4, maxSlots: 32 })
  const expected = new Map(requests.flatMap((r) => calm.add(r).map((seq) => [`${seq.id}.${seq.index}`, seq] as const)))
  calm.runToEnd()

  const { runAhead, ...sizes } = s.sizes[0]!
  const { prefixCache } = s
  const options = { prefixCache, agingMs: 50, maxRetries: 1000 }
  const driver = new Driver(sizes, { runAhead, ...options })
  let failures = 30
  const fault: Driver['executor']['fault'] = () =>
    random() < s.failureRate && failures-- > 0 ? { code: 'ERR_CUDA', message: 'injected', retryable: true } : undefined
  driver.executor.fault = fault
  const aborted = new Set<string | number>()
  const maybeAbort = (): void => {
    const id = Math.floor(random() * s.requests)
    if (random() < s.abortRate && driver.scheduler.abort(id)) aborted.add(id)
  }
  let added = 0
  const addOne = (): void => void (added < requests.length && driver.add(requests[added++]!))
  let deaths = 0
  let turns = 0
  while (added < requests.length || driver.scheduler.hasWork) {
    if (++turns > 100_000) throw new Error('The scheduler does not come to an end')
    if (random() < 0.3) addOne()
    else driver.step()
    maybeAbort()
    if (deaths < s.deaths && random() < 0.05) {
      deaths++
      // The worst moment: with all the steps that can be in flight.
      driver.submitAll()
      const { runAhead, ...sizes } = s.sizes[deaths]!
      driver.failOver(sizes, { runAhead, ...options }, () => {
        addOne()
        maybeAbort()
      })
      driver.executor.fault = fault
    }
  }
  driver.runToEnd()

  for (const [seq, outcome] of driver.outcomes) {
    const solo = calm.of(expected.get(`${seq.id}.${seq.index}`)!)
    if (aborted.has(seq.id)) expect(outcome.tokens).toEqual(solo.tokens.slice(0, outcome.tokens.length))
    else expect(substance(outcome)).toEqual(substance(solo))
  }
  const { sequencesFinished, sequencesAborted, sequencesFailed, requestsAdded } = driver.scheduler.stats()
  expect(requestsAdded).toBe(requests.length)
  expect(sequencesFailed).toBe(0)
  expect(sequencesFinished + sequencesAborted).toBe(driver.outcomes.size)
}

describe('sequences move to another scheduler when their executor dies', () => {
  it('and every one goes on as if nothing had happened, whenever that is and whatever takes over', () => {
    fc.assert(
      fc.property(scenario, (s) => void runScenario(s)),
      { numRuns: 300 },
    )
  }, 600_000)

  it('with a step in flight and one ahead of it: what they sampled is sampled again', () => {
    const driver = new Driver()
    const [seq] = driver.add(request('a', [1, 2, 3], { maxTokens: 10 }))
    for (let i = 0; i < 4; i++) driver.step()
    driver.submitAll()
    expect(driver.scheduler.stats().stepsInFlight).toBe(2)
    const reported = [...driver.of(seq!).tokens]
    const opened = driver.opened.length
    driver.failOver({ pageSize: 7 })
    expect([...seq!.output]).toEqual(reported)
    driver.runToEnd()
    expect([...driver.opened[opened]!.output]).toEqual(reported)
    expect(driver.of(seq!).tokens).toEqual(soloText(seq!.request.prompt, 10))
    expect(driver.scheduler.stats()).toMatchObject({ stepFailures: 2, wastedRows: 2, sequencesFinished: 1 })
  })

  it('a step that failed at the first executor is no longer held against them', () => {
    const fail: Driver['executor']['fault'] = ({ stepId }) =>
      stepId === 0 ? { code: 'ERR_CUDA', message: 'injected', retryable: true } : undefined
    const driver = new Driver({}, { maxRetries: 2 })
    driver.executor.fault = fail
    const [seq] = driver.add(request('a', [1, 2, 3]))
    driver.step()
    // There, step 0 fails again, and step 1 behind it is the first with a row of this sequence.
    driver.failOver({ maxStepTokens: 4 }, { maxRetries: 2 }, () => void driver.add(request('b', [4, 5, 6, 7], { priority: -1 })))
    driver.executor.fault = fail
    driver.runToEnd(50)
    expect(driver.planned.at(-1)!.stepId).toBeGreaterThan(0)
    for (const [{ request, maxTokens }, { tokens }] of driver.outcomes) expect(tokens).toEqual(soloText(request.prompt, maxTokens))
    expect(driver.of(seq!).finish).toBe('length')
  })

  it('order of arrival, priority, timeouts and deadlines hold', () => {
    const driver = new Driver({ maxSlots: 1 })
    const add = (id: string, rest: Partial<GenerationRequest>): void =>
      void driver.add(request(id, [1, 2, id.charCodeAt(0) - 90], { maxTokens: 4, ...rest }))
    add('a', {})
    add('b', { timeoutMs: 5 })
    driver.step()
    add('c', { deadline: 1000 })
    add('d', { priority: -1 })
    add('h', {})
    driver.step()
    driver.failOver({ maxSlots: 1 }, {}, () => {
      driver.now = 4
      add('e', { priority: -1 })
    })
    expect(driver.scheduler.nextWakeup(4)).toBe(1)
    add('f', {})
    const ends: (string | number)[] = []
    while (driver.scheduler.hasWork) {
      driver.step()
      for (const [seq, { finish, error }] of driver.outcomes)
        if ((finish ?? error) !== null && !ends.includes(seq.id)) ends.push(seq.id)
    }
    expect(ends).toEqual(['b', 'd', 'e', 'c', 'a', 'h', 'f'])
    expect([...driver.outcomes.values()].map(({ error }) => error)).toEqual([null, 'ERR_TIMEOUT', null, null, null, null, null])
  })

  it('a smaller executor: requests beyond its limits fail with the error of add, outputs that reach them end', () => {
    const driver = new Driver({ maxPositions: 200 })
    const prompt = Array.from({ length: 10 }, (_, i) => i)
    const [short] = driver.add(request('short', prompt, { maxTokens: 12 }))
    const [large] = driver.add(request('large', prompt, { maxTokens: 80 }))
    const [long] = driver.add(request('long', [...prompt, ...prompt, ...prompt, ...prompt, ...prompt], { maxTokens: 9 }))
    const [open] = driver.add(request('open', prompt, { maxTokens: undefined }))
    const [siblings, ...others] = driver.add(request('siblings', prompt, { maxTokens: 60, n: 3 }))
    for (let i = 0; i < 8; i++) driver.step()
    const before = [...driver.of(open!).tokens]
    driver.failOver({ maxPositions: 40, pageSize: 2, numPages: 12 })
    expect(driver.of(large!).error).toBe('ERR_REQUEST_TOO_LARGE')
    expect(driver.of(long!).error).toBe('ERR_PROMPT_TOO_LONG')
    for (const seq of [siblings!, ...others]) expect(driver.of(seq).error).toBe('ERR_REQUEST_TOO_LARGE')
    driver.runToEnd()
    expect(driver.of(short!)).toMatchObject({ tokens: soloText(short!.request.prompt, 12), finish: 'length' })
    // 24 tokens of cache, and the last sampled one takes none.
    expect(driver.of(open!)).toMatchObject({ tokens: soloText(open!.request.prompt, 15), finish: 'length' })
    expect(driver.of(open!).tokens.slice(0, before.length)).toEqual(before)
  })

  it('an output that is longer than the new limits already ends as it is', () => {
    const driver = new Driver()
    const [seq] = driver.add(request('a', [1, 2, 3], { maxTokens: undefined }))
    for (let i = 0; i < 30; i++) driver.step()
    const tokens = [...driver.of(seq!).tokens]
    driver.failOver({ numPages: 4, pageSize: 4 })
    expect(driver.of(seq!)).toMatchObject({ tokens, finish: 'length' })
    expect(driver.scheduler.hasWork).toBe(false)
  })

  it('a full queue is no reason to drop what was accepted, and draining goes on', () => {
    const driver = new Driver({ maxSlots: 4 }, { maxQueue: 4 })
    for (let i = 0; i < 8; i++) {
      driver.add(request(i, [i + 1, 2]))
      if (i === 3) driver.step()
    }
    driver.scheduler.drain()
    driver.failOver({ maxSlots: 2 }, { maxQueue: 1 })
    expect(() => driver.add(request('late', [1]))).toThrowCode('ERR_DISPOSED')
    driver.runToEnd()
    for (const { finish } of driver.outcomes.values()) expect(finish).toBe('length')
  })

  it('only a new scheduler takes over, and one that gave up takes nothing', () => {
    const driver = new Driver()
    driver.add(request('a', [1]))
    const other = new Scheduler(driver.executor.info)
    other.add(request('b', [1]), 0)
    expect(() => other.adopt(driver.scheduler.evacuate(0), 0)).toThrowCode('ERR_INVALID_ARGUMENT', /new scheduler/)
    expect(() => driver.scheduler.adopt(other.evacuate(0), 0)).toThrowCode('ERR_INVALID_ARGUMENT')
  })
})
