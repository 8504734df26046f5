import type { FinishReason as SchedulerFinish, LogprobRow } from '../scheduler'
import { Detokenizer, StopMatcher, type StopSet, type Tokenizer } from '../text'
import {
  type FinishReason,
  type GenerationChoice,
  type GenerationChunk,
  type TokenLogprob,
  toTokenLogprob,
} from './result'

export interface ChoiceOptions {
  /** Without a tokenizer there is no text. */
  tokenizer: Tokenizer | undefined
  skipSpecialTokens: boolean
  /** The output continues the prompt's text, instead of starting a text of its own. */
  continuation: boolean
  stops: StopSet
  includeStop: boolean
  minTokens: number
  logprobs: boolean
}

/**
 * One output as it grows: tokens become text, stop strings are found, and what is new since the last {@link take} can
 * be had as one chunk. Nothing is kept per chunk, so a consumer that is slow, or absent, costs no memory beyond the
 * output itself.
 */
export class Choice {
  readonly tokens: number[] = []
  finishReason: FinishReason | undefined
  private stop: string | number | undefined
  private readonly logprobs: TokenLogprob[] = []
  /**
   * Text that was taken, and text that is new. Apart, as slicing one long string for each chunk would copy it each
   * time.
   */
  private takenText = ''
  private newText = ''
  private takenTokens = 0
  private finishTaken = false
  private readonly detokenizer: Detokenizer | undefined
  private readonly matcher: StopMatcher

  constructor(
    readonly index: number,
    private readonly options: ChoiceOptions,
  ) {
    const { tokenizer, skipSpecialTokens, continuation, stops, includeStop } = options
    this.detokenizer =
      tokenizer === undefined ? undefined : new Detokenizer(tokenizer, { skipSpecialTokens, continuation })
    this.matcher = new StopMatcher(stops, { includeStop })
  }

  /**
   * Takes a token.
   * @param finish how the scheduler ended the sequence with this token, if it did
   * @returns true when the output has ended, maybe by a stop string that the scheduler doesn't know of
   */
  push(token: number, logprob: LogprobRow | null, finish: SchedulerFinish | null): boolean {
    this.tokens.push(token)
    if (logprob !== null) this.logprobs.push(toTokenLogprob(logprob))
    if (finish === 'stop') this.stop = token
    const silent = finish === 'stop' && !this.options.includeStop
    if (!silent && this.detokenizer !== undefined) this.addText(this.detokenizer.pushToken(token))
    if (this.matcher.stop === undefined && finish !== null) this.end(finish)
    return this.finishReason !== undefined
  }

  /** Ends an output: what was held back is certain now, unless it completes a stop string. */
  end(finish: SchedulerFinish): void {
    if (this.detokenizer !== undefined) this.addText(this.detokenizer.flush())
    if (this.finishReason !== undefined) return
    this.newText += this.matcher.flush()
    this.finishReason = finish === 'stop' ? 'stop' : 'length'
  }

  /** What is new since the last call; undefined if nothing is. */
  take(): GenerationChunk | undefined {
    const finishes = this.finishReason !== undefined && !this.finishTaken
    if (this.newText === '' && this.takenTokens === this.tokens.length && !finishes) return undefined
    const from = this.takenTokens
    const chunk: GenerationChunk = { index: this.index, text: this.newText, tokens: this.tokens.slice(from) }
    if (this.options.logprobs) chunk.logprobs = this.logprobs.slice(from)
    if (finishes) {
      chunk.finishReason = this.finishReason!
      if (this.stop !== undefined) chunk.stop = this.stop
    }
    this.takenText += this.newText
    this.newText = ''
    this.takenTokens = this.tokens.length
    this.finishTaken = this.finishReason !== undefined
    return chunk
  }

  /** Once it has ended; nothing changes any more. */
  result(): GenerationChoice {
    const { index, tokens, stop } = this
    return {
      index,
      text: this.takenText + this.newText,
      tokens,
      finishReason: this.finishReason ?? 'length',
      ...(stop === undefined ? {} : { stop }),
      ...(this.options.logprobs ? { logprobs: this.logprobs } : {}),
    }
  }

  private addText(text: string): void {
    const matched = this.matcher.push(text, this.tokens.length > this.options.minTokens)
    this.newText += matched.text
    if (matched.stop !== undefined && this.finishReason === undefined) {
      this.stop = matched.stop
      this.finishReason = 'stop'
    }
  }
}
