import { describe, expect, it } from 'vitest'
import { StepCurve } from '../../../lib/scheduler'
import { StepLimits } from '../../../lib/scheduler/step_limits'
import { Driver, randomPrompt, randomSource, request, soloText } from './drive'

/** A GPU's: flat, then a slope. */
const truth = (tokens: number): number => 5 + 0.04 * Math.max(tokens - 128, 0)
const observe = (curve: StepCurve, tokens: number, ms = truth(tokens)): void =>
  curve.observe(tokens, { queueUs: 0, runUs: ms * 1000 })

describe('StepCurve', () => {
  it('knows nothing at first', () => {
    const curve = new StepCurve()
    expect(curve.meanMs(10)).toBeNaN()
    expect(curve.tokensWithin(10)).toBe(Infinity)
    expect(curve.isKnown).toBe(false)
  })

  it('is known after eight steps, whatever their sizes', () => {
    const curve = new StepCurve()
    for (let i = 0; i < 7; i++) observe(curve, 2 ** i)
    expect(curve.isKnown).toBe(false)
    observe(curve, 1)
    expect(curve.isKnown).toBe(true)
  })

  it('finds a curve that is no line, and its inverse', () => {
    const curve = new StepCurve()
    const random = randomSource(9)
    for (let i = 0; i < 3000; i++) {
      const tokens = Math.round(2 ** (13 * random()))
      observe(curve, tokens, truth(tokens) * (0.97 + 0.06 * random()))
    }
    for (const tokens of [1, 20, 100, 400, 1500, 4000, 8000]) {
      expect(curve.meanMs(tokens) / truth(tokens), `${tokens} tokens`).toBeGreaterThan(0.9)
      expect(curve.meanMs(tokens) / truth(tokens), `${tokens} tokens`).toBeLessThan(1.15)
    }
    for (const ms of [8, 20, 50, 200]) {
      const within = curve.tokensWithin(ms)
      expect(curve.p99Ms(within)).toBeLessThanOrEqual(ms * 1.0001)
      expect(curve.p99Ms(within + 2)).toBeGreaterThan(ms)
    }
    expect(curve.tokensWithin(1)).toBe(0)
  })

  it('never falls, whatever was observed', () => {
    const curve = new StepCurve()
    const random = randomSource(4)
    for (let i = 0; i < 200; i++) observe(curve, 1 + Math.floor(random() * 5000), 100 * random())
    for (let tokens = 1, last = 0; tokens < 9000; tokens += 7) {
      expect(curve.meanMs(tokens)).toBeGreaterThanOrEqual(last)
      last = curve.meanMs(tokens)
    }
  })

  it('follows a machine that becomes slower, and leaves room for one that is restless', () => {
    const curve = new StepCurve()
    for (let i = 0; i < 60; i++) observe(curve, 64)
    const calm = curve.p99Ms(64)
    for (let i = 0; i < 60; i++) observe(curve, 64, 15)
    expect(curve.meanMs(64)).toBeGreaterThan(14)
    const random = randomSource(2)
    const restless = new StepCurve()
    const times = Array.from({ length: 2000 }, () => 5 * Math.exp(0.2 * (random() + random() + random() + random() - 2) * Math.sqrt(3)))
    for (const ms of times) observe(restless, 64, ms)
    const p99 = times.sort((a, b) => a - b)[Math.floor(0.99 * times.length)]!
    expect(restless.p99Ms(64)).toBeGreaterThan(0.85 * p99)
    expect(restless.p99Ms(64)).toBeLessThan(1.3 * p99)
    expect(calm).toBeLessThan(1.15 * 5)
  })

  it('is not moved by nonsense', () => {
    const curve = new StepCurve()
    for (const ms of [NaN, -1, Infinity]) observe(curve, 5, ms)
    observe(curve, 0, 5)
    expect(curve.observations).toBe(0)
  })
})

describe('maxStepMs', () => {
  it('leaves prompts alone that nobody waits for, and cuts them where outputs do', () => {
    const limits = new StepLimits(8192, 20)
    for (let i = 0; i < 50; i++) for (const tokens of [1, 64, 256, 1024, 4096]) observe(limits.curve, tokens)
    expect(limits.tokens(0)).toBe(8192)
    const within = limits.tokens(10)
    expect(truth(within)).toBeGreaterThan(12)
    expect(truth(within)).toBeLessThan(20)
    expect(limits.sequences).toBeLessThan(within)
    expect(new StepLimits(8192, undefined).tokens(10)).toBe(8192)
    expect(new StepLimits(8192, undefined).sequences).toBe(Infinity)
  })

  it('prompts go on, and one sequence runs, even if nothing fits into the bound', () => {
    const limits = new StepLimits(8192, 0.5)
    for (let i = 0; i < 50; i++) observe(limits.curve, 8)
    expect(limits.tokens(3)).toBe(3 + 16)
    expect(limits.sequences).toBe(1)
  })

  it('bounds the steps that outputs wait for, and changes no output', () => {
    const run = (maxStepMs: number | undefined): { longest: number; driver: Driver } => {
      const driver = new Driver({ maxStepTokens: 512, numPages: 2000, maxPositions: 1000 }, { maxStepMs })
      const ms = (tokens: number): number => 2 + 0.05 * tokens
      driver.executor.runUs = (tokens) => ms(tokens) * 1000
      const random = randomSource(6)
      const prompts = Array.from({ length: 24 }, () => randomPrompt(random, 20 + Math.floor(random() * 400)))
      const sequences = prompts.map((prompt, i) => driver.add(request(i, prompt, { maxTokens: 30 }))[0]!)
      driver.runToEnd()
      sequences.forEach((seq, i) => expect(driver.of(seq).tokens).toEqual(soloText(prompts[i]!, 30)))
      // The first steps are those from which it learns.
      const waited = driver.planned.slice(6).filter(({ decodeTokens }) => decodeTokens > 0)
      return { longest: Math.max(...waited.map(({ tokens }) => ms(tokens))), driver }
    }
    expect(run(undefined).longest).toBeGreaterThan(20)
    expect(run(8).longest).toBeLessThanOrEqual(8)
  })
})

describe('preemptForPriority', () => {
  const batch = { priority: 5, maxTokens: 60 }
  const fill = (driver: Driver, count: number) =>
    Array.from({ length: count }, (_, i) => driver.add(request(`batch ${i}`, [1 + i, 2, 3], batch))[0]!)

  it('an urgent request takes a slot at once, and who gave it goes on where it was', () => {
    const driver = new Driver({ maxSlots: 4 }, { preemptForPriority: true })
    const slow = fill(driver, 6)
    for (let i = 0; i < 10; i++) driver.step()
    expect(driver.scheduler.stats()).toMatchObject({ running: 4, waiting: 2 })
    const [urgent] = driver.add(request('urgent', [7, 8, 9], { priority: 0, maxTokens: 4 }))
    for (let i = 0; i < 4; i++) driver.step()
    expect(driver.of(urgent!).tokens.length).toBeGreaterThan(0)
    expect(driver.scheduler.stats().preemptions).toBe(1)
    driver.runToEnd()
    slow.forEach((seq, i) => expect(driver.of(seq).tokens).toEqual(soloText(Int32Array.of(1 + i, 2, 3), 60)))
    expect(driver.of(urgent!).tokens).toEqual(soloText(Int32Array.of(7, 8, 9), 4))
  })

  it('does not happen among equals, nor without the option, nor to those who have waited their way up', () => {
    const cases = [
      { options: { preemptForPriority: true }, priority: 5 },
      { options: {}, priority: 0 },
      { options: { preemptForPriority: true, agingMs: 1 }, priority: 0 },
    ]
    for (const { options, priority } of cases) {
      const driver = new Driver({ maxSlots: 2 }, options)
      fill(driver, 2)
      // With aging of 1 ms those in the queue rise by a level a step; those that run keep the rank that they came with.
      if (options.agingMs !== undefined) {
        driver.runToEnd()
        driver.add(request('first', [4, 4], { priority: -1, maxTokens: 40 }))
        driver.add(request('second', [4, 5], { priority: -1, maxTokens: 40 }))
        driver.step()
        driver.add(request('aged', [4, 6], { priority: 5, maxTokens: 40 }))
        for (let i = 0; i < 100; i++) driver.step()
      } else {
        driver.step()
      }
      driver.add(request('late', [7, 8], { priority, maxTokens: 4 }))
      driver.runToEnd()
      expect(driver.scheduler.stats().preemptions).toBe(0)
    }
  })

  it('takes pages, too, and loses none, under aborts and in a pool that is too small', () => {
    const random = randomSource(12)
    const driver = new Driver({ maxSlots: 6, numPages: 40 }, { preemptForPriority: true, maxStepMs: 50, agingMs: 200 })
    driver.executor.runUs = (tokens) => 1000 + 20 * tokens
    const texts = new Map<ReturnType<Driver['add']>[number], Int32Array>()
    for (let i = 0; i < 150; i++) {
      const prompt = randomPrompt(random, 1 + Math.floor(random() * 40))
      const [seq] = driver.add(request(i, prompt, { priority: Math.floor(random() * 3), maxTokens: 20 }))
      texts.set(seq!, prompt)
      for (let steps = Math.floor(random() * 4); steps > 0; steps--) driver.step()
      if (random() < 0.1) driver.scheduler.abort(Math.floor(random() * i))
    }
    driver.runToEnd()
    expect(driver.scheduler.stats().preemptions).toBeGreaterThan(0)
    for (const [seq, prompt] of texts) {
      const { finish, tokens } = driver.of(seq)
      if (finish !== null) expect(tokens).toEqual(soloText(prompt, 20))
    }
  })
})
