/** What goes between the grammar engine and its threads. */
import type { GrammarSource } from './specification'

export interface VocabularyData {
  /** Bytes of all tokens, one after the other, in shared memory. */
  bytes: Uint8Array
  /** `[size + 1]`: where each token's bytes start. A token without bytes is never allowed. */
  offsets: Int32Array
  /** Tokens of the model; some of the last ones may stand for nothing. */
  size: number
}

export interface GrammarThreadData {
  /** null: the thread only checks whether grammars parse. */
  vocabulary: VocabularyData | null
  /** One number in shared memory: the matcher that the thread is busy with, or 0. Who it belongs to is to blame for what happens then. */
  busyWith: Int32Array
}

export interface OpenMatcher {
  matcher: number
  /** In shared memory, a bit per token of the model. Written before `masks` says so, and not after, until the next token. */
  mask: Int32Array
  /** What the output has already. */
  tokens: Int32Array
}

export type GrammarRequest =
  | { kind: 'parse'; id: number; source: GrammarSource }
  /** `byLibrary`: the library's own parser is to follow it. */
  | { kind: 'compile'; id: number; source: GrammarSource; byLibrary: boolean }
  | { kind: 'drop'; id: number }
  | { kind: 'open'; id: number; matchers: OpenMatcher[] }
  /** Pairs of a matcher and its next token. */
  | { kind: 'accept'; entries: Int32Array }
  | { kind: 'close'; matchers: Int32Array }

export type GrammarAnswer =
  | { kind: 'ready' }
  | { kind: 'done'; id: number; memoryBytes: number }
  /** The grammar is at fault. The thread is of no use any more: the library does not survive its errors. */
  | { kind: 'failed'; id: number; message: string }
  /** Pairs of a matcher and a {@link MatcherStatus}. */
  | { kind: 'masks'; entries: Int32Array }

export const MatcherStatus = {
  /** The mask says what may come; the output is not complete. */
  CONTINUES: 0,
  /** The output is complete, and may go on as the mask says. */
  MAY_END: 1,
  /** The output is complete, and nothing may come. */
  ENDS: 2,
  /** The output is not complete, and no token leads on. */
  STUCK: 3,
  /** The last token was not allowed. */
  REFUSED: 4,
  /** The grammar has proved to be one that only the library's own parser can follow. */
  UNFIT: 5,
} as const

export type MatcherStatus = (typeof MatcherStatus)[keyof typeof MatcherStatus]
