/** Two ways to follow an output: by an automaton that is built on the way, and by the grammar library's own parser. */
import type { AutomatonMasks } from './automaton_masks'
import { MatcherStatus } from './messages'
import { DEAD, type Pushdown, type PushdownState } from './pushdown'
import type { CompiledGrammar, GrammarMatcher, XGrammar } from './xgrammar'

export interface Matcher {
  /** @returns false where the token is not allowed @throws PushdownOverflow */
  accept(token: number): boolean
  /** Whether {@link fill} takes no time. */
  readonly quick: boolean
  /** Writes the mask of what may come. @throws PushdownOverflow */
  fill(): MatcherStatus
  delete(): void
}

/** Bytes of a token. */
export type TokenBytes = (token: number) => Uint8Array

export class AutomatonMatcher implements Matcher {
  private state: PushdownState
  /** What {@link mask} is the mask of. */
  private filled: PushdownState | undefined
  private status: MatcherStatus = MatcherStatus.CONTINUES

  constructor(
    private readonly automaton: Pushdown,
    private readonly masks: AutomatonMasks,
    private readonly tokenBytes: TokenBytes,
    private readonly mask: Int32Array,
  ) {
    automaton.begin()
    this.state = automaton.start()
  }

  get quick(): boolean {
    return this.masks.has(this.state)
  }

  accept(token: number): boolean {
    const { automaton } = this
    const bytes = this.tokenBytes(token)
    if (bytes.length === 0) return false
    this.masks.limit()
    automaton.begin()
    let { id } = automaton.current(this.state)
    for (const byte of bytes) {
      id = automaton.step(id, automaton.classes[byte]!)
      if (id === DEAD) return false
    }
    this.state = automaton.state(id)
    return true
  }

  fill(): MatcherStatus {
    if (!this.quick) {
      this.masks.limit()
      this.automaton.begin()
    }
    this.state = this.automaton.current(this.state)
    if (this.state !== this.filled) {
      const { words, status } = this.masks.of(this.automaton, this.state)
      this.mask.set(words)
      this.filled = this.state
      this.status = status
    }
    return this.status
  }

  delete(): void {
    // Nothing is held.
  }
}

export class LibraryMatcher implements Matcher {
  readonly quick = false
  private readonly handle: GrammarMatcher

  constructor(
    private readonly library: XGrammar,
    grammar: CompiledGrammar,
    private readonly mask: Int32Array,
    private readonly size: number,
  ) {
    this.handle = new library.GrammarMatcher(grammar, undefined, false, -1)
  }

  accept(token: number): boolean {
    return this.handle.AcceptToken(token, false)
  }

  fill(): MatcherStatus {
    const { library, mask, size } = this
    const vector = this.handle.GetNextTokenBitmask(size + 1)
    const words = library.vecIntToView(vector)
    const complete = (words[size >> 5]! & (1 << (size & 31))) !== 0
    words[size >> 5]! &= ~(1 << (size & 31))
    let any = 0
    for (let i = 0; i < mask.length; i++) any |= words[i]!
    mask.set(words.subarray(0, mask.length))
    vector.delete()
    if (any === 0) return complete ? MatcherStatus.ENDS : MatcherStatus.STUCK
    return complete ? MatcherStatus.MAY_END : MatcherStatus.CONTINUES
  }

  delete(): void {
    this.handle.delete()
  }
}
