/** Masks of automata are those of the grammar library, token by token; and what automata cannot follow, the library does. */
import { beforeAll, describe, expect, it } from 'vitest'
import { checkGrammar, type Grammar, GrammarEngine, type GrammarSource, MatcherStatus } from '../../../lib/grammar'
import { AutomatonMasks } from '../../../lib/grammar/automaton_masks'
import { printsFaithfully, readNetwork } from '../../../lib/grammar/byte_network'
import { AutomatonMatcher, LibraryMatcher } from '../../../lib/grammar/matchers'
import type { VocabularyData } from '../../../lib/grammar/messages'
import { Pushdown, PushdownOverflow } from '../../../lib/grammar/pushdown'
import { buildTries } from '../../../lib/grammar/token_trie'
import { type GrammarCompiler, loadXGrammar, type XGrammar } from '../../../lib/grammar/xgrammar'
import { seededRandom } from '../../../lib/llm'
import { SchemaGenerator } from '../../support/random_schemas'

const PIECES = [
  '{', '}', '[', ']', '"', ':', ',', ' ', '  ', '\n', '\t', '\r\n', '\\', '\\"', '\\n', '\\u', '\\u00', '": ', '", "', '"}', '"]', '"}}', '{"', '[{"', '},', '], "', 'true', 'false', 'null',
  'tr', 'ue', 'nul', '-', '.', 'e', 'E', '+', '0', '00', '1', '12', '123', '9', '99', '0.5', '.25', 'e-', '-1', '2024', '-01', ':30', 'T', 'Z', 'é', 'ß', '日', '日本', '😐', 'größe', 'name', 'age', 'tags',
  'id', 'kind', 'size', 'a b', 'note', 'items', 'x"y', 'x', 'y', 'z', 'abc', 'red', 'green', 'blue', 'Zq', 'Hello', ' world', ' the', '#', '##', 'ff', '!', '?', '_', '/', '@', '(', ')', '*', "'", '<', '>', '=', '&', '~', '^', '^^', '`', '|',
]

/**
 * Bytes and characters cut in two, pieces, pairs of them. No byte of them makes an overlong character of another: the library takes
 * some of those, which are no UTF-8.
 */
function vocabulary(): VocabularyData {
  const random = seededRandom(1)
  const pick = (): string => PIECES[Math.floor(random() * PIECES.length)]!
  const tokens = [Buffer.alloc(0), ...Array.from({ length: 128 }, (_, byte) => Buffer.of(byte)), ...PIECES.map((piece) => Buffer.from(piece))]
  for (const char of ['é', '日', '😐', '０', '１', '２', '３', '４', '５', 'ｐ']) for (let i = 1; i < Buffer.byteLength(char); i++) tokens.push(Buffer.from(char).subarray(0, i), Buffer.from(char).subarray(i))
  while (tokens.length < 800) tokens.push(Buffer.from(pick() + pick() + (random() < 0.3 ? pick() : '')))
  const offsets = new Int32Array(new SharedArrayBuffer(4 * (tokens.length + 1)))
  tokens.forEach((token, i) => (offsets[i + 1] = offsets[i]! + token.length))
  const bytes = new Uint8Array(new SharedArrayBuffer(offsets[tokens.length]!))
  bytes.set(Buffer.concat(tokens))
  return { bytes, offsets, size: tokens.length }
}

const words = vocabulary()
const wordBytes = (token: number): Uint8Array => words.bytes.slice(words.offsets[token], words.offsets[token + 1])
const allowedIn = (mask: Int32Array): number[] => Array.from({ length: words.size }, (_, i) => i).filter((i) => (mask[i >> 5]! & (1 << (i & 31))) !== 0)
const show = (tokens: readonly number[]): string[] => tokens.map((token) => Buffer.from(wordBytes(token)).toString('latin1'))

let library: XGrammar
let compiler: GrammarCompiler
let masks: AutomatonMasks
beforeAll(async () => {
  library = await loadXGrammar(() => {})
  const strings = library.vecStringFromJSArray([...Array.from({ length: words.size }, (_, i) => wordBytes(i)), new Uint8Array(0)])
  compiler = new library.GrammarCompiler(new library.TokenizerInfo(strings, 'RAW', words.size + 1, library.vecIntFromJSArray([words.size]), false), 1, false)
  masks = new AutomatonMasks(buildTries(words), Math.ceil(words.size / 32))
})

function automatonOf(source: GrammarSource): Pushdown | undefined {
  const parsed = source.kind === 'ebnf' ? library.Grammar.FromEBNF(source.text, 'root') : library.Grammar.FromStructuralTag(source.text)
  const network = printsFaithfully(source.text, source.kind === 'ebnf') ? readNetwork(parsed.ToString(), source.kind === 'ebnf' ? 'root' : undefined) : undefined
  parsed.delete()
  return network === undefined ? undefined : new Pushdown(network)
}

/** Random outputs under both, the masks compared at each token. @returns how many masks there were */
function compare(written: GrammarSource, seed: number, outputs: number, clearing = false): number {
  // The library believes what a rule says of what follows it, and lets tokens pass that go beyond a limit of white space there.
  const source = { ...written, text: written.text.replaceAll(/ \(=\[[^\n]*?\]\)(?=\n|$)/g, '') }
  expect(source.text).not.toContain('(=')
  const automaton = automatonOf(source)
  if (automaton === undefined) throw new Error(`no automaton for ${source.text}`)
  const parsed = source.kind === 'ebnf' ? library.Grammar.FromEBNF(source.text, 'root') : library.Grammar.FromStructuralTag(source.text)
  const compiled = compiler.CompileGrammar(parsed)
  const random = seededRandom(seed)
  let compared = 0
  for (let output = 0; output < outputs; output++) {
    const [ours, theirs] = [new Int32Array(Math.ceil(words.size / 32)), new Int32Array(Math.ceil(words.size / 32))]
    const automatic = new AutomatonMatcher(automaton, masks, wordBytes, ours)
    const known = new LibraryMatcher(library, compiled, theirs, words.size)
    const tokens: number[] = []
    for (let i = 0; i < 40; i++) {
      const [status, expected] = [automatic.fill(), known.fill()]
      const allowed = allowedIn(theirs)
      expect(show(allowedIn(ours)), `${source.text}\nafter ${show(tokens).join('')}`).toEqual(show(allowed))
      expect(status).toBe(expected)
      compared++
      if (allowed.length === 0) break
      const refused = Math.floor(random() * words.size)
      if (!allowed.includes(refused)) expect(automatic.accept(refused)).toBe(false)
      // Long strings tell little: rather what ends them.
      const ends = allowed.filter((token) => /["\]}]/.test(show([token])[0]!))
      const from = ends.length > 0 && random() < 0.5 ? ends : allowed
      const token = from[Math.floor(random() * from.length)]!
      if (clearing && random() < 0.2) automaton.clear()
      expect(automatic.accept(token) && known.accept(token)).toBe(true)
      tokens.push(token)
    }
    known.delete()
  }
  compiled.delete()
  parsed.delete()
  return compared
}

const GRAMMARS: [string, Grammar][] = [
  ['any JSON object', { json: true }],
  ['any JSON object without white space', { json: true, whitespace: 0 }],
  ['a tree', { jsonSchema: { $ref: '#/$defs/node', $defs: { node: { type: 'object', properties: { name: { type: 'string' }, items: { type: 'array', items: { $ref: '#/$defs/node' } } }, required: ['name'] } } } }],
  ['names beside', { jsonSchema: { type: 'object', properties: { name: { type: 'integer' } }, additionalProperties: { type: 'boolean' } }, strict: false }],
  ['a long string', { jsonSchema: { type: 'string', minLength: 150, maxLength: 3000 } }],
  ['choices', { choice: ['red', 'redder', 'größe', 'x"y', 'back\\slash', '日本', 'a\nb'] }],
  ['repetitions', { regex: '([a-z]{2,300} ?){3,}!' }],
  ['an expression', { regex: '(a|b|ab)*[^"^]{2,}(\\d+|x{20})*' }],
  ['white space beyond ASCII', { jsonSchema: { type: 'array', items: { type: 'string', pattern: '^\\S{1,3}\\s?$' } }, whitespace: 0 }],
  ['recursion in the middle', { grammar: 'root ::= pair+\npair ::= "(" pair* ")" | "[" pair? "]" | [a-z0-9]' }],
  ['recursion to the right', { grammar: 'root ::= [a-z ] root | "." | "!" end\nend ::= "" | "?" end' }],
  ['ways that meet', { grammar: 'root ::= a b | b a | a a\na ::= "x" | "x" b | ""\nb ::= "y" a? | [xyz]*' }],
  ['a structural tag', { structuralTag: { type: 'tag', begin: '<red>', content: { type: 'json_schema', json_schema: { type: 'array', items: { type: 'boolean' }, maxItems: 4 } }, end: '</red>' } }],
]

describe('an automaton', () => {
  it.each(GRAMMARS)('makes the masks that the library makes: %s', (_, grammar) => {
    expect(compare(checkGrammar(grammar), 7, 12)).toBeGreaterThan(12)
  })

  it('makes the masks that the library makes: random schemas', () => {
    const generator = new SchemaGenerator(seededRandom(11))
    let compared = 0
    for (let i = 0; i < 60; i++) compared += compare(checkGrammar({ jsonSchema: generator.next(), whitespace: i % 3 }), i, 3)
    expect(compared).toBeGreaterThan(1500)
  })

  it('goes on when its tables are forgotten', () => {
    expect(compare(checkGrammar(GRAMMARS[2]![1]), 5, 10, true)).toBeGreaterThan(100)
  })

  it('keeps no states for what repeats, and few for what nests', () => {
    const automaton = automatonOf(checkGrammar({ json: true, whitespace: 0 }))!
    const idsAfter = (text: string): number => {
      let { id } = automaton.start()
      for (const byte of Buffer.from(text)) id = automaton.step(id, automaton.classes[byte]!)
      return id
    }
    expect(idsAfter('{"a":["some text')).toBe(idsAfter('{"a":["some longer text'))
    expect(idsAfter('{"a":[1,2,3,')).toBe(idsAfter('{"b":[1,'))
    expect(idsAfter('{"a":[1,2,3,')).not.toBe(idsAfter('{"b":[[1,'))
  })

  it('takes characters beyond ASCII exactly', () => {
    const automaton = automatonOf(checkGrammar({ grammar: 'root ::= [^a-z\\u00e9\\u65e5-\\u672c]' }))!
    const takes = (bytes: Iterable<number>): boolean => {
      let { id } = automaton.start()
      for (const byte of bytes) if ((id = automaton.step(id, automaton.classes[byte]!)) < 0) return false
      return automaton.state(id).complete
    }
    const left = (code: number): boolean => (code >= 0x61 && code <= 0x7a) || code === 0xe9 || (code >= 0x65e5 && code <= 0x672c)
    for (let code = 0; code <= 0x10ffff; code += code < 0x10000 ? 1 : 97) {
      if (code >= 0xd800 && code <= 0xdfff) continue
      if (takes(Buffer.from(String.fromCodePoint(code))) === left(code)) expect.fail(`U+${code.toString(16)}`)
    }
    for (const bytes of [[0xc0, 0x80], [0xed, 0xa0, 0x80], [0xf4, 0x90, 0x80, 0x80], [0xf5, 0x80, 0x80, 0x80], [0x80], [0xe3, 0x28]]) expect(takes(bytes)).toBe(false)
  })

  it('is not made of what a normal form does not say', () => {
    expect(automatonOf(checkGrammar({ grammar: 'root ::= "a\\x00b"' }))).toBeUndefined()
    expect(automatonOf(checkGrammar({ grammar: 'root ::= [\\^a]' }))).toBeUndefined()
    expect(automatonOf(checkGrammar({ structuralTag: { type: 'tag', begin: '<a>', content: { type: 'any_text' }, end: '</a>' } }))).toBeUndefined()
  })
})

describe('grammars that no automaton follows', () => {
  const LEFT = 'root ::= root "ab" | "x"'
  /** Nests in two ways that tell themselves apart only in the middle: the ways are as many as the outputs. */
  const AMBIGUOUS = 'root ::= "x" | "a" root "b" | "a" root "c"'

  it('are known as such', () => {
    expect(() => automatonOf(checkGrammar({ grammar: LEFT }))!.start()).toThrow(PushdownOverflow)
    const automaton = automatonOf(checkGrammar({ grammar: AMBIGUOUS }))!
    let { id } = automaton.start()
    expect(() => {
      for (let i = 0; i < 40; i++) id = automaton.step(id, automaton.classes[0x61]!)
    }).toThrow(PushdownOverflow)
  })

  it.each([
    ['from the beginning', LEFT, 'xababababababab'],
    ['on the way', AMBIGUOUS, `${'a'.repeat(40)}x${'bc'.repeat(20)}`],
  ])('are followed all the same: %s', async (_, grammar, text) => {
    const engine = new GrammarEngine(() => Promise.resolve(words), { threads: 1 })
    const rest = [...text].map((char) => char.charCodeAt(0) + 1)
    const statuses = await new Promise<MatcherStatus[]>((resolve, reject) => {
      const seen: MatcherStatus[] = []
      engine.open(checkGrammar({ grammar }), {
        onFailure: (__, error) => reject(error),
        onReady: (matcher) => {
          seen.push(matcher.status)
          const token = rest.shift()
          if (token === undefined) return resolve(seen)
          expect(allowedIn(matcher.mask!)).toContain(token)
          matcher.accept(token)
          engine.flush()
        },
      })
    })
    expect(statuses.length).toBe(text.length + 1)
    expect(statuses.at(-1)).toBe(grammar === LEFT ? MatcherStatus.MAY_END : MatcherStatus.ENDS)
    await engine.close()
  })
})
