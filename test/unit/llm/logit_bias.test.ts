import { runInNewContext } from 'node:vm'
import { describe, expect, it } from 'vitest'
import '../matchers'
import { TensorRTError } from '../../../lib/errors'
import { checkLogitBias } from '../../../lib/llm/logit_bias'
import fc from '../../support/fast_check'

const VOCAB = 100

describe('logitBias', () => {
  it('is taken as an object and as a Map, in their order', () => {
    const expected = { ids: Int32Array.of(7, 9), values: Float32Array.of(-100, 2.5) }
    expect(checkLogitBias({ 9: 2.5, 7: -100 }, VOCAB)).toEqual(expected)
    expect(checkLogitBias(new Map([[7, -100], [9, 2.5]]), VOCAB)).toEqual(expected)
    expect(checkLogitBias(runInNewContext('new Map([[7, -100], [9, 2.5]])'), VOCAB)).toEqual(expected)
    expect(checkLogitBias(Object.assign(Object.create(null) as object, { 7: -100, 9: 2.5 }), VOCAB)).toEqual(expected)
    for (const none of [undefined, {}, new Map()]) expect(checkLogitBias(none, VOCAB)).toBeUndefined()
  })

  it.each<unknown>([
    { 100: 1 },
    { '-1': 1 },
    { 1.5: 1 },
    { '01': 1 },
    { ' 1': 1 },
    { '1e1': 1 },
    { '0x1': 1 },
    { '': 1 },
    { hello: 1 },
    { 99999999999: 1 },
    new Map([['1', 1]]),
    new Map([[1.5, 1]]),
    new Map([[NaN, 1]]),
    new Map([[100, 1]]),
    new Map([[2 ** 32 + 1, 1]]),
    new Map([[null, 1]]),
  ])('names tokens by their ids alone: %j', (bias) => {
    expect(() => checkLogitBias(bias, VOCAB)).toThrowCode('ERR_INVALID_TOKEN')
  })

  it('gives, of anything, an error of the library or arrays that a backend takes', () => {
    const key = fc.oneof(fc.integer({ min: -2, max: 120 }).map(String), fc.string())
    const value = fc.oneof(fc.double(), fc.integer(), fc.anything())
    const entries = fc.array(fc.tuple(key, value), { maxLength: 30 })
    const bias = fc.oneof(
      fc.anything({ withMap: true, withSet: true, withDate: true, withTypedArray: true, withNullPrototype: true }),
      entries.map((list) => Object.fromEntries(list)),
      entries.map((list) => new Map<unknown, unknown>(list.map(([name, of]) => [Number(name), of]))),
      fc.array(fc.tuple(fc.integer({ min: 0, max: 99 }), fc.float({ min: -1e6, max: 1e6 })), { maxLength: 5 }).map((list) => new Map(list)),
    )
    let taken = 0
    fc.assert(
      fc.property(bias, (given) => {
        try {
          const checked = checkLogitBias(given, VOCAB)
          if (checked === undefined) return
          taken++
          expect(checked.ids.length).toBe(checked.values.length)
          expect(new Set(checked.ids).size).toBe(checked.ids.length)
          expect(checked.ids.every((id) => id >= 0 && id < VOCAB)).toBe(true)
          expect(checked.values.every((of) => Math.abs(of) <= 1e6)).toBe(true)
        } catch (error) {
          if (!(error instanceof TensorRTError)) throw error
          expect(['ERR_INVALID_ARGUMENT', 'ERR_INVALID_TOKEN']).toContain(error.code)
        }
      }),
      { numRuns: 20_000 },
    )
    expect(taken).toBeGreaterThan(100)
  })
})
