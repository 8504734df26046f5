import type { TensorRTError } from '../errors'
import { MatcherStatus } from './messages'

export interface MatcherEvents {
  /** The mask that follows the last token is there, or the output ends here. */
  onReady(matcher: OutputMatcher): void
  /** It is closed then. */
  onFailure(matcher: OutputMatcher, error: TensorRTError): void
}

/** What the engine does for a matcher. */
export interface MatcherOwner {
  send(matcher: OutputMatcher, token: number): void
  release(matcher: OutputMatcher): void
}

/**
 * Follows one output under a grammar, on a thread of the engine's. It keeps the tokens, so that another thread can take over
 * when that one is lost.
 */
export class OutputMatcher {
  readonly tokens: number[] = []
  status: MatcherStatus = MatcherStatus.CONTINUES
  /** In shared memory, `ceil(vocabSize / 32)` words. Valid while {@link ready}. */
  mask: Int32Array | undefined
  /** Where its next mask comes from, after a change of the thread. */
  nextMask: Int32Array | undefined
  /** Masks that are under way; only the last of them counts. */
  due = 0
  /** Whether {@link mask} and {@link status} are those after the last token. */
  ready = false
  closed = false

  constructor(
    readonly id: number,
    private readonly owner: MatcherOwner,
    readonly events: MatcherEvents,
  ) {}

  accept(token: number): void {
    this.tokens.push(token)
    this.ready = false
    this.owner.send(this, token)
  }

  /** Frees what the thread keeps. May be called again. */
  close(): void {
    if (this.closed) return
    this.closed = true
    this.owner.release(this)
  }

  /** @returns true when it is ready now */
  arrived(status: MatcherStatus): boolean {
    if (this.closed || --this.due > 0) return false
    if (this.nextMask !== undefined) this.mask = this.nextMask
    this.nextMask = undefined
    this.status = status
    this.ready = true
    return true
  }
}
