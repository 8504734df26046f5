import { beforeAll, expect, it } from 'vitest'
import { seededRandom } from '../../../lib/cli/load_generator'
import { numberRange } from '../../../lib/grammar/number_range'
import { Acceptance } from '../../support/grammar_acceptance'

let library: Acceptance
beforeAll(async () => {
  library = await Acceptance.load()
})

/** Around both bounds, and anywhere. */
function candidates(random: () => number, low: number, high: number, digits: number): string[] {
  const texts = new Set<string>()
  for (let i = 0; i < 60; i++) {
    const near = [low, high, (low + high) / 2, 0, low + (high - low) * random()][i % 5]!
    const offset = ((i % 3) - 1) * 10 ** -Math.floor(random() * (digits + 1))
    texts.add((near + offset).toFixed(Math.floor(random() * (digits + 1))))
  }
  texts.delete('-0')
  return [...texts].filter((text) => !/^-0(\.0*)?$/.test(text))
}

it('takes exactly the numbers within the bounds, up to six digits behind the point', () => {
  const random = seededRandom(11)
  for (let i = 0; i < 60; i++) {
    const whole = i % 2 === 0
    const scale = [1, 10, 100, 4, 1000][i % 5]!
    const size = 10 ** Math.floor(random() * 6)
    const low = Math.round((random() - 0.5) * 2 * size * (whole ? 1 : scale)) / (whole ? 1 : scale)
    const high = low + Math.round(random() * size * (whole ? 1 : scale)) / (whole ? 1 : scale)
    const exclusive = i % 3 === 0 && high > low + 1
    const bounds = exclusive ? { exclusiveMinimum: low, exclusiveMaximum: high } : { minimum: low, maximum: high }
    const ebnf = `root ::= ${numberRange(bounds, whole).join(' | ')}`
    const texts = candidates(random, low, high, whole ? 0 : 6)
    const expected = texts.map((text) => (exclusive ? Number(text) > low && Number(text) < high : Number(text) >= low && Number(text) <= high))
    expect(library.of(ebnf, texts), `${JSON.stringify(bounds)}: ${texts.join(' ')}`).toEqual(expected)
  }
})

it('one bound is enough', () => {
  const above = `root ::= ${numberRange({ minimum: 0.5 }, false).join(' | ')}`
  expect(library.of(above, ['0.5', '0.499999', '1', '123456789', '-1', '00.5', '.5', '1.', '0.5000001'])).toEqual([
    true, false, true, true, false, false, false, false, false,
  ])
  const below = `root ::= ${numberRange({ exclusiveMaximum: -5 }, true).join(' | ')}`
  expect(library.of(below, ['-5', '-6', '-100000', '0', '-06'])).toEqual([false, true, true, false, false])
})

it('no number, no alternative', () => {
  expect(numberRange({ minimum: 2, maximum: 1 }, false)).toEqual([])
  expect(numberRange({ exclusiveMinimum: 1, exclusiveMaximum: 2 }, true)).toEqual([])
})
