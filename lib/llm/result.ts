/** What a generation gives: the shapes of chunks and results. */
import type { FinishReason as SchedulerFinish, LogprobRow } from '../scheduler'

/** `stop`: a stop token, end of sequence, or a stop string. `length`: `maxTokens` or the end of the context. */
export type FinishReason = Exclude<SchedulerFinish, 'abort'>

/**
 * Log-probability of one token, natural log, of the model's own distribution: before temperature, penalties and
 * truncation.
 */
export interface TokenLogprob {
  token: number
  logprob: number
  /** 1 = the most probable. */
  rank: number
  /** The most probable tokens there, best first; as many as were asked for. */
  top: { token: number; logprob: number }[]
}

/** A piece of the stream. What arrived while the consumer was busy comes as one chunk. */
export interface GenerationChunk {
  /** Which of the `n` choices. */
  index: number
  /** New text, maybe empty: half a character and what may become a stop string are held back. */
  text: string
  /** New tokens. A token that ended the output is among them. */
  tokens: number[]
  /** One entry per token, where asked for. */
  logprobs?: TokenLogprob[]
  /** On the last chunk of the choice. */
  finishReason?: FinishReason
  /** On the last chunk of the choice: the stop string or stop token that ended the output. */
  stop?: string | number
}

export interface GenerationChoice {
  index: number
  text: string
  tokens: number[]
  finishReason: FinishReason
  /** The stop string or stop token that ended the output. */
  stop?: string | number
  logprobs?: TokenLogprob[]
}

export interface Usage {
  promptTokens: number
  /** Over all choices. A token that ended an output counts. */
  completionTokens: number
  /** Tokens of the prompt whose keys and values came from the prefix cache. */
  cachedTokens: number
}

/** Milliseconds from the call of `generate()`. */
export interface GenerationTimings {
  /** Until the first step of the request was submitted. */
  queueMs: number
  /** Until the first token; the whole time where none was generated. */
  ttftMs: number
  totalMs: number
}

/** `text`, `tokens`, `finishReason`, `stop` and `logprobs` are those of choice 0. */
export interface GenerationResult extends Omit<GenerationChoice, 'index'> {
  choices: GenerationChoice[]
  usage: Usage
  /** One entry per token of the prompt, null for the first, where asked for. */
  promptLogprobs?: (TokenLogprob | null)[]
  /** Seed that the request sampled with, given or random. */
  seed: number
  timings: GenerationTimings
}

export function toTokenLogprob({ token, logprob, rank, topIds, topLogprobs }: LogprobRow): TokenLogprob {
  return { token, logprob, rank, top: Array.from(topIds, (id, i) => ({ token: id, logprob: topLogprobs[i]! })) }
}
