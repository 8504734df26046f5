import { describe, expect, it } from 'vitest'
import '../matchers'
import type { LLMLoad } from '../../../lib'
import { StepCurve } from '../../../lib/scheduler'
import { createSlaAdmission, type SlaOptions } from '../../../lib/server/admission'
import { Feedback, Recent } from '../../../lib/server/admission/feedback'
import { forecast, type Machine, type Prompt } from '../../../lib/server/admission/forecast'
import { OutputLengths } from '../../../lib/server/admission/output_lengths'
import type { RequestFacts } from '../../../lib/server/seams'
import { requestFacts } from '../../support/request_facts'

const machine = (more: Partial<Machine> = {}): Machine => ({
  stepMs: (tokens) => 10 + tokens / 10,
  stepTokens: () => 100,
  maxRunning: 8,
  freeTokens: 1e6,
  inFlightMs: 0,
  stepsInFlight: 0,
  ...more,
})
const prompt = (left: number, output = 10): Prompt => ({ rows: 1, left, size: left, output })

describe('forecast', () => {
  it('runs prompts in order, in chunks, beside what decodes', () => {
    // 100 tokens a step: 20 ms each. Two rows decode throughout, so 98 are left for prompts; then three, so 97.
    const decoding = [{ rows: 2, left: 1000, held: 100, yields: false }]
    const { firstTokenMs, rows } = forecast(machine(), decoding, [prompt(98), prompt(150)], 1e6)
    expect(firstTokenMs[0]).toBe(20)
    expect(firstTokenMs[1]).toBeCloseTo(20 + 20 + (10 + (3 + 53) / 10))
    expect(rows).toBe(4)
  })

  it('puts several prompts into one step', () => {
    expect(forecast(machine(), [], [prompt(30), prompt(30), prompt(30)], 1e6).firstTokenMs).toEqual([19, 19, 19])
  })

  it('begins after the steps in flight, which may have computed a prompt already', () => {
    const { firstTokenMs } = forecast(machine({ inFlightMs: 15, stepsInFlight: 1 }), [], [prompt(0), prompt(40)], 1e6)
    expect(firstTokenMs[0]).toBe(15)
    expect(firstTokenMs[1]).toBeCloseTo(15 + 10 + 4.1)
  })

  it('waits for a slot until an output ends', () => {
    const full = [{ rows: 8, left: 5, held: 0, yields: false }]
    const { firstTokenMs } = forecast(machine(), full, [prompt(50)], 1e6)
    // Five more tokens each, and the step that was planned before the last of them was known.
    expect(firstTokenMs[0]).toBeCloseTo(6 * 10.8 + 15)
    expect(forecast(machine(), [{ ...full[0]!, yields: true }], [prompt(50)], 1e6).firstTokenMs[0]).toBeCloseTo(10 + 5.7)
  })

  it('waits for pages until an output ends, and never on an empty machine', () => {
    const one = [{ rows: 1, left: 20, held: 500, yields: false }]
    const { firstTokenMs } = forecast(machine({ freeTokens: 40 }), one, [prompt(100)], 1e6)
    expect(firstTokenMs[0]).toBeGreaterThan(20 * 10)
    expect(firstTokenMs[0]).toBeLessThan(300)
    expect(forecast(machine({ freeTokens: 40 }), [], [prompt(100)], 1e6).firstTokenMs[0]).toBe(20)
  })

  it('says Infinity beyond the horizon', () => {
    const { firstTokenMs } = forecast(machine(), [], [prompt(100), prompt(1e6)], 500)
    expect(firstTokenMs).toEqual([20, Infinity])
  })
})

describe('OutputLengths', () => {
  it('learns which share of maxTokens is used, and what is left of an output that goes on', () => {
    const lengths = new OutputLengths()
    expect(lengths.expectedLeft(0, 100)).toBe(100)
    for (let i = 0; i < 500; i++) lengths.observe(i % 2 === 0 ? 20 : 80, 100)
    expect(lengths.expectedLeft(0, 100)).toBeGreaterThan(40)
    expect(lengths.expectedLeft(0, 100)).toBeLessThan(65)
    // It has outlived the short ones.
    expect(lengths.expectedLeft(40, 100)).toBeGreaterThan(35)
    expect(lengths.expectedLeft(40, 1000)).toBeGreaterThan(300)
    expect(lengths.expectedLeft(99, 100)).toBe(1)
    expect(lengths.expectedLeft(300, undefined)).toBeGreaterThan(30)
  })
})

describe('Feedback', () => {
  it('covers the promised percentile of errors, and follows when they become smaller', () => {
    const feedback = new Feedback(1000, 0.99)
    for (let i = 0; i < 600; i++) feedback.observe(800, 800 * (1 + (i % 10) / 50))
    expect(feedback.factor).toBeCloseTo(1.18)
    for (let i = 0; i < 600; i++) feedback.observe(800, 808)
    expect(feedback.factor).toBeCloseTo(1.01)
  })

  it('learns nothing from forecasts far from the bound that were kept, but from every miss', () => {
    const feedback = new Feedback(1000, 0.99)
    for (let i = 0; i < 600; i++) feedback.observe(20, 60)
    expect(feedback.factor).toBe(1.2)
    for (let i = 0; i < 600; i++) feedback.observe(200, 1001)
    expect(feedback.factor).toBe(2)
    // Not for ever, though it now lets in so little that the forecasts of what it lets in are small.
    for (let i = 0; i < 600; i++) feedback.observe(400, 420)
    expect(feedback.factor).toBeCloseTo(1.05)
  })

  it('percentiles are of the last values', () => {
    const recent = new Recent(100)
    expect(recent.percentile(0.99)).toBeNaN()
    for (let i = 1; i <= 250; i++) recent.add(i)
    expect(recent.percentile(0.5)).toBe(200)
    expect(recent.percentile(0.99)).toBe(249)
    expect(recent.mean).toBe(200.5)
  })
})

describe('SLA admission', () => {
  const curve = new StepCurve()
  for (let i = 0; i < 50; i++) {
    for (const tokens of [1, 10, 100]) curve.observe(tokens, { queueUs: 0, runUs: (10 + tokens / 10) * 1000 })
  }
  const base: LLMLoad = {
    running: 0,
    waiting: 0,
    maxQueue: 100,
    maxRunning: 8,
    maxStepMs: 50,
    preemptForPriority: true,
    stepTokens: () => 100,
    inFlightTokens: [],
    oldestStepMs: 0,
    prefillTokens: 0,
    prefixQueryTokens: 0,
    prefixHitTokens: 0,
    pageSize: 16,
    totalPages: 10_000,
    availablePages: 10_000,
    stepTimes: curve,
    stepDelayMs: 0,
  }
  function make(load: Partial<LLMLoad> = {}, options: Partial<SlaOptions> = {}) {
    const state = { now: 0, loopDelayMs: 0, load: { ...base, ...load } }
    const admission = createSlaAdmission({ load: () => state.load }, { ttftMs: 200, itlMs: 50, ...options }, () => state.now, () => state.loopDelayMs)
    let id = 0
    const ask = (more: Partial<RequestFacts> = {}) =>
      admission.admit(requestFacts({ id: String(id++), promptTokens: 100, maxTokens: 50, ...more }))
    return { state, admission, ask }
  }
  const admitted = (decision: ReturnType<ReturnType<typeof make>['ask']>) => {
    if (!decision.admitted) throw new Error(decision.message)
    return decision.ticket
  }

  it('lets in what fits before the bound, and refuses the rest until there is room again', () => {
    const { ask, state, admission } = make({ maxRunning: 100 })
    const decisions = Array.from({ length: 20 }, () => ask())
    // 20 ms a prompt and some for what decodes, and a tenth more for what is not known.
    const count = decisions.filter((decision) => decision.admitted).length
    expect(count).toBeGreaterThan(6)
    expect(count).toBeLessThan(10)
    expect(decisions.slice(0, count).every((decision) => decision.admitted)).toBe(true)
    expect(decisions[count]).toMatchObject({ admitted: false, reason: 'sla', retryAfterSeconds: 1 })
    // Steps were given three prompts.
    state.load = { ...state.load, prefillTokens: 300 }
    expect(ask().admitted).toBe(true)
    expect(admission.snapshot()).toMatchObject({ admitted: count + 1, refused: 20 - count })
  })

  it('counts what a request has waited before it is asked about, and what it may have waited before it was read', () => {
    const count = (waitedMs: number, loopDelayMs: number, stepDelayMs = 0): number => {
      const { ask, state } = make({ maxRunning: 100, stepDelayMs })
      state.loopDelayMs = loopDelayMs
      return Array.from({ length: 20 }, () => ask({ waitedMs })).filter(({ admitted }) => admitted).length
    }
    expect(count(0, 0)).toBeGreaterThan(5)
    expect(count(100, 0)).toBeLessThan(count(0, 0) - 2)
    expect(count(201, 0)).toBe(0)
    expect(count(0, 40)).toBeLessThan(count(0, 0))
    // It is a pause that takes more than a quarter of the bound.
    expect(count(0, 5000)).toBe(count(0, 50))
    expect(count(0, 0, 20)).toBeLessThan(count(0, 0) - 2)
  })

  it('knows from those who wait that forecasts are too short, before one has come true', () => {
    const { ask, state } = make({ maxRunning: 100 })
    for (let i = 0; i < 4; i++) expect(ask().admitted).toBe(true)
    expect(ask({ promptTokens: 300 }).admitted).toBe(true)
    // 60 ms later one prompt has run, and not three.
    state.now = 60
    state.load = { ...state.load, prefillTokens: 100 }
    expect(ask({ promptTokens: 100 }).admitted).toBe(false)
    const { ask: other, state: good } = make({ maxRunning: 100 })
    for (let i = 0; i < 4; i++) other()
    other({ promptTokens: 300 })
    good.now = 60
    good.load = { ...good.load, prefillTokens: 300 }
    expect(other({ promptTokens: 100 }).admitted).toBe(true)
  })

  it('a refusal stands for who asks for as much, until something has changed', () => {
    let forecasts = 0
    const { ask, state } = make({ maxRunning: 100, stepTokens: () => (forecasts++, 100) })
    while (ask().admitted);
    const before = forecasts
    for (let i = 0; i < 50; i++) expect(ask({ promptTokens: 100 + i })).toMatchObject({ reason: 'sla' })
    expect(forecasts).toBe(before)
    // Smaller ones, and more urgent ones, are looked at.
    ask({ promptTokens: 1 })
    expect(forecasts).toBeGreaterThan(before)
    // What is in flight has gone on meanwhile.
    state.now = 1000
    const later = forecasts
    ask()
    expect(forecasts).toBeGreaterThan(later)
  })

  it('what ends leaves nothing behind, however often it is told', () => {
    const { ask } = make({ maxRunning: 100 })
    for (let round = 0; round < 100; round++) {
      const ticket = admitted(ask())
      if (round % 3 > 0) ticket.firstToken()
      if (round % 3 > 1) ticket.tokens(0, 5)
      ticket.end()
      ticket.end()
      ticket.firstToken()
      ticket.tokens(0, 3)
    }
    expect(ask({ promptTokens: 700 }).admitted).toBe(true)
  })

  it('an urgent request is refused when those that were promised something would be late because of it', () => {
    const { ask } = make({ maxRunning: 100 })
    while (ask({ priority: 0 }).admitted);
    expect(ask({ priority: -5 })).toMatchObject({ admitted: false, reason: 'sla' })
    const { ask: other } = make({ maxRunning: 100 })
    for (let i = 0; i < 90; i++) other({ priority: 3 })
    expect(other({ priority: -5 }).admitted).toBe(true)
  })

  it('batch work waits as long as it takes, but does not fill the queue', () => {
    const { ask, state } = make()
    for (let i = 0; i < 50; i++) {
      state.load = { ...state.load, waiting: i }
      expect(ask({ priority: 1, promptTokens: 5000 }).admitted).toBe(true)
    }
    state.load = { ...state.load, waiting: 50 }
    expect(ask({ priority: 1 })).toMatchObject({ admitted: false, reason: 'queue_full' })
    expect(ask({ priority: 0 }).admitted).toBe(true)
  })

  it('a deadline that cannot be met is refused at once, one that can is not', () => {
    const { ask } = make()
    // 100 steps of 11 ms after the first token.
    expect(ask({ maxTokens: 101, deadlineMs: 500 })).toMatchObject({ admitted: false, reason: 'deadline' })
    expect(ask({ maxTokens: 101, deadlineMs: 1500 }).admitted).toBe(true)
    expect(ask({ maxTokens: 101, deadlineMs: 500, priority: 7 })).toMatchObject({ admitted: false, reason: 'deadline' })
  })

  it('without maxStepMs it bounds the sequences at once by what their steps would take', () => {
    const { ask } = make({ maxStepMs: undefined, maxRunning: 1000, stepTokens: () => 100_000 }, { itlMs: 12, ttftMs: 1e5 })
    const tickets = []
    for (let decision = ask(); decision.admitted && tickets.length < 100; decision = ask()) {
      tickets.push(decision.ticket)
      decision.ticket.firstToken()
      decision.ticket.tokens(0, 1)
    }
    expect(tickets.length).toBeGreaterThan(5)
    expect(tickets.length).toBeLessThanOrEqual(20)
    for (const ticket of tickets) ticket.end()
    expect(ask().admitted).toBe(true)
  })

  it('knows nothing of a machine that has just started, and lets in little', () => {
    const { ask } = make({ stepTimes: new StepCurve() })
    expect(ask({ promptTokens: 100_000 }).admitted).toBe(true)
    expect(ask()).toMatchObject({ admitted: false, reason: 'sla' })
    expect(ask({ priority: 1 }).admitted).toBe(true)
  })

  it('takes less for prompts of which the prefix cache has most', () => {
    const { ask, state } = make({ maxRunning: 100 })
    expect(ask({ promptTokens: 3000 }).admitted).toBe(false)
    for (let i = 1; i <= 30; i++) {
      state.load = { ...state.load, prefixQueryTokens: i * 10_000, prefixHitTokens: i * 9500 }
      admitted(ask({ promptTokens: 10 })).end()
    }
    expect(ask({ promptTokens: 3000 }).admitted).toBe(true)
  })

  it('retryAfterSeconds answers for a full queue, too', () => {
    const { admission, ask } = make()
    for (let i = 0; i < 30; i++) ask({ priority: 1, promptTokens: 1000 })
    const seconds = admission.retryAfterSeconds(requestFacts({ promptTokens: 50, maxTokens: 5, priority: 2 }))
    expect(seconds).toBeGreaterThanOrEqual(1)
    expect(seconds).toBeLessThanOrEqual(120)
    expect(Number.isInteger(seconds)).toBe(true)
    admission.close()
  })

  it.each<[unknown, RegExp]>([
    [{}, /ttftMs/],
    [{ ttftMs: 1, itlMs: 0 }, /itlMs/],
    [{ ttftMs: 1, itlMs: 1, percentile: 1 }, /percentile/],
    [{ ttftMs: 1, itlMs: 1, batchQueueShare: 2 }, /batchQueueShare/],
    [{ ttftMs: 1, itlMs: 1, interactivePriority: 0.5 }, /interactivePriority/],
    [{ ttft: 1 }, /no option/],
  ])('%j is refused', (options, message) => {
    expect(() => createSlaAdmission({ load: () => base }, options as SlaOptions)).toThrowCode('ERR_INVALID_ARGUMENT', message)
  })
})
