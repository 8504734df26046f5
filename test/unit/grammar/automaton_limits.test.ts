/** What hostile grammars may cost: memory of tables and of networks, and nobody but their own outputs. */
import { beforeAll, describe, expect, it } from 'vitest'
import { checkGrammar, type Grammar, GrammarEngine, MatcherStatus } from '../../../lib/grammar'
import { AUTOMATA_BYTES, AutomatonMasks } from '../../../lib/grammar/automaton_masks'
import { readNetwork } from '../../../lib/grammar/byte_network'
import { AutomatonMatcher } from '../../../lib/grammar/matchers'
import type { VocabularyData } from '../../../lib/grammar/messages'
import { Pushdown, PushdownOverflow } from '../../../lib/grammar/pushdown'
import { buildTries } from '../../../lib/grammar/token_trie'
import { loadXGrammar, type XGrammar } from '../../../lib/grammar/xgrammar'
import { cpuOf } from '../../support/patience'

const LETTERS = [...'abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ']
/** What comes again in reverse: each beginning of each token is a state of its own. */
const MIRROR = `root ::= "." | ${LETTERS.map((letter) => `"${letter}" root "${letter}"`).join(' | ')}`

/** All letters, pairs and triples of them. */
function letters(): VocabularyData {
  const pairs = LETTERS.flatMap((a) => LETTERS.map((b) => a + b))
  const tokens = ['', ...LETTERS, '.', ...pairs, ...pairs.flatMap((pair) => LETTERS.slice(0, 26).map((c) => pair + c))]
  const offsets = new Int32Array(new SharedArrayBuffer(4 * (tokens.length + 1)))
  tokens.forEach((token, i) => (offsets[i + 1] = offsets[i]! + token.length))
  const bytes = new Uint8Array(new SharedArrayBuffer(offsets[tokens.length]!))
  bytes.set(Buffer.from(tokens.join('')))
  return { bytes, offsets, size: tokens.length }
}

const words = letters()
const wordBytes = (token: number): Uint8Array => words.bytes.subarray(words.offsets[token], words.offsets[token + 1])

let library: XGrammar
beforeAll(async () => {
  library = await loadXGrammar(() => {})
})

function automatonOf(grammar: Grammar): Pushdown {
  const parsed = library.Grammar.FromEBNF(checkGrammar(grammar).text, 'root')
  const network = readNetwork(parsed.ToString(), 'root')!
  parsed.delete()
  return new Pushdown(network)
}

const masksOf = (): AutomatonMasks => new AutomatonMasks(buildTries(words), Math.ceil(words.size / 32))

describe('tables of automata', () => {
  it('stay within their bounds, whatever is followed between two batches, and no output notices', () => {
    const masks = masksOf()
    const automaton = automatonOf({ grammar: MIRROR })
    masks.add(automaton)
    const outputs = LETTERS.slice(0, 9).map((letter) => {
      const mask = new Int32Array(Math.ceil(words.size / 32))
      return { letter, mask, matcher: new AutomatonMatcher(automaton, masks, wordBytes, mask) }
    })
    let most = 0
    for (const { letter, mask, matcher } of outputs) {
      expect(matcher.accept(1 + LETTERS.indexOf(letter))).toBe(true)
      expect(matcher.fill()).toBe(MatcherStatus.CONTINUES)
      expect([mask[0]! & 1, mask[0]! & 2]).toEqual([0, 2])
      most = Math.max(most, masks.memoryBytes)
    }
    // One mask's tables, and what is kept of masks, come on top.
    expect(most).toBeLessThan(1.5 * AUTOMATA_BYTES)
    expect(most).toBeGreaterThan(0.5 * AUTOMATA_BYTES)
    for (const { letter, matcher } of outputs) {
      expect(matcher.accept(1 + LETTERS.length)).toBe(true)
      expect(matcher.accept(1 + LETTERS.indexOf(letter)), letter).toBe(true)
      expect(matcher.fill()).toBe(MatcherStatus.ENDS)
    }
  })

  it('that grow too large are forgotten without those of others', () => {
    const masks = masksOf()
    const [hostile, harmless] = [automatonOf({ grammar: MIRROR }), automatonOf({ regex: '[a-z]{2,9}\\.' })]
    masks.add(hostile)
    masks.add(harmless)
    const mask = new Int32Array(Math.ceil(words.size / 32))
    const quiet = new AutomatonMatcher(harmless, masks, wordBytes, mask)
    expect(quiet.fill()).toBe(MatcherStatus.CONTINUES)
    const before = hostile.generation
    const other = new AutomatonMatcher(hostile, masks, wordBytes, new Int32Array(mask.length))
    for (let i = 0; i < 500 && hostile.generation === before; i++) {
      expect(other.accept(1 + (i % LETTERS.length))).toBe(true)
      other.fill()
    }
    expect(hostile.generation).toBeGreaterThan(before)
    expect(quiet.quick).toBe(true)
  })

  it('have a bound for what one mask may add', () => {
    const automaton = automatonOf({ grammar: MIRROR })
    automaton.begin()
    const grow = (from: number, depth: number): void => {
      for (const letter of LETTERS) {
        const to = automaton.step(from, automaton.classes[letter.charCodeAt(0)]!)
        if (depth > 1) grow(to, depth - 1)
      }
    }
    expect(() => grow(automaton.start().id, 4)).toThrow(PushdownOverflow)
    expect(automaton.memoryBytes).toBeLessThan(3 * AUTOMATA_BYTES)
  })

  it('are found again under deep stacks that many places share', () => {
    // Each on its own, thousands of stacks as deep as the output would take minutes.
    const parts = Array.from({ length: 3000 }, (_, i) => `p${i}`)
    const rules = parts.map((name, i) => `${name} ::= [a-z] "${i}"`).join('\n')
    const automaton = automatonOf({ grammar: `root ::= "x" root "." | "y" (${parts.map((name) => `${name} "z"`).join(' | ')})\n${rules}` })
    const after = (from: number, text: string): number => {
      let id = from
      for (const byte of Buffer.from(text)) id = automaton.step(id, automaton.classes[byte]!)
      return id
    }
    const depth = 40_000
    let state = automaton.start()
    const making = cpuOf(() => (state = automaton.state(after(state.id, `${'x'.repeat(depth)}y`))))
    expect(state.nodes.length).toBe(parts.length)
    automaton.clear()
    automaton.begin()
    let again = state
    expect(cpuOf(() => (again = automaton.current(state)))).toBeLessThan(10 * making)
    expect(again.nodes.slice().sort()).toEqual(state.nodes.slice().sort())
    expect(automaton.state(after(again.id, `q17z${'.'.repeat(depth)}`)).complete).toBe(true)
    expect(after(again.id, `q17z${'.'.repeat(depth + 1)}`)).toBe(-2)
  })
})

describe('networks', () => {
  /** A short text with very many nodes. */
  const LARGE = `root ::= ${Array.from({ length: 30 }, (_, i) => `([a-c] "${i}"){13000,13000}`).join(' ')}`

  it('are counted, and take little memory each', () => {
    const automaton = automatonOf({ grammar: LARGE })
    expect(automaton.networkBytes).toBeGreaterThan(4_000_000)
    expect(automaton.networkBytes).toBeLessThan(20_000_000)
    const masks = masksOf()
    const before = masks.memoryBytes
    masks.add(automaton)
    expect(masks.memoryBytes - before).toBeGreaterThanOrEqual(automaton.networkBytes)
    masks.remove(automaton)
    expect(masks.memoryBytes).toBe(before)
  })
})

it('a thread that has grown too large makes way when its grammar goes to the library', async () => {
  // Tells itself only in the middle which way it went: known as too ambiguous on the way.
  const ambiguous = 'root ::= "." | "a" root "b" | "a" root "c"'
  const engine = new GrammarEngine(() => Promise.resolve(words), { threads: 1, threadBytes: 1 })
  const follow = (grammar: string, text: string): Promise<MatcherStatus> =>
    new Promise((resolve, reject) => {
      const rest = [...text]
      engine.open(checkGrammar({ grammar }), {
        onFailure: (_, error) => reject(error),
        onReady: (matcher) => {
          const letter = rest.shift()
          if (letter === undefined) {
            matcher.close()
            return resolve(matcher.status)
          }
          matcher.accept(1 + [...LETTERS, '.'].indexOf(letter))
          engine.flush()
        },
      })
    })
  expect(await follow(ambiguous, `${'a'.repeat(40)}.${'bc'.repeat(20)}`)).toBe(MatcherStatus.ENDS)
  expect(await follow('root ::= "a"', 'a')).toBe(MatcherStatus.ENDS)
  await engine.close()
})

it('outputs beside one that keeps their thread busy for too long go on, and only that one fails', async () => {
  // All ways to take a text apart: what the library's parser does for a token grows with the square of the output.
  const endless = 'root ::= root root | "a"'
  const long = Buffer.from('a'.repeat(1024))
  const bytes = new Uint8Array(new SharedArrayBuffer(words.bytes.length + long.length))
  bytes.set(words.bytes)
  bytes.set(long, words.bytes.length)
  const offsets = new Int32Array(new SharedArrayBuffer(4 * (words.size + 2)))
  offsets.set(words.offsets)
  offsets[words.size + 1] = bytes.length
  const engine = new GrammarEngine(() => Promise.resolve({ bytes, offsets, size: words.size + 1 }), { threads: 1, timeoutMs: 8000 })
  let over = false
  const follow = (grammar: string, token: number, goesOn: () => boolean): Promise<string> =>
    new Promise((resolve) => {
      engine.open(checkGrammar({ grammar }), {
        onFailure: (_, error) => resolve(error.code),
        onReady: (matcher) => {
          const next = (): void => {
            if (!goesOn()) {
              matcher.close()
              return resolve('closed')
            }
            matcher.accept(token)
            engine.flush()
          }
          if (token === 1) setTimeout(next, 20)
          else next()
        },
      })
    })
  const beside = follow('root ::= [a-z]*', 1, () => !over)
  expect(await follow(endless, words.size, () => true)).toBe('ERR_GRAMMAR_INVALID')
  over = true
  expect(await beside).toBe('closed')
  await engine.close()
})
