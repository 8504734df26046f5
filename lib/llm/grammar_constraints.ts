/** Joins the grammar engine, which follows outputs on its threads, and the loop, which runs them. */
import { TensorRTError } from '../errors'
import { GrammarEngine, type GrammarEngineOptions, type GrammarSource, MatcherStatus, type OutputMatcher, readVocabulary } from '../grammar'
import type { TokenConstraint } from '../scheduler'
import type { Tokenizer } from '../text'

/** What the loop does when a mask has come. */
export interface ConstrainedLoop {
  /** The choice goes on. */
  resume(id: number, index: number): void
  /** The output of the choice is complete. */
  complete(id: number, index: number): void
  /** The request fails. */
  fail(id: number, error: TensorRTError): void
}

class GrammarConstraint implements TokenConstraint {
  private readonly words: Int32Array

  /** @param endTokens may be sampled wherever the output is complete */
  constructor(
    private readonly matcher: OutputMatcher,
    private readonly endTokens: readonly ArrayLike<number>[],
    vocabSize: number,
  ) {
    this.words = new Int32Array(Math.ceil(vocabSize / 32))
  }

  get ready(): boolean {
    return this.matcher.ready
  }

  mask(): Int32Array {
    const { words } = this
    // A copy, as an executor cannot be expected to take shared memory.
    words.set(this.matcher.mask!)
    if (this.matcher.status !== MatcherStatus.CONTINUES) {
      for (const tokens of this.endTokens) for (let i = 0; i < tokens.length; i++) words[tokens[i]! >> 5]! |= 1 << (tokens[i]! & 31)
    }
    return words
  }

  accept(token: number): void {
    this.matcher.accept(token)
  }

  close(): void {
    this.matcher.close()
  }
}

export class GrammarConstraints {
  private engine: GrammarEngine | undefined
  private closed = false

  constructor(
    private readonly tokenizer: Tokenizer | undefined,
    private readonly vocabSize: number,
    private readonly options: GrammarEngineOptions,
  ) {}

  /**
   * @param endTokens that end an output of the request
   * @returns what makes the constraint of choice `index` of request `id`
   * @throws ERR_INVALID_ARGUMENT where there is no tokenizer
   */
  forRequest(
    source: GrammarSource,
    id: number,
    endTokens: readonly ArrayLike<number>[],
    loop: ConstrainedLoop,
  ): (index: number) => TokenConstraint {
    if (this.tokenizer === undefined) {
      throw new TensorRTError('ERR_INVALID_ARGUMENT', 'This LLM has no tokenizer, without which no grammar can be followed', {
        hint: 'give one when the LLM is made',
      })
    }
    const engine = this.start(this.tokenizer)
    return (index) => {
      const matcher = engine.open(source, {
        onReady: ({ status }) => {
          // An end that is certain needs no token to say so; so it comes also where those are banned, or there are none.
          if (status === MatcherStatus.ENDS) loop.complete(id, index)
          else loop.resume(id, index)
        },
        onFailure: (_, error) => loop.fail(id, error),
      })
      return new GrammarConstraint(matcher, endTokens, this.vocabSize)
    }
  }

  /** To be called when the tokens of a step have been taken. */
  flush(): void {
    this.engine?.flush()
  }

  async close(): Promise<void> {
    this.closed = true
    await this.engine?.close()
  }

  private start(tokenizer: Tokenizer): GrammarEngine {
    if (this.closed) throw new TensorRTError('ERR_DISPOSED', 'The LLM is closed')
    this.engine ??= new GrammarEngine(() => readVocabulary(tokenizer, this.vocabSize), this.options)
    return this.engine
  }
}
