import { expect, it } from 'vitest'
import { BatchCost } from '../../../../lib/runtime/session/batch_cost'

it('predicts nothing before it has measured', () => {
  expect(new BatchCost().expected(8)).toBe(0)
  expect(new BatchCost().least(8)).toBe(0)
})

it('knows measured sizes, interpolates between them and goes on in proportion', () => {
  const cost = new BatchCost()
  cost.observe(8, 10)
  cost.observe(16, 14)
  expect(cost.expected(8)).toBe(10)
  expect(cost.expected(12)).toBe(12)
  expect(cost.expected(1)).toBe(10)
  expect(cost.expected(32)).toBe(28)
  expect(cost.least(8)).toBeLessThan(10)
})

it('follows a device that becomes slower', () => {
  const cost = new BatchCost()
  for (let i = 0; i < 50; i++) cost.observe(4, 1)
  for (let i = 0; i < 50; i++) cost.observe(4, 5)
  expect(cost.expected(4)).toBeCloseTo(5, 1)
})

it('takes no nonsense in', () => {
  const cost = new BatchCost()
  cost.observe(4, Number.NaN)
  cost.observe(4, -1)
  cost.observe(4, Infinity)
  expect(cost.expected(4)).toBe(0)
})
