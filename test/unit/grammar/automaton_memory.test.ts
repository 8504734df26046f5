/** What automata really take, after a garbage collection: as much as is counted, and nothing once they are dropped. */
import { setFlagsFromString } from 'node:v8'
import { runInNewContext } from 'node:vm'
import { beforeAll, describe, expect, it } from 'vitest'
import { checkGrammar } from '../../../lib/grammar'
import { AutomatonMasks } from '../../../lib/grammar/automaton_masks'
import { readNetwork } from '../../../lib/grammar/byte_network'
import { AutomatonMatcher } from '../../../lib/grammar/matchers'
import { MatcherStatus, type VocabularyData } from '../../../lib/grammar/messages'
import { Pushdown } from '../../../lib/grammar/pushdown'
import { buildTries } from '../../../lib/grammar/token_trie'
import { loadXGrammar, type XGrammar } from '../../../lib/grammar/xgrammar'

const MIB = 2 ** 20
const LETTERS = 'abcdefghijklmnopqrstuvwxyz'

/** One token for each letter. */
const vocabulary: VocabularyData = {
  bytes: new Uint8Array(Buffer.from(LETTERS)),
  offsets: Int32Array.from({ length: LETTERS.length + 1 }, (_, i) => i),
  size: LETTERS.length,
}
const masksOf = (): AutomatonMasks => new AutomatonMasks(buildTries(vocabulary), 1)

let library: XGrammar
let collect: () => void
beforeAll(async () => {
  library = await loadXGrammar(() => {})
  setFlagsFromString('--expose-gc')
  collect = runInNewContext('gc') as () => void
})

function live(): number {
  collect()
  collect()
  const { heapUsed, arrayBuffers } = process.memoryUsage()
  return heapUsed + arrayBuffers
}

function automatonOf(grammar: string): Pushdown {
  const parsed = library.Grammar.FromEBNF(checkGrammar({ grammar }).text, 'root')
  const network = readNetwork(parsed.ToString(), 'root')!
  parsed.delete()
  return new Pushdown(network)
}

describe('automata', () => {
  it('take about what is counted of them', () => {
    const large = `root ::= ${Array.from({ length: 10 }, (_, i) => `([a-c] "${i}"){13000,13000}`).join(' ')}`
    // What reading one leaves behind for the next.
    automatonOf(large)
    const masks = masksOf()
    const before = live()
    const counted = masks.memoryBytes
    for (let i = 0; i < 3; i++) masks.add(automatonOf(large))
    const taken = live() - before
    const claimed = masks.memoryBytes - counted
    expect(claimed).toBeGreaterThan(4 * MIB)
    expect(taken).toBeLessThan(1.3 * claimed + MIB)
    expect(taken).toBeGreaterThan(0.7 * claimed - MIB)
  })

  it('leave nothing behind when they are dropped, masks of states with many places least', () => {
    const masks = masksOf()
    /** Followed for some tokens, and dropped, as a server does with grammars that nobody asks for again. */
    const follow = (name: number): void => {
      const parts = Array.from({ length: 400 }, (_, i) => `p${i}`)
      const rules = parts.map((part, i) => `${part} ::= [a-z]{1,20} "${name}.${i}"`).join('\n')
      const automaton = automatonOf(`root ::= ${parts.join(' | ')}\n${rules}`)
      masks.add(automaton)
      const matcher = new AutomatonMatcher(automaton, masks, (token) => vocabulary.bytes.subarray(token, token + 1), new Int32Array(1))
      for (let i = 0; i < 8; i++) {
        expect(matcher.fill()).toBe(MatcherStatus.CONTINUES)
        expect(matcher.accept(i)).toBe(true)
      }
      masks.remove(automaton)
    }
    for (let i = 0; i < 3; i++) follow(i)
    // What is left behind grows each time; compiled code and the like do not. An automaton has a megabyte.
    const grown = Array.from({ length: 3 }, () => {
      const before = live()
      for (let i = 0; i < 12; i++) follow(i)
      return live() - before
    })
    expect(Math.min(...grown)).toBeLessThan(0.6 * MIB)
  })
})
