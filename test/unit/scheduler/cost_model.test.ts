import { describe, expect, it } from 'vitest'
import { StepCostModel } from '../../../lib/scheduler/cost_model'
import { randomSource } from './drive'

const observe = (model: StepCostModel, tokens: number, ms: number): void =>
  model.observe(tokens, { queueUs: 0, runUs: ms * 1000 })

describe('StepCostModel', () => {
  it('finds the line behind noisy steps', () => {
    const model = new StepCostModel()
    const random = randomSource(3)
    for (let i = 0; i < 300; i++) {
      const tokens = 1 + Math.floor(random() * 500)
      observe(model, tokens, (4 + 0.05 * tokens) * (0.95 + 0.1 * random()))
    }
    expect(model.perTokenMs).toBeGreaterThan(0.045)
    expect(model.perTokenMs).toBeLessThan(0.055)
    expect(model.baseMs).toBeGreaterThan(3)
    expect(model.baseMs).toBeLessThan(5)
  })

  it('follows when the machine becomes slower', () => {
    const model = new StepCostModel()
    for (let i = 0; i < 50; i++) observe(model, 10 + (i % 7), 10)
    for (let i = 0; i < 50; i++) observe(model, 10 + (i % 7), 30)
    expect(model.baseMs + 13 * model.perTokenMs).toBeGreaterThan(27)
  })

  it('predicts nothing before it has seen enough, and less than the truth afterwards', () => {
    const model = new StepCostModel()
    for (let i = 0; i < 7; i++) observe(model, 16, 8)
    expect(model.leastMs(1000, 10, 256)).toBe(0)
    observe(model, 16, 8)
    expect(model.leastMs(16, 1, 256)).toBeGreaterThan(4)
    expect(model.leastMs(16, 1, 256)).toBeLessThan(8)
    expect(model.leastMs(16, 5, 256)).toBeGreaterThan(model.leastMs(16, 1, 256))
  })

  it('is never negative, nor moved by nonsense', () => {
    const model = new StepCostModel()
    for (let i = 0; i < 20; i++) observe(model, 1 + i, 100 - i)
    for (const ms of [NaN, -1, Infinity]) observe(model, 5, ms)
    expect(model.perTokenMs).toBeGreaterThanOrEqual(0)
    expect(model.baseMs).toBeGreaterThanOrEqual(0)
    expect(model.leastMs(10, 1, 256)).toBeLessThan(100)
  })
})
