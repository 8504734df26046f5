/** Times steps of an executor, submitted one behind the other as the scheduler does. */
const STEP_VERSION = 1
const SAMPLE = 1
const LAST_SAMPLED_TOKEN = -1
const PAGE = 16
const GREEDY = {
  temperature: 0, topK: 0, topP: 1, minP: 0, repetitionPenalty: 1, presencePenalty: 0, frequencyPenalty: 0, seed: 0, logprobs: -1,
  promptLogprobs: -1, minTokens: 0, bannedTokens: new Int32Array(0),
}

export class StepTimer {
  #executor
  #next = 0
  #waiting = []

  constructor(executor) {
    this.#executor = executor
    executor.start((result) => this.#waiting.shift()(result))
  }

  /** @param rows `{ slot, tokens, cached, pages }`. @returns a promise of when the result came, in milliseconds */
  async submit(rows) {
    const pages = rows.flatMap((row) => row.pages)
    const tokens = rows.flatMap((row) => row.tokens)
    const sequences = rows.flatMap(({ slot, tokens: { length }, cached, pages: list }) => [slot, length, cached, list.length, SAMPLE])
    const header = [STEP_VERSION, this.#next++, rows.length, tokens.length, pages.length, 0]
    const result = new Promise((resolve) => this.#waiting.push(resolve))
    this.#executor.submit(Int32Array.from([...header, ...sequences, ...pages, ...tokens]))
    const { error } = await result
    if (error !== undefined) throw new Error(`${error.code}: ${error.message}`)
    return performance.now()
  }

  /** Milliseconds from step to step with two in flight, without the first ones. */
  async #time(count, rowsOf, warmup = 4) {
    const times = []
    let behind
    for (let i = 0; i < count + warmup; i++) {
      const ahead = this.submit(rowsOf(i))
      if (behind !== undefined) times.push(await behind)
      behind = ahead
    }
    times.push(await behind)
    return Number(((times.at(-1) - times[warmup]) / (times.length - 1 - warmup)).toPrecision(4))
  }

  /** A greedy slot. */
  open(slot, prompt) {
    this.#executor.openSlot({ slot, prompt: Int32Array.from(prompt), output: new Int32Array(0), sampling: GREEDY })
  }

  close(slot) {
    this.#executor.closeSlot(slot)
  }

  /** Milliseconds of a decode step of `rows` sequences, each with `context` tokens of its own, and a few more. */
  async decode(rows, context, makePrompt, count = 24) {
    const perSequence = Math.ceil((context + count + 8) / PAGE)
    const slots = Array.from({ length: rows }, (_, slot) => slot)
    const pages = slots.map((slot) => Array.from({ length: perSequence }, (_, i) => slot * perSequence + i))
    for (const slot of slots) {
      const tokens = makePrompt(context)
      this.open(slot, tokens)
      await this.submit([{ slot, tokens, cached: 0, pages: pages[slot] }])
    }
    const step = (i) => slots.map((slot) => ({ slot, tokens: [LAST_SAMPLED_TOKEN], cached: context + i, pages: pages[slot] }))
    const ms = await this.#time(count, step)
    for (const slot of slots) this.close(slot)
    return ms
  }

  /** Milliseconds of a step that runs a prompt and samples a token. */
  async prefill(tokens, count = 10) {
    this.open(0, tokens)
    const pages = Array.from({ length: Math.ceil(tokens.length / PAGE) }, (_, i) => i)
    const ms = await this.#time(count, () => [{ slot: 0, tokens, cached: 0, pages }])
    this.close(0)
    return ms
  }
}
