import { AbortError, TensorRTError } from '../errors'
import { followSignal, invalidArgument } from '../runtime'
import type { FinishReason as SchedulerFinish, LogprobRow } from '../scheduler'
import { Choice, type ChoiceOptions } from './choice'
import type { RequestFacts, RequestState } from './request_state'
import { type GenerationChunk, type GenerationResult, type TokenLogprob, toTokenLogprob } from './result'

interface Waiter {
  resolve(result: IteratorResult<GenerationChunk, undefined>): void
  reject(error: unknown): void
}

/**
 * Takes chunks as they come, in the turn in which their step's result did. What it throws ends the request.
 * @returns undefined, or a promise of the moment when it takes more: what comes until then is put together
 */
export type OnChunk = (chunk: GenerationChunk) => Promise<void> | undefined

/** A consumer that is called, in place of one that asks. */
interface Listener {
  onChunk: OnChunk
  blocked: boolean
  resolve(result: GenerationResult): void
  reject(error: unknown): void
}

/** What a generation is made of once its request has been accepted. */
export interface GenerationPlan {
  n: number
  choice: ChoiceOptions
  promptTokens: number
  promptLogprobs: boolean
  seed: number
}

/** The inside of a {@link Generation}: takes events from the loop, and hands chunks to one consumer. */
export class GenerationState implements RequestState {
  private plan: GenerationPlan | undefined
  private choices: Choice[] = []
  private unfinished = 0
  private promptLogprobs: (TokenLogprob | null)[] = []
  /** Choices with something new, in the order in which they got it. */
  private readonly fresh = new Set<Choice>()
  private readonly waiters: Waiter[] = []
  private listener: Listener | undefined
  private firstTokenAt = 0
  private outcome: { result: GenerationResult } | { error: unknown } | undefined
  private errorDelivered = false
  private consumed = false
  private resultPromise: Promise<GenerationResult> | undefined
  private settleResult: { resolve(result: GenerationResult): void; reject(error: unknown): void } | undefined
  private onSettled: (() => void) | undefined
  private cancel: (() => void) | undefined

  constructor(
    private readonly now: () => number,
    readonly startedAt = now(),
  ) {}

  get settled(): boolean {
    return this.outcome !== undefined
  }

  /** The prompt is not encoded yet. @param cancel ends that; called at most once */
  prepare(cancel: () => void): void {
    this.cancel = cancel
  }

  /** @param cancel ends the request at the scheduler; called at most once */
  begin(plan: GenerationPlan, cancel: () => void): void {
    this.plan = plan
    this.cancel = cancel
    this.unfinished = plan.n
    this.choices = Array.from({ length: plan.n }, (_, index) => new Choice(index, plan.choice))
    if (plan.promptLogprobs) this.promptLogprobs.push(null)
  }

  /** Ties the request to a signal until it settles. */
  follow(signal: AbortSignal): void {
    this.onSettled = followSignal(signal, () => this.abort(new AbortError(signal.reason)))
  }

  addPromptLogprobs(rows: readonly LogprobRow[]): void {
    for (const row of rows) this.promptLogprobs.push(toTokenLogprob(row))
  }

  /** @returns true when this choice has ended */
  addToken(index: number, token: number, logprob: LogprobRow | null, finish: SchedulerFinish | null): boolean {
    const choice = this.choices[index]!
    if (choice.finishReason !== undefined || this.settled) return true
    if (this.firstTokenAt === 0) this.firstTokenAt = this.now()
    const ended = choice.push(token, logprob, finish)
    if (ended) this.unfinished--
    this.fresh.add(choice)
    return ended
  }

  /** A choice ended without a token. */
  addEnd(index: number, finish: SchedulerFinish): void {
    const choice = this.choices[index]!
    if (choice.finishReason !== undefined || this.settled) return
    choice.end(finish)
    this.unfinished--
    this.fresh.add(choice)
  }

  get ended(): boolean {
    return this.unfinished === 0
  }

  /** Hands what is new to a consumer that waits. */
  deliver(): void {
    if (this.listener !== undefined) this.call(this.listener)
    while (this.waiters.length > 0) {
      const chunk = this.takeChunk()
      if (chunk === undefined) return
      this.waiters.shift()!.resolve({ value: chunk, done: false })
    }
  }

  /** All choices have ended. */
  finish(facts: RequestFacts): void {
    if (this.settled || this.plan === undefined) return
    const { plan } = this
    const endedAt = this.now()
    const choices = this.choices.map((choice) => choice.result())
    const { text, tokens, finishReason, stop, logprobs } = choices[0]!
    const completionTokens = choices.reduce((sum, choice) => sum + choice.tokens.length, 0)
    const result: GenerationResult = {
      text,
      tokens,
      finishReason,
      choices,
      usage: { promptTokens: plan.promptTokens, completionTokens, cachedTokens: facts.cachedTokens },
      seed: plan.seed,
      timings: {
        queueMs: facts.admittedAt - this.startedAt,
        ttftMs: (this.firstTokenAt === 0 ? endedAt : this.firstTokenAt) - this.startedAt,
        totalMs: endedAt - this.startedAt,
      },
    }
    if (stop !== undefined) result.stop = stop
    if (logprobs !== undefined) result.logprobs = logprobs
    if (plan.promptLogprobs) result.promptLogprobs = this.promptLogprobs
    this.outcome = { result }
    this.onSettled?.()
    this.settleResult?.resolve(result)
    this.deliver()
    this.releaseWaiters()
  }

  /** The request failed. Chunks that were ready are still delivered, then the error. */
  fail(error: unknown): void {
    if (this.settled) return
    this.outcome = { error }
    this.onSettled?.()
    this.settleResult?.reject(error)
    this.deliver()
    this.releaseWaiters()
  }

  /** The caller wants no more of it: the request ends at the scheduler, and nothing is delivered any more. */
  abort(error: AbortError): void {
    if (this.settled) return
    this.fresh.clear()
    this.fail(error)
    this.cancel?.()
  }

  result(): Promise<GenerationResult> {
    if (this.resultPromise === undefined) {
      this.resultPromise = new Promise((resolve, reject) => {
        if (this.outcome === undefined) this.settleResult = { resolve, reject }
        else if ('result' in this.outcome) resolve(this.outcome.result)
        else reject(this.outcome.error)
      })
      // The caller may have left it for the loop over the chunks to report the failure.
      this.resultPromise.catch(() => {})
    }
    return this.resultPromise
  }

  /** @throws ERR_STREAM_CONSUMED */
  iterate(): AsyncIterableIterator<GenerationChunk> {
    if (this.consumed) throw consumedBefore()
    this.consumed = true
    const iterator: AsyncIterableIterator<GenerationChunk> = {
      next: () => this.next(),
      return: () => {
        // The consumer knows: calls of next() that still wait are done, and no failures that nobody may listen to.
        this.errorDelivered = true
        this.abort(new AbortError(undefined, 'The consumer left the stream'))
        return Promise.resolve({ value: undefined, done: true })
      },
      [Symbol.asyncIterator]: () => iterator,
    }
    return iterator
  }

  /**
   * The same as {@link iterate}, without a promise for each chunk.
   * @returns the whole, once all chunks were taken
   * @throws (as a rejection) what `onChunk` throws, and what the generation fails with
   */
  consume(onChunk: OnChunk): Promise<GenerationResult> {
    if (this.consumed) return Promise.reject(consumedBefore())
    this.consumed = true
    return new Promise((resolve, reject) => {
      this.listener = { onChunk, blocked: false, resolve, reject }
      this.call(this.listener)
    })
  }

  private call(listener: Listener): void {
    try {
      for (let chunk; !listener.blocked && (chunk = this.takeChunk()) !== undefined; ) {
        const taken = listener.onChunk(chunk)
        if (taken === undefined) continue
        listener.blocked = true
        taken.then(
          () => this.resume(listener),
          (error: unknown) => this.leave(listener, error),
        )
      }
    } catch (error) {
      this.leave(listener, error)
    }
    if (this.outcome === undefined || this.listener !== listener) return
    // Chunks that are ready come before a failure; where there are none, a consumer that is blocked hears of it at once.
    if ('error' in this.outcome) {
      if (listener.blocked && this.fresh.size > 0) return
      this.listener = undefined
      this.errorDelivered = true
      listener.reject(this.outcome.error)
    } else if (!listener.blocked) {
      this.listener = undefined
      listener.resolve(this.outcome.result)
    }
  }

  private resume(listener: Listener): void {
    listener.blocked = false
    if (this.listener === listener) this.call(listener)
  }

  /** The consumer failed. */
  private leave(listener: Listener, error: unknown): void {
    if (this.listener !== listener) return
    this.listener = undefined
    this.errorDelivered = true
    listener.reject(error)
    this.abort(new AbortError(undefined, 'The consumer left the stream'))
  }

  private next(): Promise<IteratorResult<GenerationChunk, undefined>> {
    const chunk = this.waiters.length === 0 ? this.takeChunk() : undefined
    if (chunk !== undefined) return Promise.resolve({ value: chunk, done: false })
    return new Promise((resolve, reject) => {
      this.waiters.push({ resolve, reject })
      if (this.outcome !== undefined) this.releaseWaiters()
    })
  }

  private takeChunk(): GenerationChunk | undefined {
    for (const choice of this.fresh) {
      this.fresh.delete(choice)
      const chunk = choice.take()
      if (chunk !== undefined) return chunk
    }
    return undefined
  }

  /** After the end: the error goes to one consumer's call, all others are told that it is over. */
  private releaseWaiters(): void {
    for (const waiter of this.waiters.splice(0)) {
      if (this.outcome !== undefined && 'error' in this.outcome && !this.errorDelivered) {
        this.errorDelivered = true
        waiter.reject(this.outcome.error)
      } else {
        waiter.resolve({ value: undefined, done: true })
      }
    }
  }
}

function consumedBefore(): TensorRTError {
  return new TensorRTError('ERR_STREAM_CONSUMED', 'The chunks of a generation can be iterated over once', {
    hint: 'result() can be awaited any number of times',
  })
}

/**
 * A request under way. It runs whether or not anyone listens.
 *
 * Iterate over it for chunks, once, or await {@link result}, or both in any order. Leaving the loop early (`break`,
 * `return`, an exception) aborts the request. A failure is thrown to the loop and to everyone who awaits the result;
 * where nobody does, it causes no unhandled rejection.
 */
export interface Generation extends AsyncIterable<GenerationChunk> {
  /** @throws ERR_STREAM_CONSUMED on the second call */
  [Symbol.asyncIterator](): AsyncIterator<GenerationChunk, undefined>

  /**
   * The whole output. May be called before, during and after the iteration, and any number of times.
   *
   * @throws (as a rejection) for what `generate()` was given: ERR_INVALID_ARGUMENT, ERR_INVALID_TOKEN,
   * ERR_CHAT_TEMPLATE, ERR_PROMPT_TOO_LONG, ERR_REQUEST_TOO_LARGE; for what became of the request: ERR_QUEUE_FULL,
   * ERR_DEADLINE_EXCEEDED, ERR_TIMEOUT, ERR_STEP_FAILED, ERR_BACKEND_DEAD, ERR_DISPOSED; AbortError after an abort,
   * with the signal's reason as its cause
   */
  result(): Promise<GenerationResult>
}

/** What callers get to see of a {@link GenerationState}. */
export class GenerationHandle implements Generation {
  readonly #state: GenerationState

  constructor(state: GenerationState) {
    this.#state = state
  }

  static consume(generation: Generation, onChunk: OnChunk): Promise<GenerationResult> {
    if (!(#state in generation)) throw invalidArgument('generation', 'what generate() returns', generation)
    return generation.#state.consume(onChunk)
  }

  static abort(generation: Generation, reason: unknown): void {
    if (!(#state in generation)) throw invalidArgument('generation', 'what generate() returns', generation)
    generation.#state.abort(new AbortError(reason))
  }

  [Symbol.asyncIterator](): AsyncIterator<GenerationChunk, undefined> {
    return this.#state.iterate()
  }

  result(): Promise<GenerationResult> {
    return this.#state.result()
  }
}

/**
 * Has `onChunk` called with each chunk: for a server, where a promise per token and stream adds up.
 * @internal
 * @throws ERR_INVALID_ARGUMENT; (as a rejection) ERR_STREAM_CONSUMED, what `onChunk` throws, and what {@link Generation.result} does
 */
export function consumeChunks(generation: Generation, onChunk: OnChunk): Promise<GenerationResult> {
  return GenerationHandle.consume(generation, onChunk)
}

/**
 * Ends a generation as the abort of its signal would, without a signal: for a server, which needs one for nothing else.
 * @internal
 * @param reason the cause of the AbortError
 * @throws ERR_INVALID_ARGUMENT
 */
export function abortGeneration(generation: Generation, reason: unknown): void {
  GenerationHandle.abort(generation, reason)
}
