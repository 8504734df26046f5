import { describe, expect, it } from 'vitest'
import { MAX_STOP_LENGTH, MAX_STOP_STRINGS, StopMatcher, StopSet } from '../../../lib/text'
import fc from '../../support/fast_check'
import { timesAsMuch } from '../../support/patience'

/** The first position at which some stop string ends, and the longest that ends there. */
function naive(text: string, stops: readonly string[]): { stop: string; end: number } | undefined {
  for (let end = 1; end <= text.length; end++) {
    const here = stops.filter((stop) => text.slice(0, end).endsWith(stop)).sort((a, b) => b.length - a.length)
    if (here[0] !== undefined) return { stop: here[0], end }
  }
  return undefined
}

/** Length of the longest suffix of the text that begins a stop string without being one. */
function naiveHold(text: string, stops: readonly string[]): number {
  for (let length = text.length; length > 0; length--) {
    if (stops.some((stop) => stop.length > length && stop.startsWith(text.slice(-length)))) return length
  }
  return 0
}

const small = fc.string({ unit: fc.constantFrom('a', 'b', '🦊'), minLength: 1, maxLength: 5 })

describe('StopMatcher', () => {
  it('equals a naive search, and holds back no more than it must, however the text is cut', () => {
    const piece = fc.string({ unit: fc.constantFrom('a', 'b', 'c', '🦊'), maxLength: 4 })
    fc.assert(
      fc.property(
        fc.array(small, { minLength: 1, maxLength: 4 }),
        fc.array(piece),
        fc.boolean(),
        (stops, pieces, includeStop) => {
          const matcher = new StopMatcher(new StopSet(stops), { includeStop })
          const whole = pieces.join('')
          const expected = naive(whole, stops)
          let emitted = ''
          let seen = ''
          for (const next of pieces) {
            const { text, stop } = matcher.push(next)
            emitted += text
            seen += next
            if (stop !== undefined) break
            expect(emitted).toBe(seen.slice(0, seen.length - naiveHold(seen, stops)))
          }
          expect(matcher.stop).toBe(expected?.stop)
          emitted += matcher.flush()
          const end = expected ? expected.end - (includeStop ? 0 : expected.stop.length) : whole.length
          expect(emitted).toBe(whole.slice(0, end))
        },
      ),
      { numRuns: 3000 },
    )
  })

  it('finds a stop string that spans pieces, and drops what follows', () => {
    const matcher = new StopMatcher(new StopSet(['<|end|>', '\n\n']))
    expect(matcher.push('Hello <|e')).toEqual({ text: 'Hello ', stop: undefined })
    expect(matcher.push('nd')).toEqual({ text: '', stop: undefined })
    expect(matcher.push('|> more')).toEqual({ text: '', stop: '<|end|>' })
    expect(matcher.push('more')).toEqual({ text: '', stop: '<|end|>' })
    expect(matcher.flush()).toBe('')
  })

  it('releases what was held when it turns out to be no stop string', () => {
    const matcher = new StopMatcher(new StopSet(['abcd']))
    expect(matcher.push('ababc').text).toBe('ab')
    expect(matcher.push('x').text).toBe('abcx')
    expect(matcher.push('abc').text).toBe('')
    expect(matcher.flush()).toBe('abc')
  })

  it('ignores a stop string that is complete too early, and heeds one that ends later', () => {
    const matcher = new StopMatcher(new StopSet(['fox', 'x f']))
    expect(matcher.push('a fox', false)).toEqual({ text: 'a fo', stop: undefined })
    expect(matcher.push(' ', false)).toEqual({ text: '', stop: undefined })
    expect(matcher.push('fox')).toEqual({ text: '', stop: 'x f' })
  })

  it('costs little for the largest set, however many outputs share it', () => {
    const stops = Array.from({ length: MAX_STOP_STRINGS }, (_, i) => String.fromCodePoint(0x4e00 + i).repeat(MAX_STOP_LENGTH))
    const set = new StopSet(stops)
    const match = (): void => {
      const matchers = Array.from({ length: 1024 }, () => new StopMatcher(set))
      for (const matcher of matchers) matcher.push('text')
    }
    // 1024 times as much as to make the set, did each of them make its own.
    expect(timesAsMuch(() => new StopSet(stops), match, 250)).toBeLessThan(250)
  })

  it('prefers the stop string complete first, then the longest', () => {
    expect(new StopMatcher(new StopSet(['abc', 'b'])).push('zabc')).toEqual({ text: 'za', stop: 'b' })
    expect(new StopMatcher(new StopSet(['bc', 'abc', 'c'])).push('zabc')).toEqual({ text: 'z', stop: 'abc' })
  })

  it('passes everything on without stop strings', () => {
    expect(new StopMatcher(new StopSet([])).push('text')).toEqual({ text: 'text', stop: undefined })
  })

  it('stays linear on text made to fall back again and again', () => {
    const search = (length: number) => (): void => {
      const matcher = new StopMatcher(new StopSet([`${'a'.repeat(length - 1)}b`]))
      const text = `${'a'.repeat(length - 1)}c`.repeat((500 * MAX_STOP_LENGTH) / length)
      expect(matcher.push(text).text).toBe(text)
    }
    // The text is as long for both. 64 times as much, did each unit of it cost as much as the stop string is long.
    expect(timesAsMuch(search(MAX_STOP_LENGTH / 64), search(MAX_STOP_LENGTH), 16)).toBeLessThan(16)
  })

  it.each([
    ['an empty string', ['']],
    ['no string', [7 as never]],
    ['half a character', ['\ud83e']],
    ['an over-long string', ['a'.repeat(MAX_STOP_LENGTH + 1)]],
    ['too many', Array.from({ length: MAX_STOP_STRINGS + 1 }, (_, i) => `s${i}`)],
    ['no array', 'stop' as never],
  ])('refuses %s', (_name, stops) => {
    expect(() => new StopSet(stops)).toThrow(expect.objectContaining({ code: 'ERR_INVALID_ARGUMENT' }))
  })
})
