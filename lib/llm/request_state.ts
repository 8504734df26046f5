/** What the loop tells of a request: who made it, and who waits for it, is the state's affair. */
import type { FinishReason, LogprobRow } from '../scheduler'

/** What the scheduler knows of a request when it ends. */
export interface RequestFacts {
  cachedTokens: number
  /** Clock reading when the first step of the request was planned. */
  admittedAt: number
}

export interface RequestState {
  addPromptLogprobs(rows: readonly LogprobRow[]): void
  /** @returns true when this choice has ended */
  addToken(index: number, token: number, logprob: LogprobRow | null, finish: FinishReason | null): boolean
  /** A choice ended without a token. */
  addEnd(index: number, finish: FinishReason): void
  /** Hidden states of the prompt, in order: of its last token, or of all, of which some may come with each step. */
  addHidden?(hidden: Float32Array): void
  readonly ended: boolean
  /** Something is new, and the request goes on. */
  deliver(): void
  /** All choices have ended. */
  finish(facts: RequestFacts): void
  fail(error: unknown): void
}
