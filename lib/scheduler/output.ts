import type { TensorRTError } from '../errors'
import type { LogprobRow } from './executor'
import type { Sequence } from './sequence'

/**
 * How a sequence ended by itself or by its caller: a stop token or stop string, the token limit or the context, an
 * abort.
 */
export type FinishReason = 'stop' | 'length' | 'abort'

/** In {@link SequenceEvents.tokens}: this event brings no token. */
export const NO_TOKEN = -1

/**
 * What happened to sequences, as parallel arrays of `count` entries, at most one entry per sequence. The object belongs
 * to the scheduler and is reused: it is valid until the next call of the method that returned it.
 */
export interface SequenceEvents {
  readonly count: number
  readonly sequences: readonly Sequence[]
  /** The sampled token, or {@link NO_TOKEN}. */
  readonly tokens: readonly number[]
  /** Log-probabilities of the sampled token, where asked for. */
  readonly logprobs: readonly (LogprobRow | null)[]
  /** Rows of the prompt's positions in order, each position reported once in a request's life; null = none now. */
  readonly promptLogprobs: readonly (LogprobRow[] | null)[]
  /** Hidden states of the prompt, where asked for: that of its last token, or of those that this step has computed, one after the other. */
  readonly hidden: readonly (Float32Array | null)[]
  /** Set on the sequence's last event, unless it failed. */
  readonly finish: readonly (FinishReason | null)[]
  /** Set when the sequence failed; this is its last event. */
  readonly errors: readonly (TensorRTError | null)[]
}

export class EventBuffer implements SequenceEvents {
  count = 0
  readonly sequences: Sequence[] = []
  readonly tokens: number[] = []
  readonly logprobs: (LogprobRow | null)[] = []
  readonly promptLogprobs: (LogprobRow[] | null)[] = []
  readonly hidden: (Float32Array | null)[] = []
  readonly finish: (FinishReason | null)[] = []
  readonly errors: (TensorRTError | null)[] = []

  clear(): this {
    this.count = 0
    this.sequences.length = 0
    return this
  }

  push(
    sequence: Sequence,
    token: number,
    logprob: LogprobRow | null,
    promptLogprobs: LogprobRow[] | null,
    finish: FinishReason | null,
    error: TensorRTError | null,
    hidden: Float32Array | null = null,
  ): void {
    const at = this.count++
    this.sequences[at] = sequence
    this.tokens[at] = token
    this.logprobs[at] = logprob
    this.promptLogprobs[at] = promptLogprobs
    this.finish[at] = finish
    this.errors[at] = error
    this.hidden[at] = hidden
  }
}
