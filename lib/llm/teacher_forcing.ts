/** Drives an executor over given tokens, step by step, and hands out what its model makes of each position. */
import { TensorRTError } from '../errors'
import {
  type Executor,
  GREEDY_SAMPLING,
  type SlotSampling,
  STEP_HEADER_INTS,
  STEP_SEQUENCE_INTS,
  STEP_VERSION,
  StepFlag,
  type StepResult,
} from '../scheduler'
import { orAbort, throwIfAborted } from './abort'

/** Nothing is sampled; prompt rows report the log-probability of their token alone. */
const SAMPLING: SlotSampling = { ...GREEDY_SAMPLING, promptLogprobs: 0 }

interface Row {
  slot: number
  tokens: ArrayLike<number>
  /** Positions in the cache before these. */
  cached: number
  flags: number
}

/** What runs teacher-forced sequences. It starts the executor, and owns it: {@link close} closes it. */
export class ForcedRunner {
  private nextStep = 0
  private waiting: ((result: StepResult) => void) | undefined

  constructor(readonly executor: Executor) {
    executor.start((result) => {
      const settle = this.waiting
      this.waiting = undefined
      settle?.(result)
    })
  }

  /** Sequences of `length` positions that run together. */
  capacity(length: number): number {
    const { maxSlots, maxStepTokens, numPages, pageSize } = this.executor.info
    return Math.min(maxSlots, maxStepTokens, Math.floor(numPages / Math.ceil(length / pageSize)))
  }

  /**
   * Runs prompts together: prefill in as few steps as fit, then one row each a step, which decides the next token.
   *
   * @param prompts as many as {@link capacity} allows, none empty
   * @param outputs tokens after each prompt, at least 1; the last of them is not run
   * @throws (as a rejection) ERR_STEP_FAILED and what else ends a step, what the executor's `submit` throws, AbortError
   */
  async run(prompts: readonly Int32Array[], outputs: number, sink: ForcedSink, signal?: AbortSignal): Promise<void> {
    const { executor } = this
    const pagesEach = Math.ceil((Math.max(...prompts.map(({ length }) => length)) + outputs) / executor.info.pageSize)
    let opened = 0
    try {
      for (; opened < prompts.length; opened++) {
        executor.openSlot({ slot: opened, prompt: prompts[opened]!, output: new Int32Array(0), sampling: SAMPLING })
      }
      const next = await this.prefill(prompts, pagesEach, sink, signal)
      for (let index = 1; index < outputs; index++) {
        const rows = prompts.map(({ length }, slot) => {
          return { slot, tokens: [next[slot]!], cached: length + index - 1, flags: StepFlag.LOGITS }
        })
        const { logits } = await this.step(rows, pagesEach, signal)
        for (const { slot } of rows) next[slot] = sink.onLogits(slot, index, this.rowOf(logits, slot))
      }
    } finally {
      for (let slot = 0; slot < opened; slot++) closeSlotQuietly(executor, slot)
    }
  }

  close(): Promise<void> {
    return this.executor.close()
  }

  /** @returns the token that each prompt goes on with */
  private async prefill(
    prompts: readonly Int32Array[],
    pagesEach: number,
    sink: ForcedSink,
    signal: AbortSignal | undefined,
  ): Promise<number[]> {
    const next: number[] = []
    const cached = prompts.map(() => 0)
    while (next.length < prompts.length) {
      let budget = this.executor.info.maxStepTokens
      const rows: Row[] = []
      for (let slot = next.length; slot < prompts.length && budget > 0; slot++) {
        const from = cached[slot]!
        const tokens = prompts[slot]!.subarray(from, from + budget)
        budget -= tokens.length
        cached[slot] = from + tokens.length
        const last = cached[slot] === prompts[slot]!.length
        rows.push({ slot, tokens, cached: from, flags: StepFlag.PROMPT_LOGPROBS | (last ? StepFlag.LOGITS : 0) })
      }
      const { logits, logprobs } = await this.step(rows, pagesEach, signal)
      for (const { sequence, position, logprob } of logprobs) sink.onPrompt(rows[sequence]!.slot, position, logprob)
      const complete = rows.filter(({ flags }) => (flags & StepFlag.LOGITS) !== 0)
      complete.forEach(({ slot }, row) => next.push(sink.onLogits(slot, 0, this.rowOf(logits, row))))
    }
    return next
  }

  private rowOf(logits: Float32Array, row: number): Float32Array {
    const { vocabSize } = this.executor.info
    return logits.subarray(row * vocabSize, (row + 1) * vocabSize)
  }

  private async step(rows: readonly Row[], pagesEach: number, signal: AbortSignal | undefined): Promise<StepResult> {
    throwIfAborted(signal)
    const { pageSize, vocabSize } = this.executor.info
    const pages = rows.map(({ cached, tokens }) => Math.ceil((cached + tokens.length) / pageSize))
    const pageCount = pages.reduce((sum, count) => sum + count, 0)
    const tokenCount = rows.reduce((sum, { tokens }) => sum + tokens.length, 0)
    const stepId = this.nextStep++
    const packed = new Int32Array(STEP_HEADER_INTS + rows.length * STEP_SEQUENCE_INTS + pageCount + tokenCount)
    packed.set([STEP_VERSION, stepId, rows.length, tokenCount, pageCount, 0])
    let at = STEP_HEADER_INTS
    rows.forEach(({ slot, tokens, cached, flags }, i) => {
      packed.set([slot, tokens.length, cached, pages[i]!, flags], at)
      at += STEP_SEQUENCE_INTS
    })
    rows.forEach(({ slot }, i) => {
      for (let page = 0; page < pages[i]!; page++) packed[at++] = slot * pagesEach + page
    })
    for (const { tokens } of rows) {
      packed.set(tokens, at)
      at += tokens.length
    }
    const result = new Promise<StepResult>((resolve) => (this.waiting = resolve))
    this.executor.submit(packed)
    const { error, ...rest } = await orAbort(result, signal, () => {})
    if (error !== undefined) throw new TensorRTError(error.code, error.message)
    const wanted = rows.filter(({ flags }) => (flags & StepFlag.LOGITS) !== 0).length
    if (rest.logits.length !== wanted * vocabSize) {
      throw new TensorRTError('ERR_INTERNAL', `The executor gave ${rest.logits.length} logits, not ${wanted} x ${vocabSize}`)
    }
    return rest
  }
}

/** Takes what a run finds. Arrays are views that may be kept. */
export interface ForcedSink {
  /** @param position of the prompt's token, from 1 */
  onPrompt(sequence: number, position: number, logprob: number): void
  /**
   * @param index tokens that came after the prompt so far
   * @param logits `[vocabSize]`
   * @returns the token to go on with
   */
  onLogits(sequence: number, index: number, logits: Float32Array): number
}

function closeSlotQuietly(executor: Executor, slot: number): void {
  try {
    executor.closeSlot(slot)
  } catch {
    // The executor has ended, and its slots with it.
  }
}
