/**
 * What every {@link Executor} owes the scheduler, as tests. Run it against an executor of your own:
 *
 * ```ts
 * describeExecutor('mine', () => new MyExecutor({ numPages: 64, maxSlots: 4, maxStepTokens: 64 }))
 * ```
 *
 * The factory is called once per test; the suite starts what it makes and closes it. It needs at least 4 slots, 32
 * pages, 32 positions (and 8 more than a page has), 32 tokens per step (the same) and a vocabulary of 16. What an executor may
 * lack (`setMask`, hidden states) is tested where it is there.
 */
import { afterEach, describe, expect, it } from 'vitest'
import { TensorRTError } from '../../lib/errors'
import {
  type Executor,
  GREEDY_SAMPLING,
  LAST_SAMPLED_TOKEN,
  type LogitBias,
  maskWords,
  type SlotSampling,
  STEP_HEADER_INTS,
  STEP_SEQUENCE_INTS,
  STEP_VERSION,
  StepFlag,
  type StepResult,
} from '../../lib/scheduler'

const { SAMPLE, PROMPT_LOGPROBS, LOGITS, HIDDEN, HIDDEN_ROWS } = StepFlag

interface Row {
  slot: number
  tokens: number[]
  cached?: number
  pages: number[]
  flags?: number
}

/** Packs by the contract's table, on its own: the suite trusts no other code with it. */
function pack(stepId: number, rows: Row[]): Int32Array {
  const pages = rows.flatMap((row) => row.pages)
  const tokens = rows.flatMap((row) => row.tokens)
  const sequences = rows.flatMap(({ slot, tokens: { length }, cached = 0, pages: list, flags = SAMPLE }) => [
    slot,
    length,
    cached,
    list.length,
    flags,
  ])
  return Int32Array.from([
    STEP_VERSION,
    stepId,
    rows.length,
    tokens.length,
    pages.length,
    0,
    ...sequences,
    ...pages,
    ...tokens,
  ])
}

class Rig {
  readonly results: StepResult[] = []
  insideSubmit = false
  synchronousResults = 0
  private nextStep = 0
  private taken = 0
  private wake: () => void = () => undefined

  constructor(readonly executor: Executor) {
    executor.start((result) => {
      if (this.insideSubmit) this.synchronousResults++
      this.results.push(result)
      this.wake()
    })
  }

  get pageSize(): number {
    return this.executor.info.pageSize
  }

  /** `count` tokens of a prompt; equal for equal seeds. */
  prompt(count: number, seed = 1): number[] {
    const { vocabSize } = this.executor.info
    return Array.from({ length: count }, (_, i) => (Math.imul(i + 7 * seed, 2654435761) >>> 7) % vocabSize)
  }

  /** Enough pages for `tokens`, from page `first` on. */
  pages(tokens: number, first = 0): number[] {
    return Array.from({ length: Math.ceil(tokens / this.pageSize) }, (_, i) => first + i)
  }

  open(slot: number, prompt: number[], sampling: Partial<SlotSampling> = {}, output: number[] = []): void {
    this.executor.openSlot({
      slot,
      sampling: { ...GREEDY_SAMPLING, ...sampling },
      prompt: Int32Array.from(prompt),
      output: Int32Array.from(output),
    })
  }

  /** Allows these tokens alone; null = all. */
  mask(slot: number, tokens: readonly number[] | null): void {
    const words = new Int32Array(maskWords(this.executor.info.vocabSize))
    for (const token of tokens ?? []) words[token >> 5]! |= 1 << (token & 31)
    this.executor.setMask!(slot, tokens === null ? null : words)
  }

  submit(...rows: Row[]): number {
    const stepId = this.nextStep++
    this.insideSubmit = true
    try {
      this.executor.submit(pack(stepId, rows))
    } finally {
      this.insideSubmit = false
    }
    return stepId
  }

  /** The next result, in order of arrival. */
  async take(): Promise<StepResult> {
    while (this.taken === this.results.length) await new Promise<void>((resolve) => (this.wake = resolve))
    return this.results[this.taken++]!
  }

  async run(...rows: Row[]): Promise<StepResult> {
    this.submit(...rows)
    const result = await this.take()
    expect(result.error).toBeUndefined()
    return result
  }

  /** Runs the prompt and then one row at a time, each step submitted when the one before has come back. */
  async generate(slot: number, prompt: number[], count: number, pages: number[]): Promise<number[]> {
    const output: number[] = []
    let cached = 0
    while (output.length < count) {
      const tokens = output.length === 0 ? prompt : [output.at(-1)!]
      output.push((await this.run({ slot, tokens, cached, pages })).tokens[0]!)
      cached += tokens.length
    }
    return output
  }
}

const bias = (...entries: [number, number][]): LogitBias => ({
  ids: Int32Array.from(entries, ([id]) => id),
  values: Float32Array.from(entries, ([, value]) => value),
})

function cosine(a: Float32Array, b: Float32Array): number {
  const dot = (x: Float32Array, y: Float32Array): number => x.reduce((sum, value, i) => sum + value * y[i]!, 0)
  return dot(a, b) / Math.sqrt(dot(a, a) * dot(b, b))
}

function expectCode(code: string | RegExp, call: () => void): void {
  let thrown: unknown
  try {
    call()
  } catch (error) {
    thrown = error
  }
  expect(thrown).toBeInstanceOf(TensorRTError)
  expect((thrown as TensorRTError).code).toMatch(code)
}

export function describeExecutor(name: string, factory: () => Executor | Promise<Executor>): void {
  describe(`Executor: ${name}`, () => {
    const rigs: Rig[] = []
    const rig = async (): Promise<Rig> => {
      const made = new Rig(await factory())
      rigs.push(made)
      return made
    }
    afterEach(async () => {
      const made = rigs.splice(0)
      await Promise.all(made.map(({ executor }) => executor.close()))
      for (const { synchronousResults } of made) expect(synchronousResults, 'results from within submit()').toBe(0)
    })

    it('describes itself', async () => {
      const { info } = (await rig()).executor
      expect(info.name).not.toBe('')
      expect(info.device).not.toBe('')
      const least = { maxSlots: 4, numPages: 32, maxPositions: 32, maxStepTokens: 32, vocabSize: 16, pageSize: 1 }
      for (const [field, value] of Object.entries(least))
        expect(info[field as keyof typeof least], field).toBeGreaterThanOrEqual(value)
    })

    it('returns one result per step, in order', async () => {
      const r = await rig()
      const prompt = r.prompt(5)
      r.open(0, prompt)
      const pages = r.pages(16)
      r.submit({ slot: 0, tokens: prompt, pages })
      for (let i = 0; i < 8; i++) r.submit({ slot: 0, tokens: [LAST_SAMPLED_TOKEN], cached: 5 + i, pages })
      for (let i = 0; i < 9; i++) {
        const result = await r.take()
        expect(result).toMatchObject({ stepId: i, logprobs: [] })
        expect(result.error).toBeUndefined()
        expect(result.tokens.length).toBe(1)
        expect(result.logits.length).toBe(0)
        expect(result.timings.runUs).toBeGreaterThanOrEqual(0)
      }
      await new Promise((resolve) => setTimeout(resolve, 5))
      expect(r.results.length).toBe(9)
    })

    it('samples only where asked', async () => {
      const r = await rig()
      const prompt = r.prompt(6)
      r.open(0, prompt)
      r.open(1, prompt)
      const result = await r.run(
        { slot: 0, tokens: prompt.slice(0, 3), pages: r.pages(6), flags: 0 },
        { slot: 1, tokens: prompt, pages: r.pages(6, 16) },
      )
      expect(result.tokens.length).toBe(1)
      const next = await r.run({ slot: 0, tokens: prompt.slice(3), cached: 3, pages: r.pages(6) })
      expect(next.tokens).toEqual(result.tokens)
    })

    it('lets LAST_SAMPLED_TOKEN stand for what the slot sampled, before the host knows it', async () => {
      const r = await rig()
      const prompt = r.prompt(5)
      r.open(0, prompt)
      r.open(1, prompt)
      const expected = await r.generate(0, prompt, 8, r.pages(16))
      const pages = r.pages(16, 16)
      r.submit({ slot: 1, tokens: prompt, pages })
      for (let i = 0; i < 7; i++) r.submit({ slot: 1, tokens: [LAST_SAMPLED_TOKEN], cached: 5 + i, pages })
      const ahead: number[] = []
      for (let i = 0; i < 8; i++) ahead.push((await r.take()).tokens[0]!)
      expect(ahead).toEqual(expected)
    })

    it('keeps the last sampled token over steps that the slot sits out', async () => {
      const r = await rig()
      const prompt = r.prompt(5)
      for (const slot of [0, 1, 2]) r.open(slot, slot === 2 ? r.prompt(4, 2) : prompt)
      const [, expected] = await r.generate(0, prompt, 2, r.pages(8))
      r.submit({ slot: 1, tokens: prompt, pages: r.pages(8, 8) })
      r.submit({ slot: 2, tokens: r.prompt(4, 2), pages: r.pages(8, 16) })
      r.submit({ slot: 1, tokens: [LAST_SAMPLED_TOKEN], cached: 5, pages: r.pages(8, 8) })
      await r.take()
      await r.take()
      expect((await r.take()).tokens[0]).toBe(expected)
    })

    it('gives the same output for any cut of the prompt into chunks', async () => {
      const r = await rig()
      const prompt = r.prompt(13)
      for (const slot of [0, 1]) r.open(slot, prompt)
      const expected = await r.generate(0, prompt, 4, r.pages(20))
      // From the far end backwards: pages need not be contiguous, nor in order.
      const pages = r.pages(20).map((_, i) => 31 - i)
      let cached = 0
      for (const length of [1, 4, 2, 5]) {
        await r.run({ slot: 1, tokens: prompt.slice(cached, cached + length), cached, pages, flags: 0 })
        cached += length
      }
      const output = [...(await r.run({ slot: 1, tokens: prompt.slice(cached), cached, pages })).tokens]
      for (let i = 0; i < 3; i++)
        output.push((await r.run({ slot: 1, tokens: [output.at(-1)!], cached: 13 + i, pages })).tokens[0]!)
      expect(output).toEqual(expected)
    })

    it('reads pages that another slot wrote in an earlier step, also if that step still runs', async () => {
      const r = await rig()
      const shared = r.prompt(r.pageSize, 3)
      const prompt = [...shared, ...r.prompt(5, 4)]
      for (const slot of [0, 1, 2]) r.open(slot, prompt)
      const alone = await r.run({ slot: 0, tokens: prompt, pages: r.pages(prompt.length) })
      r.submit({ slot: 1, tokens: shared, pages: [20], flags: 0 })
      r.submit({ slot: 2, tokens: prompt.slice(r.pageSize), cached: r.pageSize, pages: [20, ...r.pages(5, 21)] })
      await r.take()
      expect((await r.take()).tokens).toEqual(alone.tokens)
    })

    it('continues a slot that is reopened with its output, greedy and seeded', async () => {
      const r = await rig()
      const greedy = Array.from({ length: 12 }, () => ({}))
      const seeded = greedy.map((_, i) => ({ temperature: 1, seed: 77 + i }))
      for (const samplings of [greedy, seeded]) {
        let agreeing = 0
        for (const [i, sampling] of samplings.entries()) {
          const prompt = r.prompt(5, i + 1)
          r.open(0, prompt, sampling)
          const expected = await r.generate(0, prompt, 8, r.pages(16))
          r.executor.closeSlot(0)
          r.open(0, prompt, sampling, expected.slice(0, 3))
          const rest = await r.generate(0, [...prompt, ...expected.slice(0, 3)], 5, r.pages(16, 16))
          if (r.executor.info.batchInvariant) expect(rest).toEqual(expected.slice(3))
          if (rest[0] === expected[3]) agreeing++
          r.executor.closeSlot(0)
        }
        // Another batch may move logits a little, so a near tie may fall the other way; a draw with another number would all but never agree.
        expect(agreeing).toBeGreaterThanOrEqual(samplings.length * 0.75)
      }
    })

    it('takes openSlot, closeSlot and submit in the order of the calls', async () => {
      const r = await rig()
      const [a, b] = [r.prompt(5, 1), r.prompt(6, 2)]
      r.open(1, a)
      r.open(2, b)
      const first = await r.run({ slot: 1, tokens: a, pages: r.pages(8) })
      const second = await r.run({ slot: 2, tokens: b, pages: r.pages(8) })
      r.open(0, a)
      r.submit({ slot: 0, tokens: a, pages: r.pages(8, 8) })
      r.executor.closeSlot(0)
      r.open(0, b)
      r.submit({ slot: 0, tokens: b, pages: r.pages(8, 16) })
      r.executor.closeSlot(0)
      expect((await r.take()).tokens).toEqual(first.tokens)
      expect((await r.take()).tokens).toEqual(second.tokens)
    })

    it('samples the same for the same seed, whatever else runs, and differently for others', async () => {
      const r = await rig()
      const prompt = r.prompt(5)
      const texts: string[] = []
      for (const seed of [5, 5, 6, 7, 8]) {
        r.open(0, prompt, { temperature: 1.5, seed })
        if (texts.length === 1) {
          r.open(1, r.prompt(3, 9), { temperature: 1, seed: 1 })
          await r.run({ slot: 1, tokens: r.prompt(3, 9), pages: r.pages(4, 16) })
        }
        texts.push((await r.generate(0, prompt, 8, r.pages(16))).join())
        r.executor.closeSlot(0)
      }
      expect(texts[1]).toBe(texts[0])
      expect(new Set(texts).size).toBeGreaterThan(1)
    })

    it('samples no banned token before minTokens', async () => {
      const r = await rig()
      const prompt = r.prompt(5)
      r.open(0, prompt)
      const [banned] = await r.generate(0, prompt, 1, r.pages(8))
      r.open(1, prompt, { minTokens: 1, bannedTokens: Int32Array.of(banned!) })
      expect(await r.generate(1, prompt, 1, r.pages(8, 8))).not.toEqual([banned])
      // With one token of output the ban is over.
      r.open(2, prompt.slice(0, -1), { minTokens: 1, bannedTokens: Int32Array.of(banned!) }, prompt.slice(-1))
      expect(await r.generate(2, prompt, 1, r.pages(8, 16))).toEqual([banned])
    })

    it('adds the bias to the logits', async () => {
      const r = await rig()
      const { vocabSize } = r.executor.info
      const prompt = r.prompt(5)
      r.open(0, prompt)
      const { logits, tokens } = await r.run({ slot: 0, tokens: prompt, pages: r.pages(8), flags: SAMPLE | LOGITS })
      const [best] = tokens as unknown as [number]
      const order = [...logits.keys()].sort((a, b) => logits[b]! - logits[a]!)
      const other = order[5]!
      const gap = logits[best]! - logits[other]!
      const cases: [Partial<SlotSampling>, number][] = [
        [{ logitBias: bias([other, gap + 0.01]) }, other],
        [{ logitBias: bias([other, gap - 0.01]) }, best],
        [{ logitBias: bias([best, -1e6]) }, order[1]!],
        [{ logitBias: bias([vocabSize - 1, 1e6], [0, -1e6]), temperature: 1 }, vocabSize - 1],
        [{ logitBias: bias() }, best],
        [{ logitBias: bias([best, -100]), minTokens: 1, bannedTokens: Int32Array.of(order[1]!) }, order[2]!],
      ]
      for (const [sampling, expected] of cases) {
        r.open(1, prompt, sampling)
        expect(await r.generate(1, prompt, 1, r.pages(8, 8)), JSON.stringify(sampling)).toEqual([expected])
        r.executor.closeSlot(1)
      }
    })

    it('reports log-probabilities of the model itself, whatever bias and mask say', async () => {
      const r = await rig()
      const prompt = r.prompt(6)
      r.open(0, prompt, { logprobs: 2 })
      r.open(1, prompt, { logprobs: 2, logitBias: bias([3, 1e5]) })
      const rows = [0, 1].map((slot): Row => ({ slot, tokens: prompt, pages: r.pages(8, 8 * slot), flags: SAMPLE | LOGITS }))
      const { logprobs, logits, tokens } = await r.run(...rows)
      const [plain, biased] = logprobs as unknown as [StepResult['logprobs'][0], StepResult['logprobs'][0]]
      expect(tokens[1]).toBe(3)
      expect(biased.token).toBe(3)
      expect([...biased.topIds]).toEqual([...plain.topIds])
      biased.topLogprobs.forEach((value, i) => expect(value).toBeCloseTo(plain.topLogprobs[i]!, 3))
      const logSum = Math.log(logits.subarray(0, logits.length / 2).reduce((sum, logit) => sum + Math.exp(logit), 0))
      expect(biased.logprob).toBeCloseTo(logits[3]! - logSum, 3)
    })

    it('samples under the slot\'s mask, from the next step on, until it changes or the slot closes', async (context) => {
      const r = await rig()
      if (r.executor.setMask === undefined) return context.skip()
      const { vocabSize } = r.executor.info
      const prompt = r.prompt(5)
      r.open(0, prompt)
      const free = await r.generate(0, prompt, 3, r.pages(12))
      r.executor.closeSlot(0)
      const allowed = [vocabSize - 1, 7, 4]
      r.open(0, prompt)
      r.mask(0, allowed)
      r.open(1, prompt)
      const step = { tokens: prompt, flags: SAMPLE | LOGITS }
      const first = await r.run({ slot: 1, pages: r.pages(12, 12), ...step }, { slot: 0, pages: r.pages(12), ...step })
      expect(first.tokens[0]).toBe(free[0])
      const row = first.logits.subarray(vocabSize)
      const best = allowed.reduce((a, b) => (row[b]! > row[a]! ? b : a))
      expect(first.tokens[1]).toBe(best)
      // The mask holds on, and takes effect in order also where no step waits for the one before.
      const at = (cached: number): Row => ({ slot: 0, tokens: [LAST_SAMPLED_TOKEN], cached, pages: r.pages(12) })
      r.submit(at(5))
      r.mask(0, [2])
      r.submit(at(6))
      r.mask(0, null)
      r.submit(at(7))
      expect(allowed).toContain((await r.take()).tokens[0])
      expect((await r.take()).tokens[0]).toBe(2)
      await r.take()
      r.executor.closeSlot(0)
      r.open(0, prompt)
      expect(await r.generate(0, prompt, 3, r.pages(12))).toEqual(free)
      return undefined
    })

    it('draws under a mask as from the distribution of the allowed tokens alone', async (context) => {
      const r = await rig()
      if (r.executor.setMask === undefined) return context.skip()
      const { vocabSize } = r.executor.info
      const prompt = r.prompt(5)
      // One token allowed by each of several words.
      const allowed = [0, 31, 32, 63, vocabSize - 1].filter((token) => token < vocabSize)
      const logitBias = bias(...allowed.map((token): [number, number] => [token, 200]))
      for (let seed = 0; seed < 24; seed++) {
        const sampling = { temperature: 1.5, seed, topK: seed % 3 === 0 ? 4 : 0, topP: seed % 2 === 0 ? 0.8 : 1 }
        r.open(0, prompt, sampling)
        r.mask(0, allowed)
        // Far above the others, the same tokens are as good as the only ones.
        r.open(1, prompt, { ...sampling, logitBias })
        const { tokens } = await r.run(
          { slot: 0, tokens: prompt, pages: r.pages(8) },
          { slot: 1, tokens: prompt, pages: r.pages(8, 8) },
        )
        expect(allowed).toContain(tokens[0])
        if (r.executor.info.batchInvariant) expect(tokens[0]).toBe(tokens[1])
        for (const slot of [0, 1]) r.executor.closeSlot(slot)
      }
      return undefined
    })

    it('takes a mask that is shorter than the vocabulary, and bits beyond it', async (context) => {
      const r = await rig()
      if (r.executor.setMask === undefined) return context.skip()
      const { vocabSize } = r.executor.info
      const prompt = r.prompt(5)
      const words = maskWords(vocabSize)
      r.open(0, prompt)
      for (let seed = 0; seed < 8; seed++) {
        r.open(1, prompt, { temperature: 5, seed })
        const mask = Int32Array.of(0b1010)
        r.executor.setMask(1, mask)
        mask.fill(0)
        expect([1, 3]).toContain((await r.generate(1, prompt, 1, r.pages(8, 8)))[0])
        r.executor.setMask(1, new Int32Array(words).fill(-1))
        expect((await r.generate(1, prompt, 1, r.pages(8, 8)))[0]).toBeLessThan(vocabSize)
        r.executor.closeSlot(1)
      }
      const beyond = new Int32Array(words)
      if (vocabSize % 32 !== 0) beyond[words - 1] = -1 << vocabSize % 32
      for (const bad of [new Int32Array(0), new Int32Array(words), beyond, new Int32Array(words + 1).fill(-1)])
        expectCode('ERR_INVALID_ARGUMENT', () => r.executor.setMask!(0, bad))
      for (const bad of [undefined, 5, [1], new Uint32Array(words).fill(1)] as unknown as Int32Array[])
        expectCode('ERR_INVALID_ARGUMENT', () => r.executor.setMask!(0, bad))
      for (const slot of [1, -1, r.executor.info.maxSlots, 1.5, NaN])
        expectCode('ERR_INVALID_ARGUMENT', () => r.executor.setMask!(slot, null))
      r.open(1, prompt)
      const step = { tokens: prompt }
      const { tokens } = await r.run({ slot: 0, pages: r.pages(8), ...step }, { slot: 1, pages: r.pages(8, 8), ...step })
      expect(tokens[0]).toBe(tokens[1])
      return undefined
    })

    it('lets a mask win over banned tokens', async (context) => {
      const r = await rig()
      if (r.executor.setMask === undefined) return context.skip()
      const prompt = r.prompt(5)
      for (const temperature of [0, 1]) {
        r.open(0, prompt, { minTokens: 4, bannedTokens: Int32Array.of(2, 6), temperature })
        r.mask(0, [2])
        expect(await r.generate(0, prompt, 1, r.pages(8))).toEqual([2])
        r.mask(0, [2, 6, 9])
        expect(await r.generate(0, prompt, 1, r.pages(8))).toEqual([9])
        r.executor.closeSlot(0)
      }
      return undefined
    })

    it('returns hidden states, wherever their row is, and no logits for them', async (context) => {
      const r = await rig()
      const { hiddenSize = 0 } = r.executor.info
      if (hiddenSize === 0) return context.skip()
      const prompts = [r.prompt(5, 1), r.prompt(4, 2), r.prompt(1, 3), r.prompt(8, 4)]
      prompts.forEach((prompt, slot) => r.open(slot, prompt))
      const row = (slot: number, flags: number): Row => ({ slot, tokens: prompts[slot]!, pages: r.pages(8, slot * 8), flags })
      const alone: Float32Array[] = []
      for (const slot of prompts.keys()) {
        const { hidden, tokens, logits } = await r.run(row(slot, HIDDEN))
        expect([hidden!.length, tokens.length, logits.length]).toEqual([hiddenSize, 0, 0])
        expect(hidden!.every(Number.isFinite)).toBe(true)
        expect(hidden!.some((x) => x !== 0)).toBe(true)
        alone.push(hidden!)
      }
      const mixed = await r.run(row(3, HIDDEN), row(0, SAMPLE), row(2, HIDDEN | SAMPLE), row(1, HIDDEN | LOGITS))
      expect(mixed.tokens.length).toBe(2)
      expect(mixed.logits.length).toBe(r.executor.info.vocabSize)
      expect(mixed.hidden!.length).toBe(3 * hiddenSize)
      const exact = r.executor.info.batchInvariant
      ;[3, 2, 1].forEach((slot, i) => {
        const state = mixed.hidden!.subarray(i * hiddenSize, (i + 1) * hiddenSize)
        if (exact) expect(state).toEqual(alone[slot])
        else expect(cosine(state, alone[slot]!)).toBeGreaterThan(0.999)
      })
      expect((await r.run(row(0, 0))).hidden?.length ?? 0).toBe(0)
      return undefined
    })

    it('returns the hidden states of all rows of a step, in order, where it says that it does', async (context) => {
      const r = await rig()
      const { hiddenSize = 0, hiddenRows = false, batchInvariant } = r.executor.info
      if (!hiddenRows) return context.skip()
      const prompt = r.prompt(7, 1)
      const other = r.prompt(3, 2)
      ;[prompt, other].forEach((tokens, slot) => r.open(slot, tokens))
      const pages = r.pages(8)
      const states: Float32Array[] = []
      for (const [cached, token] of prompt.entries()) {
        states.push((await r.run({ slot: 0, tokens: [token], cached, pages, flags: HIDDEN })).hidden!)
      }
      const last: Row = { slot: 1, tokens: other, pages: r.pages(8, 8), flags: HIDDEN | SAMPLE }
      const { hidden, tokens } = await r.run({ slot: 0, tokens: prompt.slice(2), cached: 2, pages, flags: HIDDEN_ROWS }, last)
      expect([hidden!.length, tokens.length]).toEqual([6 * hiddenSize, 1])
      states.slice(2).forEach((expected, i) => {
        const state = hidden!.subarray(i * hiddenSize, (i + 1) * hiddenSize)
        if (batchInvariant) expect(state).toEqual(expected)
        else expect(cosine(state, expected)).toBeGreaterThan(0.999)
      })
      const alone = (await r.run({ ...last, flags: HIDDEN })).hidden!
      expect(cosine(hidden!.subarray(5 * hiddenSize), alone)).toBeGreaterThan(0.999)
      return undefined
    })

    it('refuses the HIDDEN flag where it has no hidden states', async (context) => {
      const r = await rig()
      if ((r.executor.info.hiddenSize ?? 0) > 0) return context.skip()
      r.open(0, r.prompt(4))
      expectCode('ERR_INVALID_ARGUMENT', () => r.submit({ slot: 0, tokens: r.prompt(4), pages: r.pages(8), flags: HIDDEN }))
      return undefined
    })

    it('returns raw logits whose maximum is the greedy token', async () => {
      const r = await rig()
      const { vocabSize } = r.executor.info
      const prompts = [r.prompt(5, 1), r.prompt(4, 2), r.prompt(3, 3)]
      prompts.forEach((prompt, slot) => r.open(slot, prompt))
      const result = await r.run(
        { slot: 0, tokens: prompts[0]!, pages: r.pages(8), flags: SAMPLE | LOGITS },
        { slot: 1, tokens: prompts[1]!, pages: r.pages(8, 8) },
        { slot: 2, tokens: prompts[2]!, pages: r.pages(8, 16), flags: SAMPLE | LOGITS },
      )
      expect(result.logits.length).toBe(2 * vocabSize)
      const argmax = (row: Float32Array): number =>
        row.indexOf(row.reduce((best, value) => Math.max(best, value), -Infinity))
      expect(argmax(result.logits.subarray(0, vocabSize))).toBe(result.tokens[0])
      expect(argmax(result.logits.subarray(vocabSize))).toBe(result.tokens[2])
    })

    it('reports log-probabilities of prompt and output', async () => {
      const r = await rig()
      const prompt = r.prompt(6)
      r.open(0, prompt, { logprobs: 3, promptLogprobs: 0 })
      r.open(1, prompt)
      const flags = SAMPLE | PROMPT_LOGPROBS | LOGITS
      const result = await r.run(
        { slot: 1, tokens: prompt, pages: r.pages(8, 8) },
        { slot: 0, tokens: prompt, pages: r.pages(8), flags },
      )
      expect(result.logprobs.map(({ sequence, position, token }) => [sequence, position, token])).toEqual([
        ...prompt.slice(1).map((token, i) => [1, i + 1, token]),
        [1, 6, result.tokens[1]],
      ])
      for (const row of result.logprobs) {
        expect(row.logprob).toBeLessThanOrEqual(0)
        expect(row.rank).toBeGreaterThanOrEqual(1)
        expect(row.topIds.length).toBe(row.position < 6 ? 0 : 3)
        expect(row.topLogprobs.length).toBe(row.topIds.length)
      }
      const sampled = result.logprobs.at(-1)!
      expect(sampled.rank).toBe(1)
      expect(sampled.topIds[0]).toBe(result.tokens[1])
      expect([...sampled.topLogprobs]).toEqual([...sampled.topLogprobs].sort((a, b) => b - a))
      expect(sampled.topLogprobs[0]).toBeCloseTo(sampled.logprob, 4)
      const logSum = Math.log(result.logits.reduce((sum, logit) => sum + Math.exp(logit), 0))
      expect(sampled.logprob).toBeCloseTo(result.logits[sampled.token]! - logSum, 3)
    })

    it('reports prompt log-probabilities across chunks', async () => {
      const r = await rig()
      const prompt = r.prompt(6)
      r.open(0, prompt, { promptLogprobs: 0 })
      r.open(1, prompt, { promptLogprobs: 0 })
      const whole = await r.run({ slot: 0, tokens: prompt, pages: r.pages(8), flags: SAMPLE | PROMPT_LOGPROBS })
      const pages = r.pages(8, 8)
      const first = await r.run({ slot: 1, tokens: prompt.slice(0, 4), pages, flags: PROMPT_LOGPROBS })
      const second = await r.run({
        slot: 1,
        tokens: prompt.slice(4),
        cached: 4,
        pages,
        flags: SAMPLE | PROMPT_LOGPROBS,
      })
      const chunks = [...first.logprobs, ...second.logprobs]
      expect(chunks.map(({ position, token }) => [position, token])).toEqual(
        whole.logprobs.map(({ position, token }) => [position, token]),
      )
      chunks.forEach((row, i) => expect(row.logprob).toBeCloseTo(whole.logprobs[i]!.logprob, 3))
    })

    it('computes each row independently of its batch, if it claims to', async (context) => {
      const r = await rig()
      if (!r.executor.info.batchInvariant) return context.skip()
      const prompts = [7, 5, 1, 8].map((length, i) => r.prompt(length, i + 1))
      const rows = prompts.map((tokens, slot): Row => ({
        slot,
        tokens,
        pages: r.pages(8, slot * 8),
        flags: SAMPLE | LOGITS,
      }))
      const alone: Float32Array[] = []
      for (const [slot, row] of rows.entries()) {
        r.open(slot, row.tokens)
        alone.push((await r.run(row)).logits)
      }
      const together = await r.run(...rows.toReversed())
      const { vocabSize } = r.executor.info
      alone.forEach((logits, slot) => {
        const at = (rows.length - 1 - slot) * vocabSize
        expect(
          Buffer.from(together.logits.slice(at, at + vocabSize).buffer).equals(Buffer.from(logits.slice().buffer)),
        ).toBe(true)
      })
      return undefined
    })

    it('throws for a malformed step, and changes nothing', async () => {
      const r = await rig()
      const { info } = r.executor
      const prompt = r.prompt(5)
      for (const slot of [0, 1]) r.open(slot, prompt)
      const good = { slot: 0, tokens: prompt, pages: r.pages(8) }
      const ok = pack(0, [good])
      const at = STEP_HEADER_INTS
      const edited = (index: number, value: number): Int32Array => ok.with(index, value) as Int32Array
      const bad: [string, string, Int32Array][] = [
        ['empty', 'ERR_INVALID_ARGUMENT', new Int32Array(0)],
        ['a header only', 'ERR_INVALID_ARGUMENT', ok.slice(0, STEP_HEADER_INTS)],
        ['cut short', 'ERR_INVALID_ARGUMENT', ok.slice(0, -1)],
        ['too long', 'ERR_INVALID_ARGUMENT', Int32Array.from([...ok, 0])],
        ['another version', 'ERR_INVALID_ARGUMENT', edited(0, STEP_VERSION + 1)],
        ['sequences: 0', 'ERR_INVALID_ARGUMENT', edited(2, 0)],
        ['sequences: 2^31 - 1', 'ERR_INVALID_ARGUMENT', edited(2, 2 ** 31 - 1)],
        ['tokens: -1', 'ERR_INVALID_ARGUMENT', edited(3, -1)],
        ['pages: 2^31 - 1', 'ERR_INVALID_ARGUMENT', edited(4, 2 ** 31 - 1)],
        ['a slot that is not open', 'ERR_INVALID_ARGUMENT', edited(at, 2)],
        ['slot -1', 'ERR_INVALID_ARGUMENT', edited(at, -1)],
        ['slot maxSlots', 'ERR_INVALID_ARGUMENT', edited(at, info.maxSlots)],
        ['tokens of a sequence: 0', 'ERR_INVALID_ARGUMENT', edited(at + 1, 0)],
        ['cached: -1', 'ERR_INVALID_ARGUMENT', edited(at + 2, -1)],
        ['cached: 2^31 - 1', 'ERR_INVALID_ARGUMENT', edited(at + 2, 2 ** 31 - 1)],
        ['pages of a sequence: 0', 'ERR_INVALID_ARGUMENT', edited(at + 3, 0)],
        ['unknown flags', 'ERR_INVALID_ARGUMENT', edited(at + 4, 1 << 20)],
        ['page -1', 'ERR_INVALID_ARGUMENT', edited(at + STEP_SEQUENCE_INTS, -1)],
        ['page numPages', 'ERR_INVALID_ARGUMENT', edited(at + STEP_SEQUENCE_INTS, info.numPages)],
        ['token vocabSize', 'ERR_INVALID_TOKEN', edited(ok.length - 1, info.vocabSize)],
        ['token -2', 'ERR_INVALID_TOKEN', edited(ok.length - 1, -2)],
        ['LAST_SAMPLED_TOKEN among others', 'ERR_INVALID_TOKEN', edited(ok.length - 1, LAST_SAMPLED_TOKEN)],
        ['LAST_SAMPLED_TOKEN of a new slot', 'ERR_INVALID_TOKEN', pack(0, [{ ...good, tokens: [LAST_SAMPLED_TOKEN] }])],
        ['a slot twice', 'ERR_INVALID_ARGUMENT', pack(0, [good, { ...good, pages: r.pages(8, 8) }])],
        ['a page that two write', 'ERR_INVALID_ARGUMENT', pack(0, [good, { ...good, slot: 1 }])],
        [
          'a page read and written',
          'ERR_INVALID_ARGUMENT',
          pack(0, [good, { slot: 1, tokens: [1], cached: r.pageSize, pages: [0, 20] }]),
        ],
        ['too few pages', 'ERR_INVALID_ARGUMENT', pack(0, [{ slot: 0, tokens: r.prompt(r.pageSize + 1), pages: [0] }])],
      ]
      for (const [what, code, step] of bad) {
        try {
          expectCode(code, () => r.executor.submit(step))
        } catch (error) {
          throw new Error(`${what}: ${(error as Error).message}`, { cause: error })
        }
      }
      const before = await r.run({ slot: 1, tokens: prompt, pages: r.pages(8, 8) })
      const after = await r.run(good)
      expect(after.tokens).toEqual(before.tokens)
      expect(r.results.length).toBe(2)
    })

    it('throws for a malformed slot, and changes nothing', async () => {
      const r = await rig()
      const { info } = r.executor
      const prompt = r.prompt(4)
      r.open(0, prompt)
      expectCode('ERR_INVALID_ARGUMENT', () => r.open(0, prompt))
      for (const slot of [-1, info.maxSlots, 2 ** 31 - 1])
        expectCode('ERR_INVALID_ARGUMENT', () => r.open(slot, prompt))
      for (const slot of [1, -1, info.maxSlots]) expectCode('ERR_INVALID_ARGUMENT', () => r.executor.closeSlot(slot))
      expectCode('ERR_INVALID_ARGUMENT', () => r.open(1, []))
      expectCode('ERR_INVALID_ARGUMENT', () => r.open(1, r.prompt(info.maxPositions + 1)))
      for (const token of [-1, info.vocabSize]) {
        expectCode('ERR_INVALID_TOKEN', () => r.open(1, [token]))
        expectCode('ERR_INVALID_TOKEN', () => r.open(1, prompt, {}, [token]))
        expectCode('ERR_INVALID_TOKEN', () => r.open(1, prompt, { bannedTokens: Int32Array.of(token) }))
        expectCode('ERR_INVALID_TOKEN', () => r.open(1, prompt, { logitBias: bias([token, 1]) }))
      }
      const bad: Partial<SlotSampling>[] = [
        { temperature: -1 },
        { temperature: NaN },
        { temperature: Infinity },
        { topK: -1 },
        { topP: 0 },
        { topP: 1.5 },
        { topP: NaN },
        { minP: -0.5 },
        { minP: 2 },
        { repetitionPenalty: 0 },
        { repetitionPenalty: NaN },
        { presencePenalty: NaN },
        { frequencyPenalty: Infinity },
        { seed: -1 },
        { seed: 2 ** 53 },
        { logprobs: -2 },
        { promptLogprobs: info.vocabSize + 1 },
        { minTokens: -1 },
        { logitBias: { ids: Int32Array.of(1), values: new Float32Array(2) } },
        { logitBias: bias([1, NaN]) },
        { logitBias: bias([1, Infinity]) },
        { logitBias: bias([1, -1.1e6]) },
        { logitBias: bias([1, 1], [2, 1], [1, 1]) },
        { logitBias: { ids: new Int32Array(1025), values: new Float32Array(1025) } },
        { logitBias: { ids: [1], values: [1] } as unknown as LogitBias },
        { logitBias: null as unknown as LogitBias },
      ]
      for (const sampling of bad) {
        try {
          expectCode('ERR_INVALID_ARGUMENT', () => r.open(1, prompt, sampling))
        } catch (error) {
          throw new Error(`${JSON.stringify(sampling)}: ${(error as Error).message}`, { cause: error })
        }
      }
      r.open(1, prompt)
      const result = await r.run(
        { slot: 0, tokens: prompt, pages: r.pages(4) },
        { slot: 1, tokens: prompt, pages: r.pages(4, 16) },
      )
      expect(result.tokens[0]).toBe(result.tokens[1])
    })

    it('closes with work in flight: every step gets its result first', async () => {
      const r = await rig()
      const prompt = r.prompt(5)
      r.open(0, prompt)
      r.submit({ slot: 0, tokens: prompt, pages: r.pages(12) })
      for (let i = 0; i < 6; i++) r.submit({ slot: 0, tokens: [LAST_SAMPLED_TOKEN], cached: 5 + i, pages: r.pages(12) })
      const closing = [r.executor.close(), r.executor.close()]
      await Promise.all(closing)
      expect(r.results.map((result) => result.stepId)).toEqual([0, 1, 2, 3, 4, 5, 6])
      let failed = false
      for (const result of r.results) {
        if (result.error !== undefined) expect(result.error.code).toBe('ERR_DISPOSED')
        // What was queued behind a step that no longer ran did not run either.
        if (failed) expect(result.error).toBeDefined()
        failed = result.error !== undefined
      }
      expectCode('ERR_DISPOSED', () => r.submit({ slot: 0, tokens: prompt, pages: r.pages(12) }))
      expectCode('ERR_DISPOSED', () => r.open(1, prompt))
      expectCode('ERR_DISPOSED', () => r.executor.closeSlot(0))
      if (r.executor.setMask !== undefined) expectCode('ERR_DISPOSED', () => r.executor.setMask!(0, null))
    })
  })
}
