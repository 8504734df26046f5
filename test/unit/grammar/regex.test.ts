import { beforeAll, describe, expect, it } from 'vitest'
import { seededRandom } from '../../../lib/cli/load_generator'
import { regexToEbnf } from '../../../lib/grammar/regex'
import { Acceptance } from '../../support/grammar_acceptance'

let library: Acceptance
beforeAll(async () => {
  library = await Acceptance.load()
})

const takes = (source: string, texts: readonly string[], inJson = false): boolean[] => {
  return library.of(`root ::= ${regexToEbnf(source, 'The expression', inJson)}`, texts)
}

const ATOMS = ['a', 'b', 'c', '[ab]', '[^a]', '[a-c]', '\\d', '\\w', '.', '1', '\\.', 'é', '[éa]', '\\u00e9', '\\x41', '[\\d-]']
const LETTERS = ['a', 'b', 'c', '1', '2', '.', '-', 'é', 'A', ' ', '日']

function randomRegex(random: () => number, depth: number): string {
  const pick = <T>(from: readonly T[]): T => from[Math.floor(random() * from.length)]!
  const atom = (): string => (depth > 0 && random() < 0.35 ? `(${randomRegex(random, depth - 1)})` : pick(ATOMS))
  const piece = (): string => atom() + pick(['', '', '', '*', '+', '?', '{2}', '{1,3}', '{2,}', '+?'])
  const sequence = (): string => Array.from({ length: 1 + Math.floor(random() * 3) }, piece).join('')
  return Array.from({ length: random() < 0.3 ? 2 + Math.floor(random() * 2) : 1 }, sequence).join('|')
}

describe('regular expressions', () => {
  it('take what JavaScript takes, and nothing else', () => {
    const random = seededRandom(3)
    let taken = 0
    for (let i = 0; i < 400; i++) {
      const source = randomRegex(random, 2)
      const texts = Array.from({ length: 60 }, () => {
        return Array.from({ length: 1 + Math.floor(random() * 6) }, () => LETTERS[Math.floor(random() * LETTERS.length)]!).join('')
      })
      const expected = texts.map((text) => new RegExp(`^(?:${source})$`, 'u').test(text))
      taken += expected.filter(Boolean).length
      expect(takes(source, texts), source).toEqual(expected)
    }
    expect(taken).toBeGreaterThan(1000)
  })

  it.each([
    ['(a+)+b', ['ab', 'aaaab'], ['b', 'aa']],
    ['^abc$', ['abc'], ['abcd', 'xabc']],
    ['^a|b$', ['a', 'b'], ['ab']],
    ['(?:x|y){2}', ['xy', 'yy'], ['x', 'xyx']],
    ['(?<year>\\d{4})', ['2024'], ['24']],
    ['[0-9]\\.[0-9][0-9]|[0-9]\\.[0-9]', ['1.2', '1.23'], ['1.234', '1.']],
    ['red|rose|ruse', ['red', 'rose', 'ruse'], ['rused', 'rese', 'rosed']],
    ['a{0}b', ['b'], ['ab']],
    ['(|a)b', ['b', 'ab'], ['a']],
    ['[\\]^-]+', [']^-', '-'], ['a']],
    ['[а-я]+', ['привет'], ['Привет', 'a']],
    ['\\cJ', ['\n'], ['J']],
  ])('%s', (source, yes, no) => {
    expect(takes(source, yes)).toEqual(yes.map(() => true))
    expect(takes(source, no)).toEqual(no.map(() => false))
  })

  it('inside JSON, characters come as JSON writes them', () => {
    const texts = ['a"b', 'a\\b', 'a\nb', 'a\tb', 'aéb', 'a/b', 'axb', 'a\u0001b']
    const spelt = texts.map((text) => JSON.stringify(text).slice(1, -1))
    // Control characters without a letter of their own are left out.
    expect(takes('^a.b$', spelt, true)).toEqual([true, true, false, true, true, true, true, false])
    expect(takes('^a[^x]b$', spelt, true)).toEqual([true, true, true, true, true, true, false, false])
    expect(takes('^a.b$', texts, true)).toEqual([false, false, false, false, true, true, true, false])
  })

  it.each([
    ['(?=a)b', 'looks ahead or behind'],
    ['(?<!a)b', 'looks ahead or behind'],
    ['(a)\\1', 'refers back'],
    ['\\bword', 'edge of a word'],
    ['\\p{L}+', 'property of characters'],
    ['(a', '"(" without ")"'],
    ['a)', '")" too many'],
    ['[a', '"[" without "]"'],
    ['*a', 'nothing before "*"'],
    ['a**', 'repeats a repetition'],
    ['a{3,2}', 'at least 3 and at most 2'],
    ['[z-a]', 'range that is none'],
    ['a^b', '"^" in the middle'],
    ['\\q', 'escape \\q'],
    ['[一-龥]', 'beyond ASCII'],
    ['[]', 'nothing can match'],
    ['((a{256}){256}){256}', 'at most 65536'],
    [`${'('.repeat(100_000)}a`, 'at most 16384'],
    [`${'('.repeat(1000)}a${')'.repeat(1000)}`, 'nests more than 48'],
  ])('%s is refused', (source, why) => {
    expect(() => regexToEbnf(source, 'The expression', false)).toThrow(why)
  })

  it('groups within groups take no more time than they are long', () => {
    const source = `${'('.repeat(48)}a${')+'.repeat(48)}`
    expect(regexToEbnf(source, 'The expression', false)).toContain('"a"')
  })
})
