/** Masks of grammars that run as automata: made once for each state, and kept. */
import { MatcherStatus } from './messages'
import { DEAD, type Pushdown, type PushdownState, UNKNOWN } from './pushdown'
import { type TokenTrie, type TokenTries, PLAIN } from './token_trie'

interface KeptMask {
  readonly automaton: Pushdown
  readonly words: Int32Array
  readonly status: MatcherStatus
}

/** Nodes below one for which it is worth to ask whether all of them are taken. */
const LEAST_BELOW = 4
/** Of masks that a thread keeps, and of one beside its bits; about. */
const MASK_BYTES = 48 * 1024 * 1024
const MASK_HEAD_BYTES = 250
/** Of tables of automata that a thread keeps; what a single mask adds comes on top. */
export const AUTOMATA_BYTES = 128 * 1024 * 1024

export class AutomatonMasks {
  private readonly masks = new Map<PushdownState, KeptMask>()
  private readonly automata = new Set<Pushdown>()
  private readonly maskBytes: number
  private readonly maxMasks: number
  private readonly path: Int32Array
  /** Masks of all tokens of the plain tries. */
  private readonly plain: readonly Int32Array[]

  constructor(
    private readonly tries: TokenTries,
    private readonly words: number,
  ) {
    this.maskBytes = 4 * words + MASK_HEAD_BYTES
    this.maxMasks = Math.max(16, Math.floor(MASK_BYTES / this.maskBytes))
    this.path = new Int32Array(1 + [...tries.plain, tries.rest].reduce((most, { maxDepth }) => Math.max(most, maxDepth), 0))
    this.plain = tries.plain.map(({ tokens }) => {
      const mask = new Int32Array(words)
      allow(mask, tokens, 0, tokens.length)
      return mask
    })
  }

  add(automaton: Pushdown): void {
    this.automata.add(automaton)
  }

  remove(automaton: Pushdown): void {
    this.automata.delete(automaton)
    this.forgetMasks(automaton)
  }

  /** Of the automata and the masks, about. */
  get memoryBytes(): number {
    let sum = this.maskBytes * this.masks.size
    for (const { memoryBytes, networkBytes } of this.automata) sum += memoryBytes + networkBytes
    return sum
  }

  has(state: PushdownState): boolean {
    return this.masks.has(state)
  }

  /**
   * @param state of the automaton's tables as they are now
   * @throws PushdownOverflow
   */
  of(automaton: Pushdown, state: PushdownState): KeptMask {
    let mask = this.masks.get(state)
    if (mask === undefined) mask = this.make(automaton, state)
    else this.masks.delete(state)
    // The one that was used last stands at the end.
    this.masks.set(state, mask)
    if (this.masks.size > this.maxMasks) this.masks.delete(this.masks.keys().next().value!)
    return mask
  }

  /**
   * Keeps tables within bounds: the largest are made anew from what is followed now, and that is little. To be called before each piece
   * of work, as one may add much.
   */
  limit(): void {
    let sum = 0
    for (const { memoryBytes } of this.automata) sum += memoryBytes
    for (let left = this.automata.size; sum > AUTOMATA_BYTES && left > 0; left--) {
      let largest: Pushdown | undefined
      for (const automaton of this.automata) if (largest === undefined || automaton.memoryBytes > largest.memoryBytes) largest = automaton
      sum -= largest!.memoryBytes
      largest!.clear()
      this.forgetMasks(largest!)
      sum += largest!.memoryBytes
    }
  }

  private forgetMasks(automaton: Pushdown): void {
    for (const [state, mask] of this.masks) if (mask.automaton === automaton) this.masks.delete(state)
  }

  private make(automaton: Pushdown, state: PushdownState): KeptMask {
    const { plain, rest } = this.tries
    const words = new Int32Array(this.words)
    automaton.begin()
    let any = this.walk(rest, automaton, state.id, words)
    for (const [i, trie] of plain.entries()) {
      if (trie.tokens.length === 0) continue
      if (automaton.takesAll(state.id, PLAIN, trie.heights[0]!)) {
        any = true
        const all = this.plain[i]!
        for (let word = 0; word < words.length; word++) words[word]! |= all[word]!
      } else if (this.walk(trie, automaton, state.id, words)) {
        any = true
      }
    }
    const status = state.complete ? (any ? MatcherStatus.MAY_END : MatcherStatus.ENDS) : any ? MatcherStatus.CONTINUES : MatcherStatus.STUCK
    return { automaton, words, status }
  }

  /** Adds the tokens of a trie that lead on from a state. @returns whether there are any */
  private walk({ count, bytes, depths, ends, firsts, tokens, sorts, heights }: TokenTrie, automaton: Pushdown, start: number, words: Int32Array): boolean {
    const { path } = this
    const { classes, classCount } = automaton
    // Names of the module, which are not looked up as quickly.
    const [dead, unknown] = [DEAD, UNKNOWN]
    let { next } = automaton
    let any = false
    path[0] = start
    for (let node = 1; node < count; ) {
      const depth = depths[node]!
      const from = path[depth - 1]!
      const byteClass = classes[bytes[node]!]!
      let to = next[from * classCount + byteClass]!
      if (to === unknown) {
        to = automaton.step(from, byteClass)
        next = automaton.next
      }
      const end = ends[node]!
      if (to === dead) {
        node = end
        continue
      }
      if (end - node >= LEAST_BELOW && automaton.takesAll(to, sorts[node]!, heights[node]!)) {
        any = true
        allow(words, tokens, firsts[node]!, firsts[end]!)
        node = end
        next = automaton.next
        continue
      }
      path[depth] = to
      for (let i = firsts[node]!, last = firsts[++node]!; i < last; i++) {
        const token = tokens[i]!
        words[token >> 5]! |= 1 << (token & 31)
        any = true
      }
    }
    return any
  }
}

function allow(words: Int32Array, tokens: Int32Array, from: number, to: number): void {
  for (let i = from; i < to; i++) words[tokens[i]! >> 5]! |= 1 << (tokens[i]! & 31)
}
