/** Drives an Executor step by step, by the packed format of lib/scheduler/executor.ts. */
import { StepFlag } from './target.mjs'

const STEP_VERSION = 1

export const GREEDY = {
  temperature: 0,
  topK: 0,
  topP: 1,
  minP: 0,
  repetitionPenalty: 1,
  presencePenalty: 0,
  frequencyPenalty: 0,
  seed: 0,
  logprobs: -1,
  promptLogprobs: -1,
  minTokens: 0,
  bannedTokens: new Int32Array(0),
}

export class Steps {
  #next = 0
  #waiting = []

  constructor(executor) {
    this.executor = executor
    executor.start((result) => this.#waiting.shift()(result))
  }

  open(slot, prompt, sampling = {}, output = []) {
    const init = { slot, prompt: Int32Array.from(prompt), output: Int32Array.from(output), sampling: { ...GREEDY, ...sampling } }
    this.executor.openSlot(init)
  }

  /** Allows these tokens alone; null = all. */
  mask(slot, tokens) {
    if (tokens === null) return this.executor.setMask(slot, null)
    const words = new Int32Array(Math.ceil(this.executor.info.vocabSize / 32))
    for (const token of tokens) words[token >> 5] |= 1 << (token & 31)
    return this.executor.setMask(slot, words)
  }

  close(slot) {
    this.executor.closeSlot(slot)
  }

  /**
   * @param rows `{ slot, tokens, cached = 0, pages, flags = SAMPLE }`, one per sequence
   * @returns the step's result; rejects when the step failed
   */
  async run(...rows) {
    const pages = rows.flatMap((row) => row.pages)
    const tokens = rows.flatMap((row) => row.tokens)
    const sequences = rows.flatMap(({ slot, tokens: { length }, cached = 0, pages: list, flags = StepFlag.SAMPLE }) => [
      slot,
      length,
      cached,
      list.length,
      flags,
    ])
    const header = [STEP_VERSION, this.#next++, rows.length, tokens.length, pages.length, 0]
    const result = new Promise((resolve) => this.#waiting.push(resolve))
    this.executor.submit(Int32Array.from([...header, ...sequences, ...pages, ...tokens]))
    const { error, ...rest } = await result
    if (error !== undefined) throw new Error(`${error.code}: ${error.message}`)
    return rest
  }
}

/** `count` page ids from `first` on. */
export const pageRange = (count, first = 0) => Array.from({ length: count }, (_, i) => first + i)
