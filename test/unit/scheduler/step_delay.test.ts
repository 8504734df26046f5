import { describe, expect, it } from 'vitest'
import { StepDelay } from '../../../lib/scheduler/step_delay'
import { StepLimits } from '../../../lib/scheduler/step_limits'
import { randomSource } from './drive'

/** Steps of `runMs`, one planned ahead; `host` is what comes on top before a result is taken. */
function run(delay: StepDelay, count: number, runMs: number, host: (i: number) => number, from = 0): number {
  let now = from
  for (let i = 0; i < count; i++) {
    const plannedAt = now - runMs / 2
    now += runMs + host(i)
    delay.observe({ queueUs: 0, runUs: runMs * 1000 }, plannedAt, now)
  }
  return now
}

describe('StepDelay', () => {
  it('is nothing where results are taken when they come', () => {
    const delay = new StepDelay()
    run(delay, 200, 10, () => 0)
    expect(delay.ms).toBeCloseTo(0)
  })

  it('is what the host adds in the mean, and follows', () => {
    const delay = new StepDelay()
    const random = randomSource(3)
    const now = run(delay, 300, 10, () => 8 * random())
    expect(delay.ms).toBeGreaterThan(2.5)
    expect(delay.ms).toBeLessThan(5.5)
    run(delay, 300, 10, () => 0, now)
    expect(delay.ms).toBeLessThan(0.1)
  })

  it('a result that is taken late, and the next one early, add nothing', () => {
    const delay = new StepDelay()
    run(delay, 400, 10, (i) => (i % 2 === 0 ? 5 : -5))
    expect(delay.ms).toBeLessThan(0.5)
  })

  it('time in which nothing ran is nobody’s delay, and a long pause is one late step', () => {
    const delay = new StepDelay()
    let now = run(delay, 100, 10, () => 0)
    for (let i = 0; i < 100; i++) {
      now += 1000
      delay.observe({ queueUs: 0, runUs: 10_000 }, now, now + 10)
      now += 10
    }
    expect(delay.ms).toBeCloseTo(0)
    run(delay, 1, 10, () => 5000, now)
    expect(delay.ms).toBeLessThan(5)
  })

  it('grows to many times a short step’s time', () => {
    const delay = new StepDelay()
    run(delay, 500, 0.5, () => 12)
    expect(delay.ms).toBeGreaterThan(11)
    expect(delay.ms).toBeLessThan(12.5)
  })

  it('steps are as much shorter, down to half of the bound', () => {
    const limits = new StepLimits(8192, 50)
    let now = 0
    const observe = (tokens: number, hostMs: number): void => {
      const runMs = 5 + tokens / 100
      limits.observe(tokens, { queueUs: 0, runUs: runMs * 1000 }, now, now + runMs + hostMs)
      now += runMs + hostMs
    }
    for (let i = 0; i < 300; i++) observe(1 + (i % 40) * 100, 0)
    const alone = limits.tokens(10)
    for (let i = 0; i < 300; i++) observe(1 + (i % 40) * 100, 10)
    expect(limits.tokens(10)).toBeLessThan(alone - 700)
    for (let i = 0; i < 300; i++) observe(1 + (i % 40) * 100, 100)
    expect(limits.tokens(10)).toBeGreaterThan(1000)
    expect(limits.sequences).toBeLessThan(limits.tokens(10))
  })
})
